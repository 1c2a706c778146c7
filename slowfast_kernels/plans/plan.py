"""Execution plans: a list of kernel calls over buffers whose memory is laid out once.

A plan belongs to one set of input shapes. Buffers are symbolic while the calls are collected; then each gets an
offset in one arena such that buffers alive at the same time do not overlap. An `Instance` is an arena with every
argument bound to it; a run is a loop over bound calls.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

ALIGNMENT = 64


@dataclass(eq=False)
class Buffer:
    """Memory of one tensor of a plan: [N, C, T, H, W] in channels-last order, or any shape, contiguous."""

    shape: tuple[int, ...] | None  # None: of what is returned, unknown
    dtype: torch.dtype
    first: int = -1  # steps that use it, first and last
    last: int = -1
    offset: int = -1
    streams: set[int] = field(default_factory=set)  # of the steps that use it
    produced: bool = False  # it is whatever a step returns, not the arena's memory
    kept: bool = False  # for the whole of a run

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape or ())


@dataclass(frozen=True)
class View:
    """Channels [c0, c1) and frames [t0, t1) of a buffer, the frames of all clips of the batch counted in a row."""

    buffer: Buffer
    channels: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None

    @property
    def shape(self) -> Any:
        if self.buffer.shape is None or len(self.buffer.shape) != 5:
            return self.buffer.shape
        n, c, t, h, w = self.buffer.shape
        if self.channels:
            c = self.channels[1] - self.channels[0]
        if self.frames:
            n, t = 1, self.frames[1] - self.frames[0]
        return n, c, t, h, w

    @property
    def dtype(self) -> torch.dtype:
        return self.buffer.dtype

    @property
    def whole(self) -> bool:
        """Whether it is all of the buffer."""
        return self.channels is None and self.frames is None

    def slice(self, c0: int, c1: int) -> View:
        base = self.channels[0] if self.channels else 0
        return View(self.buffer, (base + c0, base + c1), self.frames)

    def frame_range(self, t0: int, t1: int) -> View:
        return View(self.buffer, self.channels, (t0, t1))

    def bind(self, arena: torch.Tensor) -> torch.Tensor:
        """The tensor itself, inside an arena."""
        b = self.buffer
        flat = arena[b.offset : b.offset + b.nbytes].view(b.dtype)
        assert b.shape is not None
        if len(b.shape) != 5:
            return flat.view(b.shape)
        n, c, t, h, w = b.shape
        return self._within(flat.view(n, t, h, w, c))

    def of(self, x: Any) -> Any:
        """The view's part of a value that is the whole buffer."""
        part = self.channels or self.frames
        return self._within(x.permute(0, 2, 3, 4, 1)) if part else x

    def overlaps(self, other: View) -> bool:
        """Whether two views share memory; frames are not told apart."""
        if self.buffer is not other.buffer:
            return False
        a, b = (v.channels or (0, 1 << 62) for v in (self, other))
        return a[0] < b[1] and b[0] < a[1]

    def _within(self, x: torch.Tensor) -> torch.Tensor:
        n, t, h, w, c = x.shape
        if self.frames:
            x = x.view(1, n * t, h, w, c)[:, self.frames[0] : self.frames[1]]
        if self.channels:
            x = x[..., self.channels[0] : self.channels[1]]
        return x.permute(0, 4, 1, 2, 3)


@dataclass(frozen=True)
class Input:
    """Place of the caller's tensor in a call's arguments; of one shape and type, or any."""

    index: int
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass
class Step:
    """One kernel call: which part of the network it is, who computes it, what it costs, its arguments by position."""

    stage: str
    op: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    flops: int | Callable[[], int]
    bytes: int
    stream: int = 0  # steps of one stream run in order; of two, as `Plan.waits` says
    produces: View | None = None  # the buffer that the returned value is
    provider: str = "torch"

    @property
    def work(self) -> int:
        """Floating-point operations; counted when they are asked for where nobody knows."""
        return self.flops if isinstance(self.flops, int) else self.flops()

    @property
    def name(self) -> str:
        """What a profiler's trace shows: "slowfast::bottleneck3d res2.slow"."""
        return f"slowfast::{self.op} {self.stage}"

    @property
    def views(self) -> list[View]:
        """Memory that the step reads or writes."""
        return [a for a in self.args if isinstance(a, View)] + ([self.produces] if self.produces else [])


