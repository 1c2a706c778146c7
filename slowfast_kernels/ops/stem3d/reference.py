"""Plain PyTorch ``stem3d``: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..conv_bn_act3d.reference import conv_bn_act3d_reference
from .spec import StemSpec


def stem3d_reference(x: torch.Tensor, spec: StemSpec) -> torch.Tensor:
    y = conv_bn_act3d_reference(x, None, spec.full)
    return y if spec.pool is None else F.max_pool3d(y, *spec.pool)
