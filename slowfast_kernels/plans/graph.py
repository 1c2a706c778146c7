"""A plan on a CUDA device: on two streams, and captured in a CUDA graph once its shapes come back.

The first run of an instance executes the steps one by one, which compiles and loads every kernel; the second captures
them; later ones replay. What depends on the caller's tensors in ways a graph cannot follow (the clips' copy, boxes)
stays outside of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from .plan import Input, Instance, Plan


class StreamedInstance(Instance):
    """A plan bound to memory of a CUDA device; one thread at a time may run it.

    capture: replay a CUDA graph from the third run on; False runs step by step always.
    """

    def __init__(self, plan: Plan, device: torch.device, capture: bool = True) -> None:
        super().__init__(plan, device)
        self.device, self.capture = device, capture
        self.waits = plan.waits()
        self.side = torch.cuda.Stream(device)
        inputs = [i for i, s in enumerate(plan.steps) if any(isinstance(a, Input) for a in s.args)]
        last = len(plan.steps) - 1
        self.copies = [i for i in inputs if i != last]  # clips into the plan's memory
        # Boxes vary in number: their head stays outside. A classifier's only "input" is the absent one.
        self.head_reads_input = last in inputs
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: torch.Tensor | None = None
        self.runs = 0

    def run(self, inputs: Sequence[torch.Tensor | None], times: list[float] | None = None) -> torch.Tensor:
        """Every step, the last one's value is the result; `times` receives the seconds of each."""
        with torch.cuda.device(self.device):
            if times is not None:
                return self._timed(inputs, times)
            eager_head = self.head_reads_input and inputs[-1] is not None
            body = [i for i in range(len(self.calls) - int(eager_head)) if i not in self.copies]
            for i in self.copies:
                self.step(i, inputs)
            if self.graph is None and self.capture and self.runs > 0:
                self._capture(body, inputs)
            self.runs += 1
            if self.graph is not None:
                self.graph.replay()
                result = self.result
            else:
                result = self._steps(body, inputs)
            if eager_head:
                result = self.step(len(self.calls) - 1, inputs)
            assert result is not None
            return result.clone() if self.graph is not None and not eager_head else result

    def _steps(self, which: Sequence[int], inputs: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """The steps on their streams, all joined in the current one at the end."""
        main = torch.cuda.current_stream(self.device)
        streams = (main, self.side)
        self.side.wait_stream(main)
        events: dict[int, torch.cuda.Event] = {}
        awaited = {j for i in which if (j := self.waits[i]) is not None}
        result = None
        for i in which:
            stream = streams[self.plan.steps[i].stream]
            j = self.waits[i]
            if j is not None and j in events:
                stream.wait_event(events[j])
            with torch.cuda.stream(stream):
                result = self.step(i, inputs)
                if i in awaited:
                    events[i] = stream.record_event()
        main.wait_stream(self.side)
        return result

    def _capture(self, which: Sequence[int], inputs: Sequence[torch.Tensor | None]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = self._steps(which, inputs)
        except Exception as error:  # whatever a library's kernel does not allow while a graph is captured
            warnings.warn(f"no CUDA graph for this model, it runs kernel by kernel: {error}", stacklevel=2)
            self.capture = False
            torch.cuda.synchronize(self.device)
            return
        self.graph, self.result = graph, result

    def _timed(self, inputs: Sequence[torch.Tensor | None], times: list[float]) -> torch.Tensor:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(self.calls) + 1)]
        marks[0].record()
        result = None
        for i in range(len(self.calls)):
            result = self.step(i, inputs)
            marks[i + 1].record()
        marks[-1].synchronize()
        times.extend(a.elapsed_time(b) * 1e-3 for a, b in zip(marks, marks[1:], strict=False))
        assert result is not None
        return result
