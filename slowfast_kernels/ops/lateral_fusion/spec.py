"""Parameters of ``lateral_fusion``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from .._spec import ConvAffine, Cost, Shape, Spec, as_affine, bytes_of, check_activation, check_affine
from ..conv_bn_act3d.spec import ConvSpec

#: Kinds of lateral connection; "none" is no call.
KINDS = ("conv", "time_to_channel_concat", "time_to_channel_sum", "time_sample")


@dataclass(frozen=True)
class LateralSpec(Spec):
    """Lateral connection of one of `KINDS`.

    conv: kt x 1 x 1, of kind "conv" only. alpha: frames of the Fast pathway per frame of the Slow one.
    """

    op: ClassVar[str] = "lateral_fusion"
    conv: ConvAffine | None
    alpha: int
    kind: str = "conv"
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.conv is not None:
            object.__setattr__(self, "conv", as_affine(self.conv, "conv"))

    def check(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {(*KINDS, 'none')}, got {self.kind!r}")
        check_activation(self.activation)
        if self.alpha < 1:
            raise ValueError(f"alpha: expected at least 1, got {self.alpha}")
        if (self.conv is not None) != (self.kind == "conv"):
            expected = "a tensor" if self.kind == "conv" else "None"
            raise ValueError(f"weight: expected {expected} for kind {self.kind!r}")
        if self.conv is not None:
            weight = self.conv.weight
            if weight.dim() != 5 or weight.shape[3:] != (1, 1) or weight.shape[2] % 2 == 0:
                got = tuple(weight.shape)
                raise ValueError(f"weight: expected [Cl, Cf, kt, 1, 1] with kt odd, got {got}")
            check_affine(self.conv)

    @property
    def sums(self) -> bool:
        """Whether the lateral is added to the Slow maps, rather than concatenated."""
        return self.kind == "time_to_channel_sum"

    @property
    def full(self) -> ConvSpec:
        """The convolution of kind "conv"."""
        assert self.conv is not None
        padding = (self.conv.kernel[0] // 2, 0, 0)
        return ConvSpec(self.conv, (self.alpha, 1, 1), padding, activation=self.activation)

    @property
    def groups(self) -> int:
        """Frames that become channels of one, of the other kinds."""
        return 1 if self.kind == "time_sample" else self.alpha

    def added(self, fast_channels: int) -> int:
        """Channels that the lateral adds to the Slow pathway's."""
        if self.conv is not None:
            return self.conv.weight.shape[0]
        return 0 if self.sums else self.groups * fast_channels

    def lateral_shape(self, fast: Shape) -> list[int]:
        """Shape of the lateral by itself."""
        channels = self.added(fast[1]) or self.groups * fast[1]
        return [fast[0], channels, fast[2] // self.alpha, *fast[3:]]

    def out_shape(self, *inputs: Shape) -> list[int]:
        slow, fast = inputs
        return [slow[0], slow[1] + self.added(fast[1]), *slow[2:]]

    def flops(self, *inputs: Shape) -> int:
        """Of the convolution; of the additions, for the sum."""
        lateral = math.prod(self.lateral_shape(inputs[-1]))
        if self.conv is not None:
            return 2 * lateral * self.conv.weight.shape[1] * self.conv.weight.shape[2]
        return lateral if self.sums else 0

    def cost(self, *inputs: Any) -> Cost:
        """Bytes: the Fast clip (sampling reads one frame of alpha), the weights, the lateral's channels; the Slow maps
        are read and written."""
        slow, fast = inputs
        return self.cost_in_place(slow, fast) + Cost(0, 0 if self.sums else 2 * bytes_of(slow))

    def cost_in_place(self, out: Any, fast: Any) -> Cost:
        """The same where ``out`` holds the Slow maps already: only a sum reads them."""
        moved = bytes_of(*self.tensors) + bytes_of(fast) // (self.alpha if self.kind == "time_sample" else 1)
        if self.sums:
            moved += 2 * bytes_of(out)
        else:
            moved += math.prod(self.lateral_shape(fast.shape)) * fast.dtype.itemsize
        return Cost(self.flops(fast.shape), moved)
