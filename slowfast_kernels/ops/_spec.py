"""What an op does apart from its maps, as one value: its `Spec`.

The public function, the reference, the cost, the refusals, preparation and every provider take it; the flat
arguments of the registered op follow from its fields, once (`Spec.arguments`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch

Triple = tuple[int, int, int]
Shape = Sequence[int]

#: What may follow a convolution. The kernels have the first two; the reference has all.
ACTIVATIONS = ("none", "relu", "silu", "hardswish", "sigmoid")


class ConvAffine(NamedTuple):
    """A convolution's weight with the affine behind it, as a folded batch norm is.

    weight: Tensor[Co, Ci / groups, kt, kh, kw]; scale, shift: Tensor[Co] or None (1 and 0).
    """

    weight: torch.Tensor
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    @property
    def kernel(self) -> Triple:
        """(kt, kh, kw)."""
        kt, kh, kw = self.weight.shape[2:]
        return kt, kh, kw

    def folded(self) -> torch.Tensor:
        """The weight in float32, times the scale."""
        weight = self.weight.detach().float()
        if self.scale is None:
            return weight
        return weight * self.scale.detach().float().view(-1, 1, 1, 1, 1)


class Pool(NamedTuple):
    """A max-pool: window, stride and padding in frames, rows and columns. NaN passes as in PyTorch."""

    kernel: Triple = (1, 3, 3)
    stride: Triple = (1, 2, 2)
    padding: Triple = (0, 1, 1)

    def out_shape(self, x: Shape) -> list[int]:
        """[N, C, To, Ho, Wo]."""
        axes = zip(x[2:], self.kernel, self.stride, self.padding, strict=True)
        return [x[0], x[1], *((n + 2 * p - k) // s + 1 for n, k, s, p in axes)]


class Map(Protocol):
    """What has a shape and a type: a tensor, or a place in a plan's memory."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Cost:
    """What a call needs at least: the roofline's two numbers.

    flops:  floating-point operations, a multiply-add counting as two.
    bytes:  every input read once and every output written once.
    """

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def bytes_of(*values: Map | None) -> int:
    """Bytes of maps; None counts nothing."""
    return sum(math.prod(v.shape) * v.dtype.itemsize for v in values if v is not None)


#: Type of a field -> type of its argument in the schema; a `ConvAffine` is three arguments, a `Pool` three as well.
_TYPES = {
    "torch.Tensor": "Tensor",
    "torch.Tensor | None": "Tensor?",
    "Triple": "int[3]",
    "tuple[int, ...]": "SymInt[]",
    "tuple[float, ...]": "float[]",
    "torch.dtype": "ScalarType",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
}


class Spec:
    """Parameters and settings of an op; every op's is a frozen dataclass of its own.

    op: name of the op. Fields are `ConvAffine`, `Pool`, tensors and plain values; the annotations are the schema.
    """

    op: ClassVar[str]
    layout: ClassVar[tuple[tuple[str, str], ...]]  # (name, type) of the fields

    def __init_subclass__(cls) -> None:
        fields = inspect.get_annotations(cls).items()
        cls.layout = tuple((name, kind) for name, kind in fields if not kind.startswith("ClassVar"))

    @classmethod
    def arguments(cls) -> list[str]:
        """The schema's arguments: "Tensor weight_a", "int stride"."""
        found = []
        for name, kind in cls.layout:
            optional = kind.endswith("| None")
            if kind.startswith("ConvAffine"):
                tail = "" if name == "conv" else f"_{name}"
                found += [
                    f"Tensor{'?' * optional} weight{tail}",
                    f"Tensor? scale{tail}",
                    f"Tensor? shift{tail}",
                ]
            elif kind.startswith("Pool"):
                found += [f"int[] {name}_{part}" for part in Pool._fields]
            else:
                found.append(f"{_TYPES[kind]} {name}")
        return found

    def flat(self) -> list[Any]:
        """The values of `arguments`."""
        found: list[Any] = []
        for name, kind in self.layout:
            value = getattr(self, name)
            if kind.startswith("ConvAffine"):
                found.extend((None, None, None) if value is None else value)
            elif kind.startswith("Pool"):
                found.extend(((), (), ()) if value is None else value)
            else:
                found.append(value)
        return found

    @classmethod
    def from_flat(cls, values: Sequence[Any]) -> Self:
        """The inverse of `flat`."""
        given = iter(values)
        found: list[Any] = []
        for _, kind in cls.layout:
            value = next(given)
            if kind.startswith("ConvAffine"):
                affine = ConvAffine(value, next(given), next(given))
                found.append(None if value is None else affine)
            elif kind.startswith("Pool"):
                pool = (tuple(value), tuple(next(given)), tuple(next(given)))
                found.append(Pool(*pool) if pool[0] else None)
            else:
                found.append(tuple(value) if isinstance(value, list) else value)
        return cls(*found)

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same with every tensor replaced by what ``fn`` makes of it."""
        return self.from_flat([fn(v) if isinstance(v, torch.Tensor) else v for v in self.flat()])

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors in it."""
        return (v for v in self.flat() if isinstance(v, torch.Tensor))

    def check(self) -> None:
        """Raises ValueError where the parameters do not fit one another."""

    def out_shape(self, *inputs: Shape) -> list[int]:
        """Shape of the result for inputs of these shapes."""
        raise NotImplementedError

    def flops(self, *inputs: Shape) -> int:
        """Floating-point operations for inputs of these shapes, a multiply-add counting as two."""
        raise NotImplementedError

    def cost(self, *inputs: Any) -> Cost:
        """Least work of a call; inputs are tensors, or None where a call has none."""
        first = inputs[0]
        shapes = [x.shape for x in inputs if x is not None]
        written = math.prod(self.out_shape(*shapes)) * first.dtype.itemsize
        return Cost(self.flops(*shapes), bytes_of(*inputs, *self.tensors) + written)


def as_triple(value: int | Sequence[int], name: str) -> Triple:
    """An int or three ints (time, height, width) as three."""
    if isinstance(value, int):
        return value, value, value
    if len(value) != 3:
        raise ValueError(f"{name}: expected an int or three ints (time, height, width), got {tuple(value)}")
    return int(value[0]), int(value[1]), int(value[2])


def as_affine(value: ConvAffine | Sequence[torch.Tensor | None] | torch.Tensor, name: str) -> ConvAffine:
    """A weight, or (weight, scale, shift), as a `ConvAffine`."""
    if isinstance(value, ConvAffine):
        return value
    parts = (value,) if isinstance(value, torch.Tensor) else value
    if (
        not isinstance(parts, (tuple, list))
        or not 1 <= len(parts) <= 3
        or not isinstance(parts[0], torch.Tensor)
        or not all(p is None or isinstance(p, torch.Tensor) for p in parts)
    ):
        raise ValueError(f"{name}: expected a weight or (weight, scale, shift), got {_described(value)}")
    return ConvAffine(*parts)


def _described(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type(v).__name__ for v in value)})"
    return type(value).__name__


def check_affine(conv: ConvAffine, name: str = "") -> None:
    """Raises ValueError unless the weight has five dimensions and scale and shift its channels."""
    from ._checks import check_vector

    tail = f"_{name}" if name else ""
    if conv.weight.dim() != 5:
        raise ValueError(
            f"weight{tail}: expected [Cout, Cin, kt, kh, kw], got shape {tuple(conv.weight.shape)}"
        )
    check_vector(conv.scale, conv.weight.shape[0], f"scale{tail}")
    check_vector(conv.shift, conv.weight.shape[0], f"shift{tail}")


def check_activation(activation: str) -> None:
    """Raises ValueError for what is none of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
