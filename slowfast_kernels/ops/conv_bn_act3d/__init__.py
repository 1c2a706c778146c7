from .api import conv_bn_act3d

__all__ = ["conv_bn_act3d"]
