"""A machine, and what is timed on it side by side. Nothing here prints results; progress goes to the standard error.

`Machine` is what all have in common: contenders take turns, in a new random order every round. `CpuMachine` is this
processor; a GPU and its dry run are in ``gpu/machine.py``.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from tqdm import tqdm

from slowfast_kernels.testing import relative_l2 as relative_l2  # for whoever times with this module alone

#: Types by the names that options and tables have for them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: A sample takes at least this long, by repeating what is shorter: the clock's and the call's own cost then vanish.
SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Setting:
    """What is measured and at which size; travels to worker processes as JSON."""

    model: str = "slowfast_8x8_r50"
    frames: int | None = None
    crop: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    rounds: int = 21
    threads: int = 1
    progress: bool = False
    # what only the measurements on a GPU ask for
    dry: bool = False
    batches: tuple[int, ...] = (1, 8, 32)
    shrink: int = 1  # divides height and width of the ops' real calls
    check_shrink: int = 8  # the same for the correctness part
    op: str | None = None  # patterns, shell style
    case: str | None = None
    limit: int = 0  # at most this many calls of each op; 0 = all
    items: int = 0  # at most this many items of each part; 0 = all
    wanted: dict[str, str] = field(default_factory=dict)  # part -> patterns of its items' names
    share: tuple[int, int] = (0, 1)  # (i, n): this process takes every n-th item from the i-th on
    profile: tuple[str, ...] = ()  # calls, "op/case"
    tests: str = "tests"  # what `pytest -m gpu` is given
    out: str = "."

    @property
    def middle(self) -> int:
        """The batch of comparisons that are made at one batch only."""
        return 8 if 8 in self.batches else self.batches[len(self.batches) // 2]


# --- times -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Samples of one callable, seconds per call, in the order they were taken."""

    name: str
    samples: tuple[float, ...]
    repeats: int = 1  # calls in one sample

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """20th and 80th percentile (nearest rank), seconds per call."""
        ordered, last = sorted(self.samples), len(self.samples) - 1
        return ordered[round(0.2 * last)], ordered[round(0.8 * last)]

    def to_dict(self) -> dict[str, Any]:
        """What a JSON document keeps of it."""
        low, high = self.spread
        return {
            "median_s": self.median,
            "p20_s": low,
            "p80_s": high,
            "min_s": min(self.samples),
            "samples": len(self.samples),
            "repeats": self.repeats,
        }


@dataclass
class Comparison:
    """Timings of one interleaved run, by name."""

    timings: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, ours: str, peer: str) -> float:
        """Median time of the peer over ours: how many times faster we are."""
        return self.timings[peer].median / self.timings[ours].median

    def paired(self, ours: str, peer: str) -> tuple[float, float]:
        """20th and 80th percentile of the ratio within each round: what noise of the machine does to it."""
        pairs = zip(self.timings[ours].samples, self.timings[peer].samples, strict=True)
        return Timing("ratio", tuple(b / a for a, b in pairs)).spread


