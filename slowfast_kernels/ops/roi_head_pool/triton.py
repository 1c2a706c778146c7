"""The Triton provider: taps, reduction over time, maximum: three launches for any number of boxes.

Reducing first costs less than reducing under every box: only cells under some box are read, once, however many
boxes overlap, and the maximum then reads one frame in float32. Both pathways share a launch: the reduced map has
the channels of both. The gradient walks the boxes of a clip in order, so that it needs no atomics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import autotune, backends
from ..._triton import roi, tiles
from ..._triton.launch import cdiv, launch, next_power_of_2
from ..._triton.roi import bin_sums, taps_of
from ..._triton.tiles import narrowed, widened
from .._dtypes import FLOATS, refused
from .._memory import empty_channels_last, pixel_rows
from ..roi_align3d.boxes import boxes_float32
from .spec import RoIPoolSpec

TUNER = autotune.Tuner("roi_head_pool", __file__, roi.__file__, tiles.__file__)
LOWEST = tl.constexpr(-(2**31))


@dataclass(frozen=True)
class Tiles:
    """What the programs of a call compute.

    cells, cell_channels: of the reduction over time (of the gradient, backward).
    bins, bin_channels:   of the maximum; the backward has none.
    """

    cells: int
    cell_channels: int
    bins: int
    bin_channels: int
    warps: int


def tiles_of(cells: int, bins: int, channels: int) -> Tiles:
    """Tiles that no one measured: few channels a program, as there are few boxes."""
    if backends.simulated("triton"):
        c = next_power_of_2(channels, 1, 256)
        return Tiles(
            next_power_of_2(cells, 1, roi.SIMULATED), c, next_power_of_2(bins, 1, roi.SIMULATED), c, 4
        )
    c = next_power_of_2(channels, 8, 64)
    return Tiles(next_power_of_2(cells, 1, 32), c, next_power_of_2(bins, 1, 64), min(c, 32), 4)


def candidates(cells: int, bins: int, channels: int) -> list[Tiles]:
    """Tiles worth measuring."""
    most = next_power_of_2(channels, 8, 256)
    rows, at_once = next_power_of_2(cells, 1, 64), next_power_of_2(bins, 1, 64)
    return [
        Tiles(r, min(c, most), at_once, min(b, most), warps)
        for r in (8, 16, 32, 64)
        for c in (64, 128, 256)
        for b in (16, 32, 64)
        for warps in (2, 4, 8)
        if r <= rows and r * min(c, most) // warps <= 2048
    ]


@triton.jit
def cells_under_boxes(ranges, bounds, count, clip, cell, w):
    """Which cells of a clip's map lie within the extent of one of its boxes."""
    y, x = cell // w, cell % w
    under = (cell * 0).to(tl.int1)
    for k in range(0, count):
        if tl.load(ranges + k) == clip:
            of_y = ranges + bounds + k * 2
            of_x = of_y + count * 2
            inside = (y >= tl.load(of_y)) & (y < tl.load(of_y + 1))
            under = under | (inside & (x >= tl.load(of_x)) & (x < tl.load(of_x + 1)))
    return under


@triton.jit
def join_frames(x, pitch, size, cell, frames, c, mask, scale, MAX: tl.constexpr, acc):
    """``acc`` [cells, channels] = mean or maximum of a pathway over its frames; NaN wins a maximum.

    x: pointer to the clip. size: elements of a frame, 64 bits.
    """
    at = cell.to(tl.int64)[:, None] * pitch + c[None, :]
    for t in range(0, frames):
        value = widened(tl.load(x + t * size + at, mask=mask, other=0.0))
        if MAX:
            acc = tl.where((t == 0) | (value > acc) | (value != value), value, acc)
        else:
            acc += value
    return acc if MAX else acc * scale


