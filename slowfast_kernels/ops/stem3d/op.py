"""``slowfast::stem3d``."""

from __future__ import annotations

from ...backends import Provider, lazy
from .._memory import empty_channels_last
from .._registration import register
from . import cpu
from .reference import stem3d_reference


def _fake(x, weight, scale, shift, stride, relu, pool):  # type: ignore[no-untyped-def]
    return empty_channels_last(x, cpu.output_shape(x.shape, weight.shape, stride, pool))


OP = register(
    "stem3d",
    "Tensor x, Tensor weight, Tensor? scale, Tensor? shift, int[3] stride, bool relu, bool pool",
    reference=stem3d_reference,
    fake=_fake,
    providers={
        "cpu": Provider(cpu.run, cpu.refuses),
        "triton": lazy(__package__, "triton"),
        "cuda": lazy(__package__, "cuda"),
    },
    autocast=("x", "weight"),
)
