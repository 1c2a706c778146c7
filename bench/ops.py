"""Table of single ops: every real call of a SlowFast-R50 8x8, every provider, and the peers on the same
layer."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from slowfast_kernels import report
from slowfast_kernels.bench import peers, registry
from slowfast_kernels.bench.compare import Builder, builder, compare, derive
from slowfast_kernels.bench.harness import FP32_LIMIT, Contender, Machine
from slowfast_kernels.bench.plain import op_module
from slowfast_kernels.bench.roofline import DIRECT_FLOOR, PEAKS
from slowfast_kernels.bench.tables import median_and_spread, number, parity, percent, times_faster
from slowfast_kernels.ops._cases import Args
from slowfast_kernels.testing import relative_l2, to_float64

REFERENCE = "reference"
HEADER = ("who", "median", "p20-p80", "GFLOP/s", "GB/s", "of direct floor", "speed-up over", "parity")
LEGEND = (
    "cpu: the op as a caller gets it, which packs its weights at every call; cpu_packed: weights packed before, as in "
    "a frozen model; reference: our plain-PyTorch specification, written to be read; the others are peers.",
    "speed-up over: of ours, over the fastest peer whose output agrees, named in the row. parity: relative L2 distance "
    "from the reference in float64.",
    "x2 behind a call: the network has two such layers. GFLOP/s and GB/s: of direct convolution and of the least "
    "traffic.",
    DIRECT_FLOOR,
)
#: Columns that a terminal has, and that all tables of ops keep to.
WIDTH = 120


def measure(
    machine: Machine,
    entry: registry.Entry,
    *,
    wanted: Sequence[peers.Peer],
    cold: bool = False,
    ceilings: Mapping[str, Any] | None = None,
    shrink: int = 1,
) -> dict[str, Any]:
    """One row of the table for each way to run the call, behind its parity check, timed interleaved.

    The expected output is the reference's in float64 (in the entry's own dtype for ops that take no float64).
    """
    call = entry.arguments(shrink=shrink)
    expected = _exact(entry, call)
    plain = relative_l2(registry.runner(entry, REFERENCE, *call)(), expected)
    builders: dict[str, Builder] = {
        name: builder(name, registry.runner(entry, name, *call), ours=name != REFERENCE)
        for name in registry.providers(entry.op)
    }
    module = op_module(entry.op, *call)
    if module is not None:
        running = [p for p in wanted if p.runs(entry.op)]
        builders |= {p.name: functools.partial(_peer, machine, p, module, entry.dtype) for p in running}
    found = compare(
        machine,
        builders,
        expected,
        expected,
        limit=FP32_LIMIT if entry.dtype == "fp32" else max(2 * plain, 1e-3),
        label=entry.name,
        threads=machine.setting.threads,
        cold=cold,
        **entry.about(*call),
    )
    return derive(found, ceilings, PEAKS, apart=(REFERENCE,))


def _peer(
    machine: Machine, peer: peers.Peer, module: tuple[nn.Module, list[torch.Tensor]], dtype: str
) -> Contender:
    net, inputs = copy.deepcopy(module[0]), module[1]
    if peer.name in ("onnxruntime", "openvino"):
        # Their own precision setting says how to compute; they are handed float32 weights and inputs.
        net, inputs = net.float(), [x.float() for x in inputs]
    return Contender(peer.name, [peer.build(net, inputs, dtype, machine.setting.threads)])


def _exact(entry: registry.Entry, call: Args) -> Any:
    try:
        return registry.runner(entry, REFERENCE, *to_float64(call))()
    except (RuntimeError, ValueError):
        return registry.runner(entry, REFERENCE, *call)()


def lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A result as lines of the table, fastest first."""
    return [
        (
            f"  {row['who']}",
            *median_and_spread(row),
            number(row["gflops"], ".1f"),
            number(row["gbs"], ".1f"),
            percent(row["direct_floor_fraction"]),
            f"{times_faster(row['speedup'])} {result['best_peer']}" if row["speedup"] else "",
            parity(row),
        )
        for row in sorted(result["rows"], key=lambda r: r["median_s"])
    ]


def heading(result: Mapping[str, Any]) -> str:
    """The line above a call's rows: "bottleneck3d res2.fast.1 x2, fp32"."""
    times = f" x{result['count']}" if result["count"] > 1 else ""
    return f"{result['op']} {result['case']}{times}, {result['dtype']}"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """All results as text: a heading and rows for each call, then what was not run, then what the columns are."""
    groups = [lines(result) for result in results]
    title, rule, *rows = report.table([line for group in groups for line in group], HEADER).splitlines()
    out = [title, rule]
    missing: dict[str, str] = {}
    for result, group in zip(results, groups, strict=True):
        out += [heading(result), *rows[: len(group)]]
        rows = rows[len(group) :]
        missing |= result["missing"]
    notes = [f"not run: {name}: {reason}" for name, reason in missing.items()]
    return "\n".join([*out, *report.wrapped([*notes, *LEGEND], WIDTH)])
