"""Plain PyTorch ``bottleneck3d``: the specification."""

from __future__ import annotations

import torch

from ..conv_bn_act3d.reference import conv_bn_act3d_reference as conv
from .spec import BlockSpec


def bottleneck3d_reference(x: torch.Tensor, spec: BlockSpec) -> torch.Tensor:
    a, b = spec.inner
    shortcut = x if spec.projection is None else conv(x, None, spec.projection)
    return conv(conv(conv(x, None, a), None, b), shortcut, spec.last)
