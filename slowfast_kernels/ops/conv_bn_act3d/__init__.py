from .api import conv_bn_act3d
from .spec import ConvSpec

__all__ = ["ConvSpec", "conv_bn_act3d"]
