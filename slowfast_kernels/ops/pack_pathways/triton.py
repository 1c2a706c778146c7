"""The Triton provider: every byte of the frames is read once and written to the clips that want it.

Colour: a frame is a row of W * 3 values in both clips, so that loads and stores are contiguous whatever the
channels. One channel (gray, time_diff): a program keeps its pixels and walks the frames, with the gray of the frame
before in registers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ... import autotune, backends
from ..._triton import tiles
from ..._triton.launch import cdiv, launch, next_power_of_2
from ..._triton.tiles import narrowed
from .._dtypes import FLOATS, refused
from .slow_frames import slow_frames_on
from .spec import FAST_INPUTS, PackSpec

TUNER = autotune.Tuner("pack_pathways", __file__, tiles.__file__)


@dataclass(frozen=True)
class Tiles:
    """What one program computes.

    block:  values of a frame (colour) or pixels (one channel).
    frames: that a program walks, one channel only; the first of them reads its predecessor again.
    """

    block: int
    frames: int
    warps: int


@triton.jit
def store_slow(slow, index, count, n, t, frames, size, offset, value, mask):
    """Write a frame's values to every place of the Slow clip that takes frame ``t``.

    A number that names no frame makes its place NaN: the index cannot be checked on a stream that is captured.
    """
    for s in range(0, count):
        wanted = tl.load(index + s)
        if wanted == t:
            tl.store(
                slow + (n * count + s) * size + offset, narrowed(value, slow.dtype.element_ty), mask=mask
            )
        if (t == 0) & ((wanted < 0) | (wanted >= frames)):
            bad = narrowed(value * 0.0 + float("nan"), slow.dtype.element_ty)
            tl.store(slow + (n * count + s) * size + offset, bad, mask=mask)


@triton.jit
def pack_colour_kernel(
    x, slow, fast, index, count, frames, rows, row, stride_n, stride_t, stride_h, stride_w, stride_c, blocks,
    scale_r, scale_g, scale_b, shift_r, shift_g, shift_b,
    ONE_ROW: tl.constexpr, DENSE: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK of the rows * row values of one frame; scale and shift of the source's channels."""
    pid = tl.program_id(0)
    item = pid // blocks
    n, t = (item // frames).to(tl.int64), item % frames
    e = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = e < rows * row
    channel = e % 3  # rows are whole pixels
    source = 2 - channel if REVERSE else channel
    column = e if ONE_ROW else e % row
    if not DENSE:
        at = (column // 3).to(tl.int64) * stride_w + source.to(tl.int64) * stride_c
    elif REVERSE:
        at = column - channel + source
    else:
        at = column  # not the same sum: the compiler has to see that loads are contiguous
    if not ONE_ROW:
        at += (e // row).to(tl.int64) * stride_h
    value = tl.load(x + n * stride_n + t.to(tl.int64) * stride_t + at, mask=mask, other=0).to(tl.float32)
    scale = tl.where(source == 0, scale_r, tl.where(source == 1, scale_g, scale_b))
    shift = tl.where(source == 0, shift_r, tl.where(source == 1, shift_g, shift_b))
    value = tl.fma(value, scale, shift)
    size = (n * 0 + rows) * row
    tl.store(fast + (n * frames + t) * size + e, narrowed(value, fast.dtype.element_ty), mask=mask)
    store_slow(slow, index, count, n, t, frames, size, e, value, mask)


@triton.jit
def pack_gray_kernel(
    x, slow, fast, index, count, frames, height, width, stride_n, stride_t, stride_h, stride_w, stride_c, blocks,
    parts, part, scale_r, scale_g, scale_b, shift_r, shift_g, shift_b, gray_scale, gray_shift, diff_shift,
    DIFF: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of ``part`` frames in turn. Luma is a whole number of 1/255000: differences are exact."""
    pid = tl.program_id(0)
    e = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    pid = pid // blocks
    n, t0 = (pid // parts).to(tl.int64), pid % parts * part
    size = (n * 0 + height) * width
    mask = e < size
    pixel = x + n * stride_n + (e // width).to(tl.int64) * stride_h + (e % width).to(tl.int64) * stride_w
    green_at = (n * 0 + 1) * stride_c
    before = e * 0
    if DIFF and t0 > 0:
        at = pixel + (t0 - 1).to(tl.int64) * stride_t
        before = 299 * tl.load(at, mask=mask, other=0).to(tl.int32)
        before += 587 * tl.load(at + green_at, mask=mask, other=0).to(tl.int32)
        before += 114 * tl.load(at + 2 * green_at, mask=mask, other=0).to(tl.int32)
    for t in range(t0, tl.minimum(t0 + part, frames)):
        at = pixel + (n * 0 + t) * stride_t
        r = tl.load(at, mask=mask, other=0).to(tl.int32)
        g = tl.load(at + green_at, mask=mask, other=0).to(tl.int32)
        b = tl.load(at + 2 * green_at, mask=mask, other=0).to(tl.int32)
        gray = 299 * r + 587 * g + 114 * b
        if DIFF:
            value = tl.fma((gray - before).to(tl.float32), gray_scale, diff_shift)
            value = tl.where(t == 0, 0.0, value)
            before = gray
        else:
            value = tl.fma(gray.to(tl.float32), gray_scale, gray_shift)
        tl.store(fast + (n * frames + t) * size + e, narrowed(value, fast.dtype.element_ty), mask=mask)
        red = tl.fma(r.to(tl.float32), scale_r, shift_r)
        green = tl.fma(g.to(tl.float32), scale_g, shift_g)
        blue = tl.fma(b.to(tl.float32), scale_b, shift_b)
        to = e.to(tl.int64) * 3
        store_slow(slow, index, count, n, t, frames, size * 3, to + (2 if REVERSE else 0), red, mask)
        store_slow(slow, index, count, n, t, frames, size * 3, to + 1, green, mask)
        store_slow(slow, index, count, n, t, frames, size * 3, to + (0 if REVERSE else 2), blue, mask)


@functools.lru_cache(maxsize=256)
def _affine(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(x / 255 - mean) / std as x * scale + shift, and the same for luma in 1/255000 and differences of it."""
    scale = [_over(1.0, 255 * s) for s in std]
    shift = [_over(-m, s) for m, s in zip(mean, std, strict=True)]
    m, s = sum(mean) / 3, sum(std) / 3
    return (*scale, *shift), (_over(1.0, 255000 * s), _over(-m, s), _over(m - m, s))


def _over(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a)


def tiles_of(values: int, one_channel: bool, frames: int) -> Tiles:
    """Tiles that no one measured: 16 bytes a thread and load."""
    if backends.simulated("triton"):
        return Tiles(next_power_of_2(values, 1, 1 << 16), frames, 4)
    return (
        Tiles(next_power_of_2(values, 128, 512), min(frames, 8), 4)
        if one_channel
        else Tiles(next_power_of_2(values, 128, 2048), 1, 4)
    )


def candidates(one_channel: bool, frames: int) -> list[Tiles]:
    """Tiles worth measuring."""
    if one_channel:
        return [Tiles(b, min(frames, f), w) for b in (256, 512, 1024) for f in (4, 8, 16, 32) for w in (4, 8)]
    return [Tiles(b, 1, w) for b in (1024, 2048, 4096, 8192) for w in (4, 8)]


def refuses(frames: torch.Tensor, spec: PackSpec) -> str | None:
    """Why the Triton kernels cannot run this call, or None."""
    _, _, h, w, _ = frames.shape
    if h * w * 3 >= 2**31:
        return f"a frame has {h * w * 3} values, the Triton kernels take fewer than 2^31"
    return refused(spec.dtype, FLOATS, "Triton")


def run(frames: torch.Tensor, spec: PackSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """See the public function. On a stream that is being captured, an index on the GPU is not checked: a number
    that names no frame gives a frame of NaN.
    """
    index = slow_frames_on(frames.device, frames.shape[1], spec.alpha, spec.slow_rule, spec.slow_index)
    slow, fast = spec.empty(frames, index.shape[0])
    fast_input, reverse_channels = spec.fast_input, spec.reverse_channels
    if fast.numel() == 0:
        return slow, fast
    n, t, h, w, _ = frames.shape
    affine, gray = _affine(spec.mean, spec.std)
    strides = frames.stride()
    dense = strides[4] == 1 and (strides[3] == 3 or w == 1)
    one_channel = fast_input != "rgb"
    # rows that follow each other are one row
    rows, row = (1, h * w * 3) if dense and (strides[2] == 3 * w or h == 1) else (h, w * 3)

    def start(tile: Tiles) -> None:
        if one_channel:
            blocks, parts = cdiv(h * w, tile.block), cdiv(t, tile.frames)
            launch(
                pack_gray_kernel,
                (n * parts * blocks,),
                frames, slow, fast, index, index.shape[0], t, h, w, *strides, blocks, parts, tile.frames,
                *affine, *gray,
                warps=tile.warps, DIFF=fast_input == FAST_INPUTS[2], REVERSE=reverse_channels, BLOCK=tile.block,
            )  # fmt: skip
            return
        blocks = cdiv(h * w * 3, tile.block)
        launch(
            pack_colour_kernel,
            (n * t * blocks,),
            frames, slow, fast, index, index.shape[0], t, rows, row, *strides, blocks, *affine,
            warps=tile.warps, ONE_ROW=rows == 1, DENSE=dense, REVERSE=reverse_channels, BLOCK=tile.block,
        )  # fmt: skip

    values = h * w if one_channel else h * w * 3
    key = (fast_input, spec.dtype, tuple(frames.shape), dense, rows == 1, reverse_channels, index.shape[0])
    start(
        TUNER.pick(
            key,
            frames.device,
            lambda: tiles_of(values, one_channel, t),
            lambda: candidates(one_channel, t),
            start,
        )
    )
    return slow, fast
