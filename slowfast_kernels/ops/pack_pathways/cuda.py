"""The CUDA provider: one kernel, every frame is read once and written to the clips that want it."""

from __future__ import annotations

import torch

from .._dtypes import FLOATS, refused
from .._registration import define_native
from .slow_frames import slow_frames_on
from .spec import PackSpec

define_native(
    "_pack_cuda(Tensor frames, Tensor slow_index, float[] mean, float[] std, int fast_input,"
    " bool reverse_channels, Tensor(a!) slow, Tensor(b!) fast) -> ()"
)

#: Values of a frame that threads can count in their runs.
MOST_VALUES = 2**30


def refuses(frames: torch.Tensor, spec: PackSpec) -> str | None:
    """Why the CUDA kernel cannot run this call, or None."""
    _, _, h, w, _ = frames.shape
    if h * w * 3 >= MOST_VALUES:
        return f"a frame has {h * w * 3} values, the CUDA kernels take fewer than 2^30"
    return refused(spec.dtype, FLOATS, "CUDA")


def run(frames: torch.Tensor, spec: PackSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """See the public function. On a stream that is being captured, an index on the GPU is not checked: a number
    that names no frame gives a frame of NaN.
    """
    index = slow_frames_on(frames.device, frames.shape[1], spec.alpha, spec.slow_rule, spec.slow_index)
    slow, fast = spec.empty(frames, index.shape[0])
    torch.ops.slowfast._pack_cuda(frames, index, *spec.native, slow, fast)
    return slow, fast
