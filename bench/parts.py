"""Parts of a frozen model on their own, as `freeze` runs them: stages of a pathway, lateral connections.

Weights are packed and memory is bound before; a call only runs kernels. Inputs lie in the plan's own memory, where the
layer before would have written them, a Slow map in the fused buffer of the lateral connection that it goes into.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels.graph import passes
from slowfast_kernels.graph.trace import trace
from slowfast_kernels.plans.lower import Target, lower
from slowfast_kernels.plans.plan import Instance, Plan


class Side(nn.Module):
    """Modules beside one another, each with inputs of its own: a list of their results."""

    def __init__(self, parts: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.counts = nn.ModuleList(parts), list(counts)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        found, first = [], 0
        for part, count in zip(self.parts, self.counts, strict=True):
            found.append(part(*inputs[first : first + count]))
            first += count
        return found


class Part:
    """Modules on given inputs, as a callable that returns the results: views of the plan's memory."""

    def __init__(
        self, modules: Sequence[nn.Module], inputs: Sequence[Sequence[Tensor]], target: Target
    ) -> None:
        given = [x.to(target.dtype) for group in inputs for x in group]
        graph = trace(Side(modules, [len(group) for group in inputs]), (given,))
        passes.run_all(graph, resident=True)
        target.prepare(graph)
        metas = [torch.empty_like(x, device="meta") for x in given]
        self.plan = lower(graph, metas, target, resident=True)
        self.instance = Instance(self.plan, target.device)
        for view, value in zip(self.plan.inputs, given, strict=True):
            view.bind(self.instance.arena).copy_(value)

    def __call__(self) -> Any:
        with torch.inference_mode():
            found = self.instance.run([])
        return found if len(found) > 1 else found[0]


def made_by(plan: Plan) -> str:
    """Who computes the layers of a plan: "7 bottleneck3d by cuda, 2 conv_a by cudnn"."""
    found = Counter(f"{s.op} by {s.provider}" for s in plan.steps if s.provider != "torch")
    return ", ".join(f"{count} {text}" for text, count in found.items())
