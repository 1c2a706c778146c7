"""The CUDA provider: one kernel each way; a block lists the taps of its box in shared memory by itself.

Forward: a block owns a box, a slice of the channels and some frames. Backward: a block owns a tile of one frame
and walks the boxes of its clip in order, so that there are no atomics and the bits are the same every time.

A batch index that names no clip is an error where the boxes may be read, which waits for the GPU. A stream that is
being captured must not wait: there such a box gives NaN (and no gradient) when the graph runs.
"""

from __future__ import annotations

import torch

from .._registration import channels_last, define_native, empty_channels_last
from .boxes import MODES, check_batch_index

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


def boxes_float32(rois: torch.Tensor, clips: int) -> torch.Tensor:
    """Boxes as the kernels read them; batch indices are checked where their values may be read."""
    if rois.device.type == "cpu":
        check_batch_index(rois, clips)
    elif not torch.cuda.is_current_stream_capturing():
        check_batch_index(rois[..., :1].cpu(), clips)  # one copy, the rest on the host
    return rois.detach().float().contiguous()


def pixels_in_row(x: torch.Tensor) -> torch.Tensor:
    """``x`` [N, C, T, H, W] with its pixels at equal distances: channels-last maps and channel slices of them as
    they are, anything else copied.
    """
    n, c, t, h, w = x.shape
    p = x.stride(4)
    if w > 1 and p >= c and x.stride() == (t * h * w * p, 1, h * w * p, w * p, p):
        return x
    return channels_last(x)


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
        pixels_in_row(features),
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
