"""Our kernels made ready for measuring: compiled ahead by several threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from slowfast_kernels import autotune


@contextlib.contextmanager
def compiling_ahead() -> Iterator[bool]:
    """`slowfast_kernels._triton.ahead.compiling_ahead`; also False where there is no Triton, and where tiles are
    measured: their kernels are compiled ahead then, shape by shape.
    """
    try:
        from slowfast_kernels._triton import ahead
    except ImportError:
        yield False
        return
    if autotune.is_measuring("triton"):
        yield False
        return
    with ahead.compiling_ahead() as possible:
        yield possible
