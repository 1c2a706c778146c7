"""Plain PyTorch ``conv_bn_act3d``: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .._conv3d import conv3d


def affine(x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
    """``x * scale + shift`` per channel, computed in at least float32."""
    if scale is None and shift is None:
        return x
    wide = x if x.dtype == torch.float64 else x.float()
    shape = (1, -1, 1, 1, 1)
    if scale is not None:
        wide = wide * scale.to(wide.dtype).view(shape)
    if shift is not None:
        wide = wide + shift.to(wide.dtype).view(shape)
    return wide.to(x.dtype)


def conv_bn_act3d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> torch.Tensor:
    y = conv3d(x, weight, stride, padding, dilation)
    y = affine(y, scale, shift)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y
