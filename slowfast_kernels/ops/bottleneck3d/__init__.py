from .api import bottleneck3d

__all__ = ["bottleneck3d"]
