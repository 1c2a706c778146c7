"""What the device can do at most: copying memory, matrix products, launching; and what cuDNN does with conv3d."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from slowfast_kernels.bench.gpu.items import Item
from slowfast_kernels.bench.gpu.machine import DTYPES, GpuMachine
from slowfast_kernels.bench.harness import Contender, first_line


def items(machine: GpuMachine) -> list[Item]:
    """Copy, matrix products, launches, convolution."""
    return [
        Item("copy", lambda: [_copy(machine)]),
        *(Item(f"gemm {d}", functools.partial(_gemm, machine, d)) for d in DTYPES),
        Item("launch", lambda: [_launch(machine)]),
        Item("conv3d", lambda: _conv3d(machine)),
    ]


def _seconds(machine: GpuMachine, name: str, *runs: Callable[[], Any], graph: bool = True) -> float:
    prepared = {name: machine.prepare(Contender(name, runs, graph=graph))}
    return machine.compare(prepared).timings[name].median


def _copy(machine: GpuMachine) -> dict[str, Any]:
    """Bytes read plus bytes written, of a buffer far larger than the caches."""
    count = 1 << (18 if machine.dry else 30)
    source = torch.randn(count // 4, device=machine.device)
    target = torch.empty_like(source)
    seconds = _seconds(machine, "copy", lambda: target.copy_(source))
    return {"name": "copy_gbs", "value": 2 * count / seconds / 1e9, "unit": "GB/s"}


def _gemm(machine: GpuMachine, dtype: str) -> list[dict[str, Any]]:
    """A square matrix product of random values: zeros run faster than data does."""
    n = 64 if machine.dry else (8192 if dtype != "fp32" else 4096)
    a, b = (torch.randn(n, n, device=machine.device).to(DTYPES[dtype]) for _ in range(2))
    with machine.arithmetic(dtype):
        seconds = _seconds(machine, dtype, lambda: a @ b, graph=False)
    return [{"name": f"{dtype}_gflops", "value": 2 * n**3 / seconds / 1e9, "unit": "GFLOP/s"}]


def _launch(machine: GpuMachine) -> dict[str, Any]:
    """Time between kernels that do next to nothing, in a graph."""
    x = torch.zeros(32, device=machine.device)
    seconds = _seconds(machine, "launch", *[lambda: x.add_(1.0)] * (3 if machine.dry else 200))
    return {"name": "launch_us", "value": 1e6 * seconds, "unit": "us"}


def _conv3d(machine: GpuMachine) -> list[dict[str, Any]]:
    """A 1x3x3 convolution of res3 as conv3d and on a 2-D view, in each arithmetic: whether TF32 is really used for
    conv3d, and what the view brings."""
    n, c, t, side = (1, 8, 2, 6) if machine.dry else (8, 128, 8, 28)
    found = []
    for dtype, kind in DTYPES.items():
        x = torch.randn(n, t, side, side, c, device=machine.device).to(kind).permute(0, 4, 1, 2, 3)
        weight = torch.randn(c, c, 1, 3, 3, device=machine.device).to(kind)
        flat = x.permute(0, 2, 3, 4, 1).reshape(n * t, side, side, c).permute(0, 3, 1, 2)
        last = weight.contiguous(memory_format=torch.channels_last_3d)
        last2 = weight[:, :, 0].contiguous(memory_format=torch.channels_last)
        flops = 2 * 9 * c * c * n * t * side * side
        runs: dict[str, Callable[[], Any]] = {
            "conv3d": functools.partial(F.conv3d, x, last, padding=(0, 1, 1)),
            "conv2d": functools.partial(F.conv2d, flat, last2, padding=1),
        }
        for name, run in runs.items():
            entry: dict[str, Any] = {"name": f"{name}_{dtype}_gflops", "unit": "GFLOP/s", "value": None}
            try:
                with machine.arithmetic(dtype):
                    entry["value"] = flops / _seconds(machine, name, run) / 1e9
            except RuntimeError as error:  # no such kernel in this cuDNN
                machine.synchronize()
                entry["note"] = first_line(error)
            found.append(entry)
    return found
