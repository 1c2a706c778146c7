"""One comparison: every contender checked against the expected answer, then all timed side by side."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slowfast_kernels.bench.harness import Comparison, Contender, Gate, Machine, Ready, detached, first_line
from slowfast_kernels.bench.roofline import direct_floor, fraction
from slowfast_kernels.testing import relative_l2

#: Error that is always allowed, by arithmetic; beyond it twice the error of plain PyTorch in the same type.
FLOORS = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 1e-3, "bf16": 4e-3}

#: Why a contender is missing that the item had no time for.
NO_TIME = "no time left"

Builder = Callable[[], Contender]
Record = Mapping[str, Any]


class DeviceLost(RuntimeError):
    """The device does not answer any more: the process has to be started again."""


def builder(name: str, *runs: Callable[[], Any], ours: bool = False) -> Builder:
    """A contender that is ready as it is."""
    return lambda: Contender(name, runs, ours)


def limit_of(dtype: str, yardstick: float) -> float:
    """Largest relative L2 error of a green result, where plain PyTorch's own is ``yardstick``."""
    return max(FLOORS[dtype], 2 * yardstick)


@dataclass
class Run:
    """Contenders timed side by side.

    kept: what `runs` was told to keep of their outputs. partial: more of them are still to come.
    """

    made: dict[str, Contender] = field(default_factory=dict)
    ready: dict[str, Ready] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    compared: Comparison = field(default_factory=Comparison)
    partial: bool = False

    def record(
        self, errors: Mapping[str, float], limit: float, base: str = "", **about: Any
    ) -> dict[str, Any]:
        """One row for each contender that ``errors`` names, a reason for each that is missing.

        base: each row also says how its times relate to this one's, round by round. about: what else the record says.
        """
        rows = []
        for name, error in errors.items():
            gate, one = Gate(error, limit), self.made[name]
            row = {"who": name, "ours": one.ours, **self.compared.timings[name].to_dict()}
            row |= {"graph": self.ready[name].graph, "note": self.ready[name].note}
            row |= {"error": gate.error, "error_limit": gate.limit, "green": gate.green}
            if base in self.made:
                row["paired"] = self.compared.paired(base, name)
            rows.append(row)
        more = {"partial": True} if self.partial else {}
        return {**about, "rows": rows, "missing": dict(self.missing), **more}


def runs(
    machine: Machine,
    builders: Mapping[str, Builder],
    keep: Callable[[Any], Any] = lambda output: output,
    *,
    compiled_ahead: Sequence[str] = (),
    label: str = "",
    patience: float = math.inf,
) -> Iterator[Run]:
    """Make every contender, keep something of its first output, time all of them: the last that is yielded.

    patience: after so many seconds of making contenders those that there are, ours and peers, are timed and yielded, so
        that no more can be lost.
    keep: an error instead of the output, say, where outputs are gigabytes.
    compiled_ahead: builders whose Triton kernels are compiled by several threads first; only where kernels may compute
        with whatever is in memory.
    """
    found, told = Run(), time.monotonic()
    for name, build in builders.items():
        if {c.ours for c in found.made.values()} == {True, False}:  # there is something to compare
            if machine.item_late():  # better now than never
                found.missing[name] = NO_TIME
                continue
            if time.monotonic() - told > patience:
                found.compared, found.partial = machine.compare(found.ready, label=label), True
                yield found
                told = time.monotonic()
        try:
            if name in compiled_ahead:
                machine.compile_ahead(build)
            machine.poison_everything()
            contender = build()
            with machine.checking():
                output = detached(contender.runs[0]())
            machine.synchronize()
            kept = keep(output)
            del output
            found.ready[name] = machine.prepare(contender)
            found.made[name], found.kept[name] = contender, kept
        except Exception as error:  # whatever a peer raises is why it is missing
            if not machine.alive():
                raise DeviceLost(f"{name}: {first_line(error)}") from error
            found.missing[name] = first_line(error)
            if "torch._dynamo" in sys.modules:  # what a failed compilation left behind
                torch._dynamo.reset()
    found.compared, found.partial = machine.compare(found.ready, label=label), False
    yield found


def run(*args: Any, **kwargs: Any) -> Run:
    """The last of `runs`, which takes the same."""
    (found,) = runs(*args, **kwargs)
    return found


def records(
    machine: Machine,
    builders: Mapping[str, Builder],
    exact: Any,
    yardstick: Any,
    *,
    dtype: str,
    limit: float | None = None,
    base: str = "",
    compiled_ahead: Sequence[str] = (),
    label: str = "",
    patience: float | None = None,
    **about: Any,
) -> Iterator[dict[str, Any]]:
    """The record of `runs`; before it, as often as the machine's `patience` ends, one of those that there are
    ("partial"), which the next one replaces.

    builders:  name -> makes the contender.
    exact:     output of the first set of inputs in higher precision.
    yardstick: plain PyTorch's output in this dtype, whose error sets the limit where none is given.
    about:     what else the record says: part, what, batch, flops, bytes and so on.
    """
    if limit is None:
        limit = limit_of(dtype, relative_l2(yardstick, exact))
    for found in runs(
        machine,
        builders,
        lambda output: relative_l2(output, exact),
        compiled_ahead=compiled_ahead,
        label=label,
        patience=machine.patience if patience is None else patience,
    ):
        yield found.record(found.kept, limit, base, dtype=dtype, **about)


def compare(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The last of `records`, which takes the same."""
    (record,) = records(*args, **kwargs, patience=math.inf)
    return record


def derive(
    record: dict[str, Any],
    ceilings: Mapping[str, Any] | None,
    peaks: Mapping[str, str],
    apart: Sequence[str] = (),
) -> dict[str, Any]:
    """The record with rates, the direct-convolution floor's part and, of ours, the speed-up over the best green peer.

    The floor of several layers is the sum of their floors. apart: contenders that are no peers.
    """
    units = record.get("units") or [(record["flops"], record["bytes"])]
    floors = [direct_floor(flops, nbytes, record["dtype"], ceilings, peaks) for flops, nbytes in units]
    least = sum(f for f in floors if f is not None) or None
    peers = [r for r in record["rows"] if not r["ours"] and r["green"] and r["who"] not in apart]
    best = min(peers, key=lambda r: r["median_s"], default=None)
    for row in record["rows"]:
        seconds = row["median_s"]
        for rate, work in (("gbs", record["bytes"]), ("gflops", record["flops"])):
            row[rate] = work / seconds / 1e9 if work else None
        row["direct_floor_fraction"] = fraction(least, seconds)
        row["speedup"] = best["median_s"] / seconds if best and row["ours"] and row["green"] else None
    return {**record, "direct_floor_s": least, "best_peer": best and best["who"]}


def fastest(rows: Sequence[Record], wanted: Callable[[Record], bool] = lambda row: True) -> Record | None:
    """The fastest green row that is wanted."""
    return min((r for r in rows if r["green"] and wanted(r)), key=lambda r: r["median_s"], default=None)
