"""``conv3d`` of PyTorch, kept away from what its CPU kernels get wrong: whatever runs a plain convolution calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def conv3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> torch.Tensor:
    """``torch.nn.functional.conv3d`` without bias: [N, Ci, T, H, W] -> [N, Co, To, Ho, Wo].

    Calls that crash or go wrong in channels-last memory (`known_issues.ISSUES`) are made in contiguous memory.
    """
    if x.device.type == "cpu" and _breaks_channels_last(x, weight, padding, dilation):
        x, weight = _planar(x), _planar(weight)
    return F.conv3d(x, weight, None, list(stride), list(padding), list(dilation), groups)


def conv3d_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of ``x`` and ``weight``, each where it is needed, from that of the convolution."""
    if x.device.type == "cpu" and _breaks_channels_last(x, weight, padding, dilation):
        grad, x, weight = _planar(grad), _planar(x), _planar(weight)
    settings = (list(stride), list(padding), list(dilation), False, [0, 0, 0], groups, [*needs, False])
    found = torch.ops.aten.convolution_backward(grad, x, weight, None, *settings)
    return [g if need else None for g, need in zip(found, needs, strict=False)]


def _breaks_channels_last(
    x: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], dilation: Sequence[int]
) -> bool:
    """One input channel; or more padding than half a kernel, so that a column of the result may see nothing else."""
    return x.shape[1] == 1 or padding[2] > dilation[2] * ((weight.shape[4] - 1) // 2)


def _planar(x: torch.Tensor) -> torch.Tensor:
    """``x`` with exactly the contiguous strides: with one channel ``contiguous()`` keeps the channels-last ones."""
    return x.flatten().view(x.shape)
