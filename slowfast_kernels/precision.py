"""How GPU kernels multiply float32 values."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

#: "ieee": float32 products on the ordinary cores. "tf32": matrix units, operands rounded to 11 bits (relative error
#: about 3e-4). "tf32x3", "bf16x3": three products on the matrix units, nearly as exact as "ieee".
FP32_MODES = ("ieee", "tf32", "tf32x3", "bf16x3")


def _checked(mode: str) -> str:
    if mode not in ("auto", *FP32_MODES):
        raise ValueError(f"expected a float32 mode among {('auto', *FP32_MODES)}, got {mode!r}")
    return mode


_from_start = _checked(os.environ.get("SLOWFAST_FP32", "auto"))
_mode: ContextVar[str] = ContextVar("slowfast_fp32", default=_from_start)


def fp32_mode() -> str:
    """The mode in force: the one asked for, else "tf32" where ``torch.backends.cudnn`` allows it for convolutions
    (``allow_tf32`` or ``conv.fp32_precision``; PyTorch's default), "ieee" where not.
    """
    mode = _mode.get()
    if mode != "auto":
        return mode
    # allow_tf32 cannot be read once somebody chose a precision by operator; this follows both.
    cudnn: Any = torch.backends.cudnn  # torch's annotations do not know all of it
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


@contextlib.contextmanager
def fp32_precision(mode: str) -> Iterator[None]:
    """Multiply float32 values in one of ``FP32_MODES`` (or "auto") inside the block; sums are float32 always.

    Concerns the Triton and CUDA kernels that use matrix units; the CPU kernels are "ieee".
    """
    token = _mode.set(_checked(mode))
    try:
        yield
    finally:
        _mode.reset(token)
