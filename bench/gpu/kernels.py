"""Our kernels made ready for measuring: compiled ahead by several threads, weights packed once."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from slowfast_kernels import autotune, backends

#: Modules whose ``pack`` brings a call's weights into the kernels' order.
PACKING = (
    "conv_bn_act3d.triton",
    "bottleneck3d.triton",
    "bottleneck3d.cuda",
    "stem3d.cuda",
    "lateral_fusion.cuda",
)


@contextlib.contextmanager
def compiling_ahead() -> Iterator[bool]:
    """Triton kernels started inside the block are compiled by several threads and not launched: a network has fifty
    of them, and one after the other they take most of a minute. Results of the block are meaningless.

    Yields False, and changes nothing, where kernels are interpreted, where tiles are measured, and where this Triton
    cannot do it.
    """
    try:
        from triton.runtime._async_compile import AsyncCompileMode
        from triton.runtime.jit import JITFunction
    except ImportError:
        yield False
        return
    if backends.simulated("triton") or autotune.is_measuring():
        yield False
        return
    launching = JITFunction.run

    def compiling(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return launching(self, *args, grid=grid, warmup=True, **kwargs)

    jobs = min(16, os.cpu_count() or 1)
    try:
        # A kernel that does not compile says so when it is called.
        with ThreadPoolExecutor(jobs) as pool, AsyncCompileMode(pool, ignore_errors=True):
            JITFunction.run = compiling  # type: ignore[method-assign]
            try:
                yield True
            finally:
                JITFunction.run = launching  # type: ignore[method-assign]
    finally:
        JITFunction.run = launching  # type: ignore[method-assign]


@contextlib.contextmanager
def packing_once() -> Iterator[None]:
    """While open, weights are packed at the first call and kept, as a frozen model holds them: the functional ops
    pack theirs at every call."""
    modules: list[Any] = []
    for name in PACKING:
        with contextlib.suppress(ImportError):
            modules.append(importlib.import_module(f"slowfast_kernels.ops.{name}"))
    before = [(module, module.pack) for module in modules]
    memory: dict[tuple[Any, ...], tuple[Any, Any]] = {}
    try:
        for module, pack in before:
            module.pack = _remembering(pack, memory)
        yield
    finally:
        for module, pack in before:
            module.pack = pack


def _remembering(
    pack: Callable[..., Any], memory: dict[tuple[Any, ...], tuple[Any, Any]]
) -> Callable[..., Any]:
    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = (id(pack), *map(_name, args), *((k, _name(v)) for k, v in sorted(kwargs.items())))
        if key not in memory:
            # The arguments are kept as well: their addresses stand for them.
            memory[key] = (pack(*args, **kwargs), (args, kwargs))
        return memory[key][0]

    return remembered


def _name(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype
    return str(value)
