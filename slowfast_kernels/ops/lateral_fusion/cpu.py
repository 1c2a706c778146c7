"""The C++ provider: the lateral goes straight into its channels of the fused buffer."""

from __future__ import annotations

import torch

from .._memory import channels_last, empty_channels_last
from ..conv_bn_act3d import cpu as conv
from .reference import KINDS, time_to_channel


def lateral_channels(fast_channels: int, weight: torch.Tensor | None, alpha: int, kind: str) -> int:
    """Channels that the lateral adds to the Slow pathway's."""
    if kind == "conv":
        assert weight is not None
        return weight.shape[0]
    return {"time_to_channel_concat": alpha * fast_channels, "time_sample": fast_channels}.get(kind, 0)


def refuses(slow: torch.Tensor, fast: torch.Tensor, weight: torch.Tensor | None, *rest: object) -> str | None:
    """Why the C++ kernels cannot run this call, or None."""
    if fast.dtype != slow.dtype:
        return f"fast is {fast.dtype} but slow is {slow.dtype}"
    if slow.dtype not in conv.DTYPES:
        return f"slow is {slow.dtype}, the C++ kernels take float32 and bfloat16"
    return None if weight is None else conv.refuses(fast, weight)


def write(
    fast: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    alpha: int,
    kind: str,
    relu: bool,
    out: torch.Tensor,
) -> None:
    """The lateral into ``out``, a channel slice of the fused buffer (the Slow channels themselves for the sum)."""
    if kind == "conv":
        assert weight is not None
        k = weight.shape[2]
        conv.run(fast, weight, scale, shift, None, [alpha, 1, 1], [k // 2, 0, 0], [1, 1, 1], relu, out)
    elif kind == "time_sample":
        out.copy_(fast[:, :, ::alpha])
    elif kind == "time_to_channel_concat":
        c = fast.shape[1]
        for a in range(alpha):
            out[:, a * c : (a + 1) * c].copy_(fast[:, :, a::alpha])
    else:
        out.add_(time_to_channel(fast, alpha))


def run(
    slow: torch.Tensor,
    fast: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    alpha: int,
    kind: int,
    relu: bool,
) -> torch.Tensor:
    name = KINDS[kind]
    n, cs, t, h, w = slow.shape
    cl = lateral_channels(fast.shape[1], weight, alpha, name)
    out = empty_channels_last(slow, [n, cs + cl, t, h, w])
    out[:, :cs].copy_(slow)
    write(channels_last(fast), weight, scale, shift, alpha, name, relu, out[:, cs:] if cl else out)
    return out


def run_out(
    out: torch.Tensor,
    fast: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    alpha: int,
    kind: int,
    relu: bool,
) -> None:
    name = KINDS[kind]
    cl = lateral_channels(fast.shape[1], weight, alpha, name)
    target = out[:, out.shape[1] - cl :] if cl else out
    write(channels_last(fast), weight, scale, shift, alpha, name, relu, target)
