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
) -> torch.Tensor:
    """``torch.nn.functional.conv3d`` without bias and groups: [N, Ci, T, H, W] -> [N, Co, To, Ho, Wo].

    Calls that crash or go wrong in channels-last memory (`known_issues.ISSUES`) are made in contiguous memory.
    """
    if x.device.type == "cpu" and _breaks_channels_last(x, weight, padding, dilation):
        x, weight = _planar(x), _planar(weight)
    return F.conv3d(x, weight, None, list(stride), list(padding), list(dilation))


def _breaks_channels_last(
    x: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], dilation: Sequence[int]
) -> bool:
    """One input channel; or more padding than half a kernel, so that a column of the result may see nothing else."""
    return x.shape[1] == 1 or padding[2] > dilation[2] * ((weight.shape[4] - 1) // 2)


def _planar(x: torch.Tensor) -> torch.Tensor:
    """``x`` with exactly the contiguous strides: with one channel ``contiguous()`` keeps the channels-last ones."""
    return x.flatten().view(x.shape)
