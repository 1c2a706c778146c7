"""The C++ provider: a clip is reduced over time once, where boxes need it; then every box is maximised."""

from __future__ import annotations

import torch

from .._memory import channels_last, empty_channels_last
from .._registration import define_native
from ..roi_align3d.boxes import boxes_float32
from ..roi_align3d.cpu import DTYPES

define_native(
    "_roi_head_cpu(Tensor slow, Tensor? fast, Tensor rois, int[] output_size, float spatial_scale,"
    " int sampling_ratio, bool aligned, bool max, Tensor(a!) out, Tensor(b!) arg) -> ()"
)
define_native(
    "_roi_head_bwd_cpu(Tensor grad, Tensor arg, Tensor rois, Tensor? x_forward, int[] output_size,"
    " float spatial_scale, int sampling_ratio, bool aligned, bool max, Tensor(a!) x) -> ()"
)


def refuses(slow: torch.Tensor, fast: torch.Tensor | None, *rest: object) -> str | None:
    """Why the C++ kernels cannot run this call, or None."""
    if slow.dtype not in DTYPES:
        return f"slow is {slow.dtype}, the C++ kernels take float32, bfloat16 and float16"
    if fast is not None and fast.dtype != slow.dtype:
        return f"fast is {fast.dtype} but slow is {slow.dtype}"
    return None


def refuses_bwd(grad: torch.Tensor, *rest: object) -> str | None:
    return refuses(grad, None)


def run(
    slow: torch.Tensor,
    fast: torch.Tensor | None,
    rois: torch.Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    temporal: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    boxes = boxes_float32(rois, slow.shape[0])
    channels = slow.shape[1] + (0 if fast is None else fast.shape[1])
    out = slow.new_empty(rois.shape[0], channels)
    arg = slow.new_empty(rois.shape[0], channels, dtype=torch.int32)
    torch.ops.slowfast._roi_head_cpu(
        channels_last(slow),
        None if fast is None else channels_last(fast),
        boxes,
        output_size,
        spatial_scale,
        sampling_ratio,
        aligned,
        temporal == "max",
        out,
        arg,
    )
    return out, arg


def run_bwd(
    grad: torch.Tensor,
    arg: torch.Tensor,
    rois: torch.Tensor,
    features: torch.Tensor | None,
    shape: list[int],
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    temporal: str,
) -> torch.Tensor:
    boxes = boxes_float32(rois, shape[0])
    dx = empty_channels_last(grad, shape)
    torch.ops.slowfast._roi_head_bwd_cpu(
        grad.contiguous(),
        arg.contiguous(),
        boxes,
        None if features is None else channels_last(features),
        output_size,
        spatial_scale,
        sampling_ratio,
        aligned,
        temporal == "max",
        dx,
    )
    return dx
