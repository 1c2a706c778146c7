"""Models of our CUDA kernels: what one launch asks of the machine, from its arguments and its tiles.

Each is a function of a launch's arguments as the provider gives them (`_block_narrow_run_cuda(x, ...)`); counts follow
the kernels' loops, and tests hold them to the emulator's (tests/bench/test_bench_predict.py).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from slowfast_kernels import _extension
from slowfast_kernels.bench.gpu.predict.machine import Count, Machine, Work, moved, step
from slowfast_kernels.ops.bottleneck3d import cuda_tiles
from slowfast_kernels.ops.bottleneck3d.cuda_pack import Packed
from slowfast_kernels.ops.stem3d.cuda import TILE as STEM_TILE

Model = Callable[..., list[Work]]
MODELS: dict[str, Model] = {}


def model(function: Model) -> Model:
    """Registers a native op's model under the op's name."""
    MODELS[f"_{function.__name__}_cuda"] = function
    return function


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def covered(extent: int, tiles: int, at: int, before: int, size: int) -> int:
    """How much of [0, extent) `tiles` windows of `size` see together, the i-th from i * at - before on."""
    starts = (i * at - before for i in range(tiles))
    return sum(max(0, min(s + size, extent) - max(s, 0)) for s in starts)


def sized(x: torch.Tensor | None) -> int:
    """Bytes of a tensor's own values."""
    return 0 if x is None else x.numel() * x.element_size()


@functools.cache
def compiled() -> dict[str, int]:
    """Blocks on a multiprocessor by what the compiled kernels take of its registers; empty where nothing is built."""
    path = _extension.LIB_DIR / "cuda_resources.json"
    if not path.exists():
        return {}
    return {k["kernel"]: k["blocks_per_sm"] for k in json.loads(path.read_text()) if k["arch"] == "sm_90a"}


