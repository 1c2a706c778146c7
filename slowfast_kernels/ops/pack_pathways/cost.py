"""Least work of a ``pack_pathways`` call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .._cases import Cost, bytes_of
from .slow_frames import slow_count


def cost(
    frames: torch.Tensor,
    alpha: int,
    mean: Sequence[float] = (0.45, 0.45, 0.45),
    std: Sequence[float] = (0.225, 0.225, 0.225),
    dtype: torch.dtype = torch.float32,
    *,
    slow_index: str | torch.Tensor | None = None,
    fast_input: str = "rgb",
    reverse_channels: bool = False,
) -> Cost:
    """A multiply-add per value of the clips (plus the luma's three per gray pixel); every frame read once."""
    *clips, t, h, w, _ = frames.shape
    pixels = math.prod(clips) * h * w
    slow = pixels * slow_count(t, alpha, slow_index if isinstance(slow_index, torch.Tensor) else None)
    fast = pixels * t
    values = 3 * slow + (3 * fast if fast_input == "rgb" else fast)
    flops = 2 * values + (6 * fast if fast_input != "rgb" else 0)
    return Cost(flops, bytes_of(frames) + values * dtype.itemsize)
