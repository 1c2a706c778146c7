"""Tiles of the Triton convolution as data: of both its forms the unmeasured choice, and what is worth measuring."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ... import backends
from ..._triton.launch import cdiv, next_power_of_2
from .._device import PROCESSORS

#: Shared memory that the operands of a tile may take, bytes: what an sm_80 block can have, less the epilogue's.
SHARED_BYTES = 160 * 1024

#: Most candidates that are measured for a shape, of each form.
MOST_CANDIDATES = 8


@dataclass(frozen=True)
class Tiles:
    """How one convolution is cut up.

    block_m, block_n: output pixels and channels of a tile.
    block_k:          products per step.
    warps, stages:    warps of a program, steps in flight.
    descriptors:      whether operands are read through tensor descriptors (`triton_descriptor`), not through pointers.
                      A program then does several tiles, one after another.
    splits:           with descriptors: programs that share the products of a tile; a second kernel adds their sums.
    overlap:          with descriptors: a program loads the next tile's first operands before it stores this one.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int = 4
    stages: int = 3
    descriptors: bool = False
    splits: int = 1
    overlap: bool = False


def step_of(products: int, most: int, padding: float = 1.25) -> int:
    """Products per step: the largest power of two that pads their number by a factor of ``padding`` at most."""
    sizes = [k for k in (128, 64, 32, 16) if k <= most]
    return next((k for k in sizes if cdiv(products, k) * k <= padding * products), sizes[-1])


# --- pointers ----------------------------------------------------------------------------------------------


