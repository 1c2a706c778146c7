"""RoIAlign's samples on the device: what the kernels of ``roi_align3d`` and ``roi_head_pool`` share.

RoIAlign is separable. A first kernel writes, for every box, axis and bin, the weight of every cell of the axis
(`UNTOUCHED` where no sample has a tap, which is not the same as a weight of 0: a NaN under a weight of 0 counts)
and the range of cells with a tap. A bin of a box is then the sum over the product of its axes' cells; a cell
under several samples of a bin is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import backends
from .launch import cdiv, launch, next_power_of_2
from .tiles import widened

UNTOUCHED = tl.constexpr(-1.0)
#: A box of more cells than this along an axis has no adaptive samples: float32 no longer counts them.
MAX_SIZE = tl.constexpr(16777216.0)
#: Grids of more samples are cut down to those on the map first.
SHORT_GRID = tl.constexpr(64)
#: Cells, or channels, of a program in the interpreter, whose time is spent per operation.
SIMULATED = 1024


@dataclass(frozen=True)
class Taps:
    """Weights and cells of boxes [box], with the axes y, x and (for volumes) t.

    weights: float32, [box][bin][cell] of y, then of x from ``x_weights`` on, then of t from ``t_weights`` on.
    ranges:  int32: [box] = the clip, or -1 for a box whose result is NaN; from ``bounds`` on [axis][box][2], cells
             (first, last + 1) beyond which a box has no tap; from ``y_bins``, ``x_bins``, ``t_bins`` on
             [box][bin][2], the first and last + 1 cell with a tap of a bin.
    """

    weights: torch.Tensor
    ranges: torch.Tensor
    x_weights: int
    t_weights: int
    bounds: int
    y_bins: int
    x_bins: int
    t_bins: int


@triton.jit
def roi_taps_kernel(
    rois, weights, ranges, columns, clips, boxes, spatial_scale, temporal_scale, ratio,
    h, w, t, bh, bw, bt, x_weights, t_weights, bounds, y_bins, x_bins, t_bins,
    ALIGNED: tl.constexpr, AXES: tl.constexpr, ROWS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS bins, of one box after the other, along one axis (y, x, t). Not to be compiled with fused
    multiply-adds: every product and every sum of a position is rounded, as on the host, or samples move.
    """
    axis = tl.program_id(1)
    extent = tl.where(axis == 0, h, tl.where(axis == 1, w, t))
    bins = tl.where(axis == 0, bh, tl.where(axis == 1, bw, bt))
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    box, b = row // bins, row % bins
    mask = box < boxes
    at_box = rois + box.to(tl.int64) * columns
    shift = -0.5 if ALIGNED else 0.0

    # A box counts if it names a clip and all of its axes are numbers.
    rest = tl.full([ROWS], 0.0, tl.float32)  # NaN once a coordinate is none
    start = tl.full([ROWS], 0.0, tl.float32)
    size = tl.full([ROWS], 0.0, tl.float32)
    for d in tl.static_range(AXES):
        scale = temporal_scale if d == 2 else spatial_scale
        low = tl.load(at_box + (5 if d == 2 else 2 - d), mask=mask, other=0.0) * scale + shift
        high = tl.load(at_box + (6 if d == 2 else 4 - d), mask=mask, other=0.0) * scale + shift
        rest += (low - low) + ((high - low) - (high - low))
        start = tl.where(axis == d, low, start)
        size = tl.where(axis == d, high - low, size)
    index = tl.load(at_box, mask=mask, other=-1.0)
    named = (index >= 0.0) & (index < clips) & (tl.floor(index) == index)
    counts = (rest == 0.0) & named
    start = tl.where(counts, start, 0.0)
    size = tl.where(counts, size, 0.0)
    if not ALIGNED:
        size = tl.where(size < 1.0, 1.0, size)
    bin_size = tl.div_rn(size, size * 0.0 + bins.to(tl.float32))
    asked = row * 0 + ratio
    adaptive = counts & (asked <= 0) & (size > 0.0) & (size <= MAX_SIZE)
    grid = tl.where(adaptive, tl.ceil(tl.where(adaptive, bin_size, 0.0)), 0.0).to(tl.int32)
    grid = tl.where(counts & (asked > 0), asked, grid)
    samples = tl.maximum(grid, 1).to(tl.float32)
    end = extent.to(tl.float32)

    at_bin = start + b.to(tl.float32) * bin_size
    first = tl.full([ROWS], 0, tl.int32)
    last = tl.where(extent > 0, grid, 0)
    if tl.max(grid) > SHORT_GRID:
        # Positions never decrease (or never increase): bisect for the samples on the map.
        falling = bin_size < 0.0
        for side in tl.static_range(2):
            lo = tl.full([ROWS], 0, tl.int32)
            hi = tl.where(extent > 0, grid, 0)
            for _ in range(25):
                mid = lo + (hi - lo) // 2
                p = at_bin + tl.div_rn((mid.to(tl.float32) + 0.5) * bin_size, samples)
                if side == 0:
                    reached = tl.where(falling, p <= end, p >= -1.0)
                else:
                    reached = tl.where(falling, p < -1.0, p > end)
                open_ = lo < hi
                hi = tl.where(open_ & reached, mid, hi)
                lo = tl.where(open_ & (reached == 0), mid + 1, lo)
            if side == 0:
                first = lo
            else:
                last = lo
    count = tl.max(last - first)

    lowest = tl.full([ROWS], 0, tl.int32) + extent
    highest = tl.full([ROWS], 0, tl.int32)
    to = weights + tl.where(axis == 0, 0, tl.where(axis == 1, x_weights, t_weights))
    for c0 in range(0, tl.maximum(extent, 1), CELLS):
        cell = c0 + tl.arange(0, CELLS)
        weight = tl.full([ROWS, CELLS], 0.0, tl.float32)
        touched = tl.full([ROWS, CELLS], 0, tl.int32)
        for j in range(0, count):
            i = first + j
            p = at_bin + tl.div_rn((i.to(tl.float32) + 0.5) * bin_size, samples)
            inside = (i < last) & (p >= -1.0) & (p <= end)
            p = tl.where(inside & (p > 0.0), p, 0.0)
            tap = tl.minimum(p.to(tl.int32), extent - 1)
            border = tap >= extent - 1
            share = tl.where(border, 0.0, p - tap.to(tl.float32))
            tap_high = tl.where(border, tap, tap + 1)
            is_low = inside[:, None] & (cell[None, :] == tap[:, None])
            is_high = inside[:, None] & (cell[None, :] == tap_high[:, None])
            weight += tl.where(is_low, (1.0 - share)[:, None], 0.0)
            weight += tl.where(is_high, share[:, None], 0.0)
            touched = touched | is_low.to(tl.int32) | is_high.to(tl.int32)
            lowest = tl.where(inside, tl.minimum(lowest, tap), lowest)
            highest = tl.where(inside, tl.maximum(highest, tap_high + 1), highest)
        divisor = tl.broadcast_to(samples[:, None], weight.shape)
        weight = tl.where(touched != 0, tl.div_rn(weight, divisor), UNTOUCHED)
        at = row.to(tl.int64)[:, None] * extent + cell[None, :]
        tl.store(to + at, weight, mask=mask[:, None] & (cell < extent)[None, :])
    lowest = tl.minimum(lowest, highest)
    to_range = (
        ranges + tl.where(axis == 0, y_bins, tl.where(axis == 1, x_bins, t_bins)) + row.to(tl.int64) * 2
    )
    tl.store(to_range, lowest, mask=mask)
    tl.store(to_range + 1, highest, mask=mask)

    # Once a box: its clip, and cells beyond which it has no tap, whatever the rounding of its positions.
    once = mask & (b == 0)
    if axis == 0:
        clip = tl.where(counts, index, -1.0).to(tl.int32)
        tl.store(ranges + box, clip, mask=once)
    margin = (tl.abs(start) + tl.abs(size)) * 1e-6
    near = tl.minimum(start, start + size) - margin
    far = tl.maximum(start, start + size) + margin
    on_map = (grid > 0) & (far >= -1.0) & (near <= end)
    near = tl.floor(tl.minimum(tl.maximum(near, 0.0), tl.maximum(end - 1.0, 0.0))).to(tl.int32)
    far = tl.minimum(tl.floor(tl.minimum(tl.maximum(far, 0.0), end)).to(tl.int32) + 2, extent)
    of_box = ranges + bounds + axis.to(tl.int64) * boxes * 2 + box * 2
    tl.store(of_box, tl.where(on_map, near, 0), mask=once)
    tl.store(of_box + 1, tl.where(on_map, far, 0), mask=once)