def resident(m: Machine, kernel: str, bounds: int, shared: int, static: int = 0) -> int:
    """Blocks of a compiled kernel that a multiprocessor has; bounds: by its launch bounds, where it is not built."""
    by_registers = compiled().get(kernel, bounds)
    return max(1, min(by_registers, m.shared_bytes // (shared + static + m.shared_reserved)))


def warp_products(m: Machine, mma: float, independent: int) -> float:
    """clk of a warp's mma after one another, alone on its quarter of a multiprocessor."""
    return mma * max(m.quarter_mma, m.mma_latency / independent)


def line_rows(tile_h: int, tile_w: int, rows: int) -> int:
    """Rows of the tensor cores between the lines of a tile of pixels that has so many: as in block_mma.cuh."""
    eights = cdiv(tile_w, 8) * 8
    return eights if eights * tile_h <= rows else tile_w


# --- stem (stem.cuh) ---------------------------------------------------------------------------------------


@model
def stem_run(
    m: Machine, x: torch.Tensor, weights: torch.Tensor, shift: Any, kernel_t: int, relu: bool, segment: int,
    out: torch.Tensor,
) -> list[Work]:  # fmt: skip
    clips, cout, frames, height, width = out.shape
    in_height, in_width = x.shape[3:]
    warps, m_tiles, n_tiles = 4, 4, 1 if cout <= 8 else 8
    pool_h, pool_w = STEM_TILE
    conv_h, conv_w = 2 * pool_h + 1, 2 * pool_w + 1
    rows, lines, values = cdiv(conv_h * conv_w, 16) * 16, 2 * conv_h + 5, 6 * (conv_w - 1) + 24
    vectors, joined = cdiv(3 * kernel_t * n_tiles, 4), min(4, n_tiles)
    across, down, segments = cdiv(width, pool_w), cdiv(height, pool_h), cdiv(frames, segment)
    tiles, reach = across * down, kernel_t // 2
    blocks = clips * segments * tiles
    # frames that blocks bring, and multiply with every tap
    brought = clips * covered(frames, segments, segment, reach, segment + 2 * reach) * tiles
    mma = m_tiles * n_tiles * kernel_t  # under one row of the kernel: 16 + 8 products for every tap
    of_row = Count(mma, mma, 4 * vectors + 6 * m_tiles, vectors + 6 * m_tiles)
    of_frame = (of_row * 7 + Count(wavefronts=2 * m_tiles, requests=2 * m_tiles)) * warps
    of_frame += moved(lines * values * 2)
    groups, pieces = n_tiles // joined, warps * 2 * m_tiles
    of_result = (
        moved(pieces * 32 * 4 * joined, 4 * joined) + Count(wavefronts=pieces, requests=pieces)
    ) * groups
    of_result += moved(warps * groups * 32 * 8 * joined, 16)
    count = (
        of_frame * brought + of_result * (clips * frames * tiles) + moved(9 * sized(out))
    )  # windows of the pool
    count += (moved(weights.numel() * 2) + moved(4 * rows, 4)) * blocks
    shared = (2 * lines * values + weights.numel() + (2 if n_tiles < 4 else 1) * rows * (n_tiles | 1) * 8) * 2
    shared += 4 * (8 * n_tiles + rows)
    seen = covered(in_height, down, 4 * pool_h, 5, lines) * covered(
        3 * in_width, across, 12 * pool_w, 16, values
    )
    name = f"stem_kernel<bf16, {kernel_t}, {n_tiles}, {m_tiles}>"
    # a warp's frame: products of a row, of which those of the pixels and taps do not wait for one another
    chain = 7 * (warp_products(m, 1.5 * mma, mma) + m.shared_latency) + 2 * m.barrier + 150 * groups
    return [
        Work(
            "stem_kernel", blocks, resident(m, name, 3 if n_tiles < 4 else 2, shared), count,
            l2=clips * covered(frames, segments, segment, reach, segment + 2 * reach) * seen * 2
            + blocks * sized(weights),
            chain=max(chain, m.dram_latency) * brought / blocks, fill=m.fill,
            shared=shared,
            reads=[(x, sized(x)), (weights, sized(weights))], writes=[(out, sized(out))],
        )
    ]  # fmt: skip


# --- narrow blocks (block_narrow.cuh) ----------------------------------------------------------------------


@model
def block_narrow_run(
    m: Machine, x: torch.Tensor, weights: torch.Tensor, shifts: torch.Tensor, inner: int, kernel_t: int, stride: int,
    dilation: int, shortcut: bool, tile: Sequence[int], out: torch.Tensor,
) -> list[Work]:  # fmt: skip
    clips, cout, frames, height, width = out.shape
    cin, in_height, in_width = x.shape[1], x.shape[3], x.shape[4]
    tile_h, tile_w, segment = tile
    tiles = cuda_tiles.Tiles(tile_h, tile_w, segment)
    warps, bounds = cuda_tiles.NARROW_BLOCKS[inner]
    n_tiles, adjacent = inner // 8, 2 if inner >= 16 else 1
    halo_h, halo_w = ((n - 1) * stride + 2 * dilation + 1 for n in (tile_h, tile_w))
    halo, wide, joined = halo_h * halo_w, cdiv(cout, 32) * 32, min(4, n_tiles)
    rolling = kernel_t == cuda_tiles.ROLLING_TAPS and halo <= cuda_tiles.ROLLING_HALO
    across, down, segments = cdiv(width, tile_w), cdiv(height, tile_h), cdiv(frames, segment)
    blocks, reach = clips * segments * across * down, kernel_t // 2

    # Tiles of 16 pixels as they are dealt to warps: conv_a's from the first on, the others' from the last.
    held = cuda_tiles.ROLLING_HALO // 16 // warps
    a_tiles = [dealt(cdiv(halo, 16), adjacent, warps, w) for w in range(warps)]
    b_tiles = cdiv(line_rows(tile_h, tile_w, cdiv(tile_h * tile_w, 32) * 32) * tile_h, 16)
    b_tasks = [
        [min(2, b_tiles - i) for i in range(2 * (warps - 1 - w), b_tiles, 2 * warps)] for w in range(warps)
    ]
    a_tasks = [[min(held, n - i) for i in range(0, n, held)] for n in a_tiles]

    def over(rows: int, columns: int, reads: int = 1, taps: int = 1) -> Count:
        """Pixels' channels, so often read, with the weights of so many taps."""
        found = Count()
        for eight, times in ((False, cin // 16), (True, cin % 16 // 8)):
            loads = Count(wavefronts=rows * (2 if eight else 4), requests=rows) * reads
            found += (step(rows, columns, eight=eight, loaded=False) * taps + loads) * times
        return found

    # Frames that a segment reads, each once, and that it computes; a frame's products with taps of other segments, or
    # of frames outside of the clip, are left out.
    read = covered(frames, segments, segment, reach, segment + 2 * reach)
    met = covered(frames, frames, 1, reach, kernel_t)
    begun = frames + (2 * reach * segments if rolling else 0)
    a = Count()
    for rows in (rows for tasks in a_tasks for rows in tasks):
        a += over(rows, n_tiles, read if rolling else met, met)
    # shifts, with which the sums begin; results
    passes = warps if rolling else sum(map(len, a_tasks))
    a += Count(requests=cdiv(joined, 2), wavefronts=2 * joined) * (passes * begun)
    a += Count(requests=1, wavefronts=joined) * (cdiv(halo, 8) * frames)

    bc = Count()
    for rows in (rows for tasks in b_tasks for rows in tasks):
        if inner == 8:
            b = step(rows, 1) * 4 + step(rows, 1, eight=True)
            c = step(rows, 4, loaded=False, eight=True)
        else:
            b = step(rows, n_tiles) * (9 * inner // 16)
            c = step(rows, 4, loaded=False) * (inner // 16)
        b += Count(wavefronts=2 * n_tiles * rows, requests=n_tiles * rows)
        c += Count(wavefronts=8, requests=2 + 2 * rows)  # shifts; stores of the result
        c += over(rows, 4) if shortcut else moved(2 * rows * 32 * 16)
        bc += b + c * (wide // 32)
    brought = clips * read
    seen = covered(in_height, down, tile_h * stride, dilation, halo_h)
    seen *= covered(in_width, across, tile_w * stride, dilation, halo_w)
    count = (a + bc * frames) * (clips * across * down)
    count += moved(halo * cin * 2) * (brought * across * down) + moved(sized(weights)) * blocks

    # A phase of a block, between two barriers: the warp that takes longest. The steps of conv_a are a loop, each of
    # which waits for its ldmatrix; those of the others are unrolled.
    at_once = kernel_t if rolling else 1
    steps_a, steps_b = cdiv(cin, 16) * (kernel_t // at_once), 5 if inner == 8 else 9 * inner // 16
    wait = m.shared_latency

    def phase_of(w: int) -> float:
        clk = 0.0
        for rows in a_tasks[w]:
            n = rows * n_tiles * at_once
            clk += steps_a * (warp_products(m, n, n) + wait) + wait + 80
        for rows in b_tasks[w]:
            clk += 2 * wait + warp_products(m, steps_b * rows * n_tiles, rows * n_tiles) + 60
            c = 2 * wait + warp_products(m, cdiv(inner, 16) * rows * 4, rows * 4) + 60
            if shortcut:
                c += cdiv(cin, 16) * (warp_products(m, rows * 4, rows * 4) + wait)
            clk += wide // 32 * c
        return clk

    phase = max(map(phase_of, range(warps))) + m.barrier
    packed = Packed(weights, shifts, None, None, cin, inner, cout, kernel_t, shortcut)
    shared = cuda_tiles.shared_bytes(packed, tiles, stride, dilation)
    name = f"block_narrow_kernel<bf16, {inner}, {str(shortcut).lower()}, {str(rolling).lower()}>"
    return [
        Work(
            "block_narrow_kernel", blocks, resident(m, name, bounds, shared), count,
            l2=brought * seen * cin * 2 + blocks * sized(weights),
            # a frame is on its way while one phase lasts
            chain=max(phase, m.dram_latency) * (min(frames, segment) + 1), fill=m.fill,
            shared=shared,
            reads=[(x, sized(x)), (weights, sized(weights))], writes=[(out, sized(out))],
        )
    ]  # fmt: skip


def dealt(tiles: int, adjacent: int, warps: int, warp: int) -> int:
    """How many of the tiles a warp has, of which so many neighbours go to one warp at a time."""
    return sum(min(adjacent, tiles - i) for i in range(warp * adjacent, tiles, warps * adjacent))


# --- wide blocks (block_wide.cuh, block_wide_one.cuh) --------------------------------------------------------


@model
def block_wide_a_run(
    m: Machine, x: torch.Tensor, weights: torch.Tensor, shift: Any, kernel_t: int, out: torch.Tensor
) -> list[Work]:
    clips, cin, frames, height, width = x.shape
    cout, pixels = out.shape[1], clips * frames * height * width
    rows, columns, steps, stages, warps = 128, 64, 4, 3, 4
    blocks = cdiv(pixels, rows) * (cout // columns)
    chunks = cdiv(cdiv(cin, 16) * kernel_t, steps)
    of_chunk = step(2, 8) * (steps * warps) + moved((rows + columns) * 16 * steps * 2)
    shared = stages * (rows * (16 * steps + 8) + steps * 16 * columns) * 2
    taps = clips * covered(frames, frames, 1, kernel_t // 2, kernel_t)
    # two stages are on their way while one is multiplied
    chunk = max(
        warp_products(m, 16 * steps, 16) + 2 * m.shared_latency + m.barrier, m.l2_latency / (stages - 1)
    )
    return [
        Work(
            "block_wide_a_kernel", blocks, resident(m, "block_wide_a_kernel<bf16>", 2, shared),
            of_chunk * (chunks * blocks),
            l2=taps * height * width * cin * 2 * (cout // columns) + cdiv(pixels, rows) * sized(weights),
            chain=chunks * chunk, fill=m.fill / 2 + m.dram_latency,
            shared=shared,
            reads=[(x, sized(x)), (weights, sized(weights))], writes=[(out, sized(out))],
        )
    ]  # fmt: skip


@model
def block_wide_rest_run(
    m: Machine, inner: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, shifts: torch.Tensor, stride: int,
    dilation: int, shortcut: bool, tile: Sequence[int], out: torch.Tensor, following: torch.Tensor | None = None,
) -> list[Work]:  # fmt: skip
    clips, cout, frames, height, width = out.shape
    channels, cin, warps, columns = inner.shape[1], x.shape[1], 4, 64
    tile_h, tile_w = tile
    m_tiles = 1 if tile_h * tile_w <= 64 else 2
    rows, n_tiles, steps, chained = 64 * m_tiles, channels // 8, channels // 16, following is not None
    halo_h, halo_w = ((n - 1) * stride + 2 * dilation + 1 for n in (tile_h, tile_w))
    across, down = cdiv(width, tile_w), cdiv(height, tile_h)
    tiles, images = across * down, clips * frames
    blocks, parts, x_steps = images * tiles, cdiv(cout, columns), cdiv(cin, 16)
    keeps = chained and channels == 128 and m_tiles == 2
    piece = 2 * m_tiles * 2  # vectors of 16 bytes that a lane stores of 64 channels

    b = step(m_tiles, n_tiles) * (9 * steps) + Count(wavefronts=m_tiles * n_tiles, requests=m_tiles * n_tiles)
    c = step(m_tiles, 8, loaded=keeps) * steps
    if shortcut:
        c += step(m_tiles, 8) * x_steps
    if chained:
        c += step(m_tiles, n_tiles, loaded=False) * (columns // 16)
    c += Count(wavefronts=2 * m_tiles, requests=2 * m_tiles + piece)
    stages = 9 * channels // 64 + parts * (1 + (cdiv(x_steps, steps) if shortcut else 0) + chained)
    of_block = (
        (b + c * parts) * warps + moved(stages * 64 * channels * 2) + moved(halo_h * halo_w * channels * 2)
    )
    if shortcut:
        of_block += moved(rows * cdiv(cin, 8) * 16)
    if keeps:
        of_block += moved(rows * channels * 2)
    added = images * height * width * cin * 2  # residual, or the shortcut's pixels
    count = of_block * blocks
    if not shortcut:  # every lane's own vectors, into shared memory and out of it
        count += moved(added) * 2

    each = m_tiles * 8
    chain = m.l2_latency + 9 * steps * max(
        warp_products(m, m_tiles * n_tiles, m_tiles * n_tiles), m.shared_latency
    )
    part = (steps + (x_steps if shortcut else 0)) * max(warp_products(m, each, each), m.shared_latency)
    part += (columns // 16) * warp_products(m, m_tiles * n_tiles, m_tiles * n_tiles) if chained else 0
    if not shortcut:  # its loads set out behind the stores before it
        part = max(part, (m.l2_latency + m.dram_latency) / 2) + m.shared_latency
    else:
        chain += m.dram_latency
    part += m.shared_latency * 2 + 10 * piece
    chain += parts * part + (stages + 1) * m.barrier
    packed = Packed(weights, shifts, None, None, cin, channels, cout, 1, shortcut, chained)
    shared = cuda_tiles.tail_shared_bytes(packed, cuda_tiles.TailTiles(tile_h, tile_w), stride, dilation)
    flags = f"{str(shortcut).lower()}, {str(chained).lower()}"
    seen = covered(inner.shape[3], down, tile_h * stride, dilation, halo_h)
    seen *= covered(inner.shape[4], across, tile_w * stride, dilation, halo_w)
    return [
        Work(
            "block_wide_rest_kernel", blocks,
            resident(m, f"block_wide_rest_kernel<bf16, {channels}, {m_tiles}, {flags}>", 2, shared),
            count,
            l2=images * seen * channels * 2 + blocks * sized(weights) + added,
            chain=chain, fill=m.fill / 2 + m.dram_latency,
            shared=shared,
            reads=[(inner, sized(inner)), (x, added), (weights, sized(weights))],
            writes=[(out, sized(out)), *([(following, sized(following))] if following is not None else [])],
        )
    ]  # fmt: skip


@model
def block_wide_one_run(
    m: Machine, x: torch.Tensor, weights_a: torch.Tensor, shift_a: Any, weights: torch.Tensor, shifts: torch.Tensor,
    dilation: int, shortcut: bool, tile: Sequence[int], processors: int, out: torch.Tensor,
) -> list[Work]:  # fmt: skip
    clips, cout, frames, height, width = out.shape
    cin, images, channels = x.shape[1], clips * frames, 64
    tile_h, tile_w = tile
    halo_h, halo_w = tile_h + 2 * dilation, tile_w + 2 * dilation
    halo, rows = halo_h * halo_w, cdiv(halo_h * halo_w, 32) * 32
    across, down = cdiv(width, tile_w), cdiv(height, tile_h)
    tiles, steps_a, parts, chunks = images * across * down, cdiv(cin, 16), cdiv(cout, 64), cdiv(cin, 32)
    with_halo, with_output = rows // 32, cdiv(line_rows(tile_h, tile_w, 256) * tile_h, 32)

    a = step(2, 8) * steps_a + Count(wavefronts=0, requests=8)
    b = step(2, 8) * 36 + Count(wavefronts=16, requests=16)
    c = step(2, 8, loaded=False) * 4 + Count(requests=8 * (1 if shortcut else 2))
    if shortcut:
        c += step(2, 8) * steps_a
    of_tile = a * with_halo + (b + c * parts) * with_output
    of_tile += moved(halo * channels * 2) + moved(rows * chunks * 64)
    blocks = min(processors, tiles)
    count = of_tile * tiles + moved(sized(weights_a) + sized(weights)) * blocks

    packed = Packed(weights, shifts, weights_a, shift_a, cin, channels, cout, 1, shortcut)
    one = warp_products(m, 16, 16)
    chain = chunks * (m.barrier + m.shared_latency) + (steps_a + 36 + parts * (4 + shortcut * steps_a)) * one
    chain += m.barrier + parts * (80 + m.shared_latency * 2) + 200 + (m.dram_latency + m.barrier) * shortcut
    seen = covered(height, down, tile_h, dilation, halo_h) * covered(width, across, tile_w, dilation, halo_w)
    residual = 0 if shortcut else sized(x)
    return [
        Work(
            "block_wide_one_kernel", tiles, 1, count,
            l2=images * seen * cin * 2 + residual + blocks * (sized(weights_a) + sized(weights)),
            chain=chain, fill=(m.fill + (sized(weights_a) + sized(weights)) / 32) / cdiv(tiles, blocks),
            shared=cuda_tiles.whole_shared_bytes(packed, cuda_tiles.TailTiles(tile_h, tile_w, True), dilation),
            reads=[(x, sized(x)), (weights_a, sized(weights_a)), (weights, sized(weights))],
            writes=[(out, sized(out))],
        )
    ]  # fmt: skip


# --- laterals (lateral.cuh) ----------------------------------------------------------------------------------


@model
def lateral(
    m: Machine, fast: torch.Tensor, weight: torch.Tensor, scale: Any, shift: Any, alpha: int, relu: bool, tf32: bool,
    columns: int, walkers: int, out: torch.Tensor,
) -> list[Work]:  # fmt: skip
    """walkers: blocks of threads that keep the weights of one set of columns and walk over the pixels; 0: every tile
    of 128 pixels has a block of its own, to which the weights come with the pixels."""
    clips, outputs, frames, height, width = out.shape
    taps, channels, rows, of_warp = weight.shape[1], fast.shape[1], 128, min(64, columns)
    warps, stages = 4 * columns // of_warp, 4 if walkers else 3
    pixels, steps, across = clips * frames * height * width, cdiv(taps * channels, 32), cdiv(outputs, columns)
    down = cdiv(pixels, rows)
    walking = min(walkers, down) if walkers else down
    # weights come through ldmatrix as well, two tiles of eight channels at a time
    half = Count(2 * of_warp // 8, 0, 8 + 4 * of_warp // 16, 2 + of_warp // 16)
    of_step = half * (2 * warps) + moved((rows if walkers else rows + columns) * 64)
    # scale and shift of four columns a lane, once for every sixteen; four stores of these
    of_tile = of_step * steps + Count(wavefronts=8, requests=6) * (of_warp // 16 * warps)
    kept = moved(columns * 64) * (steps * walking * across) if walkers else Count()
    shared = (columns * steps if walkers else columns * stages) * 64 + stages * rows * 64 + 8 * columns
    # frames of the clip that the taps of all results meet
    met = covered(fast.shape[2], frames, alpha, taps // 2, taps)
    one = warp_products(m, 2 * of_warp // 4, of_warp // 4) + 2 * m.shared_latency + m.barrier
    chain = steps * max(one, m.l2_latency / (stages - 1)) + of_warp // 16 * (m.shared_latency + 40)
    fill = m.fill / 2 + m.dram_latency
    if walkers:  # once for all tiles of a block
        fill = (fill + columns * taps * channels * 2 / 32) / cdiv(down, walking)
    name = f"lateral_kernel<bf16, HalfMath, {columns}, true, {'true' if walkers else 'false'}>"
    return [
        Work(
            "lateral_kernel", down * across, resident(m, name, 3 if columns <= 64 else 2, shared),
            of_tile * (down * across) + kept,
            l2=clips * met * height * width * channels * 2 * across + walking * sized(weight),
            chain=chain, fill=fill,
            shared=shared,
            reads=[(fast, clips * min(met, fast.shape[2]) * height * width * channels * 2), (weight, sized(weight))],
            writes=[(out, sized(out))],
        )
    ]  # fmt: skip


@model
def lateral_gather(
    m: Machine, x: torch.Tensor, base: torch.Tensor | None, alpha: int, groups: int, out: torch.Tensor
) -> list[Work]:
    read = sized(out)
    reads = [(x, read), *([(base, sized(base))] if base is not None else [])]
    return [Work("gather_kernel", cdiv(math.prod(out.shape), 256 * 8), 4, l2=sum(b for _, b in reads), fill=m.fill / 2,
                 reads=reads, writes=[(out, sized(out))])]  # fmt: skip
