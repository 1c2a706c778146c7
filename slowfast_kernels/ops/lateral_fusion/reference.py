"""Plain PyTorch ``lateral_fusion``: the specification."""

from __future__ import annotations

import torch

from ..conv_bn_act3d.reference import conv_bn_act3d_reference

#: Kinds of lateral connection, in the order of the schema's integer.
KINDS = ("conv", "time_to_channel_concat", "time_to_channel_sum", "time_sample")


def time_to_channel(fast: torch.Tensor, alpha: int) -> torch.Tensor:
    """[N, C, alpha * T, H, W] -> [N, alpha * C, T, H, W]; channel a * C + c holds frame t * alpha + a."""
    n, c, t, h, w = fast.shape
    return (
        fast.reshape(n, c, t // alpha, alpha, h, w)
        .permute(0, 3, 1, 2, 4, 5)
        .reshape(n, alpha * c, t // alpha, h, w)
    )


def lateral_fusion_reference(
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
    if name == "time_to_channel_sum":
        return slow + time_to_channel(fast, alpha)
    if name == "conv":
        assert weight is not None
        k = weight.shape[2]
        lateral = conv_bn_act3d_reference(
            fast, weight, scale, shift, None, [alpha, 1, 1], [k // 2, 0, 0], [1, 1, 1], relu
        )
    elif name == "time_to_channel_concat":
        lateral = time_to_channel(fast, alpha)
    else:
        lateral = fast[:, :, ::alpha]
    return torch.cat([slow, lateral], 1)
