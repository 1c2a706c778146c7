"""The network as a graph: every node makes one value, of values made before."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..ops._spec import Spec

#: Ops of nodes that are neither one of ours nor glue: they run as they are, in the dtype of their own parameters.
OPAQUE = "opaque"


@dataclass(eq=False)
class Node:
    """One value.

    op:     what a profile calls it: one of our ops, "input", "cat" and other glue, or `OPAQUE`.
    args, kwargs: nests of nodes and plain values.
    spec:   parameters of one of our ops; None for a call.
    run:    of a call: the function, or the module.
    stage:  part of the network that it belongs to: "res2.slow".
    reason: why it is opaque.

    Set by passes:
    into:   the concatenation whose channels it writes.
    over:   the node whose memory it takes, adding to what lies there.
    lane:   0, or 1 for what does not wait for the first input.
    """

    op: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    spec: Spec | None = None
    run: Callable[..., Any] | None = None
    stage: str = ""
    reason: str = ""
    into: Node | None = None
    over: Node | None = None
    lane: int = 0

    @property
    def inputs(self) -> list[Node]:
        """The nodes that it reads."""
        found: list[Node] = []
        substituted((self.args, self.kwargs), found.append)
        return found

    def __repr__(self) -> str:
        return f"<{self.op} {self.stage}>"


def substituted(nest: Any, value: Callable[[Node], Any]) -> Any:
    """A nest with what ``value`` makes of them in the places of its nodes, those of slices among them."""
    if isinstance(nest, Node):
        return value(nest)
    if isinstance(nest, slice):
        return slice(*(substituted(v, value) for v in (nest.start, nest.stop, nest.step)))
    if isinstance(nest, dict):
        return {k: substituted(v, value) for k, v in nest.items()}
    if isinstance(nest, (list, tuple)):
        parts = [substituted(v, value) for v in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    return nest


@dataclass(eq=False)
class Graph:
    """Nodes in an order in which they can run. inputs: the first nodes. output: a nest of nodes and plain values."""

    inputs: list[Node]
    nodes: list[Node]
    output: Any

    def outputs(self) -> list[Node]:
        """Nodes whose values leave the graph."""
        found: list[Node] = []
        substituted(self.output, found.append)
        return found

    def users(self) -> dict[Node, list[Node]]:
        """Who reads every node; a node that leaves the graph is its own reader as well."""
        found: dict[Node, list[Node]] = {node: [] for node in (*self.inputs, *self.nodes)}
        for node in self.nodes:
            for value in node.inputs:
                found[value].append(node)
        for node in self.outputs():
            found[node].append(node)
        return found

    @functools.cached_property
    def free(self) -> set[int]:
        """Inputs of which there may be any number, boxes: no plan depends on their shape."""
        users = self.users()
        return {
            i
            for i, x in enumerate(self.inputs)
            if users[x] and all(u.op == "roi_head_pool" for u in users[x])
        }

    def opaque(self) -> list[Node]:
        """Nodes that run outside our kernels and glue."""
        return [node for node in self.nodes if node.op == OPAQUE]
