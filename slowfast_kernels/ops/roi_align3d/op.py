"""``slowfast::roi_align3d`` and its gradient ``slowfast::roi_align3d_bwd``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...backends import Provider, lazy
from .._memory import empty_channels_last
from .._registration import Gradient, register
from . import cpu
from .reference import roi_align3d_bwd_reference, roi_align3d_reference

SETTINGS = "float spatial_scale, float temporal_scale, int sampling_ratio, bool aligned, str mode"


def _fake(features, rois, output_size, spatial_scale, temporal_scale, sampling_ratio, aligned, mode):  # type: ignore[no-untyped-def]
    time = output_size[0] if mode == "volume" else features.shape[2]
    return empty_channels_last(features, (rois.shape[0], features.shape[1], time, *output_size[-2:]))


def _fake_bwd(grad, rois, shape, *settings):  # type: ignore[no-untyped-def]
    return empty_channels_last(grad, shape)


def _backward(saved: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor) -> tuple[torch.Tensor]:
    return (OP_BWD.handle(grad, *saved),)


def _backward_bwd(saved: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor) -> tuple[torch.Tensor]:
    return (OP.handle(grad, *saved),)


# The op is linear in the features: only their shape is needed, and it is the gradient of its gradient. Boxes have none.
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
    gradient=Gradient(lambda inputs, output: (inputs[1].detach(), *inputs[3:]), _backward_bwd),
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
    gradient=Gradient(
        lambda inputs, output: (inputs[1].detach(), list(inputs[0].shape), *inputs[2:]), _backward
    ),
)
