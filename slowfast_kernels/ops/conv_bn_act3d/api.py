"""Public ``conv_bn_act3d``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_channels, check_clip, check_out, check_types, public
from .._spec import ConvAffine
from .op import OP, OP_OUT
from .spec import ConvSpec


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
    groups: int = 1,
    activation: str = "relu",
    out: torch.Tensor | None = None,
    channel_offset: int = 0,
) -> torch.Tensor:
    """3-D convolution with a per-channel affine, a residual and an activation in its epilogue.

    ``activation(conv3d(x, weight) * scale + shift + residual)``: the convolution, folded batch norm, shortcut and
    activation of a SlowFast residual block (SlowFast paper, section 3.4 and table 1) in one pass.

    Args:
        x: Tensor[N, Cin, T, H, W], float32, bfloat16, float16 or float64, best in channels_last_3d memory
            (other layouts are converted).
        weight: Tensor[Cout, Cin / groups, kt, kh, kw] of the same dtype.
        scale: Tensor[Cout] or None (= 1): gamma / sqrt(var + eps) of a batch norm.
        shift: Tensor[Cout] or None (= 0): beta - mean * scale.
        residual: Tensor of the output's shape, added before the activation, or None.
        stride, padding, dilation: an int or three ints (time, height, width), in frames and pixels.
        groups: of channels that see one another only, a divisor of Cin and Cout; the kernels have 1, more run as
            plain PyTorch.
        activation: "relu" (clamp at zero; NaN passes), "none", or, as plain PyTorch, "silu", "hardswish", "sigmoid".
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
    spec = ConvSpec(ConvAffine(weight, scale, shift), stride, padding, dilation, groups, activation)  # type: ignore[arg-type]
    spec.check()
    check_channels(x, weight.shape[1] * groups, "x", "weight" if groups == 1 else "weight, times groups,")
    check_types("x", x, weight=weight, residual=residual)
    shape = spec.out_shape(x.shape)
    if min(shape[2:]) < 1:
        raise ValueError(
            f"x of shape {tuple(x.shape)} is smaller than the kernel {tuple(weight.shape[2:])} "
            f"with dilation {spec.dilation} and padding {spec.padding}"
        )
    if residual is not None and list(residual.shape) != shape:
        raise ValueError(f"residual: expected shape {tuple(shape)}, got {tuple(residual.shape)}")
    if out is None:
        return OP(x, residual, spec)
    check_out(out, x.dtype)
    expected = (shape[0], *shape[2:])
    if out.dim() != 5 or (out.shape[0], *out.shape[2:]) != expected:
        raise ValueError(f"out: expected N, T, H, W = {expected}, got shape {tuple(out.shape)}")
    if channel_offset < 0 or channel_offset + shape[1] > out.shape[1]:
        raise ValueError(
            f"out has {out.shape[1]} channels, cannot take {shape[1]} from channel {channel_offset} on"
        )
    OP_OUT(x, residual, out, channel_offset, spec)
    return out
