"""What can be measured: every registered op, its real SlowFast calls, its providers and its least work.

All of it comes from ``slowfast_kernels.ops``: a new op appears here by having ``cases.py`` and ``cost.py``.
"""

import contextlib
import fnmatch
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slowfast_kernels import backends, ops
from slowfast_kernels.bench.harness import DTYPES
from slowfast_kernels.ops._cases import Case, Cost, cases_of, cost_of, op_names
from slowfast_kernels.ops._registration import OPS

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
    return names + ([PACKED] if "cpu" in names and _packs(op) else [])


def runner(entry: Entry, provider: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """The public function as a callable without arguments, on one provider, without gradients."""
    function = getattr(ops, entry.op)
    backend = "cpu" if provider == PACKED else provider
    if provider != PACKED:

        def run() -> Any:
            with torch.inference_mode(), backends.use_backend(backend):
                return function(*args, **kwargs)

        return run
    memory: dict[tuple[Any, ...], Any] = {}

    def run_packed() -> Any:
        with torch.inference_mode(), backends.use_backend(backend), _packing_once(memory):
            return function(*args, **kwargs)

    return run_packed


# --- weights packed once -----------------------------------------------------------------------------------


def _cpu_modules() -> list[Any]:
    found = []
    for name in op_names():
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(f"slowfast_kernels.ops.{name}.cpu"))
    return found


def _packs(op: str) -> bool:
    """Whether the op's C++ provider packs weights at each call: its own pack, or that of the convolution."""
    try:
        module = importlib.import_module(f"slowfast_kernels.ops.{op}.cpu")
    except ImportError:
        return False
    return hasattr(module, "pack") or hasattr(getattr(module, "conv", None), "pack")


@contextlib.contextmanager
def _packing_once(memory: dict[tuple[Any, ...], Any]) -> Iterator[None]:
    """While open, the C++ providers' ``pack`` functions remember their results in ``memory``."""
    patched = [(m, m.pack) for m in _cpu_modules() if hasattr(m, "pack")]
    try:
        for module, pack in patched:
            module.pack = _remembering(pack, memory)
        yield
    finally:
        for module, pack in patched:
            module.pack = pack


def _remembering(pack: Callable[..., Any], memory: dict[tuple[Any, ...], Any]) -> Callable[..., Any]:
    def remembered(*args: Any, **kwargs: Any) -> Any:
        # The tensors stay alive in the call's arguments, so their addresses name them.
        key = (id(pack), *_addresses(args), *_addresses(tuple(kwargs.values())))
        if key not in memory:
            memory[key] = pack(*args, **kwargs)
        return memory[key]

    return remembered


def _addresses(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(v.data_ptr() if isinstance(v, Tensor) else str(v) for v in values)
