"""``slowfast::bottleneck3d``."""

from __future__ import annotations

from ...backends import lazy
from .._memory import empty_channels_last
from .._registration import register
from .reference import bottleneck3d_reference
from .spec import BlockSpec

OP = register(
    "bottleneck3d",
    "Tensor x",
    BlockSpec,
    reference=bottleneck3d_reference,
    fake=lambda x, spec: empty_channels_last(x, spec.out_shape(x.shape)),
    providers={name: lazy(__package__, name) for name in ("cpu", "triton", "cuda")},
    autocast=("x",),
)
