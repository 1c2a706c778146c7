"""The C++ provider: a padded copy of the clip, then convolution, affine, ReLU and max-pool row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._memory import empty_channels_last
from .._registration import define_native
from ..conv_bn_act3d import cpu as conv

define_native(
    "_stem_run_cpu(Tensor x, Tensor packed, Tensor? shift, int[] kernel, int[] stride, bool relu, bool pool,"
    " bool planar, Tensor(a!) padded, Tensor(b!) out) -> ()"
)


def output_shape(x: Sequence[int], weight: Sequence[int], stride: Sequence[int], pool: bool) -> list[int]:
    """[N, Cout, To, Ho, Wo] of the stem."""
    t, h, w = ((n - 1) // s + 1 for n, s in zip(x[2:], stride, strict=True))
    return [x[0], weight[0], t, (h - 1) // 2 + 1, (w - 1) // 2 + 1] if pool else [x[0], weight[0], t, h, w]


#: Most output channels that run with pixels as vector lanes; more fill the lanes themselves.
PLANAR_CHANNELS = 32


def planar(weight: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the stem of this weight shape runs with pixels as vector lanes."""
    co, ci, kt, kh, _ = weight
    return co <= PLANAR_CHANNELS and stride[2] == 2 and kt * kh * ci <= 1024


def pack(
    weight: torch.Tensor, scale: torch.Tensor | None, stride: Sequence[int], *, dtype: torch.dtype
) -> torch.Tensor:
    """Weights as the stem reads them.

    Panels: under one kernel row the kw * Cin values of a pixel row are contiguous. Planar: [kt, kh, Cin, columns,
    channels rounded up to 8], two bfloat16 columns side by side.
    """
    co, ci, kt, kh, kw = weight.shape
    if not planar(weight.shape, stride):
        rows = weight.permute(0, 4, 1, 2, 3).reshape(co, kw * ci, kt, kh, 1)
        return conv.pack(rows, scale, dtype=dtype)
    w = weight.float()
    if scale is not None:
        w = w * scale.float().view(-1, 1, 1, 1, 1)
    per_unit = 4 // dtype.itemsize
    w = torch.nn.functional.pad(w, (0, -kw % per_unit, 0, 0, 0, 0, 0, 0, 0, -co % 8))
    w = w.view(w.shape[0], ci, kt, kh, -1, per_unit).permute(2, 3, 1, 4, 0, 5)
    return w.to(dtype).contiguous().view(torch.uint8).flatten()


def padded_numel(x: Sequence[int], weight: Sequence[int], stride: Sequence[int]) -> int:
    """Elements of the padded copy of the clip."""
    n, c, t, h, w = x
    width = w + weight[4] - 1
    if planar(weight, stride):
        width = 2 * (-(-((w - 1) // 2 + 1) // 16) * 16 + weight[4] // 2 + 1)
    return n * c * t * (h + weight[3] - 1) * width


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
        pack(weight, scale, stride, dtype=x.dtype),
        conv.float32(shift),
        kernel,
        stride,
        relu,
        pool,
        planar(weight.shape, stride),
        torch.empty(padded_numel(x.shape, weight.shape, stride), dtype=x.dtype),
        out,
    )
    return out