@dataclass
class Plan:
    """Steps over buffers, for one set of input shapes. output: a nest of produced views and plain values."""

    steps: list[Step] = field(default_factory=list)
    arena_bytes: int = 0
    output: Any = None
    lane: int = 0  # stream of the steps that are added
    inputs: list[View] = field(default_factory=list)  # of a part of a network: where they lie

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> View:
        return View(Buffer(tuple(int(s) for s in shape), dtype))

    @staticmethod
    def result(shape: Sequence[int] | None, dtype: torch.dtype) -> Buffer:
        """A place for what a step returns."""
        return Buffer(None if shape is None else tuple(shape), dtype, produced=True)

    def add(
        self,
        stage: str,
        op: str,
        run: Callable[..., Any],
        args: Sequence[Any],
        flops: int | Callable[[], int],
        nbytes: int,
        *,
        produces: View | None = None,
        provider: str = "torch",
    ) -> None:
        """Append a call. ``produces``: a whole buffer that is what the call returns."""
        stream = self.lane
        step = Step(stage, op, run, tuple(args), flops, nbytes, stream, produces, provider)
        for view in step.views:
            b = view.buffer
            b.first = len(self.steps) if b.first < 0 else b.first
            b.last = len(self.steps)
            b.streams.add(stream)
        if produces is not None:
            produces.buffer.produced = True
        self.steps.append(step)

    def keep(self, *views: View) -> None:
        """Nothing is laid over these: they hold what the caller puts there before a run, or reads after it."""
        for view in views:
            view.buffer.kept = True

    def waits(self) -> list[int | None]:
        """For every step, the last step of another stream that has to be over before it starts, or None.

        Whoever touches memory that another stream's step touched before waits for it; reading is not told from
        writing.
        """
        found: list[int | None] = []
        for i, step in enumerate(self.steps):
            last = None
            for j in range(i - 1, -1, -1):
                other = self.steps[j]
                if other.stream == step.stream:
                    continue
                if any(a.overlaps(b) for a in step.views for b in other.views):
                    last = j
                    break
            found.append(last)
        return found

    def spent(self) -> list[list[Buffer]]:
        """For every step, the produced buffers that nobody reads behind it, so that their memory may be another's.

        What two streams use stays for the whole run: its memory would be given out again in the order of one of them.
        """
        leaves = pytree.tree_leaves(self.output)
        returned = {id(leaf.buffer) for leaf in leaves if isinstance(leaf, View)}
        found: list[list[Buffer]] = [[] for _ in self.steps]
        for b in {id(v.buffer): v.buffer for s in self.steps for v in s.views if v.buffer.produced}.values():
            if len(b.streams) == 1 and id(b) not in returned:
                found[b.last].append(b)
        return found

    def lay_out(self) -> None:
        """Give every buffer its offset: largest first, at the lowest place free for its whole life."""
        buffers = {id(v.buffer): v.buffer for s in self.steps for v in s.views if not v.buffer.produced}
        # Streams run at their own pace: memory is handed on within one, buffers of several keep theirs.
        for b in buffers.values():
            if len(b.streams) > 1 or b.kept:
                b.first, b.last = 0, len(self.steps)
        placed: list[Buffer] = []
        for b in sorted(buffers.values(), key=lambda b: (-b.nbytes, b.first)):
            busy = sorted(
                (o.offset, o.offset + o.nbytes)
                for o in placed
                if o.streams != b.streams or (o.first <= b.last and b.first <= o.last)
            )
            at = 0
            for start, end in busy:
                if at + b.nbytes <= start:
                    break
                at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
            b.offset = at
            placed.append(b)
            self.arena_bytes = max(self.arena_bytes, at + b.nbytes)


def traced(name: str) -> contextlib.AbstractContextManager[Any]:
    """The block under a name in the trace of a running torch.profiler; nothing, and no time, without one."""
    return (
        torch.profiler.record_function(name)
        if torch.autograd._profiler_enabled()
        else contextlib.nullcontext()
    )


@contextlib.contextmanager
def for_the_caller() -> Iterator[None]:
    """Tensors made inside are ordinary ones without gradients, which a caller may train on and change; plans run in
    inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def copied(result: Any) -> Any:
    """The same values in the caller's own memory; every tensor of a nest once."""
    made: dict[int, torch.Tensor] = {}
    with for_the_caller():
        return pytree.tree_map_only(torch.Tensor, lambda x: made.setdefault(id(x), x.clone()), result)


class Instance:
    """A plan bound to memory of its own; one thread at a time may run it."""

    def __init__(self, plan: Plan, device: torch.device | str = "cpu") -> None:
        self.plan = plan
        self.arena = torch.empty(plan.arena_bytes, dtype=torch.uint8, device=device)
        self.calls = [(s.run, [self._bound(a) for a in s.args]) for s in plan.steps]
        self.dynamic = [any(isinstance(a, (Input, View)) for a in args) for _, args in self.calls]
        self.produced: dict[int, torch.Tensor] = {}
        self.spent = [[id(b) for b in buffers] for buffers in plan.spent()]

    def _bound(self, a: Any) -> Any:
        return a.bind(self.arena) if isinstance(a, View) and not a.buffer.produced else a

    def step(self, i: int, inputs: Sequence[torch.Tensor | None]) -> Any:
        """Run one call."""
        fn, args = self.calls[i]
        if self.dynamic[i]:
            args = [
                inputs[a.index]
                if isinstance(a, Input)
                else a.of(self.produced[id(a.buffer)])
                if isinstance(a, View)
                else a
                for a in args
            ]
        with traced(self.plan.steps[i].name):
            result = fn(*args)
        if (produces := self.plan.steps[i].produces) is not None:
            self.produced[id(produces.buffer)] = result
        for key in self.spent[i]:
            del self.produced[key]
        return result

    def run(self, inputs: Sequence[torch.Tensor | None], times: list[float] | None = None) -> Any:
        """Every call in order; returns the plan's output. `times` receives the seconds of each."""
        for i in range(len(self.calls)):
            if times is None:
                self.step(i, inputs)
            else:
                start = time.perf_counter()
                self.step(i, inputs)
                times.append(time.perf_counter() - start)
        return self.output(inputs)

    def output(self, inputs: Sequence[torch.Tensor | None]) -> Any:
        """What the plan returns, of the last run's values."""

        def value(leaf: Any) -> Any:
            if isinstance(leaf, Input):
                return inputs[leaf.index]
            return leaf.of(self.produced[id(leaf.buffer)]) if leaf.buffer.produced else leaf.bind(self.arena)

        found = pytree.tree_map_only((View, Input), value, self.plan.output)
        self.produced.clear()
        return found
