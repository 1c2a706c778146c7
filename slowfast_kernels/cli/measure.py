"""Measurements of a run: time, memory, time per stage, errors. Nothing here prints."""

import contextlib
import ctypes
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from slowfast_kernels.report import STAGES
from slowfast_kernels.testing import relative_l2

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait for the device: CUDA calls return before the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Result of ``run()`` and the seconds it took."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return result, time.perf_counter() - start


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 20th and 80th percentile (nearest rank) of some times, seconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {"runs": 0, "median_s": None, "p20_s": None, "p80_s": None}
    rank = len(ordered) - 1
    return {
        "runs": len(ordered),
        "median_s": statistics.median(ordered),
        "p20_s": ordered[round(0.2 * rank)],
        "p80_s": ordered[round(0.8 * rank)],
    }


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_memory(run: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """Result of ``run()`` and the bytes its peak stood above the memory held before it.

    On the CPU this is resident memory as Linux counts it, whoever allocated it; None on other systems and
    where the kernel does not let a process reset its own high-water mark. Call it for the first run of a
    model, while nothing of it is cached yet.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    try:
        # Memory that was freed but not returned to the system would hide what the run takes.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before_rss = _status("VmRSS")
    except OSError:
        return run(), None
    result = run()
    return result, max(_status("VmHWM") - before_rss, 0)


def errors(ours: Tensor, reference: Tensor) -> tuple[float, float]:
    """Largest absolute difference in float64, and relative L2 error."""
    difference = ours.double().cpu() - reference.double().cpu()
    return difference.abs().max().item(), relative_l2(ours, reference)


def worse(error: float, other: float) -> float:
    """The larger of two errors, NaN if either is: it must not hide behind a comparison."""
    return float("nan") if math.isnan(error) or math.isnan(other) else max(error, other)


def logits_of(outputs: Tensor, activation: str) -> Tensor:
    """Outputs before their activation, as far as the outputs tell: a softmax loses the common offset, which
    is set to zero mean here (float32[classes])."""
    x = outputs.detach().float().reshape(-1).cpu()
    tiny = torch.finfo(torch.float32).tiny
    if activation == "softmax":
        x = x.clamp_min(tiny).log()
        return x - x.mean()
    if activation == "sigmoid":
        return x.clamp(tiny, 1 - torch.finfo(torch.float32).eps).logit()
    return x


def scores_of(outputs: Tensor, activation: str, multi_label: bool) -> Tensor:
    """Probabilities float32[classes] from a model's outputs of one view."""
    x = outputs.detach().float().reshape(-1).cpu()
    if activation != "none":
        return x
    return x.sigmoid() if multi_label else x.softmax(0)


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are called: containers such as ModuleDict only hold them."""
    if isinstance(module, (nn.ModuleDict, nn.ModuleList)) and not isinstance(module, nn.Sequential):
        for child_name, child in module.named_children():
            yield from _parts(f"{name}.{child_name}", child)
    else:
        yield name, module


@contextlib.contextmanager
def stage_clock(model: nn.Module, device: torch.device) -> Iterator[dict[str, float]]:
    """While open, time each stage of ``model`` by forward hooks; seconds, keyed "res2.slow", "lateral.0", are there
    when it closes. On a GPU the device's time line, without waiting for it between the stages.
    """
    seconds: dict[str, float] = defaultdict(float)
    marks: list[tuple[str, Any, Any]] = []
    starts: dict[str, Any] = {}
    handles = []

    def now() -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def before(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            starts[name] = now()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            marks.append((name, starts[name], now()))

        return hook

    try:
        for stage in STAGES:
            root = getattr(model, stage, None)
            if root is None:
                continue
            for name, part in _parts(stage, root):
                handles.append(part.register_forward_pre_hook(before(name)))
                handles.append(part.register_forward_hook(after(name)))
        yield seconds
        synchronize(device)
        for name, start, end in marks:
            seconds[name] += start.elapsed_time(end) * 1e-3 if device.type == "cuda" else end - start
    finally:
        for handle in handles:
            handle.remove()


def direct_floor_seconds(
    rows: Sequence[Mapping[str, Any]], gflops: float | None, gigabytes: float | None
) -> dict[str, float | None]:
    """Least seconds per stage at the ceilings ``gflops`` (GFLOP/s) and ``gigabytes`` (GB/s).

    Each op of ``rows`` (a frozen model's profile) takes at least its arithmetic or its least traffic,
    whichever is slower; a stage is the sum of its ops, None where neither ceiling is known.
    """
    floors: dict[str, float | None] = {}
    for row in rows:
        limits = []
        if gflops and row.get("flops") is not None:
            limits.append(row["flops"] / (gflops * 1e9))
        if gigabytes and row.get("bytes") is not None:
            limits.append(row["bytes"] / (gigabytes * 1e9))
        stage = row["stage"]
        if limits:
            floors[stage] = (floors.get(stage) or 0.0) + max(limits)
        else:
            floors.setdefault(stage, None)
    return floors


def merge_stages(
    reference: Sequence[Mapping[str, float]], frozen: Sequence[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows ``stage, reference_s, frozen_s`` in the network's order: medians over the repeated profiles.

    ``reference`` holds one mapping of stage to seconds per repeat, ``frozen`` one list of profile rows per
    repeat.
    """
    sums = []
    for rows in frozen:
        total: dict[str, float] = defaultdict(float)
        for row in rows:
            total[row["stage"]] += row["seconds"]
        sums.append(total)
    names = {name for run in [*reference, *sums] for name in run}
    rank = {stage: i for i, stage in enumerate(STAGES)}

    def median(runs: Sequence[Mapping[str, float]], name: str) -> float | None:
        values = [run[name] for run in runs if name in run]
        return statistics.median(values) if values else None

    return [
        {"stage": name, "reference_s": median(reference, name), "frozen_s": median(sums, name)}
        for name in sorted(names, key=lambda name: (rank.get(name.split(".")[0], len(rank)), name))
    ]
