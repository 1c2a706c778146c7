"""The Triton convolution through tensor descriptors, for 16-bit types on sm_90: TMA loads and wgmma, no masks.

A map is [N, T, H, W, C] to the kernel and a tile of pixels a box in it, so that no tile reaches from one clip into the
next, and a tap is the same box some frames, rows and columns further: what of it lies outside of the map arrives as
zeros, which is the padding. Output channels are the rows of a wgmma, pixels its columns.

The descriptors are made on the host and travel as kernel parameters. Descriptors made on the device would need memory
that Triton asks an allocator for in every call, and a program would write and fence them before its first load. As
parameters they are copied into a CUDA graph that is captured, like every address, and compile ahead of time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..._triton import tiles
from ..._triton.launch import capability, cdiv, launch
from .triton_tiles import PARTIAL_VALUES, PROCESSORS, STEP, Tiles, Work, box_of, may_split, resident, tiles_of

if TYPE_CHECKING:
    from .triton import Packed

#: Compute capabilities of the GPUs that take this form: later ones have other matrix units, and nothing was compiled
#: for them yet.
CAPABILITIES = range(90, 100)

#: Fewest channels on both sides.
FEWEST_CHANNELS = 64

#: Bytes that addresses and strides of a descriptor are multiples of.
ALIGNMENT = 16

#: Values of a program that adds up split sums.
SUM_VALUES = 4096


# --- kernels -----------------------------------------------------------------------------------------------


@triton.jit
def corner(
    tile, across, nt, nh, nw,
    BOX_N: tl.constexpr, BOX_T: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """First clip, frame, row, column and channel of a tile. Tiles that share their pixels follow one another."""
    m = tile // across
    v = m % nw
    m = m // nw
    h = m % nh
    m = m // nh
    return m // nt * BOX_N, m % nt * BOX_T, h * BOX_H, v * BOX_W, tile % across * BLOCK_N


@triton.jit
def finish(
    acc, scale, shift, residual, out, n, t, h, v, channel, out_channels,
    BOX_N: tl.constexpr, BOX_T: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, BLOCK_N: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    """Scale, shift, residual and ReLU of sums [BLOCK_N, pixels], rounded and stored."""
    columns = channel + tl.arange(0, BLOCK_N)
    y = tiles.affine(acc.T, scale, shift, columns, columns < out_channels)
    if residual is not None:
        y += tiles.widened(residual.load([n, t, h, v, channel]).reshape(y.shape))
    if RELU:
        y = tiles.relu(y)
    y = tiles.narrowed(y, out.dtype)
    out.store([n, t, h, v, channel], y.reshape(BOX_N, BOX_T, BOX_H, BOX_W, BLOCK_N))


@triton.jit(do_not_specialize=["items", "across", "nt", "nh", "nw", "channels", "steps2", "pad_t", "pad_h", "pad_w",
                               "dt", "dh", "dw", "out_channels"])  # fmt: skip
def descriptor_kernel(
    x, w, scale, shift, residual, out, x2, w2, partial,
    items, across, nt, nh, nw, channels, steps2, pad_t, pad_h, pad_w, dt, dh, dw, out_channels,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BOX_N: tl.constexpr, BOX_T: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, OVERLAP: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    BLOCK_M: tl.constexpr = BOX_N * BOX_T * BOX_H * BOX_W
    blocks = tl.cdiv(channels, BLOCK_K)
    steps = KT * KH * KW * blocks
    for item in tl.range(tl.program_id(0), items, tl.num_programs(0), flatten=OVERLAP):
        n, t, h, v, channel = corner(item // SPLITS, across, nt, nh, nw, BOX_N, BOX_T, BOX_H, BOX_W, BLOCK_N)
        first, last = 0, steps + steps2
        if SPLITS > 1:
            first = item % SPLITS * last // SPLITS
            last = (item % SPLITS + 1) * last // SPLITS
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for i in range(first, tl.minimum(last, steps) if SPLITS > 1 else steps):
            tap = i // blocks
            c = (i - tap * blocks) * BLOCK_K
            at_t = t - pad_t + tap // (KH * KW) * dt
            at_h = h - pad_h + tap // KW % KH * dh
            at_w = v - pad_w + tap % KW * dw
            a = w.load([channel, tap * channels + c])
            b = x.load([n, at_t, at_h, at_w, c]).reshape(BLOCK_M, BLOCK_K)
            acc = tiles.dot(a, b.T, acc, "ieee")
        if x2 is not None:
            for i in range(tl.maximum(first, steps) if SPLITS > 1 else steps, last):
                c = (i - steps) * BLOCK_K
                a = w2.load([channel, c])
                b = x2.load([n, t, h, v, c]).reshape(BLOCK_M, BLOCK_K)
                acc = tiles.dot(a, b.T, acc, "ieee")
        if SPLITS > 1:
            # every item has a place of its own, whatever lies outside of the output with it
            rows = item * BLOCK_N + tl.arange(0, BLOCK_N)
            tl.store(partial + rows[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :], acc)
        else:
            finish(
                acc, scale, shift, residual, out, n, t, h, v, channel, out_channels,
                BOX_N, BOX_T, BOX_H, BOX_W, BLOCK_N, RELU,
            )  # fmt: skip


@triton.jit(do_not_specialize=["across", "nt", "nh", "nw", "out_channels"])
def split_sum_kernel(
    partial, scale, shift, residual, out, across, nt, nh, nw, out_channels,
    BOX_N: tl.constexpr, BOX_T: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr, PART: tl.constexpr, SPLITS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    # PART channels of one tile; the sums are added in their order, whoever was first
    BLOCK_M: tl.constexpr = BOX_N * BOX_T * BOX_H * BOX_W
    tile = tl.program_id(0) // (BLOCK_N // PART)
    part = tl.program_id(0) % (BLOCK_N // PART) * PART
    n, t, h, v, channel = corner(tile, across, nt, nh, nw, BOX_N, BOX_T, BOX_H, BOX_W, BLOCK_N)
    rows = tile * SPLITS * BLOCK_N + part + tl.arange(0, PART)
    at = partial + rows[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    acc = tl.load(at)
    for split in tl.static_range(1, SPLITS):
        acc += tl.load(at + split * BLOCK_N * BLOCK_M)
    finish(
        acc, scale, shift, residual, out, n, t, h, v, channel + part, out_channels,
        BOX_N, BOX_T, BOX_H, BOX_W, PART, RELU,
    )  # fmt: skip


# --- maps --------------------------------------------------------------------------------------------------


@dataclass
class Map:
    """A map as a descriptor reads it: extents and strides (elements) of clips, frames, rows and columns."""

    tensor: torch.Tensor
    extents: list[int]
    strides: list[int]

    @property
    def readable(self) -> bool:
        """Whether address and strides are what a descriptor takes."""
        size = self.tensor.element_size()
        channels = self.tensor.shape[1]
        aligned = all(s > 0 and s * size % ALIGNMENT == 0 for s in self.strides)
        return aligned and starts_aligned(self.tensor) and (channels == 1 or self.tensor.stride(1) == 1)

    def joins(self, axis: int) -> bool:
        """Whether an axis goes on where the one behind it ends."""
        (a, b), (step, inner) = self.extents[axis : axis + 2], self.strides[axis : axis + 2]
        return a == 1 or b == 1 or step == b * inner

    def join(self, axis: int) -> None:
        """Put an axis and the one behind it together in the place of the latter."""
        a, b = self.extents[axis : axis + 2]
        if b == 1:
            self.strides[axis + 1] = self.strides[axis]
        self.extents[axis : axis + 2] = [1, a * b]

    def descriptor(self, box: Sequence[int], channels: int) -> TensorDescriptor:
        shape = [*self.extents, self.tensor.shape[1]]
        return TensorDescriptor(self.tensor, shape, [*self.strides, 1], [*box, channels])


def starts_aligned(x: torch.Tensor) -> bool:
    """Whether the first element's address is a multiple of `ALIGNMENT`; of tensors without memory, the offset."""
    at = x.storage_offset() * x.element_size() if x.device.type == "meta" else x.data_ptr()
    return at % ALIGNMENT == 0


