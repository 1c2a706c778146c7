from .api import stem3d
from .spec import StemSpec

__all__ = ["StemSpec", "stem3d"]
