"""Parameters of ``conv_bn_act3d``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .._spec import ConvAffine, Shape, Spec, Triple, as_affine, as_triple, check_activation, check_affine


def output_shape(x: Shape, weight: Shape, stride: Shape, padding: Shape, dilation: Shape) -> list[int]:
    """[N, Cout, To, Ho, Wo] of a convolution."""
    extents = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x[2:], weight[2:], stride, padding, dilation, strict=True)
    ]
    return [x[0], weight[0], *extents]


@dataclass(frozen=True)
class ConvSpec(Spec):
    """3-D convolution, per-channel affine, activation; a residual, where a call has one, is added before it.

    stride, padding, dilation: an int or three (time, height, width), in frames and pixels.
    activation: one of `ACTIVATIONS`.
    """

    op: ClassVar[str] = "conv_bn_act3d"
    conv: ConvAffine
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    groups: int = 1
    activation: str = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "conv", as_affine(self.conv, "conv"))
        for name in ("stride", "padding", "dilation"):
            object.__setattr__(self, name, as_triple(getattr(self, name), name))

    def check(self) -> None:
        check_affine(self.conv)
        check_activation(self.activation)
        s, p, d = self.stride, self.padding, self.dilation
        if min(s) < 1 or min(d) < 1 or min(p) < 0:
            raise ValueError(f"expected stride and dilation >= 1 and padding >= 0, got {s}, {d} and {p}")
        if self.groups < 1 or self.conv.weight.shape[0] % self.groups:
            cout = self.conv.weight.shape[0]
            raise ValueError(f"groups: expected a divisor of the {cout} output channels, got {self.groups}")

    @property
    def relu(self) -> bool:
        """Whether the kernels, which know no other activation, clamp at zero."""
        return self.activation == "relu"

    @property
    def point(self) -> bool:
        """Whether it is a 1x1x1 convolution without padding."""
        return self.conv.kernel == (1, 1, 1) and not any(self.padding)

    def out_shape(self, *inputs: Shape) -> list[int]:
        return output_shape(inputs[0], self.conv.weight.shape, self.stride, self.padding, self.dilation)

    def flops(self, *inputs: Shape) -> int:
        """Taps in the padding counted, as everybody does."""
        return 2 * math.prod(self.out_shape(*inputs)) * math.prod(self.conv.weight.shape[1:])


def beyond_kernels(spec: ConvSpec, who: str) -> str | None:
    """Why kernels that take one group and no activation but the ReLU cannot compute it, or None."""
    if spec.groups != 1:
        return f"the convolution has {spec.groups} groups, the {who} kernels take 1"
    if spec.activation not in ("none", "relu"):
        return f"the activation is {spec.activation}, the {who} kernels have none and relu"
    return None
