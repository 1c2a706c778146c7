"""``slowfast::pool_concat_head``."""

from __future__ import annotations

import torch

from ...backends import lazy
from .._registration import register
from .reference import pool_concat_head_reference
from .spec import HeadSpec


def _fake(slow: torch.Tensor, fast: torch.Tensor | None, spec: HeadSpec) -> torch.Tensor:
    dtype = torch.float64 if slow.dtype == torch.float64 else torch.float32
    return slow.new_empty(spec.out_shape(slow.shape), dtype=dtype)


OP = register(
    "pool_concat_head",
    "Tensor slow, Tensor? fast",
    HeadSpec,
    reference=pool_concat_head_reference,
    fake=_fake,
    providers={name: lazy(__package__, name) for name in ("cpu", "triton")},
    autocast=("slow", "fast"),
)
