"""Table of whole models: ours frozen, ours on the reference, and the peers, interleaved in one run."""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slowfast_kernels import backends, report
from slowfast_kernels.bench import peers
from slowfast_kernels.bench.compare import Builder, builder, run
from slowfast_kernels.bench.harness import FP32_LIMIT, Contender, Machine
from slowfast_kernels.bench.roofline import DIRECT_FLOOR, PEAKS, fraction, stages
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.bench.tables import median_and_spread, milliseconds, parity, percent, times_faster
from slowfast_kernels.bench.targets import FROZEN
from slowfast_kernels.testing import relative_l2

REFERENCE = "reference"
HEADER = ("model", "dtype", "median", "p20-p80", "GFLOP/s", "of ceiling", "frozen is faster by", "parity")
OF_CEILING = (
    "of ceiling: FLOPs of direct convolution per second, over the measured FMA ceiling; Winograd kernels need fewer "
    "multiplications and may exceed it. parity: relative L2 distance of the logits from eager float32."
)


def contenders(
    machine: Machine, subject: Subject, dtype: str, wanted: Sequence[peers.Peer], *, reference: bool = True
) -> dict[str, Builder]:
    """Makers of the contenders by name. Everything that is done once is done by them."""

    def frozen() -> Contender:
        _announce(machine, f"{FROZEN} {dtype}")
        model = subject.frozen(dtype)
        return Contender(FROZEN, [lambda: subject.call(model)], ours=True)

    def run_reference() -> Any:
        with torch.inference_mode(), backends.use_backend("reference"):
            return subject.call(subject.model)

    def other(peer: peers.Peer) -> Contender:
        _announce(machine, f"{peer.name} {dtype}")
        call = peer.build(subject.twin(peer.folded), subject.inputs, dtype, machine.setting.threads)
        return Contender(peer.name, [call])

    found: dict[str, Builder] = {FROZEN: frozen}
    if reference and dtype == "fp32":
        found[REFERENCE] = builder(REFERENCE, run_reference)
    return found | {peer.name: functools.partial(other, peer) for peer in wanted}


def measure(
    machine: Machine,
    subject: Subject,
    dtype: str,
    *,
    wanted: Sequence[peers.Peer],
    ceilings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Times of one model in one precision, with the parity of every contender with eager float32."""
    with torch.inference_mode():
        exact = subject.twin(False)(*subject.inputs)
    limit = FP32_LIMIT
    if dtype != "fp32":
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            limit = 2 * relative_l2(subject.twin(False)(*subject.inputs), exact)
    found = run(
        machine,
        contenders(machine, subject, dtype, wanted),
        lambda output: relative_l2(output, exact),
        label=f"{subject.name} {dtype}",
    )
    if FROZEN in found.missing:
        raise RuntimeError(found.missing[FROZEN])
    peak = (ceilings or {}).get(PEAKS[dtype])
    size = subject.model.config.input
    result = found.record(
        found.kept,
        limit,
        FROZEN,
        model=subject.name,
        dtype=dtype,
        batch=subject.batch,
        frames=size.frames,
        crop=size.crop,
        threads=machine.setting.threads,
        macs=subject.macs,
        stages=stages(profile_of(subject, dtype), dtype, ceilings),
    )
    for row in result["rows"]:
        both = row["green"] and found.kept[FROZEN] <= limit
        row["gflops"] = 2 * subject.macs / row["median_s"] / 1e9
        row["ceiling_fraction"] = row["gflops"] / peak if peak else None
        row["frozen_faster"] = found.compared.ratio(FROZEN, row["who"]) if both else None
        row["paired"] = row["paired"] if both else None
    return result


def profile_of(subject: Subject, dtype: str, runs: int = 5) -> list[dict[str, Any]]:
    """The frozen model's own clock around every kernel call."""
    inputs = subject.inputs if len(subject.inputs) > 1 else subject.inputs[0]
    found: list[dict[str, Any]] = subject.frozen(dtype).profile(inputs, runs=runs)
    return found


def _announce(machine: Machine, text: str) -> None:
    """Says on a terminal's standard error what is being prepared; nothing elsewhere."""
    if machine.setting.progress and sys.stderr.isatty():
        sys.stderr.write(f"\r\033[Kpreparing {text} ...")
        sys.stderr.flush()


def lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A result as lines of the table, fastest first."""
    return [
        (
            row["who"],
            result["dtype"],
            *median_and_spread(row),
            f"{row['gflops']:.0f}",
            percent(row["ceiling_fraction"]),
            times_faster(row["frozen_faster"]) if row["who"] != FROZEN else "",
            parity(row),
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
    rows = [
        (
            row["stage"],
            row["op"],
            str(row["calls"]),
            milliseconds(row["seconds"]),
            f"{row['flops'] / row['seconds'] / 1e9:.0f}",
            f"{row['bytes'] / row['seconds'] / 1e9:.1f}",
            milliseconds(row["direct_floor_s"]),
            percent(fraction(row["direct_floor_s"], row["seconds"])),
        )
        for row in result["stages"]
    ]
    total = sum(r["seconds"] for r in result["stages"])
    least_sum = sum(r["direct_floor_s"] or 0.0 for r in result["stages"])
    rows.append(
        ("sum", "", "", milliseconds(total), "", "", milliseconds(least_sum), percent(least_sum / total))
    )
    return "\n".join([report.table(rows, STAGE_HEADER), *report.wrapped([DIRECT_FLOOR])])


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """The table, and where the time of each frozen model goes."""
    stages = [f"{r['model']} {r['dtype']}, frozen\n{stage_table(r)}" for r in results]
    return "\n\n".join([table(results), *stages])
