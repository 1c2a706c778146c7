"""Providers: who computes an op, how one is chosen, and how a choice is forced.

Every op has up to four providers: ``reference`` (plain PyTorch, everywhere), ``cpu`` (C++), ``triton`` and
``cuda``. In ``auto`` the first provider of the device's order that can run the call does; a provider that was
asked for by name never falls back: the call fails with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import _extension
from ._extension import cpu_isa, cpu_isa_found, set_cpu_isa

if TYPE_CHECKING:
    from .ops._prepared import Prepared
    from .ops._spec import Spec

__all__ = ["NAMES", "Provider", "choose", "choose_prepared", "cpu_isa", "cpu_isa_found", "current", "force_cpu_isa",
           "home", "lazy", "set_cpu_isa", "simulated", "unavailable", "use_backend"]  # fmt: skip

NAMES = ("reference", "cpu", "triton", "cuda")
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


@dataclass(frozen=True)
class Provider:
    """One implementation of an op. Its functions take the op's inputs, then its spec.

    run:     computes a call.
    refuses: says in a sentence why it cannot run this call, or None when it can.
    prepare: spec, dtype, device, once=False -> `Prepared`, of ops that have weights. once: for one call, so that what
             costs more than it saves in one is left out.
    cannot:  spec, dtype -> why it cannot be prepared for that, or None.
    """

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = lambda *args: None
    prepare: Callable[..., Prepared] | None = None
    cannot: Callable[..., str | None] = lambda *args: None


def lazy(package: str, module: str, suffix: str = "") -> Provider:
    """Provider whose module is imported when it is first asked.

    Of the module: ``run``, or ``prepare`` of an op with weights; ``cannot`` and, where shapes matter,
    ``refuses_shapes(spec, shape of the first map)``, or ``refuses``. With a ``suffix``, ``run<suffix>``.
    """

    def found(name: str) -> Any:
        return getattr(importlib.import_module(f".{module}", package), name, None)

    def run(*args: Any) -> Any:
        own = found("run" + suffix)
        if own is not None:
            return own(*args)
        *inputs, spec = args
        return found("prepare")(spec, inputs[0].dtype, inputs[0].device, once=True).run(*inputs)

    def refuses(*args: Any) -> str | None:
        own = found("refuses")
        if own is not None:
            return own(*args)
        *inputs, spec = args
        reason = _unlike(inputs, spec) or found("cannot")(spec, inputs[0].dtype)
        shapes = found("refuses_shapes")
        return reason or (shapes(spec, inputs[0].shape) if shapes else None)

    return Provider(
        run,
        refuses,
        lambda *args, **kwargs: found("prepare")(*args, **kwargs),
        lambda *args: found("cannot")(*args),
    )


def _unlike(inputs: Sequence[Any], spec: Spec) -> str | None:
    """Which map or weight is of another type than the first map."""
    dtype = inputs[0].dtype
    named = [("a map", x) for x in inputs[1:]] + [("a weight", t) for t in spec.tensors]
    for name, x in named:
        if isinstance(x, torch.Tensor) and x.dim() == 5 and x.dtype != dtype:
            return f"{name} is {x.dtype}, the first map {dtype}"
    return None


def _from_environment() -> str:
    name = os.environ.get("SLOWFAST_BACKEND", "auto")
    if name not in (*NAMES, "auto"):
        raise ValueError(f"SLOWFAST_BACKEND: expected one of {('auto', *NAMES)}, got {name!r}")
    return name


_asked_from_start = _from_environment()
_current: ContextVar[str] = ContextVar("slowfast_backend", default=_asked_from_start)


def current() -> str:
    """Name of the provider asked for in this context, or "auto"."""
    return _current.get()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute every op inside the block with one provider: "reference", "cpu", "triton", "cuda" or "auto".

    A provider asked for by name never falls back silently: an op it cannot run raises RuntimeError. A frozen model
    keeps the provider that it was frozen under: a call of it inside the block of another one raises RuntimeError.

    The choice is the caller's context's (contextvars), as PyTorch's own modes are its thread's. Threads of a pool start
    without it: `pool.submit(contextvars.copy_context().run, function, *args)` takes it along, and the environment
    variable SLOWFAST_BACKEND is the choice that all threads and processes start with.
    """
    if name not in (*NAMES, "auto"):
        raise ValueError(f"expected a backend among {('auto', *NAMES)}, got {name!r}")
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def force_cpu_isa(name: str) -> Iterator[None]:
    """Run the CPU kernels on one instruction set inside the block (process-wide: for tests and studies)."""
    before = cpu_isa()
    set_cpu_isa(name)
    try:
        yield
    finally:
        set_cpu_isa(before)


