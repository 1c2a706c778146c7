"""Trainable building blocks of SlowFast networks, on top of `slowfast_kernels.ops`.

In eval mode every block runs on the fused ops with its batch norm folded into a scale and a shift; in
training mode it runs on torch's convolution and batch norm, so batch statistics and their gradients are
torch's own.
"""

from slowfast_kernels.nn.bottleneck import BasicBlock, Bottleneck, Stage
from slowfast_kernels.nn.conv import ConvBN, fold_batch_norm
from slowfast_kernels.nn.head import Head, RoIHead
from slowfast_kernels.nn.lateral import Lateral
from slowfast_kernels.nn.stem import Stem

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ConvBN",
    "Head",
    "Lateral",
    "RoIHead",
    "Stage",
    "Stem",
    "fold_batch_norm",
]
