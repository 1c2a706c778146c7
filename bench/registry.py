"""What can be measured: every registered op, its real SlowFast calls, its providers and its least work.

All of it comes from ``slowfast_kernels.ops``: a new op appears here by having ``cases.py``.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from slowfast_kernels import backends, ops
from slowfast_kernels.bench.harness import DTYPES
from slowfast_kernels.ops._cases import Case, Cost, call_of, cases_of, cost_of, op_names
from slowfast_kernels.ops._registration import OPS, has_convolutions

#: The C++ provider with weights packed beforehand, as a frozen model holds them.
PACKED = "cpu_packed"


@dataclass(frozen=True)
class Entry:
    """A call to measure."""

    op: str
    case: Case
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.op}/{self.case.name}"

    def arguments(self, seed: int = 0, shrink: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the public function, freshly drawn."""
        return self.case.args(seed=seed, dtype=DTYPES[self.dtype], shrink=shrink)

    def cost(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cost:
        """Floating-point operations and least bytes of the call."""
        return cost_of(self.op, *args, **kwargs)

    def about(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the record of a call says of it."""
        cost = self.cost(args, kwargs)
        work = {"count": self.case.count, "flops": cost.flops, "bytes": cost.bytes}
        return {"op": self.op, "case": self.case.name, "dtype": self.dtype, **work}


def entries(op: str | None = None, case: str | None = None, dtype: str = "fp32") -> list[Entry]:
    """Real calls of the ops that match the patterns (shell style, comma-separated; None = all)."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    known = op_names()
    wanted = [name for name in known if matches(name, op)]
    if not wanted:
        raise ValueError(f"op: expected a name or pattern among {', '.join(known)}, got {op!r}")
    found = [
        Entry(name, c, dtype) for name in wanted for c in cases_of(name) if c.real and matches(c.name, case)
    ]
    if not found:
        names = ", ".join(c.name for name in wanted for c in cases_of(name) if c.real)
        raise ValueError(f"case: expected a name or pattern among {names}, got {case!r}")
    return found


def matches(name: str, patterns: str | None) -> bool:
    """Whether a name fits one of the patterns (shell style, comma-separated; None = all)."""
    return patterns is None or any(fnmatch.fnmatch(name, p.strip()) for p in patterns.split(","))


def providers(op: str) -> list[str]:
    """Providers of an op that this machine can run at all; not simulated ones, whose times say nothing."""

    def runs(name: str) -> bool:
        return name == "reference" or (backends.unavailable(name) is None and not backends.simulated(name))

    names = [n for n in OPS[op].providers if runs(n)]
    return names + ([PACKED] if "cpu" in names and prepares(op) else [])


def prepares(op: str) -> bool:
    """Whether the op has weights that a provider brings into its kernels' order."""
    return has_convolutions(OPS[op].spec)


def runner(entry: Entry, provider: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """The public function as a callable without arguments, on one provider, without gradients."""
    if provider == PACKED:
        return prepared(entry, "cpu", args, kwargs)
    function = getattr(ops, entry.op)

    def run() -> Any:
        with torch.inference_mode(), backends.use_backend(provider):
            return function(*args, **kwargs)

    return run


def prepared(entry: Entry, provider: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """The same with weights prepared beforehand, as a frozen model holds them; of ops that have none, the function."""
    if not prepares(entry.op):
        return runner(entry, provider, args, kwargs)
    call = call_of(entry.op, args, kwargs)
    assert call is not None
    called, inputs, spec = call
    with backends.use_backend(provider):
        op: Any = ops.prepare(spec, inputs[0].dtype, inputs[0].device)

    def run() -> Any:
        with torch.inference_mode():
            return op(*inputs) if called.name == entry.op else op.in_place(*inputs)

    return run
