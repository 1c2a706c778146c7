"""The C++ provider: packed weights, then one pass over the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._memory import channels_last, empty_channels_last
from .._registration import define_native, float32

define_native(
    "_conv_pack_cpu(Tensor weight, Tensor? scale, Tensor? weight2, Tensor? scale2, bool bf16) -> Tensor"
)
define_native(
    "_conv_run_cpu(Tensor x, Tensor packed, Tensor? shift, Tensor? residual, Tensor? x2, int[] kernel, int[] stride,"
    " int[] padding, int[] dilation, int[] stride2, bool relu, Tensor(a!) out) -> ()"
)

DTYPES = (torch.float32, torch.bfloat16)


def output_shape(
    x: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """[N, Cout, To, Ho, Wo] of a convolution."""
    extents = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x[2:], weight[2:], stride, padding, dilation, strict=True)
    ]
    return [x[0], weight[0], *extents]


def pack(
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    weight2: torch.Tensor | None = None,
    scale2: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Weights (times scale) as the panels that the kernels stream; a 1x1x1 ``weight2`` is packed behind."""
    return torch.ops.slowfast._conv_pack_cpu(
        weight, float32(scale), weight2, float32(scale2), dtype == torch.bfloat16
    )


def refuses(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> str | None:
    """Why the C++ kernels cannot run this call, or None."""
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, the C++ kernels take float32 and bfloat16"
    if weight.dtype != x.dtype:
        return f"weight is {weight.dtype} but x is {x.dtype}"
    residual = rest[2] if len(rest) > 2 else None
    if isinstance(residual, torch.Tensor) and residual.dtype != x.dtype:
        return f"residual is {residual.dtype} but x is {x.dtype}"
    return None


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    if out is None:
        out = empty_channels_last(x, output_shape(x.shape, weight.shape, stride, padding, dilation))
    torch.ops.slowfast._conv_run_cpu(
        channels_last(x),
        pack(weight, scale, dtype=x.dtype),
        float32(shift),
        None if residual is None else channels_last(residual),
        None,
        list(weight.shape[2:]),
        stride,
        padding,
        dilation,
        [1, 1, 1],
        relu,
        out,
    )
    return out
