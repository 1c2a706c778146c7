"""What a trace passes over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: Functions that look at their arguments, raise or return, and are not followed.
CHECKS: list[Callable[..., Any]] = []


def check(function: F) -> F:
    """A function that only raises: a trace leaves it out."""
    CHECKS.append(function)
    return function