def taps_of(
    rois: torch.Tensor,
    clips: int,
    extent: Sequence[int],
    bins: Sequence[int],
    spatial_scale: float,
    temporal_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Taps:
    """Start the kernel that lists the taps of ``rois``, contiguous float32 [..., 5 or 7].

    extent: cells (t, h, w) of the maps.
    bins:   (bt, bh, bw); bt = 0: time is no axis of the boxes.
    """
    columns = rois.shape[-1]
    boxes = rois.numel() // columns
    (t, h, w), (bt, bh, bw) = extent, bins
    x_weights = boxes * bh * h
    t_weights = x_weights + boxes * bw * w
    axes = 3 if bt else 2
    bounds = boxes
    y_bins = bounds + 2 * axes * boxes
    x_bins = y_bins + 2 * boxes * bh
    t_bins = x_bins + 2 * boxes * bw
    weights = rois.new_empty(max(1, t_weights + boxes * bt * t))
    ranges = rois.new_empty(t_bins + 2 * boxes * bt, dtype=torch.int32)
    cells = max(h, w, t if bt else 1)
    rows = boxes * max(bh, bw, bt)
    if backends.simulated("triton"):
        tile = next_power_of_2(rows, 1, SIMULATED), next_power_of_2(cells, 1, SIMULATED)
    else:
        tile = 8, next_power_of_2(cells, 1, 32)
    launch(
        roi_taps_kernel,
        (cdiv(rows, tile[0]), axes),
        rois, weights, ranges, columns, float(clips), boxes, float(spatial_scale), float(temporal_scale),
        sampling_ratio, h, w, t, bh, bw, bt, x_weights, t_weights, bounds, y_bins, x_bins, t_bins,
        warps=1, fusion=False, ALIGNED=aligned, AXES=axes, ROWS=tile[0], CELLS=tile[1],
    )  # fmt: skip
    return Taps(weights, ranges, x_weights, t_weights, bounds, y_bins, x_bins, t_bins)


@triton.jit
def bin_sums(
    frame, pitch, c, c_mask, weights_y, weights_x, at_y, at_x, y_lo, y_hi, x_lo, x_hi, factor, w, acc,
):  # fmt: skip
    """``acc`` [bins, channels] plus every bin's weighted cells of one frame, times ``factor``.

    frame:             pointer to the frame's first cell.
    weights_y, _x:     pointers to the box's weights along each axis.
    at_y, at_x:        offsets [bins] from there to the weights of each bin's cells.
    y_lo, .., x_hi:    ranges [bins] of each bin's cells.
    """
    rows = tl.max(y_hi - y_lo)
    cells = tl.max(x_hi - x_lo)
    for j in range(0, rows):
        y = y_lo + j
        a = tl.load(weights_y + (at_y + y), mask=y < y_hi, other=-1.0)
        for i in range(0, cells):
            x = x_lo + i
            b = tl.load(weights_x + (at_x + x), mask=x < x_hi, other=-1.0)
            touched = (a >= 0.0) & (b >= 0.0)
            at = (y * w + x).to(tl.int64) * pitch
            mask = touched[:, None] & c_mask[None, :]
            value = widened(tl.load(frame + at[:, None] + c[None, :], mask=mask, other=0.0))
            weight = tl.where(touched, factor * a * b, 0.0)
            acc = tl.fma(tl.broadcast_to(weight[:, None], acc.shape), value, acc)
    return acc
