"""``slowfast::lateral_fusion`` and its in-place form ``slowfast::lateral_fusion_out``."""

from __future__ import annotations

from ...backends import Provider, lazy
from .._memory import empty_channels_last
from .._registration import register
from . import cpu
from .reference import KINDS, lateral_fusion_reference

_REST = "Tensor fast, Tensor? weight, Tensor? scale, Tensor? shift, int alpha, int kind, bool relu"


def _fake(slow, fast, weight, scale, shift, alpha, kind, relu):  # type: ignore[no-untyped-def]
    cl = cpu.lateral_channels(fast.shape[1], weight, alpha, KINDS[kind])
    return empty_channels_last(slow, [slow.shape[0], slow.shape[1] + cl, *slow.shape[2:]])


def _reference_out(out, fast, weight, scale, shift, alpha, kind, relu):  # type: ignore[no-untyped-def]
    cl = cpu.lateral_channels(fast.shape[1], weight, alpha, KINDS[kind])
    slow = out[:, : out.shape[1] - cl]
    out.copy_(lateral_fusion_reference(slow, fast, weight, scale, shift, alpha, kind, relu))


OP = register(
    "lateral_fusion",
    f"Tensor slow, {_REST}",
    reference=lateral_fusion_reference,
    fake=_fake,
    providers={
        "cpu": Provider(cpu.run, cpu.refuses),
        "triton": lazy(__package__, "triton"),
        "cuda": lazy(__package__, "cuda"),
    },
    autocast=("slow", "fast", "weight"),
)

OP_OUT = register(
    "lateral_fusion_out",
    f"Tensor(a!) out, {_REST}",
    "()",
    reference=_reference_out,
    fake=lambda *args: None,
    providers={
        "cpu": Provider(cpu.run_out, cpu.refuses),
        "triton": lazy(__package__, "triton", "_out"),
        "cuda": lazy(__package__, "cuda", "_out"),
    },
    mutates=True,
)
