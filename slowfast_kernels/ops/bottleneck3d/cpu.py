"""The C++ provider: one pass for narrow blocks, three convolutions with fused epilogues for wide ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._memory import channels_last, empty_channels_last
from .._registration import define_native
from ..conv_bn_act3d import cpu as conv

define_native(
    "_block_run_cpu(Tensor x, Tensor packed_a, Tensor shift_a, Tensor packed_b, Tensor shift_b, Tensor packed_c,"
    " Tensor shift_c, int kernel_t, int stride, int dilation, bool shortcut, Tensor(a!) out) -> ()"
)

#: Widest inner width whose block runs as one pass: beyond it the weights no longer stay in the level-2 cache
#: while a row is computed.
ONE_PASS_CHANNELS = 32


def output_shape(x: Sequence[int], weight_c: Sequence[int], stride: int) -> list[int]:
    """[N, Cout, T, Ho, Wo] of a residual block."""
    return [x[0], weight_c[0], x[2], (x[3] - 1) // stride + 1, (x[4] - 1) // stride + 1]


def refuses(x: torch.Tensor, weight_a: torch.Tensor, *rest: object) -> str | None:
    """Why the C++ kernels cannot run this call, or None."""
    if weight_a.shape[2] % 2 == 0:
        return f"conv_a's temporal kernel {weight_a.shape[2]} is even"
    for weight in (weight_a, rest[2], rest[5], rest[8]):
        reason = conv.refuses(x, weight) if isinstance(weight, torch.Tensor) else None
        if reason:
            return reason
    return None


def zeros_for(shift: torch.Tensor | None, channels: int) -> torch.Tensor:
    """A shift as the kernels read it; none is zero."""
    return torch.zeros(channels) if shift is None else shift.detach().float().contiguous()


def sum_shifts(c: torch.Tensor | None, s: torch.Tensor | None, channels: int) -> torch.Tensor:
    """Shift of conv_c with the shortcut as its second source."""
    return zeros_for(c, channels) + zeros_for(s, channels)


def one_pass(cmid: int, kernel_t: int) -> bool:
    """Whether a block of this inner width runs as one pass."""
    return cmid <= ONE_PASS_CHANNELS and kernel_t < 64


def run(
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
    weight_s: torch.Tensor | None,
    scale_s: torch.Tensor | None,
    shift_s: torch.Tensor | None,
    stride: int,
    dilation: int,
) -> torch.Tensor:
    x = channels_last(x)
    kernel_t, cmid, cout = weight_a.shape[2], weight_a.shape[0], weight_c.shape[0]
    out = empty_channels_last(x, output_shape(x.shape, weight_c.shape, stride))
    a = conv.pack(weight_a, scale_a, dtype=x.dtype)
    b = conv.pack(weight_b, scale_b, dtype=x.dtype)
    c = conv.pack(weight_c, scale_c, weight_s, scale_s, dtype=x.dtype)
    sa, sb = zeros_for(shift_a, cmid), zeros_for(shift_b, cmid)
    sc = zeros_for(shift_c, cout) if weight_s is None else sum_shifts(shift_c, shift_s, cout)
    if one_pass(cmid, kernel_t):
        torch.ops.slowfast._block_run_cpu(
            x, a, sa, b, sb, c, sc, kernel_t, stride, dilation, weight_s is not None, out
        )
        return out
    inner = empty_channels_last(x, [x.shape[0], cmid, *x.shape[2:]])
    middle = empty_channels_last(x, [x.shape[0], cmid, *out.shape[2:]])
    conv_run = torch.ops.slowfast._conv_run_cpu
    one, none, spatial = [1, 1, 1], [0, 0, 0], [1, stride, stride]
    conv_run(x, a, sa, None, None, [kernel_t, 1, 1], one, [kernel_t // 2, 0, 0], one, one, True, inner)
    around = [1, dilation, dilation]
    conv_run(inner, b, sb, None, None, [1, 3, 3], spatial, [0, dilation, dilation], around, one, True, middle)
    second, residual = (None, x) if weight_s is None else (x, None)
    conv_run(middle, c, sc, residual, second, one, one, none, one, spatial, True, out)
    return out
