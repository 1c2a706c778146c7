"""Fused kernels for SlowFast video networks behind PyTorch ops.

Start with an op (`slowfast_kernels.ops`), a trainable block (`.nn`), a whole model (`create`), another
library's weights (`load_checkpoint`) or another library's live model (`accelerate`).
"""

from . import _interrupt

_interrupt.quietly()  # before PyTorch is imported

# ruff: noqa: E402
from typing import TYPE_CHECKING, Any

from . import models, nn, ops
from .accelerate import accelerate
from .backends import use_backend
from .freeze import freeze
from .models import create

if TYPE_CHECKING:
    from .models import from_module, load_checkpoint, save_checkpoint

__version__ = "0.1.0"
__all__ = [
    "accelerate",
    "create",
    "freeze",
    "from_module",
    "load_checkpoint",
    "models",
    "nn",
    "ops",
    "save_checkpoint",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """What reads and writes files is imported when it is asked for."""
    if name not in ("from_module", "load_checkpoint", "save_checkpoint"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(models, name)
    return value
