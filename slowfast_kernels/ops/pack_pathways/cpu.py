"""The C++ provider: every frame is read once and written to the clips that want it."""

from __future__ import annotations

import torch

from .._dtypes import FLOATS, refused
from .._registration import define_native
from .slow_frames import slow_frames
from .spec import PackSpec

define_native(
    "_pack_run_cpu(Tensor frames, Tensor slow_index, float[] mean, float[] std, int fast_input,"
    " bool reverse_channels, Tensor(a!) slow, Tensor(b!) fast) -> ()"
)


def refuses(frames: torch.Tensor, spec: PackSpec) -> str | None:
    """Why the C++ kernel cannot run this call, or None."""
    return refused(spec.dtype, FLOATS, "C++")


def run(frames: torch.Tensor, spec: PackSpec) -> tuple[torch.Tensor, torch.Tensor]:
    index = slow_frames(frames.shape[1], spec.alpha, spec.slow_rule, spec.slow_index)
    slow, fast = spec.empty(frames, index.shape[0])
    torch.ops.slowfast._pack_run_cpu(frames, index.contiguous(), *spec.native, slow, fast)
    return slow, fast
