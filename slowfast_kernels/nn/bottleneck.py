"""Residual blocks and the stages made of them (res2..res5 in table 1 of the paper)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from slowfast_kernels import ops
from slowfast_kernels.nn.block import Block
from slowfast_kernels.nn.conv import ConvBN
from slowfast_kernels.ops import BlockSpec, ConvAffine
from slowfast_kernels.ops.bottleneck3d.spec import BasicBlockSpec


def _shortcut(in_channels: int, out_channels: int, stride: int) -> ConvBN | None:
    """Projection of the block's input where its shape changes, else None (identity)."""
    if in_channels == out_channels and stride == 1:
        return None
    return ConvBN(in_channels, out_channels, stride=(1, stride, stride), activation="none")


class Bottleneck(Block):
    """Tx1x1 -> 1x3x3 -> 1x1x1 with a shortcut: [N, Ci, T, H, W] -> [N, Co, T, H/stride, W/stride].

    T is `kernel`; the spatial stride and dilation are those of the 1x3x3 convolution. `shortcut` is None when
    the input is added as it is.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        step, gap = (1, stride, stride), (1, dilation, dilation)
        self.a = ConvBN(in_channels, inner_channels, (kernel, 1, 1))
        self.b = ConvBN(inner_channels, inner_channels, (1, 3, 3), stride=step, dilation=gap)
        self.c = ConvBN(inner_channels, out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    @property
    def last(self) -> ConvBN:
        """The convolution whose output the shortcut is added to."""
        return self.c

    def spec(self) -> BlockSpec:
        """The parameters as the op takes them, batch norms folded."""
        convs = (self.a, self.b, self.c, self.shortcut)
        affine: list[Any] = [None if c is None else ConvAffine(c.conv.weight, *c.folded()) for c in convs]
        a, b, c, s = affine
        return BlockSpec(a, b, c, s, self.b.conv.stride[1], self.b.conv.dilation[1])

    def forward(self, x: Tensor) -> Tensor:
        if all(c is None or c.folds for c in (self.a, self.b, self.c, self.shortcut)):
            s = self.spec()
            return ops.bottleneck3d(x, s.a, s.b, s.c, s.shortcut, stride=s.stride, dilation=s.dilation)
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.c(self.b(self.a(x)), residual)


class BasicBlock(Block):
    """Two 3x3 convolutions with a shortcut: [N, Ci, T, H, W] -> [N, Co, T, H/stride, W/stride].

    kernels: frames that the first and the second one span. (T, T) is mmaction2's BasicBlock3d, (T, 1)
    PySlowFast's basic_transform. The spatial stride is the first one's.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernels: tuple[int, int] = (1, 1), *, stride: int = 1
    ) -> None:
        super().__init__()
        self.a = ConvBN(in_channels, out_channels, (kernels[0], 3, 3), stride=(1, stride, stride))
        self.b = ConvBN(out_channels, out_channels, (kernels[1], 3, 3))
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    @property
    def last(self) -> ConvBN:
        """The convolution whose output the shortcut is added to."""
        return self.b

    def spec(self) -> BasicBlockSpec:
        """The parameters of its convolutions, batch norms folded."""
        shortcut = None if self.shortcut is None else self.shortcut.spec()
        return BasicBlockSpec(self.a.spec(), self.b.spec(), shortcut)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.b(self.a(x), residual)


class Stage(nn.Sequential):
    """Residual blocks at one resolution; the first one takes the stride and the change of width.

    kernels: temporal kernel of each block. block: "bottleneck", "basic" or "basic_transform", as in
    `PathwayConfig`.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        kernels: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        block: str = "bottleneck",
    ) -> None:
        blocks: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            channels, step = (out_channels, 1) if i else (in_channels, stride)
            if block == "bottleneck":
                blocks.append(
                    Bottleneck(channels, inner_channels, out_channels, kernel, stride=step, dilation=dilation)
                )
            else:
                second = kernel if block == "basic" else 1
                blocks.append(BasicBlock(channels, out_channels, (kernel, second), stride=step))
        super().__init__(*blocks)
