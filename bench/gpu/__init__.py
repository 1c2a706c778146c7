"""Measurements on an NVIDIA GPU: correctness, ceilings, ops, parts of the network, the whole model, the targets.

Run by ``bench/gpu.sh``; ``bench/gpu.sh --help`` says what there is. ``python -m slowfast_kernels.bench.gpu`` is
the same where the package is installed.
"""
