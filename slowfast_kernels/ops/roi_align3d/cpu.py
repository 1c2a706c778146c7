"""The C++ provider: the host lists the taps of every box, the kernels sum them over channels-last maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._dtypes import FLOATS, refused
from .._memory import channels_last, empty_channels_last
from .._registration import define_native
from .boxes import boxes_float32
from .spec import RoIAlignSpec

define_native(
    "_roi_align_cpu(Tensor x, Tensor rois, float spatial_scale, float temporal_scale, int sampling_ratio,"
    " bool aligned, int mode, Tensor(a!) out) -> ()"
)
define_native(
    "_roi_align_bwd_cpu(Tensor grad, Tensor rois, float spatial_scale, float temporal_scale,"
    " int sampling_ratio, bool aligned, int mode, Tensor(a!) x) -> ()"
)


def cannot(spec: RoIAlignSpec, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot take maps of this type, or None; of both ops."""
    return refused(dtype, FLOATS, "C++")


def run(features: torch.Tensor, rois: torch.Tensor, spec: RoIAlignSpec) -> torch.Tensor:
    out = empty_channels_last(features, spec.out_shape(features.shape, rois.shape))
    boxes = boxes_float32(rois, features.shape[0])
    torch.ops.slowfast._roi_align_cpu(channels_last(features), boxes, *spec.native, out)
    return out


def run_bwd(grad: torch.Tensor, rois: torch.Tensor, shape: Sequence[int], spec: RoIAlignSpec) -> torch.Tensor:
    dx = empty_channels_last(grad, shape)
    boxes = boxes_float32(rois, shape[0])
    torch.ops.slowfast._roi_align_bwd_cpu(channels_last(grad), boxes, *spec.native, dx)
    return dx
