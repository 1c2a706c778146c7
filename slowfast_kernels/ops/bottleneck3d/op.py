"""``slowfast::bottleneck3d``."""

from __future__ import annotations

from ...backends import Provider, lazy
from .._memory import empty_channels_last
from .._registration import register
from . import cpu
from .reference import bottleneck3d_reference


def _fake(x, weight_a, scale_a, shift_a, weight_b, scale_b, shift_b, weight_c, *rest):  # type: ignore[no-untyped-def]
    return empty_channels_last(x, cpu.output_shape(x.shape, weight_c.shape, rest[-2]))


OP = register(
    "bottleneck3d",
    "Tensor x, Tensor weight_a, Tensor? scale_a, Tensor? shift_a, Tensor weight_b, Tensor? scale_b,"
    " Tensor? shift_b, Tensor weight_c, Tensor? scale_c, Tensor? shift_c, Tensor? weight_s, Tensor? scale_s,"
    " Tensor? shift_s, int stride, int dilation",
    reference=bottleneck3d_reference,
    fake=_fake,
    providers={
        "cpu": Provider(cpu.run, cpu.refuses),
        "triton": lazy(__package__, "triton"),
        "cuda": lazy(__package__, "cuda"),
    },
    autocast=("x", "weight_a", "weight_b", "weight_c", "weight_s"),
)
