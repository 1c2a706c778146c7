"""The device under test: drawing inputs on it, capturing graphs, timing contenders side by side.

On a GPU times come from CUDA events around graph replays. In a dry run the same code runs on the CPU with the
wall clock and without graphs; its numbers say nothing.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from slowfast_kernels import precision
from slowfast_kernels.bench import harness
from slowfast_kernels.ops._cases import Args, Case, Draw
from slowfast_kernels.plans.graph import captured

#: How values are stored and multiplied. "tf32" is float32 in memory with products rounded to 11 bits.
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}

#: A sample takes at least this long, so that two events' own cost vanishes.
SAMPLE_SECONDS = 2e-3

#: A graph holds at least this many calls: starting one costs some microseconds, as much as a small kernel takes.
GRAPH_CALLS = 12

#: Every comparison begins with so many seconds of its own work: an idle GPU's clocks are low.
SETTLE_SECONDS = 0.15


@dataclass(frozen=True)
class Setting:
    """What is measured and at which size; travels to the worker processes as JSON."""

    dry: bool = False
    batches: tuple[int, ...] = (1, 8, 32)
    model: str = "slowfast_8x8_r50"
    frames: int | None = None
    crop: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    shrink: int = 1  # divides height and width of the ops' real calls
    check_shrink: int = 8  # the same for the correctness part
    op: str | None = None  # patterns, shell style
    case: str | None = None
    limit: int = 0  # at most this many calls of each op; 0 = all
    items: int = 0  # at most this many items of each part; 0 = all
    share: tuple[int, int] = (0, 1)  # (i, n): this process takes every n-th item from the i-th on
    rounds: int = 21
    tests: str = "tests"  # what `pytest -m gpu` is given
    out: str = "."

    @property
    def middle(self) -> int:
        """The batch of comparisons that are made at one batch only."""
        return 8 if 8 in self.batches else self.batches[len(self.batches) // 2]


@dataclass
class Contender:
    """One way to compute something.

    runs: callables that compute it on different inputs of the same shapes, so that a cache as large as one set
          does not hold them all.
    graph: whether the calls may be captured in a CUDA graph.
    unroll: whether a graph of few calls may make them several times over.
    """

    name: str
    runs: Sequence[Callable[[], Any]]
    ours: bool = False
    graph: bool = True
    note: str = ""
    unroll: bool = True


@dataclass
class Prepared:
    """A contender ready to be timed: ``replay`` makes ``calls`` calls."""

    replay: Callable[[], Any]
    calls: int
    graph: bool
    note: str
    repeats: int = 1


class DeviceDraw(Draw):
    """Draws on the device itself: gigabytes of normal numbers are slow to make on the host."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.seed)


