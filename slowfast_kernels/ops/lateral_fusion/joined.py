"""What the prepared lateral connections share: where the lateral goes."""

from __future__ import annotations

from typing import ClassVar

import torch

from .._memory import empty_channels_last
from .._prepared import Prepared
from .._spec import Shape
from .spec import LateralSpec


class Lateral(Prepared):
    """A lateral connection. `into` writes the lateral's channels alone: of Fast maps; the Slow maps to which a sum is
    added come second, and may lie where the sum goes."""

    arity: ClassVar[int] = 2
    spec: LateralSpec

    def out_shape(self, *inputs: Shape) -> list[int]:
        return self.spec.lateral_shape(inputs[0])

    def flops(self, *inputs: Shape) -> int:
        return self.spec.flops(inputs[0])

    def bring(self, slow: torch.Tensor, out: torch.Tensor) -> None:
        """The Slow maps into their channels."""
        out.copy_(slow)

    def run(self, *inputs: torch.Tensor | None, out: torch.Tensor | None = None) -> torch.Tensor:
        """(slow, fast) -> fused, new."""
        slow, fast = inputs
        assert slow is not None and fast is not None and out is None
        fused = empty_channels_last(slow, self.spec.out_shape(slow.shape, fast.shape))
        if self.spec.sums:
            self.into(fused, self.taken(fast), self.taken(slow))
        else:
            self.bring(slow, fused[:, : slow.shape[1]])
            self.into(fused[:, slow.shape[1] :], self.taken(fast), None)
        return fused

    def in_place(self, fused: torch.Tensor, fast: torch.Tensor) -> None:
        """``fused`` holds the Slow maps in its first channels."""
        if self.spec.sums:
            self.into(fused, self.taken(fast), fused)
        else:
            self.into(fused[:, fused.shape[1] - self.spec.added(fast.shape[1]) :], self.taken(fast), None)
