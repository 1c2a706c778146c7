"""The CUDA provider: one launch for few boxes, two for many, one for the gradient of a pathway.

A clip is reduced over time first, only where boxes need it: by every box's own blocks while a clip has few boxes,
else once, into float32 maps. Both pathways share a launch. The gradient walks the boxes of a clip in order and goes
through the bins of the maxima only: no atomics, the same bits every time.

A batch index that names no clip is an error where the boxes may be read, which waits for the GPU. On a stream that
is being captured such a box gives NaN and bin -1, and no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._dtypes import FLOATS, refused
from .._memory import empty_channels_last, pixel_rows
from .._registration import define_native
from ..roi_align3d.boxes import boxes_float32
from .spec import RoIPoolSpec

define_native(
    "_roi_head_cuda(Tensor slow, Tensor? fast, Tensor rois, int[] output_size, float spatial_scale,"
    " int sampling_ratio, bool aligned, bool max, Tensor(a!)? maps, Tensor(b!) out, Tensor(c!) arg) -> ()"
)
define_native(
    "_roi_head_bwd_cuda(Tensor grad, Tensor arg, Tensor rois, Tensor? features, int[] output_size,"
    " float spatial_scale, int sampling_ratio, bool aligned, bool max, Tensor(a!) dx) -> ()"
)

#: Channels of reduced maps come in multiples of this (kHeadWideSlice); cells that fit a block's shared memory where it
#: reduces for itself, with 32 channels in float32 (kHeadSlice).
MAP_SLICE = 128
CELLS_OF_A_BLOCK = (64 << 10) // (4 * 32)


def cannot(spec: RoIPoolSpec, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot take maps of this type, or None; of both ops."""
    return refused(dtype, FLOATS, "CUDA")


def reduces_apart(clips: int, boxes: int, cells: int, frames: int) -> bool:
    """Whether the reduction over time gets a launch of its own: where boxes would repeat too much of it."""
    return cells > CELLS_OF_A_BLOCK or (boxes > 4 * clips and frames > 2)


def run(slow: Tensor, fast: Tensor | None, rois: Tensor, spec: RoIPoolSpec) -> tuple[Tensor, Tensor]:
    n, channels, frames, h, w = slow.shape
    boxes = boxes_float32(rois, n)
    slices = -(-channels // MAP_SLICE)
    if fast is not None:
        channels, frames = channels + fast.shape[1], max(frames, fast.shape[2])
        slices += -(-fast.shape[1] // MAP_SLICE)
    out = slow.new_empty((rois.shape[0], channels))
    arg = slow.new_empty((rois.shape[0], channels), dtype=torch.int32)
    maps = None
    if reduces_apart(n, rois.shape[0], h * w, frames):
        maps = slow.new_empty((n, h * w, slices * MAP_SLICE), dtype=torch.float32)  # written under boxes only
    torch.ops.slowfast._roi_head_cuda(
        pixel_rows(slow)[0],
        None if fast is None else pixel_rows(fast)[0],
        boxes,
        *spec.native,
        maps,
        out,
        arg,
    )
    return out, arg


def run_bwd(
    grad: Tensor, arg: Tensor, rois: Tensor, features: Tensor | None, shape: list[int], spec: RoIPoolSpec
) -> Tensor:
    boxes = boxes_float32(rois, shape[0])
    dx = empty_channels_last(grad, shape)
    torch.ops.slowfast._roi_head_bwd_cuda(
        # a pathway's columns of the results of both are taken as they lie
        grad if grad.stride(1) == 1 else grad.contiguous(),
        arg if arg.stride(1) == 1 else arg.contiguous(),
        boxes,
        pixel_rows(features)[0] if features is not None and spec.temporal == "max" else None,
        *spec.native,
        dx,
    )
    return dx
