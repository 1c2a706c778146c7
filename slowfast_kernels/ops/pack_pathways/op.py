"""``slowfast::pack_pathways``."""

from __future__ import annotations

from ...backends import Provider, lazy
from .._registration import register
from . import cpu
from .cpu import empty_clips
from .reference import pack_pathways_reference
from .slow_frames import slow_count


def _fake(frames, alpha, slow_rule, slow_index, mean, std, dtype, fast_input, reverse_channels):  # type: ignore[no-untyped-def]
    return empty_clips(frames, slow_count(frames.shape[1], alpha, slow_index), dtype, fast_input)


OP = register(
    "pack_pathways",
    "Tensor frames, int alpha, str slow_rule, Tensor? slow_index, float[] mean, float[] std, "
    "ScalarType dtype, str fast_input, bool reverse_channels",
    "(Tensor, Tensor)",
    reference=pack_pathways_reference,
    fake=_fake,
    providers={
        "cpu": Provider(cpu.run, cpu.refuses),
        "triton": lazy(__package__, "triton"),
        "cuda": lazy(__package__, "cuda"),
    },
    gradient="none",  # the pixels are integers
)
