"""Compares the answers of a module and its accelerated form."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# Relative L2 errors between two right answers; bfloat16 has 8 bits, float16 and TF32 have 11
_BOUNDS: dict[torch.dtype | None, float] = {torch.bfloat16: 1e-1, torch.float16: 2e-2}
_TF32, _EXACT = 2e-2, 1e-4


def verify_same(module: nn.Module, accelerated: nn.Module, given: Any, dtype: torch.dtype | None) -> None:
    """Raise RuntimeError unless both answer one call alike, in eval mode. given: an argument or a tuple of them."""
    from ..testing import relative_l2

    args = given if isinstance(given, tuple) else (given,)
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices), _uncompiled():
        with _in_eval_mode(module):
            expected = list(_tensors(module(*_copied(args))))
        with _in_eval_mode(accelerated):
            got = list(_tensors(accelerated(*_copied(args))))
    shapes = [[*x.shape] for x in expected], [[*x.shape] for x in got]
    if shapes[0] != shapes[1] or not expected:
        raise RuntimeError(
            f"accelerate: verify: expected the module's answer, tensors of shapes {shapes[0]}, got {shapes[1]}"
        )
    error = relative_l2(got, expected)
    bound = _bound(module, dtype)
    if not error <= bound:
        raise RuntimeError(
            f"accelerate: verify: expected the module's answer with a relative error of at most {bound:.0e}, got "
            f"{error:.2g}: something in {type(module).__name__} changes its answers that was not recognised"
        )


def _bound(module: nn.Module, dtype: torch.dtype | None) -> float:
    own = {p.dtype for p in module.parameters()} | {dtype}
    gpu = any(p.device.type == "cuda" for p in module.parameters())
    return max(_BOUNDS.get(kind, _TF32 if gpu else _EXACT) for kind in own)


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled parts run as they were written, for one call."""
    compiler = "torch._dynamo.eval_frame" in sys.modules  # it takes seconds to import
    return torch.compiler.set_stance("force_eager") if compiler else nullcontext()


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Modes and buffers are put back."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    for part, _ in modes:
        part.training = False  # not by .eval(), which somebody's own train() may have more to do in
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def _copied(value: Any) -> Any:
    """Arguments of which a call may change its own."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of an answer, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
