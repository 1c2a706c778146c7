"""Public ``bottleneck3d``."""

from __future__ import annotations

import torch

from .._checks import check_channels, check_clip, check_types, check_vector, public
from .op import OP


@public
def bottleneck3d(
    x: torch.Tensor,
    weight_a: torch.Tensor,
    scale_a: torch.Tensor | None,
    shift_a: torch.Tensor | None,
    weight_b: torch.Tensor,
    scale_b: torch.Tensor | None,
    shift_b: torch.Tensor | None,
    weight_c: torch.Tensor,
    scale_c: torch.Tensor | None,
    shift_c: torch.Tensor | None,
    weight_s: torch.Tensor | None = None,
    scale_s: torch.Tensor | None = None,
    shift_s: torch.Tensor | None = None,
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
        weight_a: Tensor[Cmid, Cin, kt, 1, 1], kt odd; weight_b: Tensor[Cmid, Cmid, 1, 3, 3];
            weight_c: Tensor[Cout, Cmid, 1, 1, 1]; weight_s: Tensor[Cout, Cin, 1, 1, 1], or None for the identity
            (then Cin = Cout and stride = 1). All of x's dtype.
        scale_a, shift_a, ...: Tensor[Cmid or Cout] or None: folded batch norm of each convolution.
        stride: spatial stride of b and of the shortcut, in pixels; time is never strided.
        dilation: spatial dilation of b (2 in the detection models' res5).

    Returns:
        Tensor[N, Cout, T, ceil(H / stride), ceil(W / stride)] in channels_last_3d memory.

    Raises:
        ValueError: shapes that do not fit, saying what was expected and what came.
    """
    check_clip(x, "x")
    cin, cmid, cout = x.shape[1], weight_a.shape[0], weight_c.shape[0]
    expected = {
        "weight_a": (weight_a, (cmid, cin, weight_a.shape[2] if weight_a.dim() == 5 else 1, 1, 1)),
        "weight_b": (weight_b, (cmid, cmid, 1, 3, 3)),
        "weight_c": (weight_c, (cout, cmid, 1, 1, 1)),
        "weight_s": (weight_s, (cout, cin, 1, 1, 1)),
    }
    for name, (weight, shape) in expected.items():
        if weight is not None and tuple(weight.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(weight.shape)}")
    check_types("x", x, weight_a=weight_a, weight_b=weight_b, weight_c=weight_c, weight_s=weight_s)
    if weight_a.shape[2] % 2 == 0:
        raise ValueError(f"weight_a: expected an odd temporal kernel, got {weight_a.shape[2]}")
    for name, v, n in (
        ("scale_a", scale_a, cmid),
        ("shift_a", shift_a, cmid),
        ("scale_b", scale_b, cmid),
        ("shift_b", shift_b, cmid),
        ("scale_c", scale_c, cout),
        ("shift_c", shift_c, cout),
        ("scale_s", scale_s, cout),
        ("shift_s", shift_s, cout),
    ):
        check_vector(v, n, name)
    if stride < 1 or dilation < 1:
        raise ValueError(f"expected stride and dilation >= 1, got {stride} and {dilation}")
    if min(x.shape[2:]) < 1:
        raise ValueError(f"x: expected at least one frame and one pixel, got shape {tuple(x.shape)}")
    if weight_s is None:
        check_channels(x, cout, "x", "weight_c (identity shortcut)")
        if stride != 1:
            raise ValueError(f"an identity shortcut needs stride 1, got stride {stride} and no weight_s")
    return OP.handle(
        x, weight_a, scale_a, shift_a, weight_b, scale_b, shift_b, weight_c, scale_c, shift_c,
        weight_s, scale_s, shift_s, stride, dilation,
    )  # fmt: skip
