"""Predicted times of a frozen network: its steps, the two chains, the whole; and every form of its stages."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slowfast_kernels import models
from slowfast_kernels.bench.gpu.predict import others
from slowfast_kernels.bench.gpu.predict.cuda import MODELS
from slowfast_kernels.bench.gpu.predict.machine import Machine, Time, Work, time_of
from slowfast_kernels.bench.gpu.predict.trace import (
    CONVOLUTIONS,
    EVERYBODY,
    Cache,
    Call,
    Started,
    call_of,
    place_of,
    plan_of,
    planned,
    reads_inputs,
    started,
)
from slowfast_kernels.plans.network import Network
from slowfast_kernels.plans.plan import Instance


@dataclass(frozen=True)
class Launched:
    """A launch: its work, bytes to and from DRAM, time."""

    work: Work
    dram_bytes: float
    time: Time


@dataclass(frozen=True)
class Row:
    """A step of the plan. lane: 0 Slow, 1 Fast and the laterals. known: whether its time could be predicted."""

    stage: str
    op: str
    provider: str
    lane: int
    flops: int
    bytes: int
    launches: tuple[Launched, ...]
    known: bool = True

    @property
    def seconds(self) -> float:
        return sum(one.time.seconds for one in self.launches)

    @property
    def limiter(self) -> str:
        """Of the launch that takes longest."""
        longest = max((one.time for one in self.launches), key=lambda t: t.seconds, default=None)
        return longest.limiter if longest else "nothing starts" if self.known else "not predicted"

    @property
    def kernels(self) -> str:
        return " + ".join(one.work.kernel for one in self.launches)


@dataclass(frozen=True)
class Prediction:
    """A network at one batch."""

    model: str
    batch: int
    machine: Machine
    rows: tuple[Row, ...]

    def chain(self, lane: int) -> float:
        """Seconds of a lane's steps one after another."""
        return sum(row.seconds for row in self.rows if row.lane == lane)

    def seconds(self) -> float:
        """Of the whole network: two streams save a part of the sum of their work, and neither ends before its own."""
        chains = [self.chain(lane) for lane in (0, 1)]
        return max(*chains, (1 - self.machine.overlap) * sum(chains)) if min(chains) > 0 else sum(chains)

    @property
    def floor(self) -> float:
        """Sum of the steps' least seconds: products at the peak, or each tensor once at DRAM's bandwidth."""
        return sum(max(row.flops / self.machine.wgmma, row.bytes / self.machine.dram) for row in self.rows)

    def stages(self) -> dict[tuple[str, str], list[Row]]:
        """Rows by stage and provider, in the plan's order."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.stage, row.provider), []).append(row)
        return found


@functools.cache
def network(model: str, providers: Sequence[str] = EVERYBODY, **overrides: Any) -> tuple[Network, Any]:
    """A preset prepared for a GPU, and its configuration."""
    with torch.device("meta"):
        made = models.create(model, **overrides)
    return planned(made, providers), made.config


def predict(
    model: str = "slowfast_8x8_r50", batch: int = 8, machine: Machine | None = None,
    providers: Sequence[str] = EVERYBODY,
) -> Prediction:  # fmt: skip
    """Times of a preset's plan at a batch, in bfloat16."""
    m = machine or Machine()
    return Prediction(model, batch, m, tuple(rows_of(*traced(model, batch, tuple(providers)), m)))


@functools.cache
def traced(model: str, batch: int, providers: Sequence[str]) -> tuple[list[Started], Instance]:
    """What the steps of a preset's plan start."""
    net, config = network(model, providers)
    return started(*plan_of(net, call_of(config, batch)))


