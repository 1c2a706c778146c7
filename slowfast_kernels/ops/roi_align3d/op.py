"""``slowfast::roi_align3d`` and its gradient ``slowfast::roi_align3d_bwd``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...backends import lazy
from .._memory import empty_channels_last
from .._registration import Gradient, register
from .reference import roi_align3d_bwd_reference, roi_align3d_reference
from .spec import RoIAlignSpec


def _backward(saved: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor) -> tuple[torch.Tensor]:
    return (OP_BWD(grad, *saved),)


def _backward_bwd(saved: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor) -> tuple[torch.Tensor]:
    return (OP(grad, *saved),)


def _cost_bwd(grad: torch.Tensor, rois: torch.Tensor, shape: Sequence[int], spec: RoIAlignSpec) -> Any:
    """The same taps of the same cells, the other way round."""
    return spec.cost(torch.empty(tuple(shape), dtype=grad.dtype, device="meta"), rois)


# The op is linear in the features: only their shape is needed, and it is the gradient of its gradient. Boxes have none.
OP_BWD = register(
    "roi_align3d_bwd",
    "Tensor grad, Tensor rois, SymInt[] shape",
    RoIAlignSpec,
    reference=roi_align3d_bwd_reference,
    fake=lambda grad, rois, shape, spec: empty_channels_last(grad, shape),
    providers={name: lazy(__package__, name, "_bwd") for name in ("cpu", "triton", "cuda")},
    gradient=Gradient(lambda call, output: (call[1].detach(), call[3]), _backward_bwd),
    cost=_cost_bwd,
)

OP = register(
    "roi_align3d",
    "Tensor features, Tensor rois",
    RoIAlignSpec,
    reference=roi_align3d_reference,
    fake=lambda features, rois, spec: empty_channels_last(
        features, spec.out_shape(features.shape, rois.shape)
    ),
    providers={name: lazy(__package__, name) for name in ("cpu", "triton", "cuda")},
    autocast=("features",),
    gradient=Gradient(lambda call, output: (call[1].detach(), list(call[0].shape), call[2]), _backward),
)
