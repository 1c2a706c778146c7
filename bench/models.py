"""Table of whole models: ours frozen, ours on the reference, and the peers, interleaved in one run."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from slowfast_kernels import backends, report
from slowfast_kernels.bench import harness, peers
from slowfast_kernels.bench.ops import milliseconds, percent, times_faster
from slowfast_kernels.bench.roofline import DIRECT_FLOOR, PEAKS, stages
from slowfast_kernels.bench.subject import Subject

OURS = "frozen"
REFERENCE = "reference"
HEADER = ("model", "dtype", "median", "p20-p80", "GFLOP/s", "of ceiling", "frozen is faster by", "parity")
OF_CEILING = (
    "of ceiling: FLOPs of direct convolution per second, over the measured FMA ceiling; Winograd kernels need fewer "
    "multiplications and may exceed it. parity: relative L2 distance of the logits from eager float32."
)


def contenders(
    subject: Subject,
    dtype: str,
    wanted: list[peers.Peer],
    threads: int,
    *,
    reference: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """(name -> callable, name -> why it is missing). Everything that is done once is done here."""
    runs: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    progress(f"{OURS} {dtype}")
    frozen = subject.frozen(dtype)
    runs[OURS] = lambda: subject.call(frozen)
    if reference and dtype == "fp32":
        model = subject.model

        def run_reference() -> Any:
            with torch.inference_mode(), backends.use_backend("reference"):
                return subject.call(model)

        runs[REFERENCE] = run_reference
    for peer in wanted:
        progress(f"{peer.name} {dtype}")
        try:
            runs[peer.name] = peer.build(subject.twin(peer.folded), subject.inputs, dtype, threads)
        except peers.Unavailable as error:
            missing[peer.name] = str(error)
    return runs, missing


def measure(
    subject: Subject,
    dtype: str,
    *,
    wanted: list[peers.Peer],
    threads: int,
    rounds: int = 15,
    ceilings: Mapping[str, Any] | None = None,
    progress: bool = True,
    profile: bool = True,
) -> dict[str, Any]:
    """Times of one model in one precision, with the parity of every contender with eager float32."""
    show = announce(progress)
    runs, missing = contenders(subject, dtype, wanted, threads, progress=show)
    with torch.inference_mode():
        exact = subject.twin(False)(*subject.inputs)
    outputs = {name: run() for name, run in runs.items()}
    errors = {name: harness.relative_l2(out, exact) for name, out in outputs.items()}
    limit = harness.FP32_LIMIT
    if dtype != "fp32":
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            limit = 2 * harness.relative_l2(subject.twin(False)(*subject.inputs), exact)
    compared = harness.interleaved(
        runs, rounds=rounds, warmup=1, label=f"{subject.name} {dtype}", progress=progress
    )
    peak = (ceilings or {}).get(PEAKS[dtype])
    rows = []
    for name, timing in compared.timings.items():
        passed = harness.Gate(errors[name], limit)
        both = passed.green and errors[OURS] <= limit
        gflops = 2 * subject.macs / timing.median / 1e9
        rows.append(
            {
                "who": name,
                **timing.to_dict(),
                "gflops": gflops,
                "ceiling_fraction": gflops / peak if peak else None,
                "frozen_faster": compared.ratio(OURS, name) if both else None,
                "paired": compared.paired(OURS, name) if both else None,
                "error": passed.error,
                "error_limit": limit,
                "green": passed.green,
            }
        )
    result = {
        "model": subject.name,
        "dtype": dtype,
        "batch": subject.batch,
        "frames": subject.model.config.input.frames,
        "crop": subject.model.config.input.crop,
        "threads": threads,
        "macs": subject.macs,
        "rows": rows,
        "missing": missing,
    }
    if profile:
        steps = profile_of(subject, dtype)
        result["stages"] = stages(steps, dtype, ceilings)
    return result


def profile_of(subject: Subject, dtype: str, runs: int = 5) -> list[dict[str, Any]]:
    """The frozen model's own clock around every kernel call."""
    inputs = subject.inputs if len(subject.inputs) > 1 else subject.inputs[0]
    found: list[dict[str, Any]] = subject.frozen(dtype).profile(inputs, runs=runs)
    return found


def announce(progress: bool) -> Callable[[str], None]:
    """Says on a terminal's standard error what is being prepared; nothing elsewhere."""

    def show(text: str) -> None:
        if progress and sys.stderr.isatty():
            sys.stderr.write(f"\r\033[Kpreparing {text} ...")
            sys.stderr.flush()

    return show


def lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A result as lines of the table, fastest first."""
    return [
        (
            row["who"],
            result["dtype"],
            milliseconds(row["median_s"]),
            f"{milliseconds(row['p20_s'])}-{milliseconds(row['p80_s'])}",
            f"{row['gflops']:.0f}",
            percent(row["ceiling_fraction"]),
            times_faster(row["frozen_faster"]) if row["who"] != OURS else "",
            str(harness.Gate(row["error"], row["error_limit"])),
        )
        for row in sorted(result["rows"], key=lambda r: r["median_s"])
    ]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """All results as text."""
    text = report.table([line for result in results for line in lines(result)], HEADER)
    notes = [f"not run: {n} {r['dtype']}: {reason}" for r in results for n, reason in r["missing"].items()]
    return "\n".join([text, *report.wrapped([*notes, OF_CEILING])])


STAGE_HEADER = ("stage", "op", "calls", "time", "GFLOP/s", "GB/s", "direct floor", "of direct floor")


def stage_table(result: Mapping[str, Any]) -> str:
    """Where the frozen model's time goes."""
    rows = []
    for row in result["stages"]:
        seconds, least = row["seconds"], row["direct_floor_s"]
        rows.append(
            (
                row["stage"],
                row["op"],
                str(row["calls"]),
                milliseconds(seconds),
                f"{row['flops'] / seconds / 1e9:.0f}",
                f"{row['bytes'] / seconds / 1e9:.1f}",
                "-" if least is None else milliseconds(least),
                percent(None if least is None else least / seconds),
            )
        )
    total = sum(r["seconds"] for r in result["stages"])
    least_sum = sum(r["direct_floor_s"] or 0.0 for r in result["stages"])
    rows.append(
        ("sum", "", "", milliseconds(total), "", "", milliseconds(least_sum), percent(least_sum / total))
    )
    return "\n".join([report.table(rows, STAGE_HEADER), *report.wrapped([DIRECT_FLOOR])])
