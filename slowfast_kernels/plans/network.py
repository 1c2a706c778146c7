"""A frozen network: its graphs and, for one target, its packed weights and the plans of its calls."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..graph import passes
from ..graph.graph import Graph
from ..graph.trace import trace
from .lower import Target, lower
from .plan import Plan


class Network:
    """A module's graphs, one for every way that it was called, and its weights as a target's kernels read them."""

    def __init__(self, module: nn.Module, target: Target) -> None:
        self.target = target
        self.graphs: dict[Any, Graph] = {}
        self.lock = threading.Lock()
        self.module: nn.Module | None = None
        example = getattr(module, "example_inputs", None)
        if example is None:  # it shows when it is called
            self.module = copy.deepcopy(module).eval().requires_grad_(False)
        else:
            self._trace(module, example())

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        return self  # copies of a frozen model share its weights

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()

    def graph(self, args: tuple[Any, ...]) -> tuple[Graph, list[torch.Tensor]]:
        """The graph of a call, and its tensors."""
        key, tensors = _structure(args)
        found = self.graphs.get(key)
        if found is None:
            with self.lock:
                found = self.graphs.get(key) or self._trace(self.module, args)
        return found, tensors

    def plan(self, graph: Graph, inputs: Sequence[torch.Tensor]) -> Plan:
        """The calls for inputs of these shapes."""
        metas = [
            None if i in graph.free else torch.empty_like(x, device="meta") for i, x in enumerate(inputs)
        ]
        return lower(graph, metas, self.target)

    def elsewhere(self) -> torch.device | None:
        """A device that weights lie on and should not."""
        kept = [
            t
            for g in self.graphs.values()
            for n in g.nodes
            if isinstance(n.run, nn.Module)
            for t in n.run.parameters()
        ]
        packed = [w for layer in self.target.layers.values() for w in layer.weights]
        return next((t.device for t in (*kept, *packed) if t.device != self.target.device), None)

    def _trace(self, module: nn.Module | None, args: tuple[Any, ...]) -> Graph:
        key, _ = _structure(args)
        if module is None:
            raise TypeError(f"expected a call as the model's own, got arguments {key[0]}")
        graph = trace(module, args)
        passes.run_all(graph)
        self.target.prepare(graph)
        if reasons := [node.reason for node in graph.opaque()]:
            warnings.warn(
                f"freeze: {type(module).__name__}: {len(reasons)} part(s) run outside of the kernels, as they are: "
                f"{'; '.join(reasons)} (`profile` shows what they take)",
                UserWarning,
                stacklevel=3,
            )
        self.graphs[key] = graph
        return graph


def _structure(args: tuple[Any, ...]) -> tuple[Any, list[torch.Tensor]]:
    """What a graph is made for: how the arguments are nested, and those that are no tensors; and the tensors."""
    leaves, treespec = pytree.tree_flatten(_as_lists(args))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    plain = tuple("tensor" if isinstance(x, torch.Tensor) else x for x in leaves)
    return (str(treespec), plain), tensors


def _as_lists(nest: Any) -> Any:
    """A tuple of clips is as good as a list."""
    if isinstance(nest, (tuple, list)):
        return [_as_lists(x) for x in nest]
    return {k: _as_lists(v) for k, v in nest.items()} if isinstance(nest, dict) else nest
