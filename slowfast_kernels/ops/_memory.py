"""Memory layouts of maps: [N, C, T, H, W] tensors whose pixels follow one another, channels adjacent.

csrc/common/layout.h has the same rule for what the native kernels take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def empty_channels_last(
    like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Uninitialised tensor of ``shape``: channels_last_3d strides for 5-D shapes, contiguous for others."""
    memory_format = torch.channels_last_3d if len(shape) == 5 else torch.contiguous_format
    return torch.empty(
        tuple(shape), dtype=dtype or like.dtype, device=like.device, memory_format=memory_format
    )


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """``x`` with exactly the channels_last_3d strides (ambiguous ones, as of T = 1, are made canonical)."""
    n, c, t, h, w = x.shape
    strides = (t * h * w * c, 1, h * w * c, w * c, c)
    return x if x.stride() == strides else empty_channels_last(x, x.shape).copy_(x)


def pixel_pitch(x: torch.Tensor) -> int | None:
    """Elements from one pixel to the next if the pixels of ``x`` follow one another in memory, else None.

    They do in channels_last_3d tensors, channel slices of them, and ranges of one clip's frames.
    """
    _, c, t, h, w = x.shape
    # axes of extent 1 have no stride of their own
    steps = [(x.stride(d), f) for d, f in ((4, 1), (3, w), (2, h * w), (0, t * h * w)) if x.shape[d] > 1]
    pitch = steps[0][0] // steps[0][1] if steps else c
    adjacent = c == 1 or x.stride(1) == 1
    return pitch if adjacent and pitch >= c and all(s == pitch * f for s, f in steps) else None


def pixel_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """``x``, or a copy of it in channels_last_3d memory, and its pixel pitch."""
    pitch = pixel_pitch(x)
    return (channels_last(x), x.shape[1]) if pitch is None else (x, pitch)


def adjacent_channels(x: torch.Tensor) -> torch.Tensor:
    """``x``, or a copy of it whose channels are adjacent in memory."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else channels_last(x)