def map_of(x: torch.Tensor, steps: Sequence[int] = (1, 1, 1)) -> Map:
    """Every so many frames, rows and columns of a map [N, C, T, H, W]."""
    steps = (1, *steps)
    extents = [cdiv(x.shape[d], s) for d, s in zip((0, 2, 3, 4), steps, strict=True)]
    strides = [x.stride(d) * s for d, s in zip((0, 2, 3, 4), steps, strict=True)]
    # an axis of one element has any stride: give it one that follows from the others
    inner = math.gcd(*(s for s, n in zip(strides, extents, strict=True) if n > 1)) or x.shape[1]
    for axis in reversed(range(4)):
        if extents[axis] == 1:
            strides[axis] = strides[axis + 1] * extents[axis + 1] if axis < 3 else inner
    return Map(x, extents, strides)


@dataclass
class Call:
    """A convolution through descriptors: its maps over the same axes, of which those without a window that follow one
    another in every map are one.
    """

    x: Map
    out: Map
    residual: Map | None
    x2: Map | None
    packed: Packed
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]

    @property
    def work(self) -> Work:
        n, t, h, w = self.out.extents
        taps = math.prod(self.packed.kernel)
        cout, channels2 = self.out.tensor.shape[1], self.packed.channels2 if self.x2 else 0
        return Work((n, t, h, w), cout, self.packed.channels, taps, channels2, self.residual is not None)


