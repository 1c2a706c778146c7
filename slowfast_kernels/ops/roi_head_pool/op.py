"""``slowfast::roi_head_pool`` and the gradient of one pathway, ``slowfast::roi_head_pool_bwd``."""

from __future__ import annotations

from typing import Any

import torch

from ...backends import Provider, current, lazy, use_backend
from .._registration import empty_channels_last, register
from . import cpu
from .reference import roi_head_pool_bwd_reference, roi_head_pool_reference

SETTINGS = "SymInt[] output_size, float spatial_scale, int sampling_ratio, bool aligned, str temporal"


def _fake(slow, fast, rois, *settings):  # type: ignore[no-untyped-def]
    channels = slow.shape[1] + (0 if fast is None else fast.shape[1])
    out = slow.new_empty(rois.shape[0], channels)
    return out, torch.empty_like(out, dtype=torch.int32)


def _fake_bwd(grad, arg, rois, features, shape, *settings):  # type: ignore[no-untyped-def]
    return empty_channels_last(grad, shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    slow, fast, rois, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.backend = current()  # the gradient may be computed in another thread, where no choice is in force
    ctx.shapes = [None if x is None else x.shape for x in (slow, fast)]
    # the mean needs no features, the maximum over time looks for its frame again
    ctx.save_for_backward(output[1], rois, *((slow, fast) if ctx.settings[-1] == "max" else (None, None)))


def _backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    arg, rois, *features = ctx.saved_tensors
    grads: list[torch.Tensor | None] = [None, None]
    first = 0
    for i, (x, shape) in enumerate(zip(features, ctx.shapes, strict=True)):
        if shape is None:
            continue
        channels = slice(first, first + shape[1])
        first += shape[1]
        if ctx.needs_input_grad[i]:
            with use_backend(ctx.backend):
                grads[i] = OP_BWD.handle(
                    grad[:, channels], arg[:, channels], rois, x, list(shape), *ctx.settings
                )
    return *grads, None, *(None for _ in ctx.settings)


OP_BWD = register(
    "roi_head_pool_bwd",
    f"Tensor grad, Tensor arg, Tensor rois, Tensor? features, SymInt[] shape, {SETTINGS}",
    reference=roi_head_pool_bwd_reference,
    fake=_fake_bwd,
    providers={
        "cpu": Provider(cpu.run_bwd, cpu.refuses_bwd),
        "triton": lazy(__package__, "triton", "_bwd"),
        "cuda": lazy(__package__, "cuda", "_bwd"),
    },
    differentiable=False,
)

OP = register(
    "roi_head_pool",
    f"Tensor slow, Tensor? fast, Tensor rois, {SETTINGS}",
    "(Tensor, Tensor)",
    reference=roi_head_pool_reference,
    fake=_fake,
    providers={
        "cpu": Provider(cpu.run, cpu.refuses),
        "triton": lazy(__package__, "triton"),
        "cuda": lazy(__package__, "cuda"),
    },
    autocast=("slow", "fast"),
    backward=(_setup_context, _backward),
)
