"""Convolution + batch norm + residual + ReLU, the unit every other block is made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels import ops
from slowfast_kernels.ops._conv3d import conv3d

Size3 = tuple[int, int, int]


def fold_batch_norm(bn: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """The (scale, shift) that a batch norm applies per channel in eval mode, `bn(x) = x * scale + shift`.

    Both are [C] and at least float32 whatever the parameters' dtype: bfloat16 would lose the statistics'
    digits. Differentiable in the weight and the bias. Raises ValueError if the layer keeps no running
    statistics.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("folding a batch norm: expected running statistics, got track_running_stats=False")
    dtype = torch.promote_types(bn.running_var.dtype, torch.float32)
    scale = torch.rsqrt(bn.running_var.to(dtype) + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.to(dtype)
    shift = -bn.running_mean.to(dtype) * scale
    if bn.bias is not None:
        shift = shift + bn.bias.to(dtype)
    return scale, shift


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` without bias and groups, right in every memory layout (`ops._conv3d`)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size3,
        stride: Size3 = (1, 1, 1),
        padding: Size3 = (0, 0, 0),
        dilation: Size3 = (1, 1, 1),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, Ci, T, H, W] -> [N, Co, To, Ho, Wo]."""
        return conv3d(x, self.weight, self.stride, [int(p) for p in self.padding], self.dilation)


class ConvBN(nn.Module):
    """3-D convolution without bias, batch norm, optional residual, optional ReLU: [N, Ci, T, H, W] -> [N, Co,
    ...].

    Padding keeps the size at stride 1 (dilation * (k // 2) on each side). `conv` holds the weight, `bn` is
    None with `norm=False`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size3 = (1, 1, 1),
        *,
        stride: Size3 = (1, 1, 1),
        dilation: Size3 = (1, 1, 1),
        norm: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        kt, kh, kw = kernel
        dt, dh, dw = dilation
        padding = (dt * (kt // 2), dh * (kh // 2), dw * (kw // 2))
        self.conv = Conv3d(in_channels, out_channels, kernel, stride, padding, dilation)
        self.bn = nn.BatchNorm3d(out_channels) if norm else None
        self.relu = relu

    def folded(self) -> tuple[Tensor | None, Tensor | None]:
        """(scale, shift) of the batch norm in eval mode, each [Co] float32; (None, None) without one."""
        return fold_batch_norm(self.bn) if self.bn is not None else (None, None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`relu(bn(conv(x)) + residual)`; the residual has the output's shape, the ReLU is optional."""
        if self.training:
            y = self.conv(x)
            y = self.bn(y) if self.bn is not None else y
            y = y if residual is None else y + residual
            return F.relu(y) if self.relu else y
        conv, (scale, shift) = self.conv, self.folded()
        return ops.conv_bn_act3d(
            x,
            conv.weight,
            scale,
            shift,
            residual,
            stride=conv.stride,
            padding=[int(p) for p in conv.padding],
            dilation=conv.dilation,
            relu=self.relu,
        )

    def extra_repr(self) -> str:
        return f"relu={self.relu}"
