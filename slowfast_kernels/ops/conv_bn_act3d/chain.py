"""A residual block as the convolutions that it is made of, each a kernel of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .._prepared import Prepared
from .._spec import Shape


class ConvChain(Prepared):
    """Convolutions one after another; to the last the block's input is added, or a 1x1x1 convolution of it, which is
    part of the last one's weights.

    prepare: of a convolution, with the projection as `shortcut` for the last.
    """

    provider = "convolutions"

    def __init__(self, spec: Any, prepare: Callable[..., Prepared]) -> None:
        self.inner = [prepare(conv) for conv in spec.inner]
        self.last = prepare(spec.last, shortcut=spec.projection)
        self.shortcut = spec.projection is not None
        super().__init__(spec, self.last.dtype, self.last.device)

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        return [w for conv in (*self.inner, self.last) for w in conv.weights]

    def inner_shapes(self, x: Shape) -> list[list[int]]:
        """Shapes of the results of all convolutions but the last."""
        found: list[list[int]] = []
        for conv in self.inner:
            found.append(conv.out_shape(found[-1] if found else x))
        return found

    def into(self, out: torch.Tensor, *args: Any) -> torch.Tensor:
        y = x = args[0]
        for conv in self.inner:
            y = conv.run(y)
        residual, second = (None, x) if self.shortcut else (x, None)
        return self.last.run(y, residual, second, out=out)

    @property
    def temporal(self) -> bool:
        """Whether a convolution looks at other frames."""
        return any(conv.spec.conv.kernel[0] > 1 for conv in (*self.inner, self.last))
