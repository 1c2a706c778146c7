"""Public ``stem3d``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_channels, check_clip, check_types, public
from .._spec import ConvAffine, Pool
from .op import OP
from .spec import StemSpec


@public
def stem3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = (1, 2, 2),
    activation: str = "relu",
    pool: bool | Pool | None = True,
) -> torch.Tensor:
    """First layer of a pathway: convolution, folded batch norm, activation and a max-pool.

    ``conv1`` and ``pool1`` of the SlowFast paper's table 1: 1x7x7 (Slow) or 5x7x7 (Fast), stride (1, 2, 2),
    padding of half the kernel. The convolution's full-size output is never stored.

    Args:
        x: Tensor[N, Cin, T, H, W] clip, any memory layout.
        weight: Tensor[Cout, Cin, kt, kh, kw] of the same dtype, odd kernel extents.
        scale, shift: Tensor[Cout] or None: folded batch norm.
        stride: of the convolution, in frames and pixels.
        activation: before pooling: "relu", "none", or, as plain PyTorch, "silu", "hardswish", "sigmoid".
        pool: max-pool 1x3x3, stride (1, 2, 2), padding (0, 1, 1), in which NaN passes as in PyTorch; False for none, or
            a ``Pool`` of another geometry (as plain PyTorch).

    Returns:
        Tensor[N, Cout, To, Ho, Wo] in channels_last_3d memory.

    Raises:
        ValueError: shapes that do not fit, saying what was expected and what came.
    """
    check_clip(x, "x")
    pool = pool if isinstance(pool, Pool) else Pool() if pool else None
    spec = StemSpec(ConvAffine(weight, scale, shift), stride, activation, pool)  # type: ignore[arg-type]
    spec.check()
    check_channels(x, weight.shape[1], "x", "weight")
    check_types("x", x, weight=weight)
    if min(x.shape[2:]) < 1:
        raise ValueError(f"x: expected at least one frame and one pixel, got shape {tuple(x.shape)}")
    return OP(x, spec)