# --- contenders --------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One way to compute something.

    runs: callables that compute it on different inputs of the same shapes, so that a cache as large as one set
          does not hold them all.
    graph: whether the calls may be captured in a CUDA graph.
    """

    name: str
    runs: Sequence[Callable[[], Any]]
    ours: bool = False
    graph: bool = True
    note: str = ""


@dataclass
class Ready:
    """A contender ready to be timed: ``replay`` makes ``calls`` calls, a sample ``repeats`` it."""

    replay: Callable[[], Any]
    calls: int = 1
    graph: bool = False
    note: str = ""
    repeats: int = 1


class Machine:
    """What contenders run on, and how time is told there."""

    device: torch.device
    dry: ClassVar[bool] = False  # its times say nothing
    warmup: int = 1  # calls of each set of inputs before anything is timed
    patience: float = math.inf  # seconds of work that may be lost where the process is stopped

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        # Ends of a part's time and of an item's share of it, on time.monotonic()'s clock; set by a worker.
        self.deadline = self.item_deadline = math.inf

    def late(self) -> bool:
        """Whether the part's time is over."""
        return time.monotonic() > self.deadline

    def item_late(self) -> bool:
        """Whether the item has used its share of that."""
        return time.monotonic() > self.item_deadline

    # --- memory ------------------------------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Wait for the device. Raises RuntimeError where an earlier kernel failed."""

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

    def poison(self, nbytes: int = 256 << 20) -> None:
        """Fill the memory that the allocator will hand out next with NaN, where it is the device's own."""

    def poison_everything(self) -> None:
        """The same after what the allocator keeps went back: a block that an earlier contender filled rightly would
        hide what a later one forgets to write."""

    def checking(self) -> AbstractContextManager[Any]:
        """Around the call whose output is checked."""
        return nullcontext()

    # --- timing ------------------------------------------------------------------------------------------------

    def compile_ahead(self, build: Callable[[], Contender]) -> None:
        """Compile what a contender's first call starts, where that helps. Its errors come again when it is called."""

    def prepare(self, contender: Contender) -> Ready:
        """Warm a contender up."""

        def all_of_them() -> None:
            for run in contender.runs:
                run()

        for _ in range(self.warmup):
            all_of_them()
        self.synchronize()
        return Ready(all_of_them, len(contender.runs), note=contender.note)

    def compare(self, ready: Mapping[str, Ready], rounds: int | None = None, label: str = "") -> Comparison:
        """Time contenders side by side: every round takes one sample of each, in a new random order.

        Interleaving gives every contender the same share of a noisy minute; the order changes so that nobody
        always runs behind the same neighbour's caches.
        """
        self.settle(ready)
        samples: dict[str, list[float]] = {name: [] for name in ready}
        order, shuffle = list(ready), random.Random(0).shuffle
        bar = tqdm(
            range(rounds or self.setting.rounds),
            desc=label,
            disable=not (label and self.setting.progress),
            leave=False,
        )
        with _no_garbage_collection():
            for _ in bar if ready else ():
                shuffle(order)
                for name in order:
                    samples[name].append(self.sample(ready[name]))
        return Comparison(
            {n: Timing(n, tuple(samples[n]), one.repeats * one.calls) for n, one in ready.items()}
        )

    def settle(self, ready: Mapping[str, Ready]) -> None:
        """Bring the machine to its speed, and find out how often a sample repeats each contender."""

    def sample(self, one: Ready) -> float:
        """Seconds of one call."""
        begin = time.perf_counter()
        for _ in range(one.repeats):
            one.replay()
        self.synchronize()
        return (time.perf_counter() - begin) / (one.repeats * one.calls)


def repeats_for(seconds: float) -> int:
    """How often a sample makes a call of so many seconds."""
    return max(1, min(1000, round(SAMPLE_SECONDS / max(seconds, 1e-7))))


class CpuMachine(Machine):
    """This processor, by the wall clock.

    cold_bytes: read and write this many bytes before every sample, so that caches hold none of the contender's
                tensors (then one call a sample); 0 = warm caches.
    """

    def __init__(self, setting: Setting, warmup: int = 1, cold_bytes: int = 0) -> None:
        super().__init__(setting)
        self.device, self.warmup = torch.device("cpu"), warmup
        self._ballast = torch.zeros(cold_bytes // 8)

    def synchronize(self) -> None:
        if torch.cuda.is_available():  # a contender may compute there
            torch.cuda.synchronize()

    def settle(self, ready: Mapping[str, Ready]) -> None:
        for one in () if len(self._ballast) else ready.values():
            # Twice where it is short: the first call of a cheap op says little of the second, on warm caches.
            for one.repeats in (1, 3):
                seconds = self.sample(one) * one.calls
                if seconds >= SAMPLE_SECONDS:
                    break
            one.repeats = repeats_for(seconds)

    def sample(self, one: Ready) -> float:
        if len(self._ballast):
            self._ballast.add_(1.0)
        return super().sample(one)


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 21,
    warmup: int = 1,
    label: str = "timing",
    progress: bool = True,
) -> Comparison:
    """Time callables side by side on the CPU: name -> callable without arguments, whose result is dropped.

    Args:
        runs: what to time.
        rounds: samples of each callable.
        warmup: unmeasured calls of each one before.
        label: text before the progress bar.
    """
    machine = CpuMachine(Setting(rounds=rounds, progress=progress), warmup)
    ready = {name: machine.prepare(Contender(name, [run])) for name, run in runs.items()}
    return machine.compare(ready, label=label)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run the block on this many threads of torch's pool (None: as they are); yields the number."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ValueError(f"threads: expected at least 1, got {count}")
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


# --- parity ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """Outcome of a parity check. Speed-ups are shown only behind a green one."""

    error: float
    limit: float

    @property
    def green(self) -> bool:
        """Whether the outputs agree."""
        return self.error <= self.limit

    def __str__(self) -> str:
        return f"{self.error:.1e}" if self.green else f"RED {self.error:.1e} > {self.limit:.1e}"


#: Largest relative L2 distance between two float32 results of one network or op.
FP32_LIMIT = 1e-4


def detached(output: Any) -> Any:
    """A copy of an output that later calls cannot change."""
    return pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), output)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut where it becomes long, or its class."""
    text = (str(error).strip().splitlines() or [""])[0].strip()
    text = text if len(text) <= 200 else text[:197] + "..."
    return text or type(error).__name__
