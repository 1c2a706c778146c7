"""How a frozen model runs.

``plan``     steps over symbolic buffers, their memory layout, and bound instances of a plan
``network``  the walk through a SlowFast-family network, the same for every device
``cpu``      its layers on the C++ CPU kernels
``gpu``      its layers on Triton, CUDA and cuDNN
``graph``    a plan captured in a CUDA graph, the Fast pathway on a stream of its own
"""
