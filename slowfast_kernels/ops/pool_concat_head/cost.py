"""Least work of a ``pool_concat_head`` call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._cases import Cost, bytes_of
from .api import DEFAULTS


def cost(
    slow: torch.Tensor,
    fast: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    pool_size: int | Sequence[int] | None | str = "default",
    semantics: str = "pyslowfast",
    activation: str | None = None,
) -> Cost:
    """An addition per value of the maps and a multiply-add per weight and window; every tensor read once.

    "pytorchvideo" and "mmaction2" average before the activation, so one window's products are enough. The
    activation is not counted.
    """
    window = DEFAULTS[semantics][0] if pool_size == "default" else pool_size
    positions = 1
    if window and semantics == "pyslowfast":
        kh, kw = (window, window) if isinstance(window, int) else (int(k) for k in window)
        positions = (slow.shape[3] - kh + 1) * (slow.shape[4] - kw + 1)
    n, classes = slow.shape[0], weight.shape[0]
    values = slow.numel() + (fast.numel() if fast is not None else 0)
    written = n * classes * max(4, slow.element_size())
    return Cost(values + 2 * n * positions * weight.numel(), bytes_of(slow, fast, weight, bias) + written)
