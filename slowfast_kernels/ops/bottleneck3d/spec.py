"""Parameters of ``bottleneck3d``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from .._spec import ConvAffine, Shape, Spec, as_affine, check_affine
from ..conv_bn_act3d.spec import ConvSpec


@dataclass(frozen=True)
class BlockSpec(Spec):
    """Residual bottleneck block: a (kt x 1 x 1), b (1 x 3 x 3), c (1 x 1 x 1), ReLUs, and the shortcut around them.

    shortcut: a 1 x 1 x 1 convolution, or None for the identity. stride: in space, of b and of the shortcut. dilation:
    in space, of b.
    """

    op: ClassVar[str] = "bottleneck3d"
    a: ConvAffine
    b: ConvAffine
    c: ConvAffine
    shortcut: ConvAffine | None = None
    stride: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        for name in ("a", "b", "c", "shortcut"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else as_affine(value, name))

    def check(self) -> None:
        cin, cmid, cout = self.a.weight.shape[1], self.a.weight.shape[0], self.c.weight.shape[0]
        kt = self.a.weight.shape[2] if self.a.weight.dim() == 5 else 1
        expected = {
            "a": (cmid, cin, kt, 1, 1),
            "b": (cmid, cmid, 1, 3, 3),
            "c": (cout, cmid, 1, 1, 1),
            "shortcut": (cout, cin, 1, 1, 1),
        }
        for name, shape in expected.items():
            conv: ConvAffine | None = getattr(self, name)
            if conv is None:
                continue
            if tuple(conv.weight.shape) != shape:
                raise ValueError(f"weight_{name}: expected shape {shape}, got {tuple(conv.weight.shape)}")
            check_affine(conv, name)
        if kt % 2 == 0:
            raise ValueError(f"weight_a: expected an odd temporal kernel, got {kt}")
        if self.stride < 1 or self.dilation < 1:
            raise ValueError(f"expected stride and dilation >= 1, got {self.stride} and {self.dilation}")
        if self.shortcut is None:
            if cin != cout:
                raise ValueError(
                    f"an identity shortcut needs as many channels behind the block as before it, got {cin} (weight_a) "
                    f"and {cout} (weight_c) and no shortcut"
                )
            if self.stride != 1:
                raise ValueError(
                    f"an identity shortcut needs stride 1, got stride {self.stride} and no shortcut"
                )

    @property
    def inner(self) -> tuple[ConvSpec, ConvSpec]:
        """conv_a and conv_b."""
        s, d = self.stride, self.dilation
        around = (self.a.kernel[0] // 2, 0, 0)
        return ConvSpec(self.a, padding=around), ConvSpec(self.b, (1, s, s), (0, d, d), (1, d, d))

    @property
    def last(self) -> ConvSpec:
        """conv_c, to whose sums the shortcut is added."""
        return ConvSpec(self.c)

    @property
    def projection(self) -> ConvSpec | None:
        """The shortcut's convolution, or None for the identity."""
        s = self.stride
        return None if self.shortcut is None else ConvSpec(self.shortcut, (1, s, s), activation="none")

    def out_shape(self, *inputs: Shape) -> list[int]:
        n, _, t, h, w = inputs[0]
        return [n, self.c.weight.shape[0], t, (h - 1) // self.stride + 1, (w - 1) // self.stride + 1]

    def flops(self, *inputs: Shape) -> int:
        """Of the convolutions."""
        total, x = 0, inputs[0]
        for conv in (*self.inner, self.last):
            total += conv.flops(x)
            x = conv.out_shape(x)
        return total + (self.projection.flops(inputs[0]) if self.projection else 0)


@dataclass(frozen=True)
class BasicBlockSpec(Spec):
    """Residual block of two k x 3 x 3 convolutions; no op of its own, it runs as its convolutions.

    a, last: the convolutions. projection: the shortcut's, or None for the identity.
    """

    op: ClassVar[str] = "basic_block"
    a: ConvSpec
    last: ConvSpec
    projection: ConvSpec | None = None

    @property
    def inner(self) -> tuple[ConvSpec, ...]:
        """All convolutions but the last."""
        return (self.a,)

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> BasicBlockSpec:
        projection = None if self.projection is None else self.projection.map(fn)
        return BasicBlockSpec(self.a.map(fn), self.last.map(fn), projection)

    def out_shape(self, *inputs: Shape) -> list[int]:
        return self.last.out_shape(self.a.out_shape(*inputs))

    def flops(self, *inputs: Shape) -> int:
        total = self.a.flops(*inputs) + self.last.flops(self.a.out_shape(*inputs))
        return total + (self.projection.flops(*inputs) if self.projection else 0)
