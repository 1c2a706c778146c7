"""Convolution + batch norm + residual + activation, the unit every other block is made of."""

import torch
from torch import Tensor, nn

from slowfast_kernels import ops
from slowfast_kernels.nn.block import Block
from slowfast_kernels.ops import ConvAffine, ConvSpec
from slowfast_kernels.ops.conv_bn_act3d.reference import activate

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


class Conv3d(Block, nn.Conv3d):
    """`torch.nn.Conv3d` without bias, on `ops.conv_bn_act3d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size3,
        stride: Size3 = (1, 1, 1),
        padding: Size3 = (0, 0, 0),
        dilation: Size3 = (1, 1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)

    def spec(
        self, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
    ) -> ConvSpec:
        """The convolution with an affine and an activation behind it, as the ops take it."""
        affine = ConvAffine(self.weight, scale, shift)
        t, h, w = (int(p) for p in self.padding)
        return ConvSpec(affine, self.stride, (t, h, w), self.dilation, self.groups, activation)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[N, Ci, T, H, W] -> [N, Co, To, Ho, Wo]."""
        return apply(self.spec(), x)


def apply(spec: ConvSpec, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """`ops.conv_bn_act3d` of a spec."""
    return ops.conv_bn_act3d(
        x,
        *spec.conv,
        residual,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
        activation=spec.activation,
    )


class Normed(Block):
    """What has a convolution `conv`, a batch norm `bn` behind it (or None) and an `activation`."""

    conv: Conv3d
    bn: nn.BatchNorm3d | None
    activation: str

    def folded(self) -> tuple[Tensor | None, Tensor | None]:
        """(scale, shift) of the batch norm in eval mode, each [Co] float32; (None, None) without one."""
        return fold_batch_norm(self.bn) if self.bn is not None else (None, None)

    @property
    def folds(self) -> bool:
        """Whether the batch norm is an affine of its running statistics, rather than of the batch's."""
        return self.bn is None or not self.bn.training

    def unfolded(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolution, batch norm of the batch's statistics, residual, activation."""
        assert self.bn is not None
        y = self.bn(self.conv(x))
        return activate(y if residual is None else y + residual, self.activation)


class ConvBN(Normed):
    """3-D convolution without bias, batch norm, optional residual, activation: [N, Ci, T, H, W] -> [N, Co,
    ...].

    Padding keeps the size at stride 1 (dilation * (k // 2) on each side). `conv` holds the weight, `bn` is
    None with `norm=False`. activation: "relu", "none", or another one that `ops.conv_bn_act3d` has.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size3 = (1, 1, 1),
        *,
        stride: Size3 = (1, 1, 1),
        dilation: Size3 = (1, 1, 1),
        groups: int = 1,
        norm: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        kt, kh, kw = kernel
        dt, dh, dw = dilation
        padding = (dt * (kt // 2), dh * (kh // 2), dw * (kw // 2))
        self.conv = Conv3d(in_channels, out_channels, kernel, stride, padding, dilation, groups)
        self.bn = nn.BatchNorm3d(out_channels) if norm else None
        self.activation = activation

    def spec(self) -> ConvSpec:
        """The parameters as the ops take them, the batch norm folded."""
        return self.conv.spec(*self.folded(), self.activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`activation(bn(conv(x)) + residual)`; the residual has the output's shape."""
        return apply(self.spec(), x, residual) if self.folds else self.unfolded(x, residual)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"
