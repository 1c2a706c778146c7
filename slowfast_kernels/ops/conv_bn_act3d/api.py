"""Public ``conv_bn_act3d``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_channels, check_clip, check_out, check_types, check_vector, public
from .._registration import as_triple
from .cpu import output_shape
from .op import OP, OP_OUT


@public
def conv_bn_act3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    relu: bool = True,
    out: torch.Tensor | None = None,
    channel_offset: int = 0,
) -> torch.Tensor:
    """3-D convolution with a per-channel affine, a residual and a ReLU in its epilogue.

    ``relu(conv3d(x, weight) * scale + shift + residual)``: the convolution, folded batch norm, shortcut and
    activation of a SlowFast residual block (SlowFast paper, section 3.4 and table 1) in one pass.

    Args:
        x: Tensor[N, Cin, T, H, W], float32, bfloat16, float16 or float64, best in channels_last_3d memory
            (other layouts are converted).
        weight: Tensor[Cout, Cin, kt, kh, kw] of the same dtype; no groups.
        scale: Tensor[Cout] or None (= 1): gamma / sqrt(var + eps) of a batch norm.
        shift: Tensor[Cout] or None (= 0): beta - mean * scale.
        residual: Tensor of the output's shape, added before the activation, or None.
        stride, padding, dilation: an int or three ints (time, height, width), in frames and pixels.
        relu: clamp at zero; NaN passes.
        out: Tensor[N, Ctotal, To, Ho, Wo] in channels_last_3d memory to write channels
            [channel_offset, channel_offset + Cout) of, in place; of x's dtype, inference only.
        channel_offset: first channel of ``out`` to write.

    Returns:
        Tensor[N, Cout, To, Ho, Wo] in channels_last_3d memory, or ``out``. Sums are float32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit, saying what was expected and what came.
        RuntimeError: a backend asked for by name that cannot run the call, ``out`` where a gradient is wanted.
    """
    check_clip(x, "x")
    if weight.dim() != 5:
        raise ValueError(f"weight: expected [Cout, Cin, kt, kh, kw], got shape {tuple(weight.shape)}")
    check_channels(x, weight.shape[1], "x", "weight")
    check_types("x", x, weight=weight, residual=residual)
    s, p, d = as_triple(stride, "stride"), as_triple(padding, "padding"), as_triple(dilation, "dilation")
    if min(s) < 1 or min(d) < 1 or min(p) < 0:
        raise ValueError(f"expected stride and dilation >= 1 and padding >= 0, got {s}, {d} and {p}")
    check_vector(scale, weight.shape[0], "scale")
    check_vector(shift, weight.shape[0], "shift")
    shape = output_shape(x.shape, weight.shape, s, p, d)
    if min(shape[2:]) < 1:
        raise ValueError(
            f"x of shape {tuple(x.shape)} is smaller than the kernel {tuple(weight.shape[2:])} "
            f"with dilation {tuple(d)} and padding {tuple(p)}"
        )
    if residual is not None and list(residual.shape) != shape:
        raise ValueError(f"residual: expected shape {tuple(shape)}, got {tuple(residual.shape)}")
    if out is None:
        return OP.handle(x, weight, scale, shift, residual, s, p, d, relu)
    check_out(out, x.dtype)
    expected = (shape[0], *shape[2:])
    if out.dim() != 5 or (out.shape[0], *out.shape[2:]) != expected:
        raise ValueError(f"out: expected N, T, H, W = {expected}, got shape {tuple(out.shape)}")
    if channel_offset < 0 or channel_offset + shape[1] > out.shape[1]:
        raise ValueError(
            f"out has {out.shape[1]} channels, cannot take {shape[1]} from channel {channel_offset} on"
        )
    OP_OUT.handle(x, weight, scale, shift, residual, s, p, d, relu, out, channel_offset)
    return out
