"""What an op's ``cases.py`` is written with: calls of its public function, for tests and benchmarks.

``slowfast_kernels/ops/<op>/cases.py`` defines

    CASES: tuple[Case, ...]                 real SlowFast calls (``real=True``), small calls and edge cases
    def contract(draw: Draw) -> Contract    one small call, and changes of every argument
    def aligned_contract(draw)              the same of widths that tensor-core kernels take, where they are choosy
    REFUSED: tuple[Refused, ...]            which of all these calls a provider does not take, and what it says
    def errors() -> Errors                  calls whose arguments do not fit one another, and what is said of them

The tests find every op by these: a new op is tested by having them.

A call's least work is its spec's (`Spec.cost`).
"""

from __future__ import annotations

import fnmatch
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ._registration import OPS, RecordCalls
from ._spec import ConvAffine, Cost, bytes_of

__all__ = [
    "Args",
    "Case",
    "Contract",
    "Cost",
    "Draw",
    "Errors",
    "Refused",
    "bytes_of",
    "call_of",
    "cases_of",
    "contracts_of",
    "cost_of",
    "errors_of",
    "op_names",
    "reduction_of",
    "refused_activations",
    "refused_of",
    "refused_types",
]

Args = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Draw:
    """Source of a case's tensors: same seed, same values.

    dtype:  of activations and weights; per-channel vectors are always float32.
    batch:  clips of a call that does not fix its own batch.
    shrink: divides the spatial extents that a case passes through ``extent``; 1 = as in the network.
    most:   of what a case passes through ``few``, for simulated devices; None = as many as in the network.
    """

    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    batch: int = 1
    shrink: int = 1
    most: int | None = None
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def extent(self, n: int) -> int:
        """A spatial extent of the network, shrunk, but large enough for a 3x3 window's every position."""
        return max(min(n, 3), math.ceil(n / self.shrink))

    def map(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one clip's map in the network, of this batch and shrunk."""
        _, channels, frames, height, width = shape
        return self.batch, channels, frames, self.extent(height), self.extent(width)

    def few(self, n: int) -> int:
        """A number of frames, boxes or classes that changes nothing but the time it takes."""
        return n if self.most is None else min(n, self.most)

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
    reduction: products of a sum, for its tolerance; by default those of the longest convolution, see `reduction_of`.
    gradient: most relative error of a float32 gradient; None where there is none, as of a call that writes into `out`.
    """

    name: str
    build: Callable[[Draw], Args]
    real: bool = False
    edge: bool = False
    count: int = 0
    reduction: int | None = None
    gradient: float | None = 1e-5

    def args(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        batch: int = 1,
        shrink: int = 1,
        most: int | None = None,
    ) -> Args:
        """(args, kwargs) of the public function. ``shrink`` divides a real case's height and width."""
        return self.build(Draw(seed=seed, dtype=dtype, device=device, batch=batch, shrink=shrink, most=most))

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
class Refused:
    """Calls that a provider does not take, and the sentence that it says ("{dtype}" is the type's name).

    calls:  patterns of cases' names, and of contracts' changes ("odd, stride #0"; see `fnmatch`).
    dtypes: of the activations; every type where empty.
    """

    provider: str
    sentence: str
    calls: tuple[str, ...] = ("*",)
    dtypes: tuple[torch.dtype, ...] = ()

    def fits(self, provider: str, call: str, dtype: torch.dtype) -> bool:
        """Whether it is about this call."""
        return (
            provider == self.provider
            and (not self.dtypes or dtype in self.dtypes)
            and any(fnmatch.fnmatchcase(call, pattern) for pattern in self.calls)
        )


def refused_types(provider: str, kernels: str, *taken: torch.dtype) -> Refused:
    """The maps' types that kernels do not take."""
    *names, last = (str(d).removeprefix("torch.") for d in taken)
    every = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    sentence = f"the maps are {{dtype}}, the {kernels} kernels take {', '.join(names)} and {last}"
    return Refused(provider, sentence, dtypes=tuple(d for d in every if d not in taken))


def refused_activations(provider: str, kernels: str, **calls: tuple[str, ...]) -> tuple[Refused, ...]:
    """The activations that kernels do not have, and the calls that have them."""
    return tuple(
        Refused(provider, f"the activation is {name}, the {kernels} kernels have none and relu", patterns)
        for name, patterns in calls.items()
    )


def refused_of(op: str, provider: str, call: str, dtype: torch.dtype) -> str | None:
    """What a provider says to a call that it does not take (the first that fits in ``REFUSED``), else None."""
    cases = importlib.import_module(f"slowfast_kernels.ops.{op}.cases")
    said = next((r.sentence for r in cases.REFUSED if r.fits(provider, call, dtype)), None)
    return None if said is None else said.replace("{dtype}", str(dtype).removeprefix("torch."))


def call_of(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any], Any] | None:
    """(Op, inputs, spec) of a public function's call, or None where there is nothing to compute."""
    from slowfast_kernels import ops

    with RecordCalls(run=False) as record, torch.no_grad():
        getattr(ops, op)(*args, **kwargs)
    if not record.calls:
        return None
    name, values = record.calls[0]
    *inputs, spec = OPS[name].split(values)
    return OPS[name], inputs, spec


def reduction_of(op: str, case: Case) -> int:
    """Products of the longest sum behind a value of the result."""
    if case.reduction is not None:
        return case.reduction
    args, kwargs = case.args(device="meta", shrink=1000)
    call = call_of(op, args, kwargs)
    weights = [] if call is None else [t for t in call[2].tensors if t.dim() > 1]
    return max((math.prod(w.shape[1:]) for w in weights), default=1)


@dataclass(frozen=True)
class Errors:
    """Calls whose arguments do not fit one another.

    base:  one that does fit, by keyword.
    wrong: name -> what to replace in it, and the pattern of the ValueError. "a.weight" is a part of a `ConvAffine`.
    """

    base: dict[str, Any]
    wrong: Mapping[str, tuple[dict[str, Any], str]]

    def call(self, name: str) -> dict[str, Any]:
        """The arguments of a wrong call."""
        found = dict(self.base)
        for key, value in self.wrong[name][0].items():
            if isinstance(value, torch.Tensor) and value.dim() == 5:
                value = value.contiguous(memory_format=torch.channels_last_3d)
            argument, _, part = key.partition(".")
            old = found.get(argument) or ConvAffine(torch.empty(0)) if part else None
            found[argument] = old._replace(**{part: value}) if old is not None else value
        return found


def errors_of(op: str) -> Errors:
    """The wrong calls of one op."""
    return importlib.import_module(f"slowfast_kernels.ops.{op}.cases").errors()


def op_names() -> tuple[str, ...]:
    """Names of the public ops."""
    from slowfast_kernels import ops

    return ops.NAMES


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
    call = call_of(op, args, kwargs)
    if call is None:  # a lateral connection of kind "none"
        return Cost(0, 0)
    called, inputs, spec = call
    return called.cost(*inputs, spec)
