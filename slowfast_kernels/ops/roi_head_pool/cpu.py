"""The C++ provider: a clip is reduced over time once, where boxes need it; then every box is maximised."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dtypes import FLOATS, refused
from .._memory import channels_last, empty_channels_last
from .._registration import define_native
from ..roi_align3d.boxes import boxes_float32
from .spec import RoIPoolSpec

define_native(
    "_roi_head_cpu(Tensor slow, Tensor? fast, Tensor rois, int[] output_size, float spatial_scale,"
    " int sampling_ratio, bool aligned, bool max, Tensor(a!) out, Tensor(b!) arg) -> ()"
)
define_native(
    "_roi_head_bwd_cpu(Tensor grad, Tensor arg, Tensor rois, Tensor? x_forward, int[] output_size,"
    " float spatial_scale, int sampling_ratio, bool aligned, bool max, Tensor(a!) x) -> ()"
)


def cannot(spec: RoIPoolSpec, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot take maps of this type, or None; of both ops."""
    return refused(dtype, FLOATS, "C++")


def run(slow: Tensor, fast: Tensor | None, rois: Tensor, spec: RoIPoolSpec) -> tuple[Tensor, Tensor]:
    boxes = boxes_float32(rois, slow.shape[0])
    channels = slow.shape[1] + (0 if fast is None else fast.shape[1])
    out = slow.new_empty(rois.shape[0], channels)
    arg = slow.new_empty(rois.shape[0], channels, dtype=torch.int32)
    torch.ops.slowfast._roi_head_cpu(
        channels_last(slow),
        None if fast is None else channels_last(fast),
        boxes,
        *spec.native,
        out,
        arg,
    )
    return out, arg


def run_bwd(
    grad: Tensor, arg: Tensor, rois: Tensor, features: Tensor | None, shape: list[int], spec: RoIPoolSpec
) -> Tensor:
    boxes = boxes_float32(rois, shape[0])
    dx = empty_channels_last(grad, shape)
    torch.ops.slowfast._roi_head_bwd_cpu(
        grad.contiguous(),
        arg.contiguous(),
        boxes,
        None if features is None else channels_last(features),
        *spec.native,
        dx,
    )
    return dx