def rows_of(steps: Sequence[Started], instance: Instance, m: Machine) -> Iterator[Row]:
    """The steps' times, in the plan's order, of a run behind another one: weights that the cache still holds stay."""
    cache = Cache(m.l2_bytes)
    for again in (False, True):
        for one in steps:
            launches = []
            fresh = reads_inputs(one.step)
            for choice in works(one.calls or (), m):
                work = choice[0]
                read = sum(
                    b if fresh else cache.touch(place_of(t, one.step, instance), b) for t, b in work.reads
                )
                for t, b in work.writes:
                    cache.touch(place_of(t, one.step, instance), b)
                dram = read + sum(b for _, b in work.writes)
                if again:
                    best = min(choice, key=lambda w: time_of(w, dram, m).seconds)
                    launches.append(Launched(best, dram, time_of(best, dram, m)))
            if again:
                s = one.step
                known = one.calls is not None
                yield Row(
                    s.stage,
                    s.op,
                    s.provider,
                    s.stream,
                    s.work if known else 0,
                    s.bytes,
                    tuple(launches),
                    known,
                )


def works(calls: Sequence[Call], m: Machine) -> Iterator[list[Work]]:
    """Of every launch of a step the forms that it may take, the fastest of which is taken. All forms read and write the
    same."""
    calls, i = list(calls), 0
    while i < len(calls):
        call = calls[i]
        i += 1
        if call.launch is not None:
            yield others.triton(m, call.launch)
        elif call.name in MODELS:
            yield from ([w] for w in MODELS[call.name](m, *call.args, **call.kwargs))
        elif call.name in CONVOLUTIONS:
            x, weight, bias, stride = (*call.args, None, None)[:4]
            residual, behind = None, 0
            while i < len(calls) and calls[i].name in ("aten::add_", "aten::relu_") and _same(calls[i], call):
                residual = calls[i].args[1] if calls[i].name == "aten::add_" else residual
                behind, i = behind + 1, i + 1
            yield list(others.convolution(m, x, weight, stride or (1, 1), call.result, residual))
            # a pass of its own: only with what follows it is it in the epilogue
            if bias is not None and not behind:
                yield [others.streamed(m, "bias", [call.result], [call.result])]
        elif not call.name.startswith("aten::"):
            raise LookupError(f"{call.name}: expected a model of this native op in bench/gpu/predict/cuda.py")
        elif (work := _pass(m, call)) is not None:
            yield [work]


def _storage(x: Any) -> Any:
    return x.untyped_storage()._cdata if isinstance(x, torch.Tensor) else None


def _same(call: Call, before: Call) -> bool:
    """Whether a call changes what the one before it returned."""
    return _storage(call.args[0]) == _storage(before.result)


def _pass(m: Machine, call: Call) -> Work | None:
    """An op of PyTorch's that moves memory; None for views and for what allocates."""
    given = [a for a in call.args if isinstance(a, torch.Tensor)]
    if not given or "empty" in call.name or not isinstance(call.result, torch.Tensor):
        return None
    changes = call.name.endswith("_")
    if not changes and _storage(call.result) in map(_storage, given):
        return None
    reads = given[1:] if call.name == "aten::copy_" else given
    return others.streamed(m, call.name.removeprefix("aten::"), reads, [call.result])


# --- which form of a stage -----------------------------------------------------------------------------------

#: Ways to compute the residual blocks of a pathway's stage: providers that a plan is restricted to, and the one that
#: computes every step then.
FORMS: Mapping[str, tuple[Sequence[str], str]] = {
    "cuda": (("cuda", "blocks"), "cuda"),
    "cuda chain": (("cuda", "chain"), "cuda chain"),
    "triton": (("triton",), "triton"),
    "triton convolutions": (("convolutions",), "triton"),
    "cudnn": (("convolutions", "cudnn"), "cudnn"),
}


def forms(model: str, batch: int, machine: Machine | None = None) -> dict[str, dict[str, float]]:
    """Seconds of every stage of residual blocks in each form that computes it itself; by stage, then form."""
    found: dict[str, dict[str, float]] = {}
    for name, (providers, wanted) in FORMS.items():
        for stage, rows in _by_stage(predict(model, batch, machine, providers).rows).items():
            if all(row.provider == wanted for row in rows):
                found.setdefault(stage, {})[name] = sum(r.seconds for r in rows)
    return found


def _by_stage(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.stage.startswith("res"):
            found.setdefault(row.stage, []).append(row)
    return found
