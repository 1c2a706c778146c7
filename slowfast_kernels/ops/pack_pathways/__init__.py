from .api import pack_pathways

__all__ = ["pack_pathways"]
