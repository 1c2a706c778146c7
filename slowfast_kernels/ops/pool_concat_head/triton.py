"""The Triton provider: both pathways pooled into rows of features, then the classifier.

Where positions are averaged before the activation the average of all windows is taken at once, as a weighted sum
over the cells. Long sums are cut into parts that a second kernel adds in order: no atomics, the same bits every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ... import autotune, backends
from ..._triton import tiles
from ..._triton.launch import cdiv, launch, next_power_of_2
from ..._triton.tiles import widened
from .._dtypes import FLOATS, refused
from .._memory import pixel_rows
from .._registration import float32
from .spec import ACTIVATIONS, HeadSpec

TUNER = autotune.Tuner("pool_concat_head", __file__, tiles.__file__)

#: Most classes of a softmax: a program holds all of them.
MAX_CLASSES = 32768


@dataclass(frozen=True)
class Tiles:
    """What the programs of a call compute.

    pixels, channels:   of a pathway that are added side by side.
    parts:              that the pixels of a clip are cut into, where positions are averaged first.
    rows, classes, depth: feature rows, classes and features that are multiplied side by side.
    """

    pixels: int
    channels: int
    parts: int
    rows: int
    classes: int
    depth: int
    warps: int


@triton.jit
def _average(
    x, pitch, clip, part, pixels, part_size, h, w, kh, kw, c, c_mask, scale, WEIGHTED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum [channels] of a part of a clip's pixels, each as often as a window holds it, times ``scale``."""
    acc = tl.zeros([PIXELS, CHANNELS], tl.float32)
    last = tl.minimum((part + 1) * part_size, pixels)
    first = x + clip.to(tl.int64) * pixels * pitch
    for p0 in range(part * part_size, last, PIXELS):
        p = p0 + tl.arange(0, PIXELS)
        mask = (p < last)[:, None] & c_mask[None, :]
        value = widened(tl.load(first + p.to(tl.int64)[:, None] * pitch + c[None, :], mask=mask, other=0.0))
        if WEIGHTED:
            cell = p % (h * w)
            y, z = cell // w, cell % w
            windows = tl.minimum(tl.minimum(y + 1, h - y), tl.minimum(kh, h - kh + 1))
            windows *= tl.minimum(tl.minimum(z + 1, w - z), tl.minimum(kw, w - kw + 1))
            value *= windows.to(tl.float32)[:, None]
        acc += value
    return tl.sum(acc, axis=0) * scale