def suits(packed: Packed, out_channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a convolution may be read through descriptors, if its maps lie as they should."""
    if dtype.itemsize != 2 or packed.row or capability(device) not in CAPABILITIES:
        return False
    # a step beyond a tap's channels would meet the map's zeros with the next tap's weights, which may not be finite
    whole = math.prod(packed.kernel) == 1 or packed.channels % STEP == 0
    return whole and min(packed.channels, out_channels) >= FEWEST_CHANNELS


def call_of(
    x: torch.Tensor, packed: Packed, out: torch.Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], residual: torch.Tensor | None, x2: torch.Tensor | None, stride2: Sequence[int],
) -> Call | None:  # fmt: skip
    """The convolution as `run` takes it, or None where descriptors cannot read it: `suits` does not hold, a window has
    strides, or addresses or strides of memory are no multiples of 16 bytes.
    """
    if not suits(packed, out.shape[1], x.dtype, x.device):
        return None
    windowed = [k > 1 or p > 0 for k, p in zip(packed.kernel, padding, strict=True)]
    if any(s > 1 and window for s, window in zip(stride, windowed, strict=True)):
        return None
    weights = [w for w in (packed.weight, packed.weight2) if w is not None]
    if not all(starts_aligned(w) and w.stride(0) * w.element_size() % ALIGNMENT == 0 for w in weights):
        return None
    call = Call(
        map_of(x, stride), map_of(out), None if residual is None else map_of(residual),
        None if x2 is None else map_of(x2, stride2), packed,
        (padding[0], padding[1], padding[2]), (dilation[0], dilation[1], dilation[2]),
    )  # fmt: skip
    maps = [m for m in (call.x, call.out, call.residual, call.x2) if m is not None]
    if not all(m.readable and m.tensor.dtype == x.dtype for m in maps):
        return None
    for axis, (before, behind) in enumerate(zip([False, *windowed], windowed, strict=False)):
        if not before and not behind and all(m.joins(axis) for m in maps):
            for m in maps:
                m.join(axis)
    return call


# --- calls -------------------------------------------------------------------------------------------------


def partial_values(
    pixels: int, packed: Packed, out_channels: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Values in float32 that the sums of split tiles take at most; 0 if none are split."""
    fits = suits(packed, out_channels, dtype, device) and may_split(pixels, out_channels)
    return PARTIAL_VALUES if fits else 0


def run(
    call: Call,
    shift: torch.Tensor | None,
    relu: bool,
    config: Tiles,
    out: torch.Tensor,
    partial: torch.Tensor | None,
) -> None:
    """The convolution into ``out``, which lies as the call's.

    partial: float32 [`PARTIAL_VALUES`] of anything, for tiles that are split; allocated where None.
    """
    packed, work = call.packed, call.work
    box, n, k = box_of(config.block_m, work.extents), config.block_n, config.block_k
    counts = [cdiv(e, b) for e, b in zip(work.extents, box, strict=True)][1:]
    count, across = tiles_of(config, work), cdiv(work.out_channels, n)
    items = count * config.splits
    if config.splits == 1:
        partial = None
    elif partial is None:
        partial = torch.empty(items * config.block_m * n, dtype=torch.float32, device=out.device)
    written = Map(out, call.out.extents, call.out.strides)
    channels = n if config.splits == 1 else min(n, max(16, SUM_VALUES // config.block_m))
    ends = (
        packed.scale, shift,
        None if call.residual is None else call.residual.descriptor(box, channels), written.descriptor(box, channels),
    )  # fmt: skip
    constants: dict[str, Any] = dict(zip(("BOX_N", "BOX_T", "BOX_H", "BOX_W"), box, strict=True))
    constants |= {"BLOCK_N": n, "SPLITS": config.splits, "RELU": relu}

    def weights(w: torch.Tensor) -> TensorDescriptor:
        return TensorDescriptor(w, list(w.shape), list(w.stride()), [n, k])

    launch(
        descriptor_kernel,
        (min(items, PROCESSORS * max(1, resident(config, work))),),
        call.x.descriptor(box, k), weights(packed.weight),
        *(ends if config.splits == 1 else (None,) * 4),
        None if call.x2 is None else call.x2.descriptor(box, k),
        None if call.x2 is None or packed.weight2 is None else weights(packed.weight2), partial,
        items, across, *counts, packed.channels, cdiv(work.channels2, k), *call.padding, *call.dilation,
        work.out_channels,
        warps=config.warps, stages=config.stages,
        KT=packed.kernel[0], KH=packed.kernel[1], KW=packed.kernel[2], BLOCK_K=k, OVERLAP=config.overlap,
        **constants,
    )  # fmt: skip
    if config.splits > 1:
        launch(
            split_sum_kernel,
            (count * (n // channels),),
            partial, *ends, across, *counts, work.out_channels,
            warps=4, stages=1,
            PART=channels, **constants,
        )  # fmt: skip
