"""A plan on a CUDA device: on two streams, and captured in a CUDA graph once its shapes come back.

The first run of an instance executes the steps one by one, which compiles and loads every kernel; the second captures
them; later ones replay. What depends on the caller's tensors in ways a graph cannot follow stays outside of the
graph: before it the stems on the caller's clips (or a clip's copy), behind it what follows the boxes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..ops.roi_align3d.boxes import unchecked
from .plan import Input, Instance, Plan, View, for_the_caller, traced

#: GPU cycles in which the host starts a step, with plenty to spare: some 100 us.
CYCLES_OF_A_STEP = 200_000

#: One capture at a time: beginning one waits for the device, which no other stream's capture survives.
_one_capture = threading.Lock()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device's captures. The one that PyTorch keeps for them is the first capture's device's."""
    # its share of a graph goes first: the Slow pathway, on which everything waits in the end
    return torch.cuda.Stream(device, priority=-1)


@contextlib.contextmanager
def captured(
    graph: torch.cuda.CUDAGraph, device: torch.device, stream: torch.cuda.Stream | None = None
) -> Iterator[None]:
    """Capture the block in `graph`, on `stream` or one of its own. Where that fails, it raises and leaves PyTorch as it
    was.

    ``torch.cuda.graph`` alone would leave the thread on the stream of the failed capture, and the allocator in the
    belief that the capture goes on: every later ``empty_cache`` and every later capture of the process fails then.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    stream = stream or _capture_stream(torch.device(device.type, index))
    pool = torch.cuda.graph_pool_handle()
    with _one_capture, torch.cuda.device(index), torch.cuda.stream(torch.cuda.current_stream(index)):
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # "not recording": the capture was over already
                torch._C._cuda_endAllocateToPool(index, pool)
                torch._C._cuda_releasePool(index, pool)
            raise


class StreamedInstance(Instance):
    """A plan bound to memory of a CUDA device; one thread at a time may run it.

    capture: replay a CUDA graph from the third run on; False runs step by step always. So does a run on a stream that
    the caller captures.
    """

    def __init__(self, plan: Plan, device: torch.device, capture: bool = True) -> None:
        super().__init__(plan, device)
        self.device, self.capture = device, capture
        self.waits = plan.waits()
        self.side = torch.cuda.Stream(device)
        read = {i: [a for a in s.args if isinstance(a, Input)] for i, s in enumerate(plan.steps)}
        # Inputs of any shape, boxes, vary in number: what reads them, and what follows, stays outside.
        free = [i for i, inputs in read.items() if any(x.shape is None for x in inputs)]
        self.tail = range(min(free, default=len(plan.steps)), len(plan.steps))
        shaped = [i for i, inputs in read.items() if inputs and i not in self.tail]
        self.head = range(max(shaped, default=-1) + 1)  # what reads the caller's tensors, outside as well
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captured: dict[int, torch.Tensor] = {}  # `produced`, as the graph writes it
        self.ran = threading.local()  # `steps`: this thread has run them; cuDNN keeps its plans per thread
        self.stream: torch.cuda.Stream | None = None  # of the last run
        self.done = torch.cuda.Event()  # that run is over

    def run(self, inputs: Sequence[torch.Tensor | None], times: list[float] | None = None) -> Any:
        """Every step; returns the plan's output; `times` receives the seconds of each."""
        with torch.cuda.device(self.device):
            if torch.cuda.is_current_stream_capturing():
                return self._whole(inputs, capture=False)
            main = torch.cuda.current_stream(self.device)
            if main != self.stream:
                if self.stream is not None:  # another stream's run may still be using the memory
                    main.wait_event(self.done)
                self.arena.record_stream(main)
                self.stream = main
            try:
                return self._whole(inputs, self.capture) if times is None else self._timed(inputs, times)
            finally:
                self.done.record(main)

    def _whole(self, inputs: Sequence[torch.Tensor | None], capture: bool) -> Any:
        body = range(self.head.stop, self.tail.start)
        self._steps(self.head, inputs)
        if capture and self.graph is None and getattr(self.ran, "steps", False):
            self._capture(body, inputs)
        replayed = capture and self.graph is not None
        if replayed:
            assert self.graph is not None
            with traced("slowfast::graph"):  # its kernels stand there by their own names
                self.graph.replay()
            self.produced.update(self.captured)  # a run step by step may have been in between
        else:
            self._steps(body, inputs)
            self.ran.steps = True
        with unchecked():
            self._steps(self.tail, inputs)
        if replayed:  # the next replay writes there again
            with for_the_caller():
                for leaf in pytree.tree_leaves(self.plan.output):
                    if isinstance(leaf, View) and (key := id(leaf.buffer)) in self.captured:
                        self.produced[key] = self.captured[key].clone()
        return self.output(inputs)

    def _steps(self, which: Sequence[int], inputs: Sequence[torch.Tensor | None]) -> None:
        """The steps on their streams, all joined in the current one at the end."""
        main = torch.cuda.current_stream(self.device)
        streams = (main, self.side)
        beside = any(self.plan.steps[i].stream for i in which)
        if beside:
            self.side.wait_stream(main)
        events: dict[int, torch.cuda.Event] = {}
        awaited = {j for i in which if (j := self.waits[i]) is not None}
        for i in which:
            stream = streams[self.plan.steps[i].stream]
            j = self.waits[i]
            if j is not None and j in events:
                stream.wait_event(events[j])
            with torch.cuda.stream(stream):
                self.step(i, inputs)
                if i in awaited:
                    events[i] = stream.record_event()
        if beside:
            main.wait_stream(self.side)

    def _capture(self, which: Sequence[int], inputs: Sequence[torch.Tensor | None]) -> None:
        graph = torch.cuda.CUDAGraph()
        first: Exception | None = None  # the end of a broken capture only says that it was broken
        try:
            with captured(graph, self.device):
                try:
                    self._steps(which, inputs)
                except Exception as error:
                    first = error
                    raise
        except Exception as error:  # whatever a library's kernel does not allow while a graph is captured
            why = first or error
            warnings.warn(f"no CUDA graph for this model, it runs kernel by kernel: {why}", stacklevel=2)
            self.capture = False
            self.produced.clear()
            torch.cuda.synchronize(self.device)  # raises where more than the capture is broken
            return
        self.graph, self.captured = graph, dict(self.produced)

    def _timed(self, inputs: Sequence[torch.Tensor | None], times: list[float]) -> Any:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(self.calls) + 1)]
        # The steps queue up behind this: else a short one takes as long as the host takes to start it.
        torch.cuda._sleep(CYCLES_OF_A_STEP * len(self.calls))
        marks[0].record()
        for i in range(len(self.calls)):
            self.step(i, inputs)
            marks[i + 1].record()
        marks[-1].synchronize()
        times.extend(a.elapsed_time(b) * 1e-3 for a, b in zip(marks, marks[1:], strict=False))
        return self.output(inputs)
