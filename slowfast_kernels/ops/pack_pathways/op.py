"""``slowfast::pack_pathways``."""

from __future__ import annotations

from ...backends import lazy
from .._registration import register
from .reference import pack_pathways_reference
from .spec import PackSpec

OP = register(
    "pack_pathways",
    "Tensor frames",
    PackSpec,
    "(Tensor, Tensor)",
    reference=pack_pathways_reference,
    fake=lambda frames, spec: spec.empty(frames),
    providers={name: lazy(__package__, name) for name in ("cpu", "triton", "cuda")},
    gradient="none",  # the pixels are integers
)
