"""``slowfast::conv_bn_act3d`` and its in-place form ``slowfast::conv_bn_act3d_out``."""

from __future__ import annotations

import torch

from ...backends import Provider, lazy
from .._memory import empty_channels_last
from .._registration import register
from . import cpu
from .cpu import output_shape
from .reference import conv_bn_act3d_reference

ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, "
    "int[3] stride, int[3] padding, int[3] dilation, bool relu"
)


def _fake(x, weight, scale, shift, residual, stride, padding, dilation, relu):  # type: ignore[no-untyped-def]
    return empty_channels_last(x, output_shape(x.shape, weight.shape, stride, padding, dilation))


def _reference_out(x, weight, scale, shift, residual, stride, padding, dilation, relu, out, channel_offset):  # type: ignore[no-untyped-def]
    y = conv_bn_act3d_reference(x, weight, scale, shift, residual, stride, padding, dilation, relu)
    out.narrow(1, channel_offset, weight.shape[0]).copy_(y)


def _cpu_out(x, weight, scale, shift, residual, stride, padding, dilation, relu, out, channel_offset):  # type: ignore[no-untyped-def]
    target = out.narrow(1, channel_offset, weight.shape[0])
    cpu.run(x, weight, scale, shift, residual, stride, padding, dilation, relu, target)


def _refuses_out(x, weight, scale, shift, residual, stride, padding, dilation, relu, out, channel_offset):  # type: ignore[no-untyped-def]
    if out.dtype != x.dtype:
        return f"out is {out.dtype} but x is {x.dtype}"
    if not out.is_contiguous(memory_format=torch.channels_last_3d):
        return "out is not channels_last_3d"
    return cpu.refuses(x, weight, scale, shift, residual)


OP = register(
    "conv_bn_act3d",
    ARGUMENTS,
    reference=conv_bn_act3d_reference,
    fake=_fake,
    providers={"cpu": Provider(cpu.run, cpu.refuses), "triton": lazy(__package__, "triton")},
    autocast=("x", "weight", "residual"),
)

OP_OUT = register(
    "conv_bn_act3d_out",
    f"{ARGUMENTS}, Tensor(a!) out, int channel_offset",
    "()",
    reference=_reference_out,
    fake=lambda *args: None,
    providers={"cpu": Provider(_cpu_out, _refuses_out), "triton": lazy(__package__, "triton", "_out")},
    mutates=True,
)