def home(name: str) -> str:
    """Device type of the tensors that a provider takes; the reference takes any."""
    return "cuda" if name in ("triton", "cuda") and not simulated(name) else "cpu"


def unavailable(name: str) -> str | None:
    """Why a provider cannot run on this machine at all, or None when it can."""
    if name == "cpu":
        return _extension.cpu_missing
    if name == "triton":
        return _triton_missing()
    if name == "cuda":
        return _extension.cuda_missing()
    return None


_as_on_gpu: ContextVar[bool] = ContextVar("slowfast_as_on_gpu", default=False)


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Inside the block tiles are chosen as on a GPU, even where an interpreter or an emulator plays one: for launches
    that are noted and not run."""
    token = _as_on_gpu.set(True)
    try:
        yield
    finally:
        _as_on_gpu.reset(token)


def chosen_as_on_gpu() -> bool:
    """Whether this is inside of `as_on_gpu`."""
    return _as_on_gpu.get()


def simulated(name: str) -> bool:
    """Whether a GPU provider runs on the CPU: Triton's interpreter (TRITON_INTERPRET=1), the CUDA kernels' emulator
    (SLOWFAST_EMULATE=1). For tests and studies; it then takes CPU tensors.
    """
    if _as_on_gpu.get():
        return False
    if name == "triton":
        return os.environ.get("TRITON_INTERPRET", "0") == "1"
    return name == "cuda" and _extension.EMULATE


@functools.cache
def _triton_import() -> tuple[str, str]:
    """(why Triton cannot be imported or "", why its interpreter cannot run or "")."""
    try:
        import triton
    except ImportError:
        return "the triton package is not installed", ""

    def version(text: str) -> list[int]:
        return [int(v) for v in re.findall(r"\d+", text)[:3]]

    numpy = importlib.import_module("numpy").__version__
    if version(triton.__version__) < [3, 7, 1] and version(numpy) >= [2, 4]:
        return "", f"the interpreter of triton {triton.__version__} needs numpy below 2.4, this is {numpy}"
    return "", ""


def _triton_missing() -> str | None:
    missing, no_interpreter = _triton_import()
    if missing:
        return missing
    if simulated("triton"):
        return no_interpreter or None
    return None if torch.cuda.is_available() else "no CUDA device is available"


def choose(op: str, providers: Mapping[str, Provider], device: str, call: Sequence[Any]) -> Provider:
    """Provider that computes this call of ``op``; raises RuntimeError with every reason when none can."""
    return _first(op, providers, device, lambda provider: provider.refuses(*call))


def choose_prepared(
    op: str, providers: Mapping[str, Provider], device: str, spec: Spec, dtype: torch.dtype
) -> Provider:
    """Provider that prepares an op; raises RuntimeError with every reason when none can."""
    able = {name: p for name, p in providers.items() if p.prepare is not None}
    return _first(op, able, device, lambda provider: provider.cannot(spec, dtype))


def _first(
    op: str, providers: Mapping[str, Provider], device: str, refuses: Callable[[Provider], str | None]
) -> Provider:
    asked = current()
    order = ORDER.get(device, ("reference",)) if asked == "auto" else (asked,)
    reasons = []
    for name in order:
        provider = providers.get(name)
        if provider is None:
            reason: str | None = "this op has no such provider"
        else:
            reason = unavailable(name) if name != "reference" else None
            if reason is None and device != home(name) and name != "reference":
                reason = f"the tensors are on {device}"
            if reason is None:
                reason = refuses(provider)
            if reason is None:
                return provider
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(f"slowfast::{op} cannot run here ({'; '.join(reasons)})")
