"""``slowfast::roi_head_pool`` and the gradient of one pathway, ``slowfast::roi_head_pool_bwd``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...backends import lazy
from .._memory import empty_channels_last
from .._registration import Gradient, register
from .reference import roi_head_pool_bwd_reference, roi_head_pool_reference
from .spec import RoIPoolSpec


def _fake(
    slow: torch.Tensor, fast: torch.Tensor | None, rois: torch.Tensor, spec: RoIPoolSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = [x.shape for x in (slow, fast, rois) if x is not None]
    out = slow.new_empty(spec.out_shape(*shapes))
    return out, torch.empty_like(out, dtype=torch.int32)


def _save(call: Sequence[Any], output: tuple[torch.Tensor, torch.Tensor]) -> Sequence[Any]:
    slow, fast, rois, spec = call
    shapes = [None if x is None else list(x.shape) for x in (slow, fast)]
    # the mean needs no features, the maximum over time looks for its frame again
    features = (slow, fast) if spec.temporal == "max" else (None, None)
    return output[1], rois.detach(), *features, shapes, spec


def _backward(
    saved: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor, _: torch.Tensor
) -> Sequence[torch.Tensor | None]:
    arg, rois, slow, fast, shapes, spec = saved
    grads: list[torch.Tensor | None] = [None, None]
    first = 0
    for i, (x, shape) in enumerate(zip((slow, fast), shapes, strict=True)):
        if shape is None:
            continue
        channels = slice(first, first + shape[1])
        first += shape[1]
        if needs[i]:
            grads[i] = OP_BWD(grad[:, channels], arg[:, channels], rois, x, shape, spec)
    return grads


def _cost_bwd(
    grad: torch.Tensor,
    arg: torch.Tensor,
    rois: torch.Tensor,
    features: Any,
    shape: Sequence[int],
    spec: RoIPoolSpec,
) -> Any:
    """At most what the forward of the pathway does: only the bins of the maxima take part."""
    return spec.cost(torch.empty(tuple(shape), dtype=grad.dtype, device="meta"), None, rois)


OP_BWD = register(
    "roi_head_pool_bwd",
    "Tensor grad, Tensor arg, Tensor rois, Tensor? features, SymInt[] shape",
    RoIPoolSpec,
    reference=roi_head_pool_bwd_reference,
    fake=lambda grad, arg, rois, features, shape, spec: empty_channels_last(grad, shape),
    providers={name: lazy(__package__, name, "_bwd") for name in ("cpu", "triton", "cuda")},
    cost=_cost_bwd,
)

OP = register(
    "roi_head_pool",
    "Tensor slow, Tensor? fast, Tensor rois",
    RoIPoolSpec,
    "(Tensor, Tensor)",
    reference=roi_head_pool_reference,
    fake=_fake,
    providers={name: lazy(__package__, name) for name in ("cpu", "triton", "cuda")},
    autocast=("slow", "fast"),
    gradient=Gradient(_save, _backward),
)
