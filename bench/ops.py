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
from slowfast_kernels.bench.roofline import floor, fraction

HEADER = ("op / call", "who", "median", "p20-p80", "GFLOP/s", "GB/s", "of floor", "vs eager", "parity")


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
    module = op_module(entry.op, args, kwargs)
    for peer in wanted if module is not None else ():
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
    eager = next((n for n in ("eager_cl3d", "reference") if n in runs), None)
    least = floor(cost.flops, cost.bytes, entry.dtype, ceilings)
    rows = []
    for name, timing in compared.timings.items():
        passed = harness.Gate(errors[name], limit)
        rows.append(
            {
                "who": name,
                **timing.to_dict(),
                "gflops": cost.flops / timing.median / 1e9,
                "gbs": cost.bytes / timing.median / 1e9,
                "floor_fraction": fraction(least, timing.median),
                "speedup_vs_eager": compared.ratio(name, eager) if passed.green and eager else None,
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
        "floor_s": least,
        "eager": eager,
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
    """A result as lines of the table."""
    found: list[tuple[str, ...]] = []
    for i, row in enumerate(sorted(result["rows"], key=lambda r: r["median_s"])):
        times = f" x{result['count']}" if result["count"] > 1 else ""
        found.append(
            (
                f"{result['op']} {result['case']}{times}" if i == 0 else "",
                row["who"],
                milliseconds(row["median_s"]),
                f"{milliseconds(row['p20_s'])}-{milliseconds(row['p80_s'])}",
                f"{row['gflops']:.1f}" if result["flops"] else "-",
                f"{row['gbs']:.1f}",
                percent(row["floor_fraction"]),
                times_faster(row["speedup_vs_eager"]),
                str(harness.Gate(row["error"], row["error_limit"])),
            )
        )
    found += [("", name, "-", reason[:60], "", "", "", "", "") for name, reason in result["missing"].items()]
    return found


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
    """All results as text."""
    return report.table([line for result in results for line in lines(result)], HEADER)
