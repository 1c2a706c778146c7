"""``slowfast::pool_concat_head``."""

from __future__ import annotations

import torch

from ...backends import Provider, lazy
from .._registration import register
from . import cpu
from .reference import pool_concat_head_reference


def _fake(slow, fast, weight, bias, pool_size, semantics, activation):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if slow.dtype == torch.float64 else torch.float32
    return slow.new_empty((slow.shape[0], weight.shape[0]), dtype=dtype)


OP = register(
    "pool_concat_head",
    "Tensor slow, Tensor? fast, Tensor weight, Tensor? bias, int[] pool_size, str semantics, str activation",
    reference=pool_concat_head_reference,
    fake=_fake,
    providers={"cpu": Provider(cpu.run, cpu.refuses), "triton": lazy(__package__, "triton")},
    autocast=("slow", "fast"),
)
