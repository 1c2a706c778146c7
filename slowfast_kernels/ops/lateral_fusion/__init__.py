from .api import lateral_fusion
from .spec import LateralSpec

__all__ = ["LateralSpec", "lateral_fusion"]
