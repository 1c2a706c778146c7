"""Table of single ops: every real call of a SlowFast-R50 8x8, every provider, and the peers on the same
layer."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from slowfast_kernels import report
from slowfast_kernels.bench import harness, peers, registry
from slowfast_kernels.bench.op_modules import op_module
from slowfast_kernels.bench.roofline import DIRECT_FLOOR, direct_floor, fraction

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
    entry: registry.Entry,
    *,
    wanted: list[peers.Peer],
    threads: int,
    rounds: int = 15,
    cold: bool = False,
    ceilings: Mapping[str, Any] | None = None,
    progress: bool = True,
    shrink: int = 1,
) -> dict[str, Any]:
    """One row of the table for each way to run the call, behind its parity check, timed interleaved.

    The expected output is the reference's in float64 (in the entry's own dtype for ops that take no float64).
    """
    args, kwargs = entry.arguments(shrink=shrink)
    cost = entry.cost(args, kwargs)
    expected = _exact(entry, args, kwargs)
    runs: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    for name in registry.providers(entry.op):
        run = registry.runner(entry, name, args, kwargs)
        try:
            run()
        except RuntimeError as error:
            missing[name] = str(error).splitlines()[0]
            continue
        runs[name] = run
    ours = [name for name in runs if name != "reference"]
    module = op_module(entry.op, args, kwargs)
    for peer in (p for p in wanted if p.runs(entry.op)) if module is not None else ():
        try:
            runs[peer.name] = _peer(peer, module, entry.dtype, threads)
        except peers.Unavailable as error:
            missing[peer.name] = str(error)
    outputs = {name: run() for name, run in runs.items()}
    errors = {name: harness.relative_l2(out, expected) for name, out in outputs.items()}
    limit = harness.FP32_LIMIT if entry.dtype == "fp32" else max(2 * errors["reference"], 1e-3)
    compared = harness.interleaved(
        runs,
        rounds=rounds,
        cold_bytes=(64 << 20) if cold else 0,
        label=entry.name,
        progress=progress,
    )
    others = [n for n in runs if n not in (*ours, "reference") and errors[n] <= limit]
    best = min(others, key=lambda n: compared.timings[n].median) if others else None
    least = direct_floor(cost.flops, cost.bytes, entry.dtype, ceilings)
    rows = []
    for name, timing in compared.timings.items():
        passed = harness.Gate(errors[name], limit)
        rows.append(
            {
                "who": name,
                "ours": name in ours,
                **timing.to_dict(),
                "gflops": cost.flops / timing.median / 1e9,
                "gbs": cost.bytes / timing.median / 1e9,
                "direct_floor_fraction": fraction(least, timing.median),
                "speedup": compared.ratio(name, best) if name in ours and passed.green and best else None,
                "error": passed.error,
                "error_limit": passed.limit,
                "green": passed.green,
            }
        )
    return {
        "op": entry.op,
        "case": entry.case.name,
        "dtype": entry.dtype,
        "count": entry.case.count,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "direct_floor_s": least,
        "best_peer": best,
        "threads": threads,
        "cold": cold,
        "rows": rows,
        "missing": missing,
    }


def _peer(peer: peers.Peer, module: Any, dtype: str, threads: int) -> Callable[[], Any]:
    net, inputs = module
    if peer.name in ("onnxruntime", "openvino"):
        # Their own precision setting says how to compute; they are handed float32 weights and inputs.
        net = copy.deepcopy(net).float()
        inputs = [x.float() for x in inputs]
    return peer.build(copy.deepcopy(net), inputs, dtype, threads)


def _exact(entry: registry.Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    double = tuple(wide(a) for a in args), {k: wide(v) for k, v in kwargs.items()}
    with contextlib.suppress(RuntimeError, ValueError):
        return registry.runner(entry, "reference", *double)()
    return registry.runner(entry, "reference", args, kwargs)()


def lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A result as lines of the table, fastest first."""
    return [
        (
            f"  {row['who']}",
            milliseconds(row["median_s"]),
            f"{milliseconds(row['p20_s'])}-{milliseconds(row['p80_s'])}",
            f"{row['gflops']:.1f}" if result["flops"] else "-",
            f"{row['gbs']:.1f}",
            percent(row["direct_floor_fraction"]),
            f"{times_faster(row['speedup'])} {result['best_peer']}" if row["speedup"] else "",
            str(harness.Gate(row["error"], row["error_limit"])),
        )
        for row in sorted(result["rows"], key=lambda r: r["median_s"])
    ]


def heading(result: Mapping[str, Any]) -> str:
    """The line above a call's rows: "bottleneck3d res2.fast.1 x2, fp32"."""
    times = f" x{result['count']}" if result["count"] > 1 else ""
    return f"{result['op']} {result['case']}{times}, {result['dtype']}"


def milliseconds(seconds: float) -> str:
    """Seconds with three digits, as milliseconds below a second."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def percent(value: float | None) -> str:
    """A fraction as per cent."""
    return "-" if value is None else f"{100 * value:.0f}%"


def times_faster(value: float | None) -> str:
    """A ratio of times."""
    return "-" if value is None else f"{value:.2f}x"


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
