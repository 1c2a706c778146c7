from .api import roi_head_pool

__all__ = ["roi_head_pool"]
