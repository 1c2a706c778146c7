from .api import lateral_fusion

__all__ = ["lateral_fusion"]
