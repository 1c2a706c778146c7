"""Plain PyTorch ``conv_bn_act3d``: the specification."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .._conv3d import conv3d
from .spec import ConvSpec

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
}


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


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """One of `ACTIVATIONS`."""
    return x if activation == "none" else _ACTIVATIONS[activation](x)


def conv_bn_act3d_reference(x: torch.Tensor, residual: torch.Tensor | None, spec: ConvSpec) -> torch.Tensor:
    weight, scale, shift = spec.conv
    y = affine(conv3d(x, weight, spec.stride, spec.padding, spec.dilation, spec.groups), scale, shift)
    return activate(y if residual is None else y + residual, spec.activation)
