"""A static model of the GPU half: times of a frozen plan's steps, predicted without a GPU. Nothing is measured.

machine.py   the constants of the GPU, and a launch's time from what it asks of them
cuda.py      what our CUDA kernels ask, a function each; others.py: cuDNN, Triton, passes over memory
trace.py     the launches of a plan, with the tiles and providers that it picks
model.py     steps, chains and the whole; which form of a stage is the fastest
command.py   ``slowfast-kernels bench gpu-predict``, and the documentation's page
beside.py    predictions beside what a GPU run has measured
"""
