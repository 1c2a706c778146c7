"""Interleaved timing of several callables, the parity gate before it, and the stamp that goes with the
figures.

Nothing here prints results; progress goes to the standard error.
"""

import functools
import gc
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from slowfast_kernels import report

#: A single call shorter than this is repeated inside one sample: the clock and the call itself then vanish.
SAMPLE_SECONDS = 2e-3


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

    def percentile(self, percent: float) -> float:
        """Nearest-rank percentile, seconds per call."""
        ordered = sorted(self.samples)
        return ordered[round(percent / 100 * (len(ordered) - 1))]

    @property
    def spread(self) -> tuple[float, float]:
        """20th and 80th percentile, seconds per call."""
        return self.percentile(20), self.percentile(80)

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
        ratios = Timing("ratio", tuple(b / a for a, b in pairs))
        return ratios.spread


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 21,
    warmup: int = 2,
    budget_s: float | None = None,
    cold_bytes: int = 0,
    label: str = "",
    progress: bool = True,
    seed: int = 0,
) -> Comparison:
    """Time callables side by side: every round runs each of them once, in a new random order.

    Interleaving gives every contender the same share of a noisy minute; the order changes so that nobody
    always runs behind the same neighbour's caches.

    Args:
        runs: name -> callable without arguments; its result is dropped.
        rounds: samples of each callable.
        warmup: unmeasured calls of each one before.
        budget_s: stop early, though not before 5 rounds, once this many seconds have passed; None = never.
        cold_bytes: read and write this many bytes before every sample, so that caches hold none of the
            callable's tensors (then one call a sample); 0 = warm caches.
        label: text before the progress bar.
    """
    if not runs:
        return Comparison()
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        for _ in range(max(warmup, 1)):
            seconds = _sample(run, 1)
        if seconds < SAMPLE_SECONDS and not cold_bytes:
            # Once more, on warm caches: the first call of a cheap op says little of the second.
            seconds = _sample(run, 3)
        repeats[name] = 1 if cold_bytes else max(1, min(1000, round(SAMPLE_SECONDS / max(seconds, 1e-7))))
    ballast = torch.zeros(max(cold_bytes // 8, 1))
    order, shuffle = list(runs), random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    with _no_garbage_collection():
        for done in tqdm(range(rounds), desc=label, disable=not progress, leave=False):
            if budget_s is not None and done >= min(5, rounds) and time.perf_counter() - start > budget_s:
                break
            shuffle(order)
            for name in order:
                if cold_bytes:
                    ballast.add_(1.0)
                samples[name].append(_sample(runs[name], repeats[name]))
    return Comparison({name: Timing(name, tuple(samples[name]), repeats[name]) for name in runs})


def _sample(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


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


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever it is: a tensor, a NumPy array, a sequence of them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [t for part in output for t in tensors_of(part)]
    return [torch.as_tensor(output)]


def relative_l2(ours: Any, expected: Any) -> float:
    """Relative L2 distance of two outputs in float64, the largest over their tensors; infinite where shapes
    differ or a value is not finite in only one of them."""
    a, b = tensors_of(ours), tensors_of(expected)
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        x, y = x.detach().double().cpu(), y.detach().double().cpu()
        norm, distance = y.norm().item(), (x - y).norm().item()
        error = distance / norm if norm else (0.0 if distance == 0 else float("inf"))
        worst = max(worst, error) if error == error else float("inf")
    return worst


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


def gate(ours: Any, expected: Any, limit: float = FP32_LIMIT) -> Gate:
    """Compare two outputs."""
    return Gate(relative_l2(ours, expected), limit)


def gate_low_precision(ours: Any, peer: Any, exact: Any, factor: float = 2.0) -> Gate:
    """Gate for bf16: our distance from the float32 answer, against ``factor`` times the peer's own."""
    return Gate(relative_l2(ours, exact), factor * relative_l2(peer, exact))


# --- environment -------------------------------------------------------------------------------------------


def _git(*arguments: str) -> str | None:
    try:
        where = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "-C", str(where), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def revision() -> str | None:
    """Git revision of this code, "+changes" when files differ from it; None outside of a clone (an installed copy may
    lie inside a repository of something else)."""
    commit = _git("rev-parse", "--short=12", "HEAD") if _git("ls-files", Path(__file__).name) else None
    if not commit:
        return None
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def environment() -> dict[str, Any]:
    """Machine, versions and revision: what figures must carry to be compared with others."""
    stamp = report.environment()
    stamp["revision"] = revision()
    for name in ("onnxruntime", "openvino"):
        stamp[name] = report.version_of(name)
    stamp["load"] = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    stamp["affinity"] = os.environ.get("OMP_PROC_BIND"), os.environ.get("GOMP_CPU_AFFINITY")
    return stamp


def stamp_lines(stamp: Mapping[str, Any], keys: Sequence[str] = ()) -> list[str]:
    """The stamp as lines of text: processor and threads, versions, revision and load."""
    others = ", ".join(f"{k} {stamp[k]}" for k in ("onnxruntime", "openvino") if stamp.get(k))
    cores, threads = report.count(stamp["cores"], "core"), report.count(stamp["threads"], "thread")
    revision = stamp["revision"]
    version = f"revision {revision}" if revision else f"version {stamp['slowfast_kernels']}"
    lines = [
        f"{stamp['processor']}, {cores}, {threads}, isa {stamp['isa']}",
        f"torch {stamp['torch']}, python {stamp['python']}" + (f", {others}" if others else ""),
        f"{version}, {stamp['time']}, load before {stamp['load']}",
    ]
    return lines + [f"{k} {stamp[k]}" for k in keys if k in stamp]
