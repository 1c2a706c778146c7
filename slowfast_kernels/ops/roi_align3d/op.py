"""``slowfast::roi_align3d`` and its gradient ``slowfast::roi_align3d_bwd``."""

from __future__ import annotations

from typing import Any

import torch

from ...backends import Provider, current, lazy, use_backend
from .._registration import empty_channels_last, register
from . import cpu
from .reference import roi_align3d_bwd_reference, roi_align3d_reference

SETTINGS = "float spatial_scale, float temporal_scale, int sampling_ratio, bool aligned, str mode"


def _fake(features, rois, output_size, spatial_scale, temporal_scale, sampling_ratio, aligned, mode):  # type: ignore[no-untyped-def]
    time = output_size[0] if mode == "volume" else features.shape[2]
    return empty_channels_last(features, (rois.shape[0], features.shape[1], time, *output_size[-2:]))


def _fake_bwd(grad, rois, shape, *settings):  # type: ignore[no-untyped-def]
    return empty_channels_last(grad, shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    features, rois, *ctx.settings = inputs
    ctx.save_for_backward(rois)  # the op is linear in the features: only their shape is needed
    ctx.shape = features.shape
    ctx.backend = current()  # the gradient may be computed in another thread, where no choice is in force


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    with use_backend(ctx.backend):
        dx = OP_BWD.handle(grad, *ctx.saved_tensors, list(ctx.shape), *ctx.settings)
    return dx, None, *(None for _ in ctx.settings)


OP_BWD = register(
    "roi_align3d_bwd",
    f"Tensor grad, Tensor rois, SymInt[] shape, SymInt[] output_size, {SETTINGS}",
    reference=roi_align3d_bwd_reference,
    fake=_fake_bwd,
    providers={
        "cpu": Provider(cpu.run_bwd, cpu.refuses),
        "triton": lazy(__package__, "triton", "_bwd"),
        "cuda": lazy(__package__, "cuda", "_bwd"),
    },
    differentiable=False,
)

OP = register(
    "roi_align3d",
    f"Tensor features, Tensor rois, SymInt[] output_size, {SETTINGS}",
    reference=roi_align3d_reference,
    fake=_fake,
    providers={
        "cpu": Provider(cpu.run, cpu.refuses),
        "triton": lazy(__package__, "triton"),
        "cuda": lazy(__package__, "cuda"),
    },
    autocast=("features",),
    backward=(_setup_context, _backward),
)
