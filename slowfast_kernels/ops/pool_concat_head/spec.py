"""Parameters of ``pool_concat_head``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .._checks import check_vector
from .._spec import Cost, Shape, Spec, bytes_of

#: What turns logits into scores; the index is the native kernel's enumeration.
ACTIVATIONS = ("none", "softmax", "sigmoid")

#: semantics -> (pooling window, activation) of the library it is named after, at its 224 x 224 presets.
DEFAULTS: dict[str, tuple[tuple[int, int] | None, str]] = {
    "pyslowfast": ((7, 7), "softmax"),
    "pytorchvideo": ((7, 7), "none"),
    "mmaction2": (None, "none"),
}


@dataclass(frozen=True)
class HeadSpec(Spec):
    """Average pooling of both pathways, concatenation and a linear classifier.

    weight: Tensor[classes, Cs + Cf]; bias: Tensor[classes] or None. pool_size: cells of the window (height, width), or
    () for the whole map. semantics, activation: as in the public function.
    """

    op: ClassVar[str] = "pool_concat_head"
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    pool_size: tuple[int, ...] = (7, 7)
    semantics: str = "pyslowfast"
    activation: str = "softmax"

    def check(self) -> None:
        if self.semantics not in DEFAULTS:
            raise ValueError(f"semantics: expected one of {tuple(DEFAULTS)}, got {self.semantics!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {self.activation!r}")
        if self.semantics == "mmaction2" and self.pool_size:
            raise ValueError(
                f"pool_size: expected None, mmaction2 averages the whole map, got {self.pool_size}"
            )
        if self.weight.dim() != 2:
            raise ValueError(f"weight: expected [classes, channels], got {tuple(self.weight.shape)}")
        check_vector(self.bias, self.weight.shape[0], "bias")

    @property
    def per_position(self) -> bool:
        """Whether the activation acts on every position of the window, before their mean."""
        return self.semantics == "pyslowfast"

    def windows(self, slow: Shape) -> int:
        """Positions of the window on a map of this shape."""
        if not self.pool_size:
            return 1
        return (slow[3] - self.pool_size[0] + 1) * (slow[4] - self.pool_size[1] + 1)

    def out_shape(self, *inputs: Shape) -> list[int]:
        return [inputs[0][0], self.weight.shape[0]]

    def flops(self, *inputs: Shape) -> int:
        """An addition per value of the maps, a multiply-add per weight and window; where the mean comes before the
        activation, one window's products are enough. The activation is not counted."""
        positions = self.windows(inputs[0]) if self.per_position else 1
        values = sum(torch.Size(x).numel() for x in inputs)
        return values + 2 * inputs[0][0] * positions * torch.Size(self.weight.shape).numel()

    def cost(self, *inputs: Any) -> Cost:
        shapes = [x.shape for x in inputs if x is not None]
        written = torch.Size(self.out_shape(*shapes)).numel() * max(4, inputs[0].dtype.itemsize)
        return Cost(self.flops(*shapes), bytes_of(*inputs, *self.tensors) + written)
