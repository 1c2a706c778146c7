"""What a plan may do with a graph. Every pass marks nodes; the values stay what they are."""

from __future__ import annotations

from collections.abc import Sequence

from .graph import Graph, Node

#: Ops of residual blocks.
BLOCKS = {"bottleneck3d", "basic_block"}


def run_all(graph: Graph, resident: bool = False) -> None:
    """All passes that mark nodes. resident: the inputs lie in the plan's memory, as a layer before would leave them."""
    concatenate_in_place(graph, resident)
    add_in_place(graph)
    assign_lanes(graph)


def is_channel_cat(node: Node) -> bool:
    """Whether a node puts maps side by side along their channels."""
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return node.op == "cat" and dim in (1, -4) and isinstance(node.args[0], Sequence)


def concatenate_in_place(graph: Graph, resident: bool = False) -> None:
    """Whoever makes a part of a concatenation writes it where it belongs: nothing is left to copy.

    Parts: results of our ops, and concatenations, each of one place; and inputs that are ``resident``.
    """
    for node in graph.nodes:
        if not is_channel_cat(node):
            continue
        parts = node.args[0]
        for part in parts:
            able = part.spec is not None or is_channel_cat(part) or (resident and part.op == "input")
            if able and part.into is None and parts.count(part) == 1:
                part.into = node


def add_in_place(graph: Graph) -> None:
    """A lateral connection that adds to the Slow maps does it where they lie, if nobody else reads them."""
    users = graph.users()
    for node in graph.nodes:
        if node.spec is not None and len(node.args) > 1 and node.op == "lateral_fusion":
            slow = node.args[1]
            if slow.spec is not None and slow.into is None and users[slow] == [node]:
                node.over = slow


def assign_lanes(graph: Graph) -> None:
    """Lane 1: our ops that need nothing of the first input, the Slow clip: the Fast pathway and the laterals."""
    needs: dict[Node, set[Node]] = {node: {node} for node in graph.inputs}
    first = graph.inputs[:1]
    for node in graph.nodes:
        needs[node] = set().union(*(needs[v] for v in node.inputs))
        node.lane = int(bool(needs[node]) and not needs[node] & set(first) and not node.over)


def chains(graph: Graph) -> list[list[Node]]:
    """Nodes one after another in groups that may run as one: a stage's residual blocks, each read by the next alone."""
    users = graph.users()
    found: list[list[Node]] = []
    for node in graph.nodes:
        before = found[-1][-1] if found else None
        if (
            before is not None
            and {node.op, before.op} <= BLOCKS
            and node.args == (before,)
            and users[before] == [node]
            and node.stage == before.stage
        ):
            found[-1].append(node)
        else:
            found.append([node])
    return found
