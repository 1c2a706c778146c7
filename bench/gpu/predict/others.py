"""Models of what is not our CUDA: cuDNN's convolutions, Triton's kernels, passes of PyTorch over memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from slowfast_kernels._triton.launch import Launch
from slowfast_kernels.bench.gpu.predict.cuda import cdiv, sized
from slowfast_kernels.bench.gpu.predict.machine import Count, Machine, Work, moved

#: Tiles, pixels x channels, that cuDNN's kernels for Hopper have; it measures which is fastest.
CUDNN_TILES = ((64, 64), (64, 128), (64, 256), (128, 64), (128, 128), (128, 256), (256, 64), (256, 128))

#: Products of a step, and steps in flight, of cuDNN's kernels.
STEP, STAGES = 64, 4


#: Registers of a thread beside its sums: addresses, operands on their way. Held to compiled kernels by a test.
BESIDE = 56


def places(m: Machine, sums: int, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor has, of threads with so many sums each."""
    registers = min(255, sums + BESIDE) * threads
    return max(1, min(m.shared_bytes // (shared + m.shared_reserved), m.registers // registers))


def gemm(
    m: Machine, name: str, pixels: int, outputs: int, depth: int, tile: tuple[int, int], *, loop: float, stages: int,
    step: int = STEP, threads: int = 384, cluster: int = 1,
) -> Work:  # fmt: skip
    """A product [pixels x depth] x [depth x outputs] on wgmma, both operands from shared memory; without its memory.

    cluster: blocks that bring one operand together, where so many share it.
    """
    rows, columns = tile
    depth = cdiv(depth, step) * step
    down, across = cdiv(pixels, rows), cdiv(outputs, columns)
    blocks = down * across
    brought = rows + columns
    if cluster > 1:
        saved = [width for width, sharing in ((rows, across), (columns, down)) if sharing >= cluster]
        brought -= max(saved, default=0) * (cluster - 1) // cluster
    groups = max(1, rows // 64)  # of four warps, each of which reads all columns
    per_16 = groups * (64 + columns) * 32
    count = (moved(per_16 * depth / 16) + moved((rows + columns) * depth * 2)) * blocks
    # wgmma reads shared memory by itself: no instruction of a warp's
    count = Count(wavefronts=count.wavefronts, requests=(rows + columns) * depth * 2 / 512 * blocks)
    shared = stages * (rows + columns) * step * 2
    side = places(m, rows * columns // threads, threads, shared)
    return Work(
        name, blocks, side, count, wgmma=2.0 * rows * columns * depth * blocks, loop=loop,
        l2=brought * depth * 2.0 * blocks, fill=m.fill,
        chain=depth / step * m.l2_latency / max(1, stages - 1), shared=shared,
    )  # fmt: skip


def convolution(
    m: Machine, x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], out: torch.Tensor,
    residual: torch.Tensor | None,
) -> Iterator[Work]:  # fmt: skip
    """cuDNN's kernels for a 2-D convolution with everything in its epilogue, one for each of its tiles."""
    outputs, channels, *kernel = weight.shape
    pixels, taps = out.numel() // outputs, math.prod(kernel)
    used = min(sized(x), pixels * channels * 2) if taps == 1 else sized(x)
    reads = [
        (x, used),
        (weight, sized(weight)),
        *([(residual, sized(residual))] if residual is not None else []),
    ]
    for tile in CUDNN_TILES:
        depth = taps * cdiv(channels, STEP) * STEP
        work = gemm(
            m, f"cudnn {tile[0]}x{tile[1]}", pixels, outputs, depth, tile, loop=m.cudnn_loop, stages=STAGES, cluster=2
        )  # fmt: skip
        work.reads, work.writes = reads, [(out, sized(out))]
        work.l2 += sized(residual)
        yield work


def streamed(m: Machine, name: str, reads: Sequence[Any], writes: Sequence[Any]) -> Work:
    """A pass over memory."""
    read, written = [(t, sized(t)) for t in reads], [(t, sized(t)) for t in writes]
    blocks = cdiv(sum(b for _, b in written) or 1, 16 * 256 * 4)
    return Work(name, blocks, 8, l2=sum(b for _, b in read), fill=m.fill / 2, reads=read, writes=written)


# --- Triton --------------------------------------------------------------------------------------------------

#: Arguments that a kernel writes, where it is not `out`.
WRITTEN = {
    "average_kernel": ("parts",),
    "descriptor_kernel": ("out", "partial"),
    "cells_kernel": ("maps",),
    "windows_kernel": ("features",),
}


def triton(m: Machine, launch: Launch) -> list[Work]:
    """The work of a recorded launch of a Triton kernel; of one without a model of its own, its memory alone."""
    make = TRITON.get(launch.name)
    work = make(m, launch) if make else Work(launch.name, math.prod(launch.grid), 4, fill=m.fill / 2)
    named = {k: t for k, v in launch.values.items() if (t := tensor_of(v)) is not None}
    written = WRITTEN.get(launch.name, ("out",))
    work.reads = work.reads or [(t, sized(t)) for k, t in named.items() if k not in written]
    work.writes = [(t, sized(t)) for k, t in named.items() if k in written]
    work.l2 = work.l2 or sum(b for _, b in work.reads)
    return [work]


def tensor_of(value: Any) -> torch.Tensor | None:
    """The tensor of an argument, which a descriptor may describe."""
    value = value.base if isinstance(value, TensorDescriptor) else value
    return value if isinstance(value, torch.Tensor) else None


def conv_kernel(m: Machine, launch: Launch) -> Work:
    v = launch.values
    rows, columns, step = v["BLOCK_M"], v["BLOCK_N"], v["BLOCK_K"]
    outputs = v["out"].shape[1]
    channels, channels2 = v["channels"] * v["X_UNIT"], v["channels2"] * v["X2_UNIT"]
    taps = v["KT"] * v["KH"] * v["KW"]
    if v["ROW"]:
        inner = next((k for k in (v["KW"], v["KH"], v["KT"]) if k > 1), 1)
        depth = taps // inner * cdiv(v["ROW"], step) * step
    else:
        depth = taps * cdiv(channels, step) * step
    depth += cdiv(channels2, step) * step if v["x2"] is not None else 0
    work = gemm(
        m, f"conv_kernel {rows}x{columns}", v["pixels"], outputs, depth, (rows, columns), loop=m.triton_loop,
        stages=launch.stages, step=step, threads=32 * launch.warps,
    )  # fmt: skip
    work.l2 += sized(v["residual"])
    work.reads = _convolved(v, v["pixels"], taps)
    return work


def descriptor_kernel(m: Machine, launch: Launch) -> Work:
    """Output channels are the rows of a wgmma. A program does one item after the other: a tile, or a part of the
    products of one."""
    v = launch.values
    pixels, columns, step, splits = (
        math.prod(v[f"BOX_{axis}"] for axis in "NTHW"), v["BLOCK_N"], v["BLOCK_K"], v["SPLITS"]
    )  # fmt: skip
    taps = v["KT"] * v["KH"] * v["KW"]
    depth = (taps * cdiv(v["channels"], step) + v["steps2"]) * step
    places_of = v["items"] // splits // v["across"]  # of pixels, whole boxes
    work = gemm(
        m, f"descriptor_kernel {pixels}x{columns}", v["across"] * columns, places_of * pixels, depth, (columns, pixels),
        loop=m.descriptor_loop, stages=launch.stages, step=step, threads=32 * launch.warps,
    )  # fmt: skip
    work.blocks, work.chain = v["items"], work.chain / splits
    residual = tensor_of(v["residual"])
    tile = pixels * columns * 2
    if splits == 1:  # a tile on its way out; of a residual that is loaded ahead, its own
        work.shared += tile * (2 if v["OVERLAP"] and residual is not None else 1)
    work.resident = places(m, pixels * columns // (32 * launch.warps), 32 * launch.warps, work.shared)
    if v["OVERLAP"] and v["items"] > launch.grid[0]:  # the next tile's first operands set out before
        work.fill /= 2
    work.l2 += sized(residual)
    work.reads = _convolved(v, places_of * pixels, taps)
    return work


def split_sum_kernel(m: Machine, launch: Launch) -> Work:
    """A part of a tile: its sums, all of which are on their way at a time, across the block into rows, and its end."""
    v = launch.values
    values = math.prod(v[f"BOX_{axis}"] for axis in "NTHW") * v["PART"]
    programs = launch.grid[0]
    work = Work("split_sum_kernel", programs, 8, fill=m.fill / 2, shared=2 * values)
    work.chain = m.l2_latency + 2 * m.barrier
    work.count = (moved(2 * values) * 2 + Count(requests=v["SPLITS"] * values / 128)) * programs
    work.l2 = 4 * v["SPLITS"] * values * programs + sized(tensor_of(v["residual"]))
    return work


def _convolved(v: Any, pixels: int, taps: int) -> list[tuple[Any, float]]:
    """Bytes that a convolution reads of each of its tensors: a strided 1x1x1 only the pixels that it uses."""
    found: list[tuple[Any, float]] = []
    for name in ("x", "inner", "w", "wb", "wc", "residual", "x2", "w2"):
        t = tensor_of(v.get(name))
        if t is not None:
            used = pixels * t.shape[1] * 2 if name == "x2" or (name == "x" and taps == 1) else sized(t)
            found.append((t, min(sized(t), used)))
    return found


def tail_kernel(m: Machine, launch: Launch) -> Work:
    v = launch.values
    rows, inner, columns, step = v["BLOCK_M"], v["BLOCK_INNER"], v["BLOCK_N"], v["BLOCK_K"]
    out, pixels = v["out"], v["pixels"]
    outputs, channels2 = out.shape[1], v["channels2"] * v["X2_UNIT"]
    depth_b = 3 * cdiv(v["ROW"], step) * step if v["ROW"] else 9 * cdiv(v["INNER"], step) * step
    depth_c = inner + (cdiv(channels2, step) * step if v["x2"] is not None else 0)
    blocks, threads, widest = cdiv(pixels, rows), 32 * launch.warps, max(inner, columns if channels2 else 0)
    b, c = (
        gemm(
            m,
            "",
            pixels,
            n,
            k,
            (rows, wide),
            loop=m.triton_loop,
            stages=launch.stages,
            step=16,
            threads=threads,
        )
        for n, k, wide in ((inner, depth_b, inner), (outputs, depth_c, columns))
    )
    shared = launch.stages * (rows + widest) * step * 2
    work = Work(
        f"tail_kernel {rows}", blocks, places(m, rows * (inner + columns) // threads, threads, shared),
        b.count + c.count, b.wgmma + c.wgmma, m.triton_loop,
        l2=b.l2 + c.l2 - c.blocks * rows * inner * 2 + sized(v["residual"]), fill=1.5 * m.fill, shared=shared,
    )  # fmt: skip
    # conv_c's first operand stays in registers; every block of channels has an epilogue that nothing runs beside
    work.chain = cdiv(outputs, columns) * (m.dram_latency + 2 * m.barrier)
    work.reads = _convolved({**v, "inner": v["x"], "x": None}, pixels, 9)
    return work


def average_kernel(m: Machine, launch: Launch) -> Work:
    v = launch.values
    rounds = cdiv(max(v["slow_part"], v["fast_part"]), v["PIXELS"])  # one load after the other
    return Work("average_kernel", launch.grid[0], 8, chain=rounds * (m.l2_latency + 2 * m.shared_latency))


def linear_kernel(m: Machine, launch: Launch) -> Work:
    v = launch.values
    rounds = cdiv(v["channels"], v["DEPTH"])
    work = Work("linear_kernel", launch.grid[0], 4, chain=rounds * (m.l2_latency + 100))
    instructions = v["ROWS"] * v["CLASSES"] * v["DEPTH"] / 32 * rounds * launch.grid[0]
    work.count = Count(requests=instructions / 3)
    work.l2 = launch.grid[0] * (v["ROWS"] + v["CLASSES"]) * v["channels"] * 4
    return work


TRITON: dict[str, Callable[[Machine, Launch], Work]] = {
    "conv_kernel": conv_kernel,
    "descriptor_kernel": descriptor_kernel,
    "split_sum_kernel": split_sum_kernel,
    "tail_kernel": tail_kernel,
    "average_kernel": average_kernel,
    "linear_kernel": linear_kernel,
}
