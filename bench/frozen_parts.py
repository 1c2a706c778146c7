"""Parts of a frozen model on their own: stages of a pathway, lateral connections, as `freeze` runs them.

Weights are packed and buffers bound before; a call only runs kernels. Inputs lie in the plan's own memory,
where the layer before would have written them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from slowfast_kernels.plans.cpu import PackedBlock, PackedLateral
from slowfast_kernels.plans.plan import Instance, Plan, View

Run = Callable[[], Any]


def _bound(plan: Plan, inputs: Sequence[tuple[View, Tensor]], outputs: Sequence[View]) -> Run:
    """The plan as a callable that returns its outputs, with the inputs in place."""
    # A last step that uses them keeps inputs and outputs alive, so that no buffer of the plan is laid over
    # them.
    plan.add("keep", "keep", lambda *views: None, [*(v for v, _ in inputs), *outputs], 0, 0)
    for view, _ in inputs:
        view.buffer.first = 0
    plan.lay_out()
    instance = Instance(plan)
    for view, value in inputs:
        view.bind(instance.arena).copy_(value)
    results = [view.bind(instance.arena) for view in outputs]

    def run() -> Any:
        with torch.inference_mode():
            instance.run([])
        return results if len(results) > 1 else results[0]

    return run


def stages(blocks: Sequence[Any], x: Tensor, dtype: torch.dtype) -> Run:
    """Residual blocks one after the other on x, [N, C, T, H, W]."""
    plan = Plan()
    source = plan.buffer(x.shape, dtype)
    view = source
    with torch.no_grad():
        for block in blocks:
            packed = PackedBlock(block, dtype)
            out = plan.buffer(packed.out_shape(view.shape), dtype)
            packed.add(plan, "stages", view, out)
            view = out
    return _bound(plan, [(source, x)], [view])


def laterals(parts: Sequence[Any], pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Run:
    """Lateral connections, each into the buffer that already holds its Slow tensor: the concatenation is
    where the tensor lies, and nothing is copied for it."""
    plan = Plan()
    inputs, outputs = [], []
    with torch.no_grad():
        for part, (slow, fast) in zip(parts, pairs, strict=True):
            packed = PackedLateral(part, dtype)
            n, cs, *rest = slow.shape
            fused = plan.buffer([n, cs + packed.added(fast.shape[1]), *rest], dtype)
            source = plan.buffer(fast.shape, dtype)
            packed.add(plan, "laterals", source, fused)
            inputs += [(fused.slice(0, cs), slow), (source, fast)]
            outputs.append(fused)
    return _bound(plan, inputs, outputs)
