"""What a block of threads of the CUDA kernels computes: shared memory, candidates, and the choice unmeasured."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .cuda_pack import WIDE, Packed

#: Inner width of a narrow block -> warps of a block of threads, blocks of threads that a multiprocessor's registers
#: hold; as block_narrow_threads and block_narrow_resident of block_narrow.cuh have them.
NARROW_BLOCKS = {8: (4, 4), 16: (8, 2), 32: (8, 1)}

#: A rolling conv_a's temporal taps, and pixels of its largest halo: kNarrowTaps and kNarrowRolling.
ROLLING_TAPS, ROLLING_HALO = 3, 256


@dataclass(frozen=True)
class Tiles:
    """What a block of threads computes: ``height`` x ``width`` output pixels of ``frames`` frames."""

    height: int
    width: int
    frames: int


def _within(sizes: Iterable[int], height: int, width: int) -> list[tuple[int, int]]:
    """Heights and widths of tiles among ``sizes``, none larger than the result."""
    heights, widths = (sorted({min(n, extent) for n in sizes}) for extent in (height, width))
    return list(itertools.product(heights, widths))


def _rows(tiles: Tiles) -> int:
    """Rows of the tensor cores' tiles for a tile's pixels; as line_rows of block_mma.cuh places its lines."""
    eights, whole = -(-tiles.width // 8) * 8, -(-tiles.height * tiles.width // 32) * 32
    return tiles.height * (eights if eights * tiles.height <= whole else tiles.width)


def _pitch(channels: int) -> int:
    return (channels // 8 | 1) * 8


def _halo(tiles: Tiles, stride: int, dilation: int) -> int:
    """Input pixels of a tile."""
    return math.prod((n - 1) * stride + 2 * dilation + 1 for n in (tiles.height, tiles.width))


def shared_bytes(packed: Packed, tiles: Tiles, stride: int, dilation: int) -> int:
    """Shared memory of a block of threads; as block_narrow_shared of block_narrow.cuh counts it."""
    halo, rows = _halo(tiles, stride, dilation), -(-tiles.height * tiles.width // 32) * 32
    ring = max(packed.kernel_t, 2) + 1
    x_pitch = packed.cin if packed.cin % 64 == 0 else _pitch(packed.cin)
    maps = halo * (ring * x_pitch + 2 * _pitch(packed.inner)) * 2
    vectors = 4 * packed.shifts.numel() + 8 * rows + -(-4 * halo // 16) * 16
    return maps + packed.weights.numel() * 2 + vectors


def candidates(
    packed: Packed, clips: int, frames: int, height: int, width: int, stride: int, dilation: int, shared: int
) -> list[Tiles]:
    """Tiles worth measuring for [clips, cout, frames, height, width] results, by what they leave of shared memory.

    Where conv_a can roll, those with which it does: the others read each input frame once for every tap.
    """
    found = []
    for h, w in _within((4, 7, 8, 14, 16, 28), height, width):
        tiles = Tiles(h, w, frames)
        if h * w <= 512 and shared_bytes(packed, tiles, stride, dilation) <= shared:
            found.append(tiles)
    if packed.kernel_t == ROLLING_TAPS:
        found = [t for t in found if _halo(t, stride, dilation) <= ROLLING_HALO] or found
    if not found and shared_bytes(packed, Tiles(1, 1, frames), stride, dilation) <= shared:
        found.append(Tiles(1, 1, frames))
    return [
        Tiles(t.height, t.width, f)
        for t in found
        for f in sorted({-(-frames // parts) for parts in (1, 2, 4, 8)}, reverse=True)
    ]


def heuristic(
    packed: Packed,
    clips: int,
    frames: int,
    height: int,
    width: int,
    stride: int,
    dilation: int,
    processors: int,
    shared: int,
) -> Tiles | None:
    """Tiles of a call, unmeasured; None where nothing fits into ``shared`` bytes.

    A model of one phase of a multiprocessor, in products: those of all its tensor-core tiles, whole or not, and bytes
    brought in, a byte taking as long as some 20 products; or the longest chain of one warp. That one has a quarter of
    the multiprocessor at most, and waits in each step of 16 products for its ldmatrix and then for the result, some 30
    clocks each: at 1290 products a clock (mma.sync, 2580 FLOP) 60 clocks are 77,000 products that others could do
    meanwhile. Blocks of threads that find no multiprocessor wait for the next round.
    """
    cin, inner, cout = packed.cin, packed.inner, packed.cout
    warps, most = NARROW_BLOCKS[inner]
    # Tiles of 16 pixels: of conv_a whose sums a warp holds, and that follow one another. Of conv_b every warp takes 2.
    held, adjacent = ROLLING_HALO // 16 // warps, 2 if inner >= 16 else 1
    wait = 60 * 1290
    a = 16 * packed.kernel_t * cin * inner  # products of a tile of 16 pixels
    bc = 16 * (9 * inner * inner + inner * cout + packed.shortcut * cin * cout)
    steps_a = -(-cin // 16)
    steps_c = -(-inner // 16) + packed.shortcut * steps_a + 1  # of 32 channels, with storing them
    steps_bc = -(-9 * inner // 16) + -(-cout // 32) * steps_c

    def time(tiles: Tiles) -> float:
        halo = _halo(tiles, stride, dilation)
        a_tiles, b_tiles = -(-halo // 16), -(-_rows(tiles) // 16)
        passes = 1 if packed.kernel_t == ROLLING_TAPS and halo <= ROLLING_HALO else packed.kernel_t

        def chain(warp: int) -> float:
            """As block_narrow_kernel deals the tiles: conv_a's from the first warp on, the others from the last."""
            from_first = range(warp * adjacent, a_tiles, warps * adjacent)
            from_last = range((warps - 1 - warp) * 2, b_tiles, warps * 2)
            tiles_a = sum(min(adjacent, a_tiles - i) for i in from_first)
            tiles_b = sum(min(2, b_tiles - i) for i in from_last)
            steps = -(-tiles_a // held) * passes * steps_a + len(from_last) * steps_bc
            return 4 * (tiles_a * a + tiles_b * bc) + wait * steps

        brought = halo * cin * 40
        work = a_tiles * a + b_tiles * bc + brought
        taken = (
            shared_bytes(packed, tiles, stride, dilation) + 1024
        )  # with what the system takes of each block
        resident = max(1, min(most, (shared + 1024) // taken))
        blocks = clips * -(-height // tiles.height) * -(-width // tiles.width) * -(-frames // tiles.frames)
        together = max(1, min(resident, -(-blocks // processors)))
        rounds = -(-blocks // (processors * resident))
        start = (packed.kernel_t - 1) * brought + packed.weights.numel() * 40
        alone = 1.25 if together == 1 else 1.0  # alone, nothing hides the barriers
        phase = alone * max(together * work, *map(chain, range(warps)))
        return rounds * (tiles.frames * phase + together * start)

    found = candidates(packed, clips, frames, height, width, stride, dilation, shared)
    return min(found, key=time, default=None)


@dataclass(frozen=True)
class TailTiles:
    """What a block of threads computes of a wide block at a time: output pixels of a frame.

    whole: all convolutions in one kernel, at most 256 pixels with their halo; else conv_b and conv_c, at most 128.
    """

    height: int
    width: int
    whole: bool = False


def tail_shared_bytes(packed: Packed, tiles: TailTiles, stride: int, dilation: int) -> int:
    """Shared memory of a block of threads; as block_wide_rest_shared of block_wide.cuh counts it."""
    height, width = ((n - 1) * stride + 2 * dilation + 1 for n in (tiles.height, tiles.width))
    rows = 64 if tiles.height * tiles.width <= 64 else 128
    maps = height * width * _pitch(packed.inner) * 2
    operands = rows * (_pitch(-(-packed.cin // 16) * 16) if packed.shortcut else 64) * 2
    if packed.chained and packed.inner == 128 and rows == 128:
        operands += rows * packed.inner * 2
    return 3 * 64 * packed.inner * 2 + max(maps, operands) + 8 * rows


def tail_candidates(
    packed: Packed, height: int, width: int, stride: int, dilation: int, shared: int
) -> list[TailTiles]:
    """Tiles worth measuring for frames of height x width results."""
    sizes = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 28, 32, 56)
    found = [TailTiles(h, w) for h, w in _within(sizes, height, width) if h * w <= 128]
    return [t for t in found if tail_shared_bytes(packed, t, stride, dilation) <= shared]


def tail_heuristic(
    packed: Packed,
    frames: int,
    height: int,
    width: int,
    stride: int,
    dilation: int,
    processors: int,
    shared: int,
) -> TailTiles | None:
    """Tiles of a wide block's second kernel, unmeasured; ``frames`` counts those of all clips.

    Every block of threads multiplies whole 64s of rows by all weights; the halo costs a little, idle
    multiprocessors and a block alone on its own cost more.
    """

    def time(tiles: TailTiles) -> float:
        rows = 64 if tiles.height * tiles.width <= 64 else 128
        halo = math.prod((n - 1) * stride + 2 * dilation + 1 for n in (tiles.height, tiles.width))
        blocks = frames * -(-height // tiles.height) * -(-width // tiles.width)
        resident = max(1, min(2, shared // tail_shared_bytes(packed, tiles, stride, dilation)))
        alone = 1.0 if min(resident, blocks / processors) >= 2 else 1.2
        # 64 rows do not use a weight's way into the registers as often as 128 do.
        return -(-blocks // (processors * resident)) * resident * alone * (rows + 40 + halo / 16)

    found = tail_candidates(packed, height, width, stride, dilation, shared)
    return min(found, key=time, default=None)


#: Pixels of a halo tile of the kernel for whole wide blocks, and input channels that its ring of stages holds.
WHOLE_ROWS, WHOLE_CHANNELS = 256, 96


def whole_refuses(packed: Packed, stride: int) -> str | None:
    """Why the kernel for whole wide blocks cannot run this one, or None."""
    if packed.inner != 64 or packed.kernel_t != 1 or stride != 1:
        return "expected an inner width of 64, no convolution in time and stride 1"
    if packed.shortcut and packed.cin > WHOLE_CHANNELS:
        return f"expected at most {WHOLE_CHANNELS} input channels with a shortcut, got {packed.cin}"
    return None


def whole_shared_bytes(packed: Packed, tiles: TailTiles, dilation: int) -> int:
    """Shared memory of a block of threads; as block_wide_one_shared of block_wide_one.cuh counts it."""
    halo = (tiles.height + 2 * dilation) * (tiles.width + 2 * dilation)
    steps = -(-packed.cin // 16)
    weights = steps + 36 + -(-packed.cout // 64) * (4 + (steps if packed.shortcut else 0))
    return weights * 2048 + halo * _pitch(64) * 2 + 3 * -(-halo // 32) * 32 * 64


def whole_candidates(
    packed: Packed, height: int, width: int, stride: int, dilation: int, shared: int
) -> list[TailTiles]:
    """Tiles of the kernel for whole wide blocks worth measuring for frames of height x width results."""
    if whole_refuses(packed, stride):
        return []
    sizes = (1, 2, 4, 6, 7, 8, 10, 12, 14, 16, 28)
    found = [
        TailTiles(h, w, True)
        for h, w in _within(sizes, height, width)
        if (h + 2 * dilation) * (w + 2 * dilation) <= WHOLE_ROWS
    ]
    return [t for t in found if whole_shared_bytes(packed, t, dilation) <= shared]


def whole_heuristic(
    packed: Packed,
    frames: int,
    height: int,
    width: int,
    stride: int,
    dilation: int,
    processors: int,
    shared: int,
) -> TailTiles | None:
    """Tiles of the kernel for whole wide blocks, unmeasured; ``frames`` counts those of all clips.

    None where the weights leave room for small tiles only, whose halos are most of the work.
    Each warp has 32 rows and a quarter of the multiprocessor that it shares with at most one other warp. A byte
    brought in takes as long as some 20 products.
    """
    cin, inner, cout = packed.cin, packed.inner, packed.cout
    after = 9 * inner * inner + inner * cout + packed.shortcut * cin * cout

    def time(tiles: TailTiles) -> float:
        halo = (tiles.height + 2 * dilation) * (tiles.width + 2 * dilation)
        rounds = -(-(frames * -(-height // tiles.height) * -(-width // tiles.width)) // processors)
        eights = -(-tiles.width // 8) * 8  # rows of a line of the tile, where they all fit
        rows = tiles.height * (eights if eights * tiles.height <= WHOLE_ROWS else tiles.width)
        products = -(-halo // 128) * cin * inner + -(-rows // 128) * after
        return rounds * (128 * products + 40 * halo * cin)

    found = whole_candidates(packed, height, width, stride, dilation, shared)
    least = min(64, height * width)
    return min((t for t in found if t.height * t.width >= least), key=time, default=None)


@functools.cache
def least_shared_bytes(
    cin: int, inner: int, cout: int, kernel_t: int, shortcut: bool, stride: int, dilation: int
) -> int:
    """Shared memory of the smallest tile of a block of these widths."""
    steps, wide = -(-cin // 16), -(-cout // 32) * 32
    weights = (
        kernel_t * steps * inner + -(-9 * inner // 16) * inner + (-(-inner // 16) + shortcut * steps) * wide
    )
    packed = Packed(
        torch.empty(16 * weights, device="meta"), torch.empty(2 * inner + wide, device="meta"), None, None,
        cin, inner, cout, kernel_t, shortcut,
    )  # fmt: skip
    if inner in WIDE:
        return tail_shared_bytes(packed, TailTiles(1, 1), stride, dilation)
    return shared_bytes(packed, Tiles(1, 1, 1), stride, dilation)
