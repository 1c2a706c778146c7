"""The Triton provider: one kernel lists the taps of every box, another sums them, both ways.

Forward: a program owns some bins of one box and frame and some channels, and walks the bins' cells side by side.
Backward: a program owns some cells of one frame and some channels and walks the boxes of its clip in order: no
atomics, the same sums every time, and no memory beyond the taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ... import autotune, backends
from ..._triton import roi, tiles
from ..._triton.launch import cdiv, launch, next_power_of_2
from ..._triton.roi import bin_sums, taps_of
from ..._triton.tiles import narrowed, widened
from .._dtypes import FLOATS, refused
from .._memory import channels_last, empty_channels_last, pixel_rows
from .boxes import MODES, boxes_float32
from .spec import RoIAlignSpec

TUNER = autotune.Tuner("roi_align3d", __file__, roi.__file__, tiles.__file__)


@dataclass(frozen=True)
class Tiles:
    """What one program computes.

    rows:     bins of a frame (forward), cells of a frame (backward).
    channels: of each.
    """

    rows: int
    channels: int
    warps: int


def tiles_of(rows: int, channels: int, deep: bool) -> Tiles:
    """Tiles that no one measured: few sums a thread, fewer where loads are narrow or loops are deep."""
    if backends.simulated("triton"):
        return Tiles(next_power_of_2(rows, 1, roi.SIMULATED), next_power_of_2(channels, 1, 256), 4)
    r = next_power_of_2(rows, 1, 16 if channels % 8 or deep else 32)
    c = next_power_of_2(channels, 8, 64)
    return Tiles(r, c, 4)


def candidates(rows: int, channels: int) -> list[Tiles]:
    """Tiles worth measuring."""
    most_rows, most_channels = next_power_of_2(rows, 1, 64), next_power_of_2(channels, 8, 256)
    return [
        Tiles(r, c, warps)
        for r in (8, 16, 32, 64)
        for c in (32, 64, 128, 256)
        for warps in (2, 4, 8)
        if r <= most_rows and c <= most_channels and 256 <= r * c // warps <= 2048
    ]


@triton.jit
def roi_align_kernel(
    x, out, weights, ranges, t, h, w, channels, pitch, bt, bh, bw, row_blocks, channel_blocks,
    x_weights, t_weights, y_bins, x_bins, t_bins,
    MODE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS bins of one frame (time bin) of one box, CHANNELS channels. MODE: index in MODES."""
    pid = tl.program_id(0)
    c = pid % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    pid = pid // channel_blocks
    b = pid % row_blocks * ROWS + tl.arange(0, ROWS)
    item = pid // row_blocks  # box and frame
    frame = item % bt
    box = item.to(tl.int64) if MODE == 1 else (item // bt).to(tl.int64)
    b_mask, c_mask = b < bh * bw, c < channels
    acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    clip = tl.load(ranges + box)
    if clip >= 0:
        y, z = b // bw, b % bw
        range_y = ranges + y_bins + box * bh * 2 + y * 2
        range_x = ranges + x_bins + box * bw * 2 + z * 2
        y_lo, y_hi = tl.load(range_y, mask=b_mask, other=0), tl.load(range_y + 1, mask=b_mask, other=0)
        x_lo, x_hi = tl.load(range_x, mask=b_mask, other=0), tl.load(range_x + 1, mask=b_mask, other=0)
        weights_y = weights + box * bh * h
        weights_x = weights + x_weights + box * bw * w
        size = (item * 0 + h).to(tl.int64) * w * pitch  # of a frame
        first = x + clip.to(tl.int64) * t * size
        if MODE == 2:
            range_t = ranges + t_bins + (box * bt + frame) * 2
            weights_t = weights + t_weights + (box * bt + frame) * t
            for s in range(tl.load(range_t), tl.load(range_t + 1)):
                factor = tl.load(weights_t + s)
                if factor >= 0.0:
                    acc = bin_sums(
                        first + s * size, pitch, c, c_mask, weights_y, weights_x, y * h, z * w, y_lo, y_hi, x_lo, x_hi,
                        factor, w, acc,
                    )  # fmt: skip
        else:
            acc = bin_sums(
                first + frame * size, pitch, c, c_mask, weights_y, weights_x, y * h, z * w, y_lo, y_hi, x_lo, x_hi,
                1.0, w, acc,
            )  # fmt: skip
    else:
        acc += float("nan")
    at = (item.to(tl.int64) * (bh * bw) + b) * channels
    mask = b_mask[:, None] & c_mask[None, :]
    tl.store(out + at[:, None] + c[None, :], narrowed(acc, out.dtype.element_ty), mask=mask)


@triton.jit
def add_bins(grad, c, c_mask, weights_y, weights_x, y, x, cell_mask, range_y, range_x, y0, y1, x0, x1,
             factor, h, w, bh, bw, channels, acc):  # fmt: skip
    """``acc`` [cells, channels] plus what the cells (y, x) contribute to every bin of one box and frame.

    y0 <= y <= y1, x0 <= x <= x1: bins beyond are left out. channels: of 64 bits.
    """
    for i in range(0, bh):
        if (tl.load(range_y + i * 2) <= y1) & (tl.load(range_y + i * 2 + 1) > y0):
            a = tl.load(weights_y + i * h + y, mask=cell_mask, other=-1.0)
            for j in range(0, bw):
                if (tl.load(range_x + j * 2) <= x1) & (tl.load(range_x + j * 2 + 1) > x0):
                    b = tl.load(weights_x + j * w + x, mask=cell_mask, other=-1.0)
                    touched = (a >= 0.0) & (b >= 0.0)
                    g = widened(tl.load(grad + (i * bw + j) * channels + c, mask=c_mask, other=0.0))
                    weight = tl.broadcast_to((factor * a * b)[:, None], acc.shape)
                    more = tl.fma(weight, tl.broadcast_to(g[None, :], acc.shape), acc)
                    acc = tl.where(touched[:, None], more, acc)  # no NaN of bins that do not touch the cell
    return acc


@triton.jit
def roi_align_bwd_kernel(
    grad, dx, weights, ranges, count, boxes, t, h, w, channels, bt, bh, bw, row_blocks, channel_blocks,
    x_weights, t_weights, bounds, y_bins, x_bins, t_bins,
    MODE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of ROWS cells of one frame, CHANNELS channels, from ``count`` boxes or tubes."""
    pid = tl.program_id(0)
    c = pid % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    pid = pid // channel_blocks
    cell0 = pid % row_blocks * ROWS
    item = pid // row_blocks  # clip and frame
    clip, frame = item // t, item % t
    cell = cell0 + tl.arange(0, ROWS)
    cell_mask, c_mask = cell < h * w, c < channels
    y, x = cell // w, cell % w
    last = tl.minimum(cell0 + ROWS, h * w) - 1
    y0, y1 = cell0 // w, last // w
    x0 = tl.where(y0 == y1, cell0 % w, 0)
    x1 = tl.where(y0 == y1, last % w, w - 1)
    acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    for k in range(0, count):
        box = (item * 0 + k).to(tl.int64)
        if MODE == 1:
            box = box * t + frame
        if tl.load(ranges + box) == clip:
            of_y = ranges + bounds + box * 2
            of_x = of_y + boxes * 2
            reaches = (tl.load(of_y) <= y1) & (tl.load(of_y + 1) > y0)
            reaches = reaches & (tl.load(of_x) <= x1) & (tl.load(of_x + 1) > x0)
            if reaches:
                weights_y = weights + box * bh * h
                weights_x = weights + x_weights + box * bw * w
                range_y = ranges + y_bins + box * bh * 2
                range_x = ranges + x_bins + box * bw * 2
                wide = (item * 0 + channels).to(tl.int64)
                size = wide * bh * bw  # of a frame's (time bin's) bins
                if MODE == 2:
                    for s in range(0, bt):
                        factor = tl.load(weights + t_weights + (box * bt + s) * t + frame)
                        if factor >= 0.0:
                            acc = add_bins(
                                grad + (box * bt + s) * size, c, c_mask, weights_y, weights_x, y, x, cell_mask,
                                range_y, range_x, y0, y1, x0, x1, factor, h, w, bh, bw, wide, acc,
                            )  # fmt: skip
                else:
                    at = box if MODE == 1 else box * t + frame
                    acc = add_bins(
                        grad + at * size, c, c_mask, weights_y, weights_x, y, x, cell_mask,
                        range_y, range_x, y0, y1, x0, x1, 1.0, h, w, bh, bw, wide, acc,
                    )  # fmt: skip
    at = (item.to(tl.int64) * (h * w) + cell) * channels
    mask = cell_mask[:, None] & c_mask[None, :]
    tl.store(dx + at[:, None] + c[None, :], narrowed(acc, dx.dtype.element_ty), mask=mask)


def cannot(spec: RoIAlignSpec, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot take maps of this type, or None; of both ops."""
    return refused(dtype, FLOATS, "Triton")


def run(features: torch.Tensor, rois: torch.Tensor, spec: RoIAlignSpec) -> torch.Tensor:
    """See the public function. On a stream that is being captured, a wrong batch index gives NaN."""
    n, channels, t, h, w = features.shape
    bt, bh, bw = spec.bins(t)
    taps = taps_of(
        boxes_float32(rois, n), n, (t, h, w), (bt if spec.volume else 0, bh, bw), spec.spatial_scale,
        spec.temporal_scale, spec.sampling_ratio, spec.aligned,
    )  # fmt: skip
    out = empty_channels_last(features, (rois.shape[0], channels, bt, bh, bw))
    if out.numel() == 0:
        return out
    x, pitch = pixel_rows(features)

    def start(tile: Tiles) -> None:
        row_blocks, channel_blocks = cdiv(bh * bw, tile.rows), cdiv(channels, tile.channels)
        launch(
            roi_align_kernel,
            (rois.shape[0] * bt * row_blocks * channel_blocks,),
            x, out, taps.weights, taps.ranges, t, h, w, channels, pitch, bt, bh, bw, row_blocks, channel_blocks,
            taps.x_weights, taps.t_weights, taps.y_bins, taps.x_bins, taps.t_bins,
            warps=tile.warps, MODE=MODES.index(spec.mode), ROWS=tile.rows, CHANNELS=tile.channels,
        )  # fmt: skip

    key = ("forward", spec.mode, x.dtype, tuple(x.shape), rois.shape[0], bt, bh, bw, spec.sampling_ratio)
    start(
        TUNER.pick(
            key,
            x.device,
            lambda: tiles_of(bh * bw, channels, spec.volume),
            lambda: candidates(bh * bw, channels),
            start,
        )
    )
    return out


def run_bwd(grad: torch.Tensor, rois: torch.Tensor, shape: Sequence[int], spec: RoIAlignSpec) -> torch.Tensor:
    """Gradient of the features; the same bits every time."""
    n, channels, t, h, w = shape
    bt, bh, bw = spec.bins(t)
    taps = taps_of(
        boxes_float32(rois, n), n, (t, h, w), (bt if spec.volume else 0, bh, bw), spec.spatial_scale,
        spec.temporal_scale, spec.sampling_ratio, spec.aligned,
    )  # fmt: skip
    dx = empty_channels_last(grad, shape)
    if dx.numel() == 0:
        return dx
    g = channels_last(grad)
    count = rois.shape[0]
    boxes = math.prod(rois.shape[:-1])

    def start(tile: Tiles) -> None:
        row_blocks, channel_blocks = cdiv(h * w, tile.rows), cdiv(channels, tile.channels)
        launch(
            roi_align_bwd_kernel,
            (n * t * row_blocks * channel_blocks,),
            g, dx, taps.weights, taps.ranges, count, boxes, t, h, w, channels, bt, bh, bw, row_blocks, channel_blocks,
            taps.x_weights, taps.t_weights, taps.bounds, taps.y_bins, taps.x_bins, taps.t_bins,
            warps=tile.warps, MODE=MODES.index(spec.mode), ROWS=tile.rows, CHANNELS=tile.channels,
        )  # fmt: skip

    key = ("backward", spec.mode, g.dtype, tuple(shape), count, bt, bh, bw, spec.sampling_ratio)
    start(
        TUNER.pick(
            key,
            g.device,
            lambda: tiles_of(h * w, channels, False),
            lambda: candidates(h * w, channels),
            start,
        )
    )
    return dx
