"""``slowfast::stem3d``."""

from __future__ import annotations

from ...backends import lazy
from .._memory import empty_channels_last
from .._registration import register
from .reference import stem3d_reference
from .spec import StemSpec

OP = register(
    "stem3d",
    "Tensor x",
    StemSpec,
    reference=stem3d_reference,
    fake=lambda x, spec: empty_channels_last(x, spec.out_shape(x.shape)),
    providers={name: lazy(__package__, name) for name in ("cpu", "triton", "cuda")},
    autocast=("x",),
)
