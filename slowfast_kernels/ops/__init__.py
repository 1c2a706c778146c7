"""The ops. One line per op: importing it registers schema, providers, fake, autograd and autocast.

First derivatives and every higher one are right, on any backend; what a kernel does not compute is differentiated
through the op's reference. So are ``torch.func`` and forward-mode derivatives, whose calls run as plain PyTorch.
``torch.utils.flop_counter`` counts the ops. ``torch.fx`` records a call of a public function as a leaf.

A function brings its weights into the kernels' order at every call. ``prepare`` does it once, of an op's parameters as
one value (``ConvSpec``, ``StemSpec``, ``BlockSpec``, ``LateralSpec``), for many calls without gradients.
"""

from ._flops import register_flop_formulas
from ._prepare import prepare
from ._prepared import Prepared
from ._spec import ConvAffine, Pool
from .bottleneck3d import BlockSpec, bottleneck3d
from .conv_bn_act3d import ConvSpec, conv_bn_act3d
from .lateral_fusion import LateralSpec, lateral_fusion
from .pack_pathways import pack_pathways
from .pool_concat_head import pool_concat_head
from .roi_align3d import roi_align3d
from .roi_head_pool import roi_head_pool
from .stem3d import StemSpec, stem3d

#: The public ops.
NAMES = (
    "bottleneck3d",
    "conv_bn_act3d",
    "lateral_fusion",
    "pack_pathways",
    "pool_concat_head",
    "roi_align3d",
    "roi_head_pool",
    "stem3d",
)

__all__ = [
    "BlockSpec",
    "ConvAffine",
    "ConvSpec",
    "LateralSpec",
    "Pool",
    "Prepared",
    "StemSpec",
    "bottleneck3d",
    "conv_bn_act3d",
    "lateral_fusion",
    "pack_pathways",
    "pool_concat_head",
    "prepare",
    "roi_align3d",
    "roi_head_pool",
    "stem3d",
]

register_flop_formulas(NAMES)
