"""Public ``bottleneck3d``."""

from __future__ import annotations

from typing import TypeAlias

import torch

from .._checks import check_channels, check_clip, check_types, public
from .._spec import ConvAffine
from .op import OP
from .spec import BlockSpec

#: A convolution with the affine behind it: (weight, scale, shift), or the weight alone.
Affine: TypeAlias = ConvAffine | tuple[torch.Tensor | None, ...]


@public
def bottleneck3d(
    x: torch.Tensor,
    a: Affine,
    b: Affine,
    c: Affine,
    shortcut: Affine | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> torch.Tensor:
    """Residual bottleneck block of both pathways, whole.

    ``relu(c(relu(b(relu(a(x))))) + shortcut(x))`` with a: kt x 1 x 1, b: 1 x 3 x 3 with the spatial stride and
    dilation, c: 1 x 1 x 1, each followed by its folded batch norm; the shortcut is the identity or a strided
    1 x 1 x 1 convolution with batch norm (SlowFast paper, table 1; ResNet bottleneck with the temporal kernel on
    the first convolution).

    Args:
        x: Tensor[N, Cin, T, H, W].
        a, b, c, shortcut: ``ConvAffine`` or a tuple (weight, scale, shift) each; scale and shift, a folded batch norm,
            are Tensor[Cmid or Cout] or None. Weights, all of x's dtype: a Tensor[Cmid, Cin, kt, 1, 1], kt odd;
            b Tensor[Cmid, Cmid, 1, 3, 3]; c Tensor[Cout, Cmid, 1, 1, 1]; shortcut Tensor[Cout, Cin, 1, 1, 1], or None
            in its place for the identity (then Cin = Cout and stride = 1).
        stride: spatial stride of b and of the shortcut, in pixels; time is never strided.
        dilation: spatial dilation of b (2 in the detection models' res5).

    Returns:
        Tensor[N, Cout, T, ceil(H / stride), ceil(W / stride)] in channels_last_3d memory.

    Raises:
        ValueError: shapes that do not fit, saying what was expected and what came.
    """
    check_clip(x, "x")
    spec = BlockSpec(a, b, c, shortcut, stride, dilation)  # type: ignore[arg-type]
    spec.check()
    check_channels(x, spec.a.weight.shape[1], "x", "weight_a")
    convs = {"a": spec.a, "b": spec.b, "c": spec.c, "shortcut": spec.shortcut}
    check_types("x", x, **{f"weight_{n}": None if v is None else v.weight for n, v in convs.items()})
    if min(x.shape[2:]) < 1:
        raise ValueError(f"x: expected at least one frame and one pixel, got shape {tuple(x.shape)}")
    return OP(x, spec)