def heuristic(
    pixels: int, out_channels: int, channels: int, taps: int, row: int, channels2: int, dtype: torch.dtype,
    mode: str,
) -> Tiles:  # fmt: skip
    """Tiles of a convolution, unmeasured: large ones while they keep every multiprocessor busy.

    row:       of `Packed`.
    channels2: input channels of the second source, 0 without one.
    mode:      `dot_precision`.
    """
    if backends.simulated("triton"):  # the interpreter takes its time per step, not per value
        k = next_power_of_2(row or max(channels, channels2), 16, 512)
        return Tiles(next_power_of_2(pixels, 16, 2048), next_power_of_2(out_channels, 16, 512), k)
    wide = dtype == torch.float32
    ieee = wide and mode == "ieee"
    n = next_power_of_2(out_channels, 16, 64 if wide else 128)
    m = 64 if wide and mode != "tf32" else 128
    while cdiv(pixels, m) * cdiv(out_channels, n) < PROCESSORS and (m > 64 or n > 64):
        m, n = (64, n) if m > 64 else (m, n // 2)
    most = 16 if ieee else 32 if wide else 64
    k = next_power_of_2(row, 16) if row else step_of(channels, most)
    if channels2 and not row:
        k = max(16, min(k, step_of(channels2, most)))
    if row and channels % 8:  # loads of single values: a thread holds few pixels
        m = 64
    steps = (taps * channels // row if row else cdiv(channels, k) * taps) + cdiv(channels2, k)
    stages = 1 if ieee else min(4 if m * n < 128 * 128 else 3, max(2, steps))
    # large tiles need eight warps' registers for residual and sums, short steps of three products for the operands'
    # parts; taps stay with four, small sums without matrix units with two
    large = m * n >= 128 * 128 or (mode == "tf32x3" and k == 16)
    warps = 8 if taps == 1 and large else 2 if ieee and taps > 1 and n == 32 else 4
    return Tiles(m, n, k, warps, stages)


#: (block_m, block_n, warps, stages) worth measuring, the likeliest first; those of eight warps without taps only: more
#: have given wrong results with them.
SEEDS = (
    (128, 128, 4, 3),
    (128, 128, 4, 4),
    (64, 128, 4, 4),
    (128, 64, 4, 4),
    (64, 64, 4, 4),
    (256, 64, 4, 3),
)
POINT_SEEDS = ((128, 256, 8, 3), (256, 128, 8, 3))


def candidates(
    pixels: int, out_channels: int, channels: int, taps: int, row: int, channels2: int, dtype: torch.dtype,
    mode: str,
) -> list[Tiles]:  # fmt: skip
    """Tiles worth measuring, `MOST_CANDIDATES` at most: `SEEDS` narrowed to the channels, the heuristic's steps."""
    k = heuristic(pixels, out_channels, channels, taps, row, channels2, dtype, mode).block_k
    found = []
    for m, n, warps, stages in (*SEEDS, *(POINT_SEEDS if taps == 1 else ())):
        n = min(n, next_power_of_2(out_channels, 16))
        if dtype == torch.float32:  # operands and their parts take twice the room
            m, n, stages = min(m, 128), min(n, 64), 1 if mode == "ieee" else min(stages, 3)
        while (m + n) * k * dtype.itemsize * stages > SHARED_BYTES:
            stages -= 1
        found.append(Tiles(m, n, k, warps, stages))
    return list(dict.fromkeys(found))[:MOST_CANDIDATES]


# --- descriptors -------------------------------------------------------------------------------------------

#: Products per step with descriptors: 64 values of 16 bits are the 128 bytes of a swizzled row.
STEP = 64

#: Values in float32 that the sums of split tiles may take.
PARTIAL_VALUES = PROCESSORS * 128 * 128

#: Shared memory of an sm_90 multiprocessor and what each block takes of it for itself, bytes; most for one block.
MULTIPROCESSOR_BYTES, BLOCK_OVERHEAD, BLOCK_BYTES = 228 * 1024, 1024, 227 * 1024

#: (block_m, block_n, warps, stages). The channels are the rows of a wgmma, so that few pixels make no wide tile.
DESCRIPTOR_SEEDS = (
    (256, 128, 8, 3), (128, 256, 8, 3), (128, 128, 8, 4), (128, 128, 4, 2), (64, 128, 4, 4), (128, 64, 4, 4),
    (64, 64, 4, 4), (32, 128, 4, 4), (32, 64, 4, 4),
)  # fmt: skip

# A multiprocessor's clocks, for predictions alone: products per clock of wgmma, bytes per clock out of the level-2
# cache, the beginning and the end of a tile, and what a second kernel costs.
PRODUCTS_PER_CLOCK, BYTES_PER_CLOCK, EDGE_CLOCKS, KERNEL_CLOCKS = 2048, 32, 2500, 4000


@dataclass(frozen=True)
class Work:
    """What the tiles of a convolution through descriptors depend on.

    extents:  output clips, frames, rows and columns, axes that nothing distinguishes put together.
    channels, channels2: of the input and of the second source (0 without one); taps: of the kernel.
    """

    extents: tuple[int, int, int, int]
    out_channels: int
    channels: int
    taps: int
    channels2: int
    residual: bool

    def steps(self, block_k: int) -> int:
        return self.taps * cdiv(self.channels, block_k) + cdiv(self.channels2, block_k)


@functools.cache
def box_of(pixels: int, extents: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """A tile's pixels as clips, frames, rows and columns: powers of two with the product ``pixels`` that reach least
    beyond the extents when they cover them; of equals the longest along the last axes.
    """

    def boxes(pixels: int, axes: int) -> Iterator[tuple[int, ...]]:
        if axes == 1:
            yield (pixels,)
            return
        for last in (1 << i for i in range(pixels.bit_length())):
            yield from ((*first, last) for first in boxes(pixels // last, axes - 1))

    def covered(box: Sequence[int]) -> int:
        return math.prod(cdiv(e, b) * b for e, b in zip(extents, box, strict=True))

    n, t, h, w = min(
        (box for box in boxes(pixels, 4) if max(box) <= 256),
        key=lambda box: (covered(box), [-b for b in reversed(box)]),
    )
    return n, t, h, w


def tiles_of(tiles: Tiles, work: Work) -> int:
    """How many tiles cover the output."""
    box = box_of(tiles.block_m, work.extents)
    places = math.prod(cdiv(e, b) for e, b in zip(work.extents, box, strict=True))
    return places * cdiv(work.out_channels, tiles.block_n)


def resident(tiles: Tiles, work: Work) -> int:
    """Programs that one multiprocessor runs at a time; 0 if it cannot."""
    tile = tiles.block_m * tiles.block_n * 2
    ring = tiles.stages * (tiles.block_m + tiles.block_n) * tiles.block_k * 2
    stores = (2 if tiles.overlap and work.residual else 1) * tile
    shared = ring + stores + 1024
    if shared > BLOCK_BYTES:
        return 0
    return min(MULTIPROCESSOR_BYTES // (shared + BLOCK_OVERHEAD), 8 // tiles.warps)


def clocks(tiles: Tiles, work: Work) -> float:
    """Predicted clocks of a multiprocessor, to tell good tiles from bad ones."""
    m, n, k = tiles.block_m, tiles.block_n, tiles.block_k
    together = resident(tiles, work)
    items = tiles_of(tiles, work) * tiles.splits
    step = max(m * n * k / PRODUCTS_PER_CLOCK, 2 * (m + n) * k / BYTES_PER_CLOCK)
    edges = EDGE_CLOCKS + 2 * m * n * (1 + work.residual) / BYTES_PER_CLOCK
    rounds = cdiv(items, PROCESSORS * together)
    if tiles.overlap and rounds > 1:
        edges /= 2
    total = rounds * (together * cdiv(work.steps(k), tiles.splits) * step + edges)
    if tiles.splits > 1:
        total += KERNEL_CLOCKS + 2 * 4 * items * m * n / (PROCESSORS * BYTES_PER_CLOCK)
    return total


def may_split(pixels: int, out_channels: int) -> bool:
    """Whether a convolution has few tiles enough for programs to share them."""
    return 2 * cdiv(pixels, 128) * cdiv(out_channels, 128) <= PROCESSORS


def _by_clocks(work: Work) -> list[Tiles]:
    found = []
    for m, n, warps, stages in DESCRIPTOR_SEEDS:
        if n > next_power_of_2(work.out_channels, 64):
            continue
        plain = Tiles(m, n, STEP, warps, stages, descriptors=True)
        # the next tile's loads are hoisted out of a loop with one source only
        several = [plain] if work.channels2 else [plain, replace(plain, overlap=True)]
        if may_split(math.prod(work.extents), work.out_channels):
            several += [replace(plain, splits=s) for s in (2, 3, 4, 6, 8) if work.steps(STEP) >= 4 * s]
        for tiles in several:
            values = tiles_of(tiles, work) * tiles.splits * m * n
            if resident(tiles, work) and (tiles.splits == 1 or values <= PARTIAL_VALUES):
                found.append(tiles)
    return sorted(found, key=lambda tiles: clocks(tiles, work))


def descriptor_heuristic(work: Work) -> Tiles:
    """Tiles through descriptors, unmeasured: the fewest clocks predicted."""
    if backends.simulated("triton"):
        pixels, k = math.prod(work.extents), next_power_of_2(work.channels, 64, 512)
        while work.taps > 1 and work.channels % k:
            k //= 2
        return Tiles(
            next_power_of_2(pixels, 16, 1024),
            next_power_of_2(work.out_channels, 16, 512),
            k,
            descriptors=True,
        )
    return _by_clocks(work)[0]


def descriptor_candidates(work: Work) -> list[Tiles]:
    """Tiles through descriptors worth measuring, `MOST_CANDIDATES` at most."""
    return _by_clocks(work)[:MOST_CANDIDATES]