@triton.jit
def roi_reduce_kernel(
    slow, fast, maps, ranges, bounds, count, cells, w, slow_frames, fast_frames, slow_pitch, fast_pitch,
    slow_channels, fast_channels, slow_blocks, channel_blocks, cell_blocks, slow_scale, fast_scale,
    MAX: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """maps[N, H * W, slow then fast channels] = both pathways reduced over time, where a box needs it."""
    pid = tl.program_id(0)
    block = pid % channel_blocks
    pid = pid // channel_blocks
    cell = pid % cell_blocks * CELLS + tl.arange(0, CELLS)
    clip = pid // cell_blocks
    under = (cell < cells) & cells_under_boxes(ranges, bounds, count, clip, cell, w)
    acc = tl.zeros([CELLS, CHANNELS], tl.float32)
    clip = clip.to(tl.int64)
    if block < slow_blocks:
        c = block * CHANNELS + tl.arange(0, CHANNELS)
        c_mask = c < slow_channels
        acc = join_frames(
            slow + clip * slow_frames * cells * slow_pitch, slow_pitch, (clip * 0 + cells) * slow_pitch, cell,
            slow_frames, c, under[:, None] & c_mask[None, :], slow_scale, MAX, acc,
        )  # fmt: skip
        to = c
    else:
        c = (block - slow_blocks) * CHANNELS + tl.arange(0, CHANNELS)
        c_mask = c < fast_channels
        acc = join_frames(
            fast + clip * fast_frames * cells * fast_pitch, fast_pitch, (clip * 0 + cells) * fast_pitch, cell,
            fast_frames, c, under[:, None] & c_mask[None, :], fast_scale, MAX, acc,
        )  # fmt: skip
        to = slow_channels + c
    at = (clip * cells + cell) * (slow_channels + fast_channels)
    tl.store(maps + at[:, None] + to[None, :], acc, mask=under[:, None] & c_mask[None, :])


@triton.jit
def roi_max_kernel(
    maps, out, arg, weights, ranges, h, w, channels, bh, bw, channel_blocks, x_weights, y_bins, x_bins,
    BINS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Maximum over the bins of one box, and the first bin that has it; a NaN is the greatest value."""
    pid = tl.program_id(0)
    c = pid % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    c_mask = c < channels
    box = (pid // channel_blocks).to(tl.int64)
    best = tl.full([CHANNELS], LOWEST, tl.int32)
    where = tl.full([CHANNELS], -1, tl.int32)
    clip = tl.load(ranges + box)
    if clip >= 0:
        first = maps + clip.to(tl.int64) * h * w * channels
        for b0 in range(0, bh * bw, BINS):
            b = b0 + tl.arange(0, BINS)
            mask = b < bh * bw
            y, x = b // bw, b % bw
            range_y = ranges + y_bins + box * bh * 2 + y * 2
            range_x = ranges + x_bins + box * bw * 2 + x * 2
            value = bin_sums(
                first, channels, c, c_mask, weights + box * bh * h, weights + x_weights + box * bw * w, y * h, x * w,
                tl.load(range_y, mask=mask, other=0), tl.load(range_y + 1, mask=mask, other=0),
                tl.load(range_x, mask=mask, other=0), tl.load(range_x + 1, mask=mask, other=0),
                1.0, w, tl.zeros([BINS, CHANNELS], tl.float32),
            )  # fmt: skip
            # Integers in the order of the values: -0 as 0, NaN above infinity.
            bits = (value + 0.0).to(tl.int32, bitcast=True)
            key = tl.where(value != value, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
            key = tl.where(mask[:, None], key, LOWEST)
            greatest = tl.max(key, axis=0)
            number = tl.min(tl.where((key == greatest[None, :]) & mask[:, None], b[:, None], bh * bw), axis=0)
            where = tl.where(greatest > best, number, where)
            best = tl.maximum(greatest, best)
    bits = best ^ ((best >> 31) & 0x7FFFFFFF)
    result = tl.where((where < 0) | (best == 0x7FFFFFFF), float("nan"), bits.to(tl.float32, bitcast=True))
    at = box * channels + c
    tl.store(out + at, narrowed(result, out.dtype.element_ty), mask=c_mask)
    tl.store(arg + at, where, mask=c_mask)


@triton.jit
def roi_head_bwd_kernel(
    grad, grad_pitch, arg, arg_pitch, dx, features, pitch, weights, ranges, count, frames, h, w, channels, bh, bw,
    cell_blocks, channel_blocks, scale, x_weights, bounds,
    MAX: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of some cells and channels of one clip: through the bins in ``arg``, box by box, to all frames."""
    pid = tl.program_id(0)
    c = pid % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    pid = pid // channel_blocks
    cell0 = pid % cell_blocks * CELLS
    clip = pid // cell_blocks
    cell = cell0 + tl.arange(0, CELLS)
    mask = (cell < h * w)[:, None] & (c < channels)[None, :]
    y, x = cell // w, cell % w
    y0, y1 = cell0 // w, (tl.minimum(cell0 + CELLS, h * w) - 1) // w
    acc = tl.zeros([CELLS, CHANNELS], tl.float32)
    for k in range(0, count):
        of_y = ranges + bounds + k * 2
        if (tl.load(ranges + k) == clip) & (tl.load(of_y) <= y1) & (tl.load(of_y + 1) > y0):
            box = (pid * 0 + k).to(tl.int64)
            b = tl.load(arg + box * arg_pitch + c, mask=c < channels, other=-1)
            g = widened(tl.load(grad + box * grad_pitch + c, mask=c < channels, other=0.0))
            valid = mask & ((b >= 0) & (b < bh * bw))[None, :]
            b = tl.where((b >= 0) & (b < bh * bw), b, 0)
            a_y = tl.load(
                weights + box * bh * h + (b // bw * h)[None, :] + y[:, None], mask=valid, other=-1.0
            )
            at = weights + x_weights + box * bw * w
            a_x = tl.load(at + (b % bw * w)[None, :] + x[:, None], mask=valid, other=-1.0)
            more = tl.fma(a_y * a_x, tl.broadcast_to(g[None, :], acc.shape), acc)
            acc = tl.where((a_y >= 0.0) & (a_x >= 0.0), more, acc)
    clip = clip.to(tl.int64)
    row = clip * frames * h * w + cell
    to = dx + row[:, None] * channels + c[None, :]
    step = (clip * 0 + h) * w
    if MAX:
        source = features + row[:, None] * pitch + c[None, :]
        best = widened(tl.load(source, mask=mask, other=0.0))
        where = tl.zeros([CELLS, CHANNELS], tl.int32)
        for t in range(1, frames):
            value = widened(tl.load(source + t * step * pitch, mask=mask, other=0.0))
            take = ((value > best) | (value != value)) & (best == best)
            best = tl.where(take, value, best)
            where = tl.where(take, t, where)
        for t in range(0, frames):
            tl.store(
                to + t * step * channels,
                narrowed(tl.where(where == t, acc, 0.0), dx.dtype.element_ty),
                mask=mask,
            )
    else:
        value = narrowed(acc * scale, dx.dtype.element_ty)
        for t in range(0, frames):
            tl.store(to + t * step * channels, value, mask=mask)


def cannot(spec: RoIPoolSpec, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot take maps of this type, or None; of both ops."""
    return refused(dtype, FLOATS, "Triton")


def _taps(rois: torch.Tensor, clips: int, height: int, width: int, spec: RoIPoolSpec) -> roi.Taps:
    boxes, bins = boxes_float32(rois, clips), (0, *spec.output_size)
    how = (spec.spatial_scale, 1.0, spec.sampling_ratio, spec.aligned)
    return taps_of(boxes, clips, (1, height, width), bins, *how)


def run(slow: Tensor, fast: Tensor | None, rois: Tensor, spec: RoIPoolSpec) -> tuple[Tensor, Tensor]:
    """See the public function. On a stream that is being captured, a wrong batch index gives NaN and bin -1."""
    n, slow_channels, slow_frames, h, w = slow.shape
    fast_channels, fast_frames = (0, 1) if fast is None else fast.shape[1:3]
    channels, (bh, bw), count = slow_channels + fast_channels, spec.output_size, rois.shape[0]
    taps = _taps(rois, n, h, w, spec)
    out = slow.new_empty((count, channels))
    arg = slow.new_empty((count, channels), dtype=torch.int32)
    if out.numel() == 0:
        return out, arg
    maps = slow.new_empty((n, h * w, channels), dtype=torch.float32)  # written under boxes only
    slow, slow_pitch = pixel_rows(slow)
    fast, fast_pitch = (slow, slow_pitch) if fast is None else pixel_rows(fast)

    def start(tile: Tiles) -> None:
        slow_blocks = cdiv(slow_channels, tile.cell_channels)
        channel_blocks = slow_blocks + cdiv(fast_channels, tile.cell_channels)
        cell_blocks = cdiv(h * w, tile.cells)
        launch(
            roi_reduce_kernel,
            (n * cell_blocks * channel_blocks,),
            slow, fast, maps, taps.ranges, taps.bounds, count, h * w, w, slow_frames, fast_frames, slow_pitch,
            fast_pitch, slow_channels, fast_channels, slow_blocks, channel_blocks, cell_blocks, 1.0 / slow_frames,
            1.0 / fast_frames,
            warps=tile.warps, MAX=spec.temporal == "max", CELLS=tile.cells, CHANNELS=tile.cell_channels,
        )  # fmt: skip
        channel_blocks = cdiv(channels, tile.bin_channels)
        launch(
            roi_max_kernel,
            (count * channel_blocks,),
            maps, out, arg, taps.weights, taps.ranges, h, w, channels, bh, bw, channel_blocks, taps.x_weights,
            taps.y_bins, taps.x_bins,
            warps=tile.warps, BINS=tile.bins, CHANNELS=tile.bin_channels,
        )  # fmt: skip

    key = ("forward", spec.temporal, slow.dtype, tuple(slow.shape), fast_channels, fast_frames, count, bh, bw)
    start(
        TUNER.pick(
            key,
            slow.device,
            lambda: tiles_of(h * w, bh * bw, channels),
            lambda: candidates(h * w, bh * bw, channels),
            start,
        )
    )
    return out, arg


def run_bwd(
    grad: Tensor, arg: Tensor, rois: Tensor, features: Tensor | None, shape: list[int], spec: RoIPoolSpec
) -> Tensor:
    """Gradient of one pathway; the same bits every time."""
    n, channels, frames, h, w = shape
    (bh, bw), count = spec.output_size, rois.shape[0]
    taps = _taps(rois, n, h, w, spec)
    dx = empty_channels_last(grad, shape)
    if dx.numel() == 0:
        return dx
    # a pathway's columns of the results of both are taken as they lie
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    arg = arg if arg.stride(1) == 1 else arg.contiguous()
    maximum = spec.temporal == "max"
    x, pitch = pixel_rows(features) if maximum and features is not None else (dx, channels)

    def start(tile: Tiles) -> None:
        cell_blocks, channel_blocks = cdiv(h * w, tile.cells), cdiv(channels, tile.cell_channels)
        launch(
            roi_head_bwd_kernel,
            (n * cell_blocks * channel_blocks,),
            grad, grad.stride(0), arg, arg.stride(0), dx, x, pitch, taps.weights, taps.ranges, count, frames, h, w,
            channels, bh, bw, cell_blocks, channel_blocks, 1.0 / frames, taps.x_weights, taps.bounds,
            warps=tile.warps, MAX=maximum, CELLS=tile.cells, CHANNELS=tile.cell_channels,
        )  # fmt: skip

    start(
        TUNER.pick(
            ("backward", spec.temporal, dx.dtype, tuple(shape), count, bh, bw),
            dx.device,
            lambda: tiles_of(h * w, 1, channels),
            lambda: candidates(h * w, 1, channels),
            start,
        )
    )
    return dx
