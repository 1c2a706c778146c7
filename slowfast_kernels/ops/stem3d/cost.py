"""Least work of a ``stem3d`` call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .._cases import Cost, bytes_of
from .._registration import as_triple
from .cpu import output_shape


def cost(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = (1, 2, 2),
    relu: bool = True,
    pool: bool = True,
) -> Cost:
    """FLOPs of the convolution; bytes of the clip, the weights and the (pooled) output once each."""
    s = as_triple(stride, "stride")
    flops = 2 * math.prod(output_shape(x.shape, weight.shape, s, False)) * math.prod(weight.shape[1:])
    written = math.prod(output_shape(x.shape, weight.shape, s, pool)) * x.element_size()
    return Cost(flops, bytes_of(x, weight, scale, shift) + written)
