"""Winograd forms of the stride-1 3x1x1 and 1x3x3 convolutions, float32: 2x and 4x fewer multiplications.

F(4, 3) along time and F(4x4, 3x3) in space. Relative L2 error is up to 4e-6 (512 channels), where the direct sum
has a few 1e-7; in bfloat16 these forms lose too much and are not offered.
"""

from __future__ import annotations

import torch

from .._registration import define_native
from .._spec import ConvAffine, Shape
from .spec import ConvSpec

define_native(
    "_winograd_run_cpu(Tensor x, Tensor packed, Tensor? shift, Tensor? residual, bool spatial, bool relu,"
    " Tensor(a!) workspace, Tensor(b!) out) -> ()"
)

# Kernel transform of F(4, 3) at the points 0, 1, -1, 2, -2 and infinity.
G = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)

#: Fewest input and output channels from which the transforms pay.
LEAST_CHANNELS = 64


def pays(spec: ConvSpec, dtype: torch.dtype) -> bool:
    """Whether a convolution has a Winograd form that is faster."""
    cout, cin, *kernel = spec.conv.weight.shape
    return (
        dtype == torch.float32
        and tuple(kernel) in ((3, 1, 1), (1, 3, 3))
        and spec.stride == spec.dilation == (1, 1, 1)
        and spec.padding == tuple(k // 2 for k in kernel)
        and min(cout, cin) >= LEAST_CHANNELS
        and cout % 16 == 0
    )


def pack(conv: ConvAffine) -> torch.Tensor:
    """Transformed weights (times scale), transformed in float64, as panels with one tap per plane."""
    w = conv.weight.detach().double()
    if conv.scale is not None:
        w = w * conv.scale.detach().double().view(-1, 1, 1, 1, 1)
    if w.shape[2] == 3:
        u = torch.einsum("ik,ock->oci", G, w[..., 0, 0])
    else:
        u = torch.einsum("ik,jl,ockl->ocij", G, G, w[:, :, 0]).flatten(2)
    return torch.ops.slowfast._conv_pack_cpu(u.float()[..., None, None], None, None, None, False)


def workspace_numel(x: Shape, spatial: bool) -> int:
    """Float32 values of the transformed input of x [N, C, T, H, W]."""
    n, c, t, h, w = x
    rows = n * t * -(-h // 4) * -(-w // 4) if spatial else n * -(-t // 4) * h * w
    return (36 if spatial else 6) * (rows * c + 16)
