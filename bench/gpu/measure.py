"""One comparison: every contender checked against the exact answer, then all timed side by side."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slowfast_kernels.bench import harness
from slowfast_kernels.bench.gpu import kernels
from slowfast_kernels.bench.gpu.machine import Contender, Machine, Prepared, detached, first_line
from slowfast_kernels.testing import poisoned_memory

#: Error that is always allowed, by arithmetic; beyond it twice the error of plain PyTorch in the same type.
FLOORS = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 1e-3, "bf16": 4e-3}

#: Providers of ours that a GPU is measured with; "auto" takes the best one that there is for each call.
PROVIDERS = ("auto", "triton", "cuda")

#: Why a contender is missing that the item had no time for.
NO_TIME = "no time left"

Builder = Callable[[], Contender]


class DeviceLost(RuntimeError):
    """The device does not answer any more: the process has to be started again."""


@dataclass
class Item:
    """A piece of work of a part; a worker that dies is started again behind it.

    alone: takes as long as it is given: where several processes share a part out, one of them does nothing else.
    """

    key: str
    run: Callable[[], list[dict[str, Any]]]
    alone: bool = False


def shared(items: Sequence[Item], share: tuple[int, int]) -> list[Item]:
    """The items of process i of n."""
    i, n = share
    alone, rest = ([item for item in items if item.alone is flag] for flag in (True, False))
    if n <= len(alone):  # what takes all the time comes last
        return [*rest, *alone][i::n]
    return [alone[i]] if i < len(alone) else rest[i - len(alone) :: n - len(alone)]


def relative_l2(ours: Any, expected: Any) -> float:
    """As ``harness.relative_l2``, on the device: outputs may be gigabytes."""
    a, b = harness.tensors_of(ours), harness.tensors_of(expected)
    if [x.shape for x in a] != [y.shape for y in b]:
        return math.inf
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        x, y = x.detach().to(wide), y.detach().to(wide)
        norm, distance = _norm(y), _norm(x - y)
        error = distance / norm if norm else (0.0 if distance == 0 else math.inf)
        worst = max(worst, error) if error == error else math.inf
    return worst


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def limit_of(dtype: str, yardstick: float) -> float:
    """Largest relative L2 error of a green result, where plain PyTorch's own is ``yardstick``."""
    return max(FLOORS[dtype], 2 * yardstick)


def compare(
    machine: Machine,
    builders: Mapping[str, Builder],
    exact: Any,
    yardstick: Any,
    *,
    dtype: str,
    ahead: Sequence[str] = (),
    **about: Any,
) -> dict[str, Any]:
    """A record: one row for each contender that runs, a reason for each that does not.

    builders:  name -> makes the contender.
    exact:     output of the first set of inputs in higher precision.
    yardstick: plain PyTorch's output in this dtype, whose error sets the limit.
    ahead:     builders whose Triton kernels are compiled by several threads first; only where kernels may compute
               with whatever is in memory.
    about:     what else the record says: part, what, batch, flops, bytes and so on.
    """
    limit = limit_of(dtype, relative_l2(yardstick, exact))
    prepared: dict[str, Prepared] = {}
    made: dict[str, Contender] = {}
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, build in builders.items():
        if machine.item_late() and {c.ours for c in made.values()} == {True, False}:
            missing[name] = NO_TIME  # there is something to compare: better now than never
            continue
        try:
            if name in ahead:
                compile_ahead(build)
            machine.poison_everything()
            contender = build()
            with poisoned_memory():
                output = detached(contender.runs[0]())
            machine.synchronize()
            errors[name] = relative_l2(output, exact)
            del output
            prepared[name] = machine.prepare(contender)
            made[name] = contender
        except Exception as error:  # whatever a peer raises is why it is missing
            if not machine.alive():
                raise DeviceLost(f"{name}: {first_line(error)}") from error
            missing[name] = first_line(error)
            if "torch._dynamo" in sys.modules:  # what a failed compilation left behind
                torch._dynamo.reset()
    rows = []
    for name, timing in machine.compare(prepared).timings.items():
        gate = harness.Gate(errors[name], limit)
        rows.append(
            {
                "who": name,
                "ours": made[name].ours,
                **timing.to_dict(),
                "graph": prepared[name].graph,
                "error": gate.error,
                "error_limit": gate.limit,
                "green": gate.green,
                "note": prepared[name].note,
            }
        )
    return {"dtype": dtype, **about, "rows": rows, "missing": missing}


def compile_ahead(build: Builder) -> None:
    """Compile what a contender's first call starts. Its errors come again when it is really called."""
    with contextlib.suppress(Exception), kernels.compiling_ahead() as ahead:
        if ahead:
            build().runs[0]()
