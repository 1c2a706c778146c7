"""Public ``stem3d``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_channels, check_clip, check_types, check_vector, public
from .._registration import as_triple
from .op import OP


@public
def stem3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = (1, 2, 2),
    relu: bool = True,
    pool: bool = True,
) -> torch.Tensor:
    """First layer of a pathway: convolution, folded batch norm, ReLU and a 1x3x3 max-pool of stride 2.

    ``conv1`` and ``pool1`` of the SlowFast paper's table 1: 1x7x7 (Slow) or 5x7x7 (Fast), stride (1, 2, 2),
    padding of half the kernel. The convolution's full-size output is never stored.

    Args:
        x: Tensor[N, Cin, T, H, W] clip, any memory layout.
        weight: Tensor[Cout, Cin, kt, kh, kw] of the same dtype, odd kernel extents.
        scale, shift: Tensor[Cout] or None: folded batch norm.
        stride: of the convolution, in frames and pixels.
        relu: clamp at zero before pooling.
        pool: max-pool 1x3x3, stride (1, 2, 2), padding (0, 1, 1); NaN passes as in PyTorch.

    Returns:
        Tensor[N, Cout, To, Ho, Wo] in channels_last_3d memory.

    Raises:
        ValueError: shapes that do not fit, saying what was expected and what came.
    """
    check_clip(x, "x")
    if weight.dim() != 5 or any(k % 2 == 0 for k in weight.shape[2:]):
        raise ValueError(
            f"weight: expected [Cout, Cin, kt, kh, kw] with odd kernel extents, got {tuple(weight.shape)}"
        )
    check_channels(x, weight.shape[1], "x", "weight")
    check_types("x", x, weight=weight)
    check_vector(scale, weight.shape[0], "scale")
    check_vector(shift, weight.shape[0], "shift")
    if min(x.shape[2:]) < 1:
        raise ValueError(f"x: expected at least one frame and one pixel, got shape {tuple(x.shape)}")
    s = as_triple(stride, "stride")
    if min(s) < 1:
        raise ValueError(f"stride: expected at least 1 along every axis, got {tuple(s)}")
    return OP.handle(x, weight, scale, shift, s, relu, pool)
