"""Plain PyTorch ``lateral_fusion``: the specification."""

from __future__ import annotations

import torch

from ..conv_bn_act3d.reference import conv_bn_act3d_reference
from .spec import LateralSpec


def time_to_channel(fast: torch.Tensor, alpha: int) -> torch.Tensor:
    """[N, C, alpha * T, H, W] -> [N, alpha * C, T, H, W]; channel a * C + c holds frame t * alpha + a."""
    n, c, t, h, w = fast.shape
    return (
        fast.reshape(n, c, t // alpha, alpha, h, w)
        .permute(0, 3, 1, 2, 4, 5)
        .reshape(n, alpha * c, t // alpha, h, w)
    )


def lateral_fusion_reference(slow: torch.Tensor, fast: torch.Tensor, spec: LateralSpec) -> torch.Tensor:
    if spec.sums:
        return slow + time_to_channel(fast, spec.alpha)
    if spec.kind == "conv":
        lateral = conv_bn_act3d_reference(fast, None, spec.full)
    elif spec.kind == "time_to_channel_concat":
        lateral = time_to_channel(fast, spec.alpha)
    else:
        lateral = fast[:, :, :: spec.alpha]
    return torch.cat([slow, lateral], 1)
