"""Plain PyTorch ``stem3d``: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..conv_bn_act3d.reference import conv_bn_act3d_reference


def stem3d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    stride: list[int],
    relu: bool,
    pool: bool,
) -> torch.Tensor:
    padding = [k // 2 for k in weight.shape[2:]]
    y = conv_bn_act3d_reference(x, weight, scale, shift, None, stride, padding, [1, 1, 1], relu)
    return F.max_pool3d(y, (1, 3, 3), (1, 2, 2), (0, 1, 1)) if pool else y
