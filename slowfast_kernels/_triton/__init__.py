"""What the Triton kernels of all ops share.

``ahead``   compiles kernels before they are needed, by several threads
``launch``  starts a kernel, or only notes what it would be compiled for
``aot``     compiles every launch of the real shapes ahead of time, for machines without a GPU
``tiles``   device functions: index maps, epilogues

Imported lazily: nothing here is needed, or loaded, where the ``triton`` provider is not used.
"""
