"""A network as a graph.

``graph``   nodes: ops with their parameters, calls of PyTorch's functions and of modules
``checks``  what a trace passes over
``trace``   a module's `forward`, followed once
``passes``  what a plan may do with it: write a concatenation in place, run chains of blocks, use two streams
"""
