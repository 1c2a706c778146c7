"""Least work of a ``lateral_fusion`` call."""

from __future__ import annotations

from typing import Any

import torch

from .._cases import Cost, bytes_of
from .cpu import lateral_channels
from .reference import KINDS


def cost(
    slow: torch.Tensor,
    fast: torch.Tensor,
    weight: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    alpha: int,
    kind: str | int = "conv",
    relu: bool = True,
    out: torch.Tensor | None = None,
) -> Cost:
    """FLOPs of the convolution (of the additions, for the sum).

    Bytes: the fast clip (sampling reads one frame of alpha), the weights, the lateral's channels of the
    output. Slow's own channels cost nothing if they already lie in ``out``; else they are read and written.
    """
    kind = KINDS[kind] if isinstance(kind, int) else kind  # the op's number of it
    if kind == "none":
        return Cost(0, 0)
    pixels = slow.numel() // slow.shape[1] if slow.shape[1] else 0
    added = pixels * lateral_channels(fast.shape[1], weight, alpha, kind)
    flops = 2 * added * fast.shape[1] * weight.shape[2] if weight is not None else 0
    moved = bytes_of(weight, scale, shift) + added * slow.element_size()
    moved += bytes_of(fast) // (alpha if kind == "time_sample" else 1)
    if kind == "time_to_channel_sum":
        flops = slow.numel()
    if out is None or kind == "time_to_channel_sum":
        moved += 2 * bytes_of(slow)
    return Cost(flops, moved)


def cost_out(out: torch.Tensor, fast: torch.Tensor, **kwargs: Any) -> Cost:
    """The same in place: ``out`` holds the slow clip."""
    weight, alpha, kind = kwargs["weight"], kwargs["alpha"], KINDS[kwargs["kind"]]
    slow = out[:, : out.shape[1] - lateral_channels(fast.shape[1], weight, alpha, kind)]
    return cost(slow, fast, **kwargs, out=out)
