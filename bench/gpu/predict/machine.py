"""The machine that times are predicted for, and what a kernel asks of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Constants of one GPU. Rates are a second's where nothing else is said; clk: cycles of a multiprocessor."""

    # NVIDIA's data sheet and tuning guide of the H200 (compute capability 9.0).
    processors: int = 132
    shared_per_clk: float = 128  # bytes; one wavefront
    issue_per_clk: float = 4  # instructions of warps, one of each scheduler
    shared_bytes: int = 228 * 1024  # of a multiprocessor
    shared_reserved: int = 1024  # of it, by the system for every block
    registers: int = 65536
    l2_bytes: float = 60 * 2**20
    l2_port_per_clk: float = 64  # bytes that one multiprocessor takes from the level-2 cache
    # Stated of the target machine: copy bandwidth (bytes read plus written), dense bf16 products, sustained.
    dram: float = 4.3e12
    wgmma: float = 790e12
    # Assumed: what tensor cores under load leave of the boost clock of 1.98 GHz.
    clock: float = 1.75e9
    # Published microbenchmark of an H100 PCIe; not known of an H200.
    l2: float = 5.5e12
    # Published microbenchmarks of Hopper: mma.sync reaches some 63 % of the 4096 FLOP/clk of wgmma.
    mma_per_clk: float = 2580
    # Assumed: m16n8k8 takes half as long as m16n8k16.
    mma_k8: float = 0.5
    # Published microbenchmarks of Hopper and Ampere, clk: dependent mma.sync, ldmatrix, loads from the caches.
    mma_latency: float = 33
    shared_latency: float = 33
    l2_latency: float = 280
    dram_latency: float = 700
    # Assumed: a barrier of a block's warps, with what they wait for one another.
    barrier: float = 60
    # Assumed: from the end of one kernel to the work of the next that waits for it, in a CUDA graph.
    launch: float = 2.0e-6
    # Assumed: a block's way to its first products (addresses, first stages from DRAM) and from its last to the end.
    fill: float = 2000
    # Assumed: share of the wgmma rate in a loop over K that waits for nothing. cuDNN: TMA and warp specialisation, and
    # clusters of two that bring the wider operand once. Triton: cp.async with addresses and masks by the warps that
    # multiply. Descriptors: TMA in a persistent loop, 580 TFLOP/s.
    cudnn_loop: float = 0.90
    triton_loop: float = 0.60
    descriptor_loop: float = 0.73
    # Assumed: pipes of a multiprocessor that the same few warps keep busy add up as a norm of this order (two full ones
    # reach 80 % of either); so do the multiprocessors, the level-2 cache and DRAM, which overlap better.
    pipes: float = 3.0
    memory: float = 4.0
    # Assumed: two streams side by side save a tenth of the sum of their work.
    overlap: float = 0.10

    @property
    def quarter_mma(self) -> float:
        """clk of one m16n8k16 on the quarter of a multiprocessor that a warp has."""
        return 4 * 4096 / self.mma_per_clk


#: Ceilings of a GPU run (`gpu.json`) that replace constants, and what one of theirs is of ours.
CEILINGS = {
    "copy_gbs": ("dram", 1e9),
    "bf16_gflops": ("wgmma", 1e9),
    "launch_us": ("launch", 1e-6),
    "l2_gbs": ("l2", 1e9),
}


def measured(path: Path) -> Machine:
    """The machine with the constants of a file in the place of ours: a run's `gpu.json`, or {constant: value}.

    Raises ValueError for a file that holds neither.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--machine: {path}: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"--machine: {path}: expected an object, got {type(document).__name__}")
    return with_constants(Machine(), document.get("ceilings", document), str(path))


def with_constants(machine: Machine, values: Mapping[str, Any], source: str) -> Machine:
    """`machine` with some constants replaced; of a run's ceilings those that have a place here."""
    names = {f.name for f in fields(Machine)}
    found = {name: value for name, value in values.items() if name in names}
    for name, (ours, unit) in CEILINGS.items():
        if values.get(name):
            found[ours] = values[name] * unit
    wrong = [n for n, v in found.items() if isinstance(v, bool) or not isinstance(v, int | float) or v <= 0]
    if wrong or not found:
        raise ValueError(f"--machine: {source}: {'expected positive numbers' if wrong else 'no constant'} "
                         f"{', '.join(wrong) or f'among {sorted(names)} or {sorted(CEILINGS)}'}")  # fmt: skip
    return replace(machine, **found)


