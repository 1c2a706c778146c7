"""What an op's ``cases.py`` is written with: calls of its public function, for tests and benchmarks.

``slowfast_kernels/ops/<op>/cases.py`` defines

    CASES: tuple[Case, ...]                 real SlowFast calls (``real=True``), small calls and edge cases
    def contract(draw: Draw) -> Contract    one small call, and changes of every argument
    def aligned_contract(draw)              the same of widths that tensor-core kernels take, where they are choosy

and ``cost.py`` defines ``cost(...) -> Cost`` with the public function's own signature.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Args = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Draw:
    """Source of a case's tensors: same seed, same values.

    dtype:  of activations and weights; per-channel vectors are always float32.
    batch:  clips of a call that does not fix its own batch.
    shrink: divides the spatial extents that a case passes through ``extent``; 1 = as in the network.
    """

    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    batch: int = 1
    shrink: int = 1
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def extent(self, n: int) -> int:
        """A spatial extent of the network, shrunk, but large enough for a 3x3 window's every position."""
        return max(min(n, 3), math.ceil(n / self.shrink))

    def normal(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        """Normally distributed values; five dimensions come in channels_last_3d memory."""
        if self.device == "meta":  # shapes only, as a cost needs them
            x = torch.empty(shape, dtype=self.dtype, device="meta")
        else:
            x = (torch.randn(shape, generator=self.generator) * std).to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x

    def weight(self, *shape: int) -> torch.Tensor:
        """Contiguous weights that keep the variance of their input: std = 1 / sqrt(fan in)."""
        return self.normal(*shape, std=max(1, math.prod(shape[1:])) ** -0.5).contiguous()

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """float32 values between two bounds: per-channel vectors, box coordinates."""
        return (torch.rand(shape, generator=self.generator) * (high - low) + low).to(self.device)

    def scale(self, n: int) -> torch.Tensor:
        """A folded batch norm's scale: of either sign, never near zero."""
        sign = torch.randint(0, 2, (n,), generator=self.generator).to(self.device) * 2 - 1
        return self.uniform(n, low=0.5, high=1.5) * sign

    def shift(self, n: int) -> torch.Tensor:
        """A folded batch norm's shift."""
        return self.uniform(n, low=-0.5, high=0.5)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Integers in [low, high)."""
        if self.device == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        return torch.randint(low, high, shape, generator=self.generator).to(self.device, dtype)


@dataclass(frozen=True)
class Case:
    """A call of an op's public function.

    name:  unique within the op; for a real layer, the layer's name.
    build: draws the call's (args, kwargs).
    real:  a call that SlowFast makes; the benchmarks run these.
    edge:  an unusual shape or value that has to be right but need not be fast.
    count: how often a SlowFast-R50 8x8 forward makes this call (0: not part of it).
    """

    name: str
    build: Callable[[Draw], Args]
    real: bool = False
    edge: bool = False
    count: int = 0

    def args(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        batch: int = 1,
        shrink: int = 1,
    ) -> Args:
        """(args, kwargs) of the public function. ``shrink`` divides a real case's height and width."""
        return self.build(Draw(seed=seed, dtype=dtype, device=device, batch=batch, shrink=shrink))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Contract:
    """One call by keyword, and what to replace in it to find out whether an argument is obeyed.

    base:    every argument of the call, by name.
    changes: argument -> replacements. Each is a dict of arguments (the named one, and any that have to go
             with it) and must change the reference's result, in shape or in values.
    """

    base: dict[str, Any]
    changes: Mapping[str, Sequence[dict[str, Any]]]


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


def bytes_of(*values: Any) -> int:
    """Bytes of tensors (None and everything else count nothing)."""
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


def op_names() -> tuple[str, ...]:
    """Names of the public ops."""
    from slowfast_kernels import ops

    return tuple(ops.__all__)


def cases_of(op: str) -> tuple[Case, ...]:
    """Every case of one op."""
    cases: tuple[Case, ...] = importlib.import_module(f"slowfast_kernels.ops.{op}.cases").CASES
    return cases


def contracts_of(op: str) -> dict[str, Callable[[Draw], Contract]]:
    """What makes the contracts of one op: "odd" widths, and "aligned" ones where some kernel takes only those."""
    cases = importlib.import_module(f"slowfast_kernels.ops.{op}.cases")
    found = {"odd": cases.contract, "aligned": getattr(cases, "aligned_contract", None)}
    return {kind: make for kind, make in found.items() if make is not None}


def cost_of(op: str, *args: Any, **kwargs: Any) -> Cost:
    """Least work of one call of an op's public function."""
    cost: Cost = importlib.import_module(f"slowfast_kernels.ops.{op}.cost").cost(*args, **kwargs)
    return cost
