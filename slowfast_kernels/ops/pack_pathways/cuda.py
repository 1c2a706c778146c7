"""The CUDA provider: one kernel, every frame is read once and written to the clips that want it."""

from __future__ import annotations

import functools

import torch

from .._registration import define_native
from .cpu import FAST_INPUTS, empty_clips
from .slow_frames import slow_frames

define_native(
    "_pack_cuda(Tensor frames, Tensor slow_index, float[] mean, float[] std, int fast_input,"
    " bool reverse_channels, Tensor(a!) slow, Tensor(b!) fast) -> ()"
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Values of a frame that threads can count in their runs.
MOST_VALUES = 2**30


def refuses(frames: torch.Tensor, *rest: object) -> str | None:
    """Why the CUDA kernel cannot run this call, or None."""
    if rest[5] not in DTYPES:
        return f"dtype is {rest[5]}, the CUDA kernels write float32, bfloat16 and float16"
    _, _, h, w, _ = frames.shape
    if h * w * 3 >= MOST_VALUES:
        return f"a frame has {h * w * 3} values, the CUDA kernels take fewer than 2^30"
    return None


@functools.lru_cache(maxsize=64)
def _rule_on(device: torch.device, frames: int, alpha: int, rule: str) -> torch.Tensor:
    """A rule's frame numbers on a device: copied there once, so that a captured graph holds no copy."""
    return slow_frames(frames, alpha, rule, None).to(device)


def _index_on(frames: torch.Tensor, alpha: int, rule: str, slow_index: torch.Tensor | None) -> torch.Tensor:
    if slow_index is None:
        return _rule_on(frames.device, frames.shape[1], alpha, rule)
    # On a stream that is captured the numbers may not be read: the kernel then makes bad ones NaN.
    if slow_index.device.type == "cpu" or not torch.cuda.is_current_stream_capturing():
        slow_frames(frames.shape[1], alpha, rule, slow_index)  # raises on numbers that name no frame
    return slow_index.to(frames.device).contiguous()


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
    """See the public function. On a stream that is being captured, an index on the GPU is not checked: a number
    that names no frame gives a frame of NaN.
    """
    index = _index_on(frames, alpha, slow_rule, slow_index)
    slow, fast = empty_clips(frames, index.shape[0], dtype, fast_input)
    torch.ops.slowfast._pack_cuda(
        frames, index, mean, std, FAST_INPUTS.index(fast_input), reverse_channels, slow, fast
    )
    return slow, fast