@triton.jit
def average_kernel(
    slow, fast, parts, slow_pitch, fast_pitch, slow_pixels, fast_pixels, slow_h, slow_w, fast_h, fast_w, kh, kw,
    part_count, slow_part, fast_part, slow_channels, fast_channels, slow_at, fast_at, slow_blocks, channel_blocks,
    slow_scale, fast_scale, WEIGHTED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """parts[N, part, channels of both pathways]: sums that add up to the averages."""
    pid = tl.program_id(0)
    block = pid % channel_blocks
    item = pid // channel_blocks
    clip, part = item // part_count, item % part_count
    if block < slow_blocks:
        c = block * CHANNELS + tl.arange(0, CHANNELS)
        mask = c < slow_channels
        value = _average(slow, slow_pitch, clip, part, slow_pixels, slow_part, slow_h, slow_w, kh, kw, c, mask,
                         slow_scale, WEIGHTED, PIXELS, CHANNELS)  # fmt: skip
        to = slow_at + c
    else:
        c = (block - slow_blocks) * CHANNELS + tl.arange(0, CHANNELS)
        mask = c < fast_channels
        value = _average(fast, fast_pitch, clip, part, fast_pixels, fast_part, fast_h, fast_w, kh, kw, c, mask,
                         fast_scale, WEIGHTED, PIXELS, CHANNELS)  # fmt: skip
        to = fast_at + c
    tl.store(parts + item.to(tl.int64) * (slow_channels + fast_channels) + to, value, mask=mask)


@triton.jit
def _over_time(x, pitch, clip, frames, cells, cell, c, mask, scale, acc):
    first = x + (clip.to(tl.int64) * frames * cells + cell)[:, None] * pitch + c[None, :]
    step = (clip * 0 + cells).to(tl.int64) * pitch
    for t in range(0, frames):
        acc += widened(tl.load(first + t * step, mask=mask, other=0.0))
    return acc * scale


@triton.jit
def cells_kernel(
    slow, fast, maps, slow_pitch, fast_pitch, slow_frames, fast_frames, cells, slow_channels, fast_channels,
    slow_at, fast_at, slow_blocks, channel_blocks, cell_blocks, slow_scale, fast_scale,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """maps[N, cell, channels of both pathways]: sums over the frames, times the pathway's scale."""
    pid = tl.program_id(0)
    block = pid % channel_blocks
    pid = pid // channel_blocks
    cell, clip = pid % cell_blocks * PIXELS + tl.arange(0, PIXELS), pid // cell_blocks
    acc = tl.zeros([PIXELS, CHANNELS], tl.float32)
    if block < slow_blocks:
        c = block * CHANNELS + tl.arange(0, CHANNELS)
        mask = (cell < cells)[:, None] & (c < slow_channels)[None, :]
        acc = _over_time(slow, slow_pitch, clip, slow_frames, cells, cell, c, mask, slow_scale, acc)
        to = slow_at + c
    else:
        c = (block - slow_blocks) * CHANNELS + tl.arange(0, CHANNELS)
        mask = (cell < cells)[:, None] & (c < fast_channels)[None, :]
        acc = _over_time(fast, fast_pitch, clip, fast_frames, cells, cell, c, mask, fast_scale, acc)
        to = fast_at + c
    at = (clip.to(tl.int64) * cells + cell) * (slow_channels + fast_channels)
    tl.store(maps + at[:, None] + to[None, :], acc, mask=mask)


@triton.jit
def windows_kernel(
    maps, features, h, w, kh, kw, channels, channel_blocks, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """features[N, window, channels]: sums over the windows of kh x kw cells of maps[N, h * w, channels]."""
    pid = tl.program_id(0)
    c = pid % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    window = pid // channel_blocks
    across = w - kw + 1
    clip, y0, x0 = window // (across * (h - kh + 1)), window // across % (h - kh + 1), window % across
    acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    for i in range(0, kh * kw, ROWS):
        k = i + tl.arange(0, ROWS)
        cell = (y0 + k // kw) * w + x0 + k % kw
        at = (clip.to(tl.int64) * (h * w) + cell) * channels
        acc += tl.load(maps + at[:, None] + c[None, :], mask=(k < kh * kw)[:, None] & (c < channels)[None, :],
                       other=0.0)  # fmt: skip
    tl.store(features + window.to(tl.int64) * channels + c, tl.sum(acc, axis=0), mask=c < channels)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def linear_kernel(
    features, weight, bias, out, rows, channels, classes, class_blocks,
    SIGMOID: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[row, class] = features @ weight.T + bias."""
    pid = tl.program_id(0)
    k = pid % class_blocks * CLASSES + tl.arange(0, CLASSES)
    row = pid // class_blocks * ROWS + tl.arange(0, ROWS)
    acc = tl.zeros([ROWS, CLASSES, DEPTH], tl.float32)
    feature_at = features + (row.to(tl.int64) * channels)[:, None, None]
    weight_at = weight + (k.to(tl.int64) * channels)[None, :, None]
    for c0 in range(0, channels, DEPTH):
        c = c0 + tl.arange(0, DEPTH)[None, None, :]
        f = tl.load(feature_at + c, mask=(row < rows)[:, None, None] & (c < channels), other=0.0)
        v = widened(tl.load(weight_at + c, mask=(k < classes)[None, :, None] & (c < channels), other=0.0))
        acc = tl.fma(tl.broadcast_to(f, acc.shape), tl.broadcast_to(v, acc.shape), acc)
    logits = tl.sum(acc, axis=2)
    if bias is not None:
        logits += tl.load(bias + k, mask=k < classes, other=0.0)[None, :]
    if SIGMOID:
        logits = _sigmoid(logits)
    mask = (row < rows)[:, None] & (k < classes)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * classes + k[None, :], logits, mask=mask)


@triton.jit
def scores_kernel(logits, out, positions, classes, blocks, SOFTMAX: tl.constexpr, CLASSES: tl.constexpr):
    """out[N, class] = average over the positions of the activation of logits[N, position, class]."""
    pid = tl.program_id(0)
    k = pid % blocks * CLASSES + tl.arange(0, CLASSES)
    clip = (pid // blocks).to(tl.int64)
    acc = tl.zeros([CLASSES], tl.float32)
    for p in range(0, positions):
        at = logits + (clip * positions + p) * classes + k
        x = tl.load(at, mask=k < classes, other=float("-inf"))
        if SOFTMAX:
            e = tl.exp(x - tl.max(x, axis=0))
            acc += e / tl.sum(e, axis=0)
        else:
            acc += _sigmoid(x)
    tl.store(out + clip * classes + k, acc / (clip * 0 + positions).to(tl.float32), mask=k < classes)


def tiles_of(clips: int, pixels: int, channels: int, rows: int, classes: int) -> Tiles:
    """Tiles that no one measured: enough programs for a GPU's 132 or so processors, twice."""
    if backends.simulated("triton"):
        return Tiles(
            next_power_of_2(pixels, 1, 256), next_power_of_2(channels, 1, 4096), 2 if pixels > 64 else 1,
            next_power_of_2(rows, 1, 4), next_power_of_2(classes, 1, 64), next_power_of_2(channels, 1, 4096), 4,
        )  # fmt: skip
    block = next_power_of_2(channels, 8, 64)
    parts = 1
    while parts < 8 and clips * cdiv(channels, block) * parts < 264 and pixels // (2 * parts) >= 32:
        parts *= 2
    return Tiles(
        32, block, parts, next_power_of_2(rows, 1, 4), 2, next_power_of_2(channels, 32, 512), 4
    )  # fmt: skip


def candidates(first: Tiles, rows: int, channels: int) -> list[Tiles]:
    """Tiles worth measuring, from the heuristic's."""
    return [
        Tiles(
            p, min(c, next_power_of_2(channels, 8)), parts, min(r, next_power_of_2(rows)), k, first.depth, w
        )
        for p in (16, 32)
        for c in (64, 128)
        for parts in (1, 2, 4, 8)
        for r, k in ((1, 2), (2, 2), (4, 2), (4, 4), (8, 1))
        for w in (4, 8)
    ]


def refuses(slow: torch.Tensor, fast: torch.Tensor | None, spec: HeadSpec) -> str | None:
    """Why the Triton kernels cannot run this call, or None."""
    for x in (slow, fast, spec.weight):
        if x is not None and (reason := refused(x.dtype, FLOATS, "Triton")):
            return reason
    if spec.activation == "softmax" and spec.weight.shape[0] > MAX_CLASSES:
        return f"softmax over {spec.weight.shape[0]} classes, the Triton kernel takes {MAX_CLASSES}"
    return None


def run(slow: torch.Tensor, fast: torch.Tensor | None, spec: HeadSpec) -> torch.Tensor:
    """See the public function."""
    n, slow_channels, slow_frames, h, w = slow.shape
    classes, semantics, activation = spec.weight.shape[0], spec.semantics, spec.activation
    out = slow.new_empty((n, classes), dtype=torch.float32)
    if out.numel() == 0:
        return out
    slow, slow_pitch = pixel_rows(slow)
    if fast is None:
        fast, fast_pitch, fast_channels = slow, slow_pitch, 0
    else:
        fast_channels = fast.shape[1]
        fast, fast_pitch = pixel_rows(fast)
    fast_frames, fast_h, fast_w = fast.shape[2:]
    weight, bias = spec.weight.contiguous(), float32(spec.bias)
    channels = slow_channels + fast_channels
    slow_at, fast_at = (fast_channels, 0) if semantics == "mmaction2" else (0, slow_channels)
    kh, kw = spec.pool_size or (h, w)
    windows = spec.windows((n, slow_channels, slow_frames, h, w))
    # The activation of every position, then their mean; else the mean comes first, and the rest is linear.
    each = spec.per_position and activation != "none" and windows > 1
    positions = windows if each else 1
    slow_pixels, fast_pixels = slow_frames * h * w, fast_frames * fast_h * fast_w

    def new(*shape: int) -> torch.Tensor:
        return slow.new_empty(shape, dtype=torch.float32)

    def sum_windows(maps: torch.Tensor, tile: Tiles, *sizes: int) -> torch.Tensor:
        features = new(n * positions, channels)
        blocks = cdiv(channels, tile.channels)
        launch(
            windows_kernel,
            (n * positions * blocks,),
            maps, features, *sizes, channels, blocks,
            warps=tile.warps, ROWS=next_power_of_2(sizes[2] * sizes[3], 1, tile.pixels), CHANNELS=tile.channels,
        )  # fmt: skip
        return features

    def start(tile: Tiles) -> None:
        slow_blocks = cdiv(slow_channels, tile.channels)
        blocks = slow_blocks + cdiv(fast_channels, tile.channels)
        if each:
            maps, cell_blocks = new(n, h * w, channels), cdiv(h * w, tile.pixels)
            launch(
                cells_kernel,
                (n * cell_blocks * blocks,),
                slow, fast, maps, slow_pitch, fast_pitch, slow_frames, fast_frames, h * w, slow_channels,
                fast_channels, slow_at, fast_at, slow_blocks, blocks, cell_blocks, 1 / (slow_frames * kh * kw),
                1 / (fast_frames * kh * kw),
                warps=tile.warps, PIXELS=tile.pixels, CHANNELS=tile.channels,
            )  # fmt: skip
            features = sum_windows(maps, tile, h, w, kh, kw)
        else:
            features = new(n * tile.parts, channels)
            fast_kernel = (kh, kw) if spec.pool_size else (fast_h, fast_w)
            launch(
                average_kernel,
                (n * tile.parts * blocks,),
                slow, fast, features, slow_pitch, fast_pitch, slow_pixels, fast_pixels, h, w, fast_h, fast_w, kh, kw,
                tile.parts, cdiv(slow_pixels, tile.parts), cdiv(fast_pixels, tile.parts), slow_channels,
                fast_channels, slow_at, fast_at, slow_blocks, blocks, 1 / (slow_frames * kh * kw * windows),
                1 / (fast_frames * fast_kernel[0] * fast_kernel[1] * windows),
                warps=tile.warps, WEIGHTED=windows > 1, PIXELS=tile.pixels, CHANNELS=tile.channels,
            )  # fmt: skip
            if tile.parts > 1:
                features = sum_windows(features, tile, 1, tile.parts, 1, tile.parts)
        last = activation == "none" or (activation == "sigmoid" and not each)
        logits = out if last else new(n * positions, classes)
        class_blocks = cdiv(classes, tile.classes)
        launch(
            linear_kernel,
            (cdiv(n * positions, tile.rows) * class_blocks,),
            features, weight, bias, logits, n * positions, channels, classes, class_blocks,
            warps=tile.warps, SIGMOID=last and activation == "sigmoid", ROWS=tile.rows, CLASSES=tile.classes,
            DEPTH=tile.depth,
        )  # fmt: skip
        if not last:
            softmax = activation == "softmax"
            block = next_power_of_2(classes, 32) if softmax else min(512, next_power_of_2(classes, 32))
            launch(
                scores_kernel,
                (n * cdiv(classes, block),),
                logits, out, positions, classes, cdiv(classes, block),
                warps=max(4, min(16, block // 1024)), SOFTMAX=softmax, CLASSES=block,
            )  # fmt: skip

    heuristic = tiles_of(n, max(slow_pixels, fast_pixels), channels, n * positions, classes)
    key = (ACTIVATIONS.index(activation), semantics, slow.dtype, weight.dtype, tuple(slow.shape), fast_channels,
           fast_frames, fast_h, fast_w, classes, kh, kw)  # fmt: skip
    start(
        TUNER.pick(
            key, slow.device, lambda: heuristic, lambda: candidates(heuristic, n * positions, channels), start
        )
    )
    return out
