"""An op with its weights prepared for one kernel: pack once, call many times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ._memory import empty_channels_last, pixel_rows

if TYPE_CHECKING:
    from ._spec import Shape, Spec

#: Memory that a call needs beside its result: shape and type.
Scratch = tuple[Sequence[int], torch.dtype]


class Prepared:
    """Weights as one kernel reads them, and the call.

    provider: who computes. op: what a profile calls it. spec: what was prepared, with tensors that have no memory.
    dtype, device: of the maps. nbytes: of the weights.
    """

    provider: ClassVar[str]
    arity: ClassVar[int] = 1  # inputs that `into` takes; those which a call leaves out are None
    any_layout: ClassVar[bool] = (
        False  # whether it reads a caller's map as it lies, of any type that the provider takes
    )

    def __init__(self, spec: Spec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec: Any = spec.map(lambda t: torch.empty_like(t, device="meta"))
        self.op, self.dtype, self.device = spec.op, dtype, device

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """The tensors that hold the weights."""
        return [v for v in vars(self).values() if isinstance(v, torch.Tensor)]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(w.numel() * w.element_size() for w in self.weights)

    def out_shape(self, *inputs: Shape) -> list[int]:
        """Shape of what `into` writes."""
        return self.spec.out_shape(*inputs)

    def flops(self, *inputs: Shape) -> int:
        """Floating-point operations of `into`."""
        return self.spec.flops(*inputs)

    def scratch(self, *inputs: Shape) -> Sequence[Scratch]:
        """Memory that `into` takes after its inputs; what it is given there may hold anything."""
        return ()

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        """One call into ``out``: the inputs, then the scratch memory. Maps lie as `pixel_rows` makes them."""
        raise NotImplementedError

    def __call__(self, *inputs: torch.Tensor | None, out: torch.Tensor | None = None) -> torch.Tensor:
        """The op on maps of this dtype and device, into ``out`` (pixels that follow one another) or new memory.

        Raises ValueError for maps of another type or on another device.
        """
        for x in inputs:
            if x is not None and (x.dtype != self.dtype or x.device != self.device):
                raise ValueError(
                    f"{self.op}: prepared for {self.dtype} on {self.device}, got {x.dtype} on {x.device}"
                )
        return self.run(*inputs, out=out)

    def run(self, *inputs: torch.Tensor | None, out: torch.Tensor | None = None) -> torch.Tensor:
        """The same, unchecked."""
        maps = [None if x is None else self.taken(x) for x in inputs]
        maps += [None] * (self.arity - len(maps))
        shapes = [x.shape for x in maps if x is not None]
        first = next(x for x in maps if x is not None)
        if out is None:
            out = empty_channels_last(first, self.out_shape(*shapes))
        more = [empty_channels_last(first, s, d) for s, d in self.scratch(*shapes)]
        self.into(out, *maps, *more)
        return out

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` as the kernel takes it."""
        return pixel_rows(x)[0]


class Reference(Prepared):
    """Plain PyTorch in the place of a kernel."""

    provider = "reference"

    def __init__(self, spec: Spec, dtype: torch.dtype, device: torch.device) -> None:
        from ._registration import OPS

        super().__init__(spec, dtype, device)
        self.kept = spec.map(
            lambda t: t.detach().to(device, dtype) if t.dim() == 5 else t.detach().to(device)
        )
        self.function = OPS[spec.op].reference
        self.arity = OPS[spec.op].arguments.index("weight") if "weight" in OPS[spec.op].arguments else 1  # type: ignore[misc]

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        return list(self.kept.tensors)

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        out.copy_(self.function(*args, self.kept))
