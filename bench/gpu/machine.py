"""A GPU, and what a dry run has in its place.

On a GPU times come from CUDA events around graph replays. In a dry run the same code runs on the CPU with the
wall clock and without graphs; its numbers say nothing.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from slowfast_kernels import precision
from slowfast_kernels.bench.gpu import kernels
from slowfast_kernels.bench.harness import (
    Comparison,
    Contender,
    Machine,
    Ready,
    Setting,
    first_line,
    repeats_for,
)
from slowfast_kernels.ops._cases import Args, Case, Draw
from slowfast_kernels.plans.capture import captured
from slowfast_kernels.testing import poisoned_memory

#: How values are stored and multiplied. "tf32" is float32 in memory with products rounded to 11 bits.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}

#: A graph holds at least this many calls: starting one costs some microseconds, as much as a small kernel takes.
GRAPH_CALLS = 12

#: Every comparison begins with so many seconds of its own work: an idle GPU's clocks are low.
SETTLE_SECONDS = 0.15


class DeviceDraw(Draw):
    """Draws on the device itself: gigabytes of normal numbers are slow to make on the host."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.seed)


class GpuMachine(Machine):
    """What a GPU and its stand-in have in common: how numbers are multiplied, how inputs are drawn."""

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Around everything that is measured; cuDNN chooses its algorithms by timing."""
        torch.backends.cudnn.benchmark = True
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

    def checking(self) -> contextlib.AbstractContextManager[Any]:
        return poisoned_memory()

    def draw(self, case: Case, dtype: str, batch: int = 1, seed: int = 0, shrink: int | None = None) -> Args:
        """(args, kwargs) of a case, drawn on the device."""
        shrink = self.setting.shrink if shrink is None else shrink
        draw = DeviceDraw(seed, DTYPES[dtype], self.device.type, batch, shrink)
        with self.device:
            return case.build(draw)

    def small(self, case: Case, dtype: str) -> Args:
        """The case's (args, kwargs) with the numbers that the tests use and the same memory layout."""
        return moved(case.args(dtype=DTYPES[dtype], shrink=self.setting.check_shrink), self.device)

    def sets(self, nbytes: int, batch: int) -> int:
        """How many sets of inputs to rotate among."""
        return 2

    def replayed(self, function: Callable[..., Any], *examples: Tensor) -> Callable[..., Any]:
        """A function of tensors captured as a user would capture it, where that is possible at all."""
        return function


class DryMachine(GpuMachine):
    """The CPU in a GPU's place: everything is called once, by the wall clock and without graphs."""

    dry = True
    device = torch.device("cpu")

    def compare(self, ready: Mapping[str, Ready], rounds: int | None = None, label: str = "") -> Comparison:
        return super().compare(ready, 1, label)


class CudaMachine(GpuMachine):
    """A GPU."""

    warmup = 3
    patience = 5.0

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.device = torch.device("cuda")
        self._stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Everything on one side stream, which graphs can be captured from (autograd runs a backward on the
        stream of its forward)."""
        with super().session(), torch.cuda.stream(self._stream):
            yield

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def tidy(self) -> None:
        super().tidy()
        torch.cuda.empty_cache()

    def poison(self, nbytes: int = 256 << 20) -> None:
        """One block that large requests are cut from, and many small ones."""
        free, _ = torch.cuda.mem_get_info()
        large = torch.full((min(nbytes, free // 4) // 4,), math.nan, device=self.device)
        small = [torch.full((64 << 10,), math.nan, device=self.device) for _ in range(64)]
        self.synchronize()
        del large, small

    def poison_everything(self) -> None:
        self.tidy()
        self.poison(8 << 30)

    def sets(self, nbytes: int, batch: int) -> int:
        """Together three times the level-2 cache, at most 12. One at batch 1, where the cache holds the activations
        in the network too."""
        if batch == 1:
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(2, min(12, math.ceil(3 * cache / max(nbytes, 1))))

    def compile_ahead(self, build: Callable[[], Contender]) -> None:
        with contextlib.suppress(Exception), kernels.compiling_ahead() as possible:
            if possible:
                build().runs[0]()

    @contextlib.contextmanager
    def captured(self) -> Iterator[torch.cuda.CUDAGraph]:
        """Capture the block in a graph, on the session's stream; raises where that fails, and later captures work."""
        graph = torch.cuda.CUDAGraph()
        with captured(graph, self.device, self._stream):
            yield graph

    def prepare(self, contender: Contender) -> Ready:
        """Warm a contender up and capture it where that is allowed; a failed capture is kept as a note."""
        plain = super().prepare(contender)
        if not contender.graph:
            return plain
        times = math.ceil(GRAPH_CALLS / plain.calls)
        try:
            with self.captured() as graph:
                for _ in range(times):
                    plain.replay()
            graph.replay()
            self.synchronize()
        except RuntimeError as error:
            self.synchronize()  # raises where more than the capture is broken
            # the end of a broken capture only says that it was broken; before it stands why
            reason = f"no graph: {first_line(error.__context__ or error)}"
            plain.note = f"{plain.note}; {reason}" if plain.note else reason
            return plain
        return Ready(graph.replay, times * plain.calls, True, plain.note)

    def settle(self, ready: Mapping[str, Ready]) -> None:
        """Keep the device busy until its clocks are those of work, and not of waiting."""
        begin = time.monotonic()
        while ready and time.monotonic() - begin < SETTLE_SECONDS:
            for one in ready.values():
                one.replay()
            self.synchronize()
        for one in ready.values():
            one.repeats = repeats_for(self.sample(one) * one.calls)

    def sample(self, one: Ready) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(one.repeats):
            one.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / (one.repeats * one.calls)

    def replayed(self, function: Callable[..., Any], *examples: Tensor) -> Callable[..., Any]:
        """As users call one: the inputs are copied into the graph's own, the graph is replayed, the output is the
        graph's. Raises RuntimeError where the function cannot be captured."""
        inputs = [torch.empty_like(x).copy_(x) for x in examples]
        for _ in range(self.warmup):
            function(*inputs)
        self.synchronize()
        try:
            with self.captured() as graph:
                output = function(*inputs)
        except RuntimeError:
            self.synchronize()
            raise

        def call(*given: Tensor) -> Any:
            for mine, value in zip(inputs, given, strict=True):
                mine.copy_(value)
            graph.replay()
            return output

        return call


def machine_for(setting: Setting) -> GpuMachine:
    """The machine that a setting asks for."""
    return DryMachine(setting) if setting.dry else CudaMachine(setting)


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
