"""The C++ provider: every frame is read once and written to the clips that want it."""

from __future__ import annotations

import torch

from .._memory import empty_channels_last
from .._registration import define_native
from .slow_frames import slow_frames

define_native(
    "_pack_run_cpu(Tensor frames, Tensor slow_index, float[] mean, float[] std, int fast_input,"
    " bool reverse_channels, Tensor(a!) slow, Tensor(b!) fast) -> ()"
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


#: The index is the native kernel's enumeration.
FAST_INPUTS = ("rgb", "gray", "time_diff")


def empty_clips(
    frames: torch.Tensor, slow: int, dtype: torch.dtype, fast_input: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised Slow clip of ``slow`` frames and Fast clip of all of ``frames``."""
    n, t, h, w, _ = frames.shape
    channels = 3 if fast_input == "rgb" else 1
    return (
        empty_channels_last(frames, (n, 3, slow, h, w), dtype),
        empty_channels_last(frames, (n, channels, t, h, w), dtype),
    )


def refuses(frames: torch.Tensor, *rest: object) -> str | None:
    """Why the C++ kernel cannot run this call, or None."""
    dtype = rest[5]
    if dtype not in DTYPES:
        return f"dtype is {dtype}, the C++ kernel writes float32, bfloat16 and float16"
    return None


def run(
    frames: torch.Tensor,
    alpha: int,
    slow_rule: str,
    slow_index: torch.Tensor | None,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    fast_input: str,
    reverse_channels: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    index = slow_frames(frames.shape[1], alpha, slow_rule, slow_index)
    slow, fast = empty_clips(frames, index.shape[0], dtype, fast_input)
    torch.ops.slowfast._pack_run_cpu(
        frames, index.contiguous(), mean, std, FAST_INPUTS.index(fast_input), reverse_channels, slow, fast
    )
    return slow, fast
