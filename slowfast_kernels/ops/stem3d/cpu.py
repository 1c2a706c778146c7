"""The C++ provider: a padded copy of the clip, then convolution, affine, ReLU and max-pool row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._registration import define_native, empty_channels_last
from ..conv_bn_act3d import cpu as conv

define_native(
    "_stem_run_cpu(Tensor x, Tensor packed, Tensor? shift, int[] kernel, int[] stride, bool relu, bool pool,"
    " Tensor(a!) padded, Tensor(b!) out) -> ()"
)


def output_shape(x: Sequence[int], weight: Sequence[int], stride: Sequence[int], pool: bool) -> list[int]:
    """[N, Cout, To, Ho, Wo] of the stem."""
    t, h, w = ((n - 1) // s + 1 for n, s in zip(x[2:], stride, strict=True))
    return [x[0], weight[0], t, (h - 1) // 2 + 1, (w - 1) // 2 + 1] if pool else [x[0], weight[0], t, h, w]


def pack(weight: torch.Tensor, scale: torch.Tensor | None, *, dtype: torch.dtype) -> torch.Tensor:
    """Weights as the stem reads them: under one kernel row the kw * Cin values of a pixel row are contiguous."""
    co, ci, kt, kh, kw = weight.shape
    rows = weight.permute(0, 4, 1, 2, 3).reshape(co, kw * ci, kt, kh, 1)
    return conv.pack(rows, scale, dtype=dtype)


def padded_numel(x: Sequence[int], kernel: Sequence[int]) -> int:
    """Elements of the padded clip."""
    n, c, t, h, w = x
    return n * c * t * (h + kernel[1] - 1) * (w + kernel[2] - 1)


def refuses(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> str | None:
    """Why the C++ kernels cannot run this call, or None."""
    if any(k % 2 == 0 for k in weight.shape[2:]):
        return f"the kernel {tuple(weight.shape[2:])} has an even extent"
    if weight.shape[2] * weight.shape[3] > 256:
        return f"the kernel {tuple(weight.shape[2:])} has more than 256 rows"
    return conv.refuses(x, weight)


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    stride: list[int],
    relu: bool,
    pool: bool,
) -> torch.Tensor:
    out = empty_channels_last(x, output_shape(x.shape, weight.shape, stride, pool))
    kernel = list(weight.shape[2:])
    torch.ops.slowfast._stem_run_cpu(
        x,
        pack(weight, scale, dtype=x.dtype),
        conv.float32(shift),
        kernel,
        stride,
        relu,
        pool,
        torch.empty(padded_numel(x.shape, kernel), dtype=x.dtype),
        out,
    )
    return out
