from .api import stem3d

__all__ = ["stem3d"]
