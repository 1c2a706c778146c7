"""Trainable building blocks of SlowFast networks, on top of `slowfast_kernels.ops`.

Every block runs on the ops. A batch norm that applies its running statistics (in eval mode, or frozen) is folded into
the scale and the shift of its convolution, and a block is one op; one that takes the batch's is torch's own, behind its
convolution. `spec()` is a block's parameters as its op, and `ops.prepare`, take them.
"""

from slowfast_kernels.nn.block import Block
from slowfast_kernels.nn.bottleneck import BasicBlock, Bottleneck, Stage
from slowfast_kernels.nn.conv import ConvBN, fold_batch_norm
from slowfast_kernels.nn.head import Head, RoIHead
from slowfast_kernels.nn.lateral import Lateral
from slowfast_kernels.nn.stem import Stem

__all__ = [
    "BasicBlock",
    "Block",
    "Bottleneck",
    "ConvBN",
    "Head",
    "Lateral",
    "RoIHead",
    "Stage",
    "Stem",
    "fold_batch_norm",
]
