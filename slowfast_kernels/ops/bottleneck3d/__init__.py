from .api import bottleneck3d
from .spec import BlockSpec

__all__ = ["BlockSpec", "bottleneck3d"]
