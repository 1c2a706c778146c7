"""Parameters of ``stem3d``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .._spec import (
    ConvAffine,
    Pool,
    Shape,
    Spec,
    Triple,
    as_affine,
    as_triple,
    check_activation,
    check_affine,
)
from ..conv_bn_act3d.spec import ConvSpec


@dataclass(frozen=True)
class StemSpec(Spec):
    """First layer of a pathway: convolution padded by half its kernel, affine, activation, max-pool.

    stride: of the convolution, an int or three (time, height, width). pool: None for none.
    """

    op: ClassVar[str] = "stem3d"
    conv: ConvAffine
    stride: Triple = (1, 2, 2)
    activation: str = "relu"
    pool: Pool | None = Pool()  # noqa: RUF009  (a NamedTuple does not change)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conv", as_affine(self.conv, "conv"))
        object.__setattr__(self, "stride", as_triple(self.stride, "stride"))

    def check(self) -> None:
        check_affine(self.conv)
        check_activation(self.activation)
        if any(k % 2 == 0 for k in self.conv.kernel):
            got = tuple(self.conv.weight.shape)
            raise ValueError(f"weight: expected [Cout, Cin, kt, kh, kw] with odd kernel extents, got {got}")
        if min(self.stride) < 1:
            raise ValueError(f"stride: expected at least 1 along every axis, got {self.stride}")

    @property
    def full(self) -> ConvSpec:
        """The convolution with affine and activation."""
        kt, kh, kw = self.conv.kernel
        padding = (kt // 2, kh // 2, kw // 2)
        return ConvSpec(self.conv, self.stride, padding, activation=self.activation)

    @property
    def relu(self) -> bool:
        """Whether the kernels, which know no other activation, clamp at zero."""
        return self.activation == "relu"

    def out_shape(self, *inputs: Shape) -> list[int]:
        full = self.full.out_shape(*inputs)
        return full if self.pool is None else self.pool.out_shape(full)

    def flops(self, *inputs: Shape) -> int:
        return 2 * math.prod(self.full.out_shape(*inputs)) * math.prod(self.conv.weight.shape[1:])


def beyond_pool(spec: StemSpec, who: str) -> str | None:
    """Why kernels that know the stem's own pool only cannot compute it, or None."""
    if spec.pool not in (None, Pool()):
        return f"the pool is {tuple(spec.pool)}, the {who} kernels have {tuple(Pool())} or none"
    return None
