"""One op under a profiler: NVTX ranges and the ``ncu`` command line on a GPU, a torch.profiler table anywhere."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from slowfast_kernels import backends
from slowfast_kernels.bench import registry
from slowfast_kernels.bench.gpu.machine import machine_for
from slowfast_kernels.bench.harness import Setting

#: Calls inside the range that a profiler looks at.
CALLS = 3


def range_name(entry: registry.Entry) -> str:
    """Name of a call's range in traces."""
    return f"slowfast::{entry.op} {entry.case.name}"


@contextlib.contextmanager
def marked(name: str) -> Iterator[None]:
    """The block under one name: an NVTX range on a GPU, a ``record_function`` of torch.profiler otherwise."""
    if torch.cuda.is_available():
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
    else:
        with torch.profiler.record_function(name):
            yield


def ncu_command(entry: registry.Entry, words: Sequence[str]) -> str:
    """The command that profiles exactly this call's kernels with Nsight Compute, clocks as they are."""
    report = "".join(c if c.isalnum() else "-" for c in f"{entry.op}-{entry.case.name}-{entry.dtype}")
    command = ["ncu", "--nvtx", "--nvtx-include", f"{range_name(entry)}/", "--set", "full"]
    command += ["--clock-control", "none", "--target-processes", "all", "-o", report]
    return shlex.join([*command, "slowfast-kernels", "bench", *words])


def trace(run: Callable[[], Any], name: str) -> Any:
    """torch.profiler's events of a few calls of ``run`` under ``name``, after a warm-up outside of it."""
    run()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(CALLS):
            with marked(name):
                run()
        if gpu:
            torch.cuda.synchronize()
    return found.key_averages()


def profile(entry: registry.Entry, words: Sequence[str], batch: int = 1, shrink: int = 1) -> str:
    """Run one call under the profilers; returns the text to show: the table and the command line."""
    machine = machine_for(Setting(dry=not torch.cuda.is_available()))
    args, kwargs = machine.draw(entry.case, entry.dtype, batch, shrink=shrink)
    run = registry.runner(entry, backends.current(), args, kwargs)
    averages = trace(run, range_name(entry))
    by = "self_cpu_time_total" if machine.dry else "self_device_time_total"
    lines = [f"{range_name(entry)}, {entry.dtype}, batch {batch}: {CALLS} calls", ""]
    lines += [averages.table(sort_by=by, row_limit=15, max_name_column_width=60), ""]
    lines += ["with hardware counters (needs an NVIDIA GPU and Nsight Compute):", ncu_command(entry, words)]
    return "\n".join(lines)
