"""The CUDA provider: one kernel each way; a block lists the taps of its box in shared memory by itself.

Forward: a block owns a box, a slice of the channels and some frames. Backward: a block owns a tile of one frame
and walks the boxes of its clip in order, so that there are no atomics and the bits are the same every time.

A batch index that names no clip is an error where the boxes may be read, which waits for the GPU. A stream that is
being captured must not wait: there such a box gives NaN (and no gradient) when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._dtypes import FLOATS, refused
from .._memory import channels_last, empty_channels_last, pixel_rows
from .._registration import define_native
from .boxes import boxes_float32
from .spec import RoIAlignSpec

define_native(
    "_roi_align_cuda(Tensor x, Tensor rois, float spatial_scale, float temporal_scale, int sampling_ratio,"
    " bool aligned, int mode, Tensor(a!) out) -> ()"
)
define_native(
    "_roi_align_bwd_cuda(Tensor grad, Tensor rois, float spatial_scale, float temporal_scale,"
    " int sampling_ratio, bool aligned, int mode, Tensor(a!) x) -> ()"
)


def cannot(spec: RoIAlignSpec, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot take maps of this type, or None; of both ops."""
    return refused(dtype, FLOATS, "CUDA")


def run(features: torch.Tensor, rois: torch.Tensor, spec: RoIAlignSpec) -> torch.Tensor:
    out = empty_channels_last(features, spec.out_shape(features.shape, rois.shape))
    boxes = boxes_float32(rois, features.shape[0])
    torch.ops.slowfast._roi_align_cuda(pixel_rows(features)[0], boxes, *spec.native, out)
    return out


def run_bwd(grad: torch.Tensor, rois: torch.Tensor, shape: Sequence[int], spec: RoIAlignSpec) -> torch.Tensor:
    dx = empty_channels_last(grad, shape)
    boxes = boxes_float32(rois, shape[0])
    torch.ops.slowfast._roi_align_bwd_cuda(channels_last(grad), boxes, *spec.native, dx)
    return dx