@dataclass
class Count:
    """What warps do, in instructions and bytes: added up over a block of threads, or over all of them.

    mma, mma8: m16n8k16 and m16n8k8. wavefronts: of shared memory. requests: loads and stores of a warp.
    """

    mma: float = 0.0
    mma8: float = 0.0
    wavefronts: float = 0.0
    requests: float = 0.0

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Count)))

    def __mul__(self, n: float) -> Count:
        return Count(*(getattr(self, f.name) * n for f in fields(Count)))

    @property
    def products(self) -> float:
        """Multiplications."""
        return self.mma * 2048 + self.mma8 * 1024

    @property
    def instructions(self) -> float:
        """Of warps, roughly: an address for every request, and as much again for the loops around them."""
        return self.mma + self.mma8 + 3 * self.requests


def step(rows: int, columns: int, *, loaded: bool = True, eight: bool = False) -> Count:
    """16 products (8: `eight`) of a warp's `rows` tiles of 16 pixels with `columns` tiles of 8 channels whose weights
    lie as fragments (block_mma.cuh): multiply16, multiply8; multiply_operand without the pixels' ldmatrix."""
    weights = 2.0 if columns == 1 else 2.0 * columns
    pixels = rows * (2 if eight else 4) * loaded
    n = rows * columns
    return Count(0 if eight else n, n * eight, weights + pixels, (columns + 1) // 2 + rows * loaded)


def moved(nbytes: float, width: int = 16) -> Count:
    """Bytes into shared memory or out of it, `width` of each lane at a time, without bank conflicts."""
    return Count(wavefronts=nbytes / 128, requests=nbytes / (32 * width))


@dataclass
class Work:
    """One launch.

    kernel:     name. blocks: of threads (of a persistent kernel: tiles). resident: blocks that a multiprocessor has.
    shared:     bytes of dynamic shared memory of a block.
    count:      of mma.sync and shared memory, all blocks together.
    wgmma:      FLOPs on wgmma, whole tiles; loop: share of its rate that the loop over K reaches.
    flops:      on the ordinary cores.
    l2:         bytes from the level-2 cache into multiprocessors.
    chain:      clk that a block takes alone, one thing after another; fill: clk around its loop in which its place does
                nothing.
    reads, writes: (tensor, bytes of it, each once).
    """

    kernel: str
    blocks: int
    resident: int
    count: Count = field(default_factory=Count)
    wgmma: float = 0.0
    loop: float = 1.0
    l2: float = 0.0
    chain: float = 0.0
    fill: float = 0.0
    reads: Sequence[tuple[Any, float]] = ()
    writes: Sequence[tuple[Any, float]] = ()
    shared: int = 0

    @property
    def products(self) -> float:
        """Multiplications on tensor cores."""
        return self.count.products + self.wgmma / 2

    @property
    def traffic(self) -> float:
        """Bytes that the kernel touches, each once."""
        return sum(b for _, b in (*self.reads, *self.writes))


@dataclass(frozen=True)
class Time:
    """A launch's predicted seconds, and what they are made of: seconds that each limit alone would take."""

    seconds: float
    terms: Mapping[str, float]

    @property
    def limiter(self) -> str:
        return max(self.terms, key=lambda name: self.terms[name])


def norm(order: float, values: list[float]) -> float:
    """At least the largest of the values, and more the more of them are large."""
    top = max(values)
    return top * math.fsum((v / top) ** order for v in values) ** (1 / order) if top > 0 else 0.0


def time_of(work: Work, dram_bytes: float, m: Machine) -> Time:
    """Seconds of a launch that moves so many bytes to and from DRAM.

    The multiprocessor with the most blocks decides; `resident` of them run side by side.
    """
    blocks = max(1, work.blocks)
    most = -(-blocks // m.processors)
    share = most / blocks  # of all work, that the busiest multiprocessor does
    rounds = max(1.0, -(-most // max(1, work.resident)))
    c, wgmma_per_clk = work.count, m.wgmma / m.processors / m.clock
    tensor = (c.mma + c.mma8 * m.mma_k8) * 4096 / m.mma_per_clk + work.wgmma / (wgmma_per_clk * work.loop)
    terms = {
        "tensor": tensor * share / m.clock,
        "shared": c.wavefronts * share * 128 / m.shared_per_clk / m.clock,
        "issue": c.instructions * share / m.issue_per_clk / m.clock,
        "latency": rounds * work.chain / m.clock,
        "fill": rounds * work.fill / m.clock,
        "L2": max(work.l2 / m.l2, work.l2 * share / (m.l2_port_per_clk * m.clock)),
        "DRAM": dram_bytes / m.dram,
        "launch": m.launch,
    }
    inside = norm(m.pipes, [terms[name] for name in ("tensor", "shared", "issue", "latency")])
    body = norm(m.memory, [inside + terms["fill"], terms["L2"], terms["DRAM"]])
    return Time(body + m.launch, terms)
