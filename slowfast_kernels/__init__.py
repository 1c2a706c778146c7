"""Fused kernels for SlowFast video networks behind PyTorch ops.

Start with an op (`slowfast_kernels.ops`), a trainable block (`.nn`), a whole model (`create`), another
library's weights (`load_checkpoint`) or another library's live model (`accelerate`).
"""

from . import _interrupt

_interrupt.quietly()  # before PyTorch is imported

# ruff: noqa: E402
from . import models, nn, ops
from .accelerate import accelerate
from .backends import use_backend
from .freeze import freeze
from .models import create, from_module, load_checkpoint, save_checkpoint

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
