"""Argument checks of the public functions: every message says what was expected and what came."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """A public function of the ops: what its signature calls a tensor is one, or it says so.

    An object that speaks ``__torch_function__`` without being a tensor (a torch.fx proxy, say) gets the call as
    one of torch's own functions would hand it over: torch.fx records the function itself.
    """
    parameters = inspect.signature(function).parameters
    names = tuple(parameters)
    expected = {n: str(p.annotation) for n, p in parameters.items() if "torch.Tensor" in str(p.annotation)}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in expected and not isinstance(value, torch.Tensor):
                if hasattr(type(value), "__torch_function__"):
                    return handle_torch_function(call, (value,), *args, **kwargs)
                _check_no_tensor(value, expected[name], name)
        return function(*args, **kwargs)

    return call


def _check_no_tensor(value: Any, expected: str, name: str) -> None:
    """A parameter that takes nothing but tensors, or tensors and None, got something else."""
    if expected == "torch.Tensor" or (expected == "torch.Tensor | None" and value is not None):
        raise ValueError(f"{name}: expected a tensor, got {type_name(value)}")


def type_name(value: object) -> str:
    """``list``, ``numpy.ndarray``."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def check_clip(x: torch.Tensor, name: str) -> None:
    """A floating-point [N, C, T, H, W] tensor."""
    if x.dim() != 5:
        raise ValueError(f"{name}: expected [N, C, T, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")


def check_types(name: str, x: torch.Tensor, **others: torch.Tensor | None) -> None:
    """The others have the dtype of ``x``, or autocast gives all of them the same."""
    for other, v in others.items():
        if v is None or v.dtype == x.dtype:
            continue
        wide = torch.float64 in (x.dtype, v.dtype)  # autocast leaves float64 alone
        if wide or not v.is_floating_point() or not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{other}: expected {x.dtype}, as {name} has, got {v.dtype}")


def check_out(out: torch.Tensor, dtype: torch.dtype) -> None:
    """A buffer of the result's dtype."""
    if out.dtype != dtype:
        raise ValueError(f"out: expected {dtype}, the result's, got {out.dtype}")


def check_channels(x: torch.Tensor, expected: int, name: str, of: str) -> None:
    """Channels of ``x`` as another argument has them."""
    if x.shape[1] != expected:
        raise ValueError(f"{name}: expected {expected} channels, as {of} has, got shape {tuple(x.shape)}")


def check_vector(v: torch.Tensor | None, n: int, name: str) -> None:
    """A per-channel vector, or None."""
    if v is not None and tuple(v.shape) != (n,):
        raise ValueError(f"{name}: expected shape ({n},), got {tuple(v.shape)}")
