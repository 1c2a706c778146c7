"""Kernels compiled before they are needed, by several threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .. import autotune, backends

Config = TypeVar("Config")


@contextlib.contextmanager
def compiling_ahead() -> Iterator[bool]:
    """Kernels started inside the block are compiled by several threads and not launched: a network has fifty of them,
    and one after the other they take most of a minute. Results of the block are meaningless.

    Yields False, and changes nothing, where kernels are interpreted and where this Triton cannot do it.
    """
    try:
        from triton.runtime._async_compile import AsyncCompileMode
        from triton.runtime.jit import JITFunction
    except ImportError:
        yield False
        return
    if backends.simulated("triton"):
        yield False
        return
    launching = JITFunction.run

    def compiling(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return launching(self, *args, grid=grid, warmup=True, **kwargs)

    jobs = min(16, os.cpu_count() or 1)
    try:
        # A kernel that does not compile says so when it is called.
        with ThreadPoolExecutor(jobs) as pool, AsyncCompileMode(pool, ignore_errors=True):
            JITFunction.run = compiling
            try:
                yield True
            finally:
                JITFunction.run = launching
    finally:
        JITFunction.run = launching


def compiled_ahead(candidates: Sequence[Config], run: Callable[[Config], None]) -> Sequence[Config]:
    """``candidates``, once what ``run`` starts with each of them is compiled, as far as `compiling_ahead` can.

    What ``run`` would measure itself is not measured meanwhile: nothing is launched.
    """
    with compiling_ahead() as possible, autotune.measuring(()):
        for config in candidates if possible else ():
            with contextlib.suppress(Exception):  # such a candidate is left out when it is measured
                run(config)
    return candidates