class Machine:
    """A GPU, or in a dry run the CPU in its place."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.dry = setting.dry
        self.device = torch.device("cpu" if self.dry else "cuda")
        # Ends of the part's time and of the item's share of it, on time.monotonic()'s clock; set by the worker.
        self.deadline = self.item_deadline = math.inf
        self._stream = None if self.dry else torch.cuda.Stream()

    def late(self) -> bool:
        """Whether the part's time is over."""
        return time.monotonic() > self.deadline

    def item_late(self) -> bool:
        """Whether the item has used its share of that."""
        return time.monotonic() > self.item_deadline

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Everything on one side stream, which graphs can be captured from (autograd runs a backward on the
        stream of its forward); cuDNN chooses its algorithms by timing."""
        torch.backends.cudnn.benchmark = True
        with contextlib.ExitStack() as stack:
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))
            yield

    @contextlib.contextmanager
    def unmeasured(self) -> Iterator[None]:
        """The block's convolutions are computed once: cuDNN takes its first choice instead of timing them all."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    @contextlib.contextmanager
    def arithmetic(self, dtype: str) -> Iterator[None]:
        """How float32 values are multiplied inside the block, by cuDNN, cuBLAS and our kernels alike."""
        tf32 = dtype == "tf32"
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            with precision.fp32_precision("tf32" if tf32 else "ieee"):
                yield
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

    def synchronize(self) -> None:
        """Wait for the device. Raises RuntimeError where an earlier kernel failed."""
        if not self.dry:
            torch.cuda.synchronize()

    def alive(self) -> bool:
        """Whether the device still answers: after an illegal access it does not until the process ends."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True

    def tidy(self) -> None:
        """Give memory back between measurements."""
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def poison(self, nbytes: int = 256 << 20) -> None:
        """Fill the memory that the allocator will hand out next with NaN, whoever asks for it: one block that large
        requests are cut from, and many small ones."""
        if not self.dry:
            free, _ = torch.cuda.mem_get_info()
            large = torch.full((min(nbytes, free // 4) // 4,), math.nan, device=self.device)
            small = [torch.full((64 << 10,), math.nan, device=self.device) for _ in range(64)]
            self.synchronize()
            del large, small

    def poison_everything(self) -> None:
        """The same after what the allocator keeps went back: a block that an earlier contender filled rightly would
        hide what a later one forgets to write."""
        self.tidy()
        self.poison(8 << 30)

    # --- inputs --------------------------------------------------------------------------------------------

    def draw(self, case: Case, dtype: str, batch: int = 1, seed: int = 0, shrink: int | None = None) -> Args:
        """(args, kwargs) of a case, drawn on the device."""
        draw = DeviceDraw(
            seed=seed,
            dtype=DTYPES[dtype],
            device=self.device.type,
            batch=batch,
            shrink=self.setting.shrink if shrink is None else shrink,
        )
        with self.device:
            return case.build(draw)

    def small(self, case: Case) -> Callable[[str], Args]:
        """The case's (args, kwargs) by dtype, with the numbers that the tests use and the same memory layout."""

        def args(dtype: str) -> Args:
            return moved(case.args(dtype=DTYPES[dtype], shrink=self.setting.check_shrink), self.device)

        return args

    def sets(self, nbytes: int, batch: int) -> int:
        """How many sets of inputs to rotate among: together three times the level-2 cache, at most 12. One at
        batch 1, where the cache holds the activations in the network too."""
        if self.dry:
            return 2
        if batch == 1:
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(2, min(12, math.ceil(3 * cache / max(nbytes, 1))))

    # --- timing --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def captured(self) -> Iterator[torch.cuda.CUDAGraph]:
        """Capture the block in a graph, on the session's stream; raises where that fails, and later captures work."""
        graph = torch.cuda.CUDAGraph()
        with captured(graph, self.device, self._stream):
            yield graph

    def prepare(self, contender: Contender) -> Prepared:
        """Warm a contender up and capture it where that is allowed; a failed capture is kept as a note."""
        runs, note = contender.runs, contender.note

        def all_of_them() -> None:
            for run in runs:
                run()

        for _ in range(1 if self.dry else 3):
            all_of_them()
        self.synchronize()
        if self.dry or not contender.graph:
            return Prepared(all_of_them, len(runs), False, note)
        times = math.ceil(GRAPH_CALLS / len(runs)) if contender.unroll else 1
        try:
            with self.captured() as graph:
                for _ in range(times):
                    all_of_them()
            graph.replay()
            self.synchronize()
        except RuntimeError as error:
            self.synchronize()  # raises where more than the capture is broken
            # the end of a broken capture only says that it was broken; before it stands why
            reason = f"no graph: {first_line(error.__context__ or error)}"
            return Prepared(all_of_them, len(runs), False, f"{note}; {reason}" if note else reason)
        return Prepared(graph.replay, times * len(runs), True, note)

    def compare(self, prepared: dict[str, Prepared], rounds: int | None = None) -> harness.Comparison:
        """Time contenders side by side: every round takes one sample of each, in a new random order."""
        rounds = rounds or self.setting.rounds
        rounds = 1 if self.dry else rounds
        if not self.dry:
            self._settle(prepared)
        for one in () if self.dry else prepared.values():
            seconds = self._sample(one) * one.calls
            one.repeats = max(1, min(1000, round(SAMPLE_SECONDS / max(seconds, 1e-7))))
        samples: dict[str, list[float]] = {name: [] for name in prepared}
        order, shuffle = list(prepared), random.Random(0).shuffle
        gc.collect()
        gc.disable()
        try:
            for _ in range(rounds):
                shuffle(order)
                for name in order:
                    samples[name].append(self._sample(prepared[name]))
        finally:
            gc.enable()
        return harness.Comparison(
            {n: harness.Timing(n, tuple(samples[n]), p.repeats * p.calls) for n, p in prepared.items()}
        )

    def _settle(self, prepared: dict[str, Prepared]) -> None:
        """Keep the device busy until its clocks are those of work, and not of waiting."""
        begin = time.monotonic()
        while prepared and time.monotonic() - begin < SETTLE_SECONDS:
            for one in prepared.values():
                one.replay()
            self.synchronize()

    def _sample(self, one: Prepared) -> float:
        """Seconds of one call."""
        calls = one.repeats * one.calls
        if self.dry:
            begin = time.perf_counter()
            for _ in range(one.repeats):
                one.replay()
            return (time.perf_counter() - begin) / calls
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(one.repeats):
            one.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / calls


class Replayed:
    """A function of tensors captured in a CUDA graph, called as users call one: the inputs are copied into the
    graph's own, the graph is replayed, the output is the graph's.

    Raises RuntimeError where the function cannot be captured. In a dry run it calls the function.
    """

    def __init__(self, machine: Machine, function: Callable[..., Any], *examples: Tensor) -> None:
        self._function, self._dry = function, machine.dry
        self._inputs = [torch.empty_like(x).copy_(x) for x in examples]
        for _ in range(1 if machine.dry else 3):
            self._output = function(*self._inputs)
        machine.synchronize()
        if machine.dry:
            return
        try:
            with machine.captured() as self._graph:
                self._output = function(*self._inputs)
        except RuntimeError:
            machine.synchronize()
            raise

    def __call__(self, *inputs: Tensor) -> Any:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        if self._dry:
            self._output = self._function(*self._inputs)
        else:
            self._graph.replay()
        return self._output


def moved(tree: Any, device: torch.device) -> Any:
    """A nest of arguments on the device, strides and aliases as they were."""
    if device.type == "cpu":
        return tree
    seen: dict[int, Tensor] = {}

    def move(x: Tensor) -> Tensor:
        base = x if x._base is None else x._base
        if id(base) not in seen:
            seen[id(base)] = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=device)
            seen[id(base)].copy_(base)
        there = seen[id(base)]
        if x is base:
            return there
        return there.as_strided(x.shape, x.stride(), x.storage_offset() - base.storage_offset())

    return pytree.tree_map_only(Tensor, move, tree)


def detached(output: Any) -> Any:
    """A copy of an output that later calls cannot change."""
    return pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), output)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut where it becomes long, or its class."""
    text = (str(error).strip().splitlines() or [""])[0].strip()
    text = text if len(text) <= 200 else text[:197] + "..."
    return text or type(error).__name__
