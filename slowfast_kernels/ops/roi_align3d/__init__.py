from .api import roi_align3d

__all__ = ["roi_align3d"]
