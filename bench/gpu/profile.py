"""One op under a profiler: NVTX ranges and the ``ncu`` command line on a GPU, a torch.profiler table anywhere."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from slowfast_kernels import backends
from slowfast_kernels.bench import registry
from slowfast_kernels.bench.gpu.items import Item, check
from slowfast_kernels.bench.gpu.machine import GpuMachine, machine_for
from slowfast_kernels.bench.gpu.programs import output, tool
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


def ncu(entry: registry.Entry, command: Sequence[str], report: str | Path, program: str = "ncu") -> list[str]:
    """The command that profiles exactly this call's kernels in what ``command`` runs with Nsight Compute, clocks as
    they are."""
    words = [program, "--nvtx", "--nvtx-include", f"{range_name(entry)}/", "--set", "full"]
    words += ["--clock-control", "none", "--target-processes", "all", "-o", str(report)]
    return [*words, *command]


def _file_name(entry: registry.Entry) -> str:
    return "".join(c if c.isalnum() else "-" for c in f"{entry.op}-{entry.case.name}-{entry.dtype}")


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
    command = ncu(entry, ["slowfast-kernels", "bench", *words], _file_name(entry))
    lines += ["with hardware counters (needs an NVIDIA GPU and Nsight Compute):", shlex.join(command)]
    return "\n".join(lines)


# --- as a part of bench/gpu.sh -------------------------------------------------------------------------------


def entry_of(call: str) -> registry.Entry:
    """The call "OP/CASE" in bf16; ValueError where there is none."""
    op, _, case = call.partition("/")
    return registry.entries(op, case or None, "bf16")[0]


def items(machine: GpuMachine) -> list[Item]:
    """Nsight Compute on the calls that were asked for, one replay of every kernel each."""
    return [Item(call, functools.partial(_counted, machine, call)) for call in machine.setting.profile]


def _counted(machine: GpuMachine, call: str) -> Iterator[dict[str, Any]]:
    """What ncu keeps and prints goes to OUT; without it the call is only made."""
    entry = entry_of(call)
    name, program = f"ncu-{_file_name(entry)}", tool("ncu")
    command = [sys.executable, "-m", __spec__.name, call, str(machine.setting.middle)]
    command += ["--dry-run"] if machine.dry else []
    kept = Path(machine.setting.out, f"{name}.ncu-rep")
    kept.unlink(missing_ok=True)
    whole = command if program is None else ncu(entry, command, kept.with_suffix(""), program)
    code, text = output(machine, whole, f"{name}.txt")
    last = (text.strip().splitlines() or ["no output"])[-1]
    if code == 0 and program is not None and kept.exists():
        code, text = output(machine, [program, "--import", str(kept), "--page", "details"], f"{name}.txt")
        yield check(f"{call} under ncu", "ok", f"{name}.txt, {kept.name}")
    elif code == 0:
        reason = "ncu is not installed" if program is None else f"ncu kept nothing: {last}"
        yield check(f"{call} under ncu", "missing", f"{reason}; the call itself runs")
    else:
        ended = "stopped when its time was over" if code is None else f"ended with {code}: {last}"
        yield check(f"{call} under ncu", "missing" if program else "red", ended)


def main(argv: Sequence[str]) -> int:
    """OP/CASE BATCH [--dry-run]: one call of the CUDA kernels in its range, after some outside of it."""
    call, batch, *dry = argv
    entry = entry_of(call)
    machine = machine_for(Setting(dry=bool(dry)))
    drawn = machine.draw(entry.case, entry.dtype, int(batch), shrink=16 if dry else 1)
    provider = "auto" if backends.unavailable("cuda") else "cuda"
    run = registry.prepared(entry, provider, *drawn)
    for _ in range(CALLS):
        run()
    machine.synchronize()
    with marked(range_name(entry)):
        run()
    machine.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
