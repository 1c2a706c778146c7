"""``slowfast::pack_pathways``."""

from __future__ import annotations

import torch

from ...backends import Provider, lazy
from .._registration import empty_channels_last, register
from .reference import pack_pathways_reference
from .slow_frames import slow_count

#: The index is the native kernel's enumeration.
FAST_INPUTS = ("rgb", "gray", "time_diff")


def empty_clips(
    frames: torch.Tensor, slow: int, dtype: torch.dtype, fast_input: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised Slow clip of ``slow`` frames and Fast clip of all of ``frames``."""
    n, t, h, w, _ = frames.shape
    channels = 3 if fast_input == "rgb" else 1
    return (
        empty_channels_last(frames, (n, 3, slow, h, w), dtype),
        empty_channels_last(frames, (n, channels, t, h, w), dtype),
    )


from . import cpu  # noqa: E402  (it needs the names above)


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
    differentiable=False,  # the pixels are integers
)
