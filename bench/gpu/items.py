"""Pieces of work of a part, and how several processes share them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Item:
    """A piece of work of a part; a worker that dies is started again behind it.

    run:   its records, each told when it is made: one that takes its time yields them.
    alone: takes as long as it is given: where several processes share a part out, one of them does nothing else.
    """

    key: str
    run: Callable[[], Iterable[dict[str, Any]]]
    alone: bool = False


def check(name: str, status: str, text: str = "", ours: bool = True, **more: Any) -> dict[str, Any]:
    """The record of a check. status: "ok", "red" or "missing"; a red one is a failure where it is ours."""
    return {"check": name, "status": status, "ours": ours, "text": text, **more}


def shared(items: Sequence[Item], share: tuple[int, int]) -> list[Item]:
    """The items of process i of n."""
    i, n = share
    alone, rest = ([item for item in items if item.alone is flag] for flag in (True, False))
    if n <= len(alone):  # what takes all the time comes last
        return [*rest, *alone][i::n]
    return [alone[i]] if i < len(alone) else rest[i - len(alone) :: n - len(alone)]
