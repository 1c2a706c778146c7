"""``slowfast::roi_head_pool`` and the gradient of one pathway, ``slowfast::roi_head_pool_bwd``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...backends import Provider, lazy
from .._memory import empty_channels_last
from .._registration import Gradient, register
from . import cpu
from .reference import roi_head_pool_bwd_reference, roi_head_pool_reference

SETTINGS = "SymInt[] output_size, float spatial_scale, int sampling_ratio, bool aligned, str temporal"


def _fake(slow, fast, rois, *settings):  # type: ignore[no-untyped-def]
    channels = slow.shape[1] + (0 if fast is None else fast.shape[1])
    out = slow.new_empty(rois.shape[0], channels)
    return out, torch.empty_like(out, dtype=torch.int32)


def _fake_bwd(grad, arg, rois, features, shape, *settings):  # type: ignore[no-untyped-def]
    return empty_channels_last(grad, shape)


def _save(inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> Sequence[Any]:
    slow, fast, rois, *settings = inputs
    shapes = [None if x is None else list(x.shape) for x in (slow, fast)]
    # the mean needs no features, the maximum over time looks for its frame again
    features = (slow, fast) if settings[-1] == "max" else (None, None)
    return output[1], rois.detach(), *features, shapes, *settings


def _backward(
    saved: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor, _: torch.Tensor
) -> Sequence[torch.Tensor | None]:
    arg, rois, slow, fast, shapes, *settings = saved
    grads: list[torch.Tensor | None] = [None, None]
    first = 0
    for i, (x, shape) in enumerate(zip((slow, fast), shapes, strict=True)):
        if shape is None:
            continue
        channels = slice(first, first + shape[1])
        first += shape[1]
        if needs[i]:
            grads[i] = OP_BWD.handle(grad[:, channels], arg[:, channels], rois, x, shape, *settings)
    return grads


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
    gradient=Gradient(_save, _backward),
)
