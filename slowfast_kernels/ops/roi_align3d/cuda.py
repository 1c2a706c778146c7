"""The CUDA provider: one kernel each way; a block lists the taps of its box in shared memory by itself.

Forward: a block owns a box, a slice of the channels and some frames. Backward: a block owns a tile of one frame
and walks the boxes of its clip in order, so that there are no atomics and the bits are the same every time.

A batch index that names no clip is an error where the boxes may be read, which waits for the GPU. A stream that is
being captured must not wait: there such a box gives NaN (and no gradient) when the graph runs.
"""

from __future__ import annotations

import torch

from .._memory import channels_last, empty_channels_last, pixel_rows
from .._registration import define_native
from .boxes import MODES, boxes_float32

define_native(
    "_roi_align_cuda(Tensor x, Tensor rois, float spatial_scale, float temporal_scale, int sampling_ratio,"
    " bool aligned, int mode, Tensor(a!) out) -> ()"
)
define_native(
    "_roi_align_bwd_cuda(Tensor grad, Tensor rois, float spatial_scale, float temporal_scale,"
    " int sampling_ratio, bool aligned, int mode, Tensor(a!) x) -> ()"
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuses(x: torch.Tensor, *rest: object) -> str | None:
    """Why the CUDA kernels cannot run this call (of either op), or None."""
    if x.dtype not in DTYPES:
        return f"the maps are {x.dtype}, the CUDA kernels take float32, bfloat16 and float16"
    return None


refuses_bwd = refuses


def run(
    features: torch.Tensor,
    rois: torch.Tensor,
    output_size: list[int],
    spatial_scale: float,
    temporal_scale: float,
    sampling_ratio: int,
    aligned: bool,
    mode: str,
) -> torch.Tensor:
    boxes = boxes_float32(rois, features.shape[0])
    time = output_size[0] if mode == "volume" else features.shape[2]
    out = empty_channels_last(features, (rois.shape[0], features.shape[1], time, *output_size[-2:]))
    torch.ops.slowfast._roi_align_cuda(
        pixel_rows(features)[0],
        boxes,
        spatial_scale,
        temporal_scale,
        sampling_ratio,
        aligned,
        MODES.index(mode),
        out,
    )
    return out


def run_bwd(
    grad: torch.Tensor,
    rois: torch.Tensor,
    shape: list[int],
    output_size: list[int],
    spatial_scale: float,
    temporal_scale: float,
    sampling_ratio: int,
    aligned: bool,
    mode: str,
) -> torch.Tensor:
    boxes = boxes_float32(rois, shape[0])
    dx = empty_channels_last(grad, shape)
    torch.ops.slowfast._roi_align_bwd_cuda(
        channels_last(grad),
        boxes,
        spatial_scale,
        temporal_scale,
        sampling_ratio,
        aligned,
        MODES.index(mode),
        dx,
    )
    return dx
