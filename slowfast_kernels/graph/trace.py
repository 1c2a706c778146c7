"""A module's `forward` followed once, with our blocks as leaves: there alone stands the topology of a network.

A module that cannot be followed (its Python looks at values) is one opaque node, and so is a call of a function that is
no glue.
"""

from __future__ import annotations

import builtins
import copy
import importlib
import operator
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..nn.block import Block
from ..ops.lateral_fusion.spec import LateralSpec
from .checks import CHECKS
from .graph import OPAQUE, Graph, Node

#: Functions, methods and modules that a frozen network calls as they are; the name is what a profile shows.
GLUE: dict[Any, str] = {
    torch.cat: "cat", torch.concat: "cat", torch.add: "add", operator.add: "add", operator.iadd: "add",
    torch.mul: "mul", operator.mul: "mul", operator.imul: "mul", torch.sub: "sub", operator.sub: "sub",
    operator.truediv: "div", operator.floordiv: "div", operator.mod: "mod", torch.div: "div", operator.neg: "neg",
    torch.maximum: "maximum",
    torch.relu: "relu", F.relu: "relu", torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", F.silu: "silu",
    F.hardswish: "hardswish", F.softmax: "softmax", torch.softmax: "softmax", F.dropout: "dropout",
    F.max_pool3d: "max_pool", F.avg_pool3d: "avg_pool", F.adaptive_avg_pool3d: "adaptive_pool",
    F.adaptive_max_pool3d: "max_pool", torch.mean: "mean", torch.amax: "amax", torch.sum: "sum",
    torch.flatten: "flatten", torch.chunk: "chunk", torch.split: "split", torch.stack: "stack",
    torch.squeeze: "squeeze", torch.unsqueeze: "unsqueeze", torch.permute: "permute", torch.transpose: "transpose",
    torch.reshape: "reshape", torch.index_select: "index_select", F.linear: "linear", F.interpolate: "interpolate",
    operator.getitem: "index", builtins.getattr: "shape",
}  # fmt: skip
METHODS = {
    "add": "add", "add_": "add", "mul": "mul", "mul_": "mul", "relu": "relu", "relu_": "relu", "sigmoid": "sigmoid",
    "softmax": "softmax", "mean": "mean", "amax": "amax", "sum": "sum", "flatten": "flatten", "chunk": "chunk",
    "split": "split", "squeeze": "squeeze", "unsqueeze": "unsqueeze", "permute": "permute", "transpose": "transpose",
    "reshape": "reshape", "view": "reshape", "contiguous": "contiguous", "size": "shape", "dim": "shape",
    "float": "float", "clone": "clone", "detach": "detach", "index_select": "index_select", "expand": "expand",
}  # fmt: skip
MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Hardswish: "hardswish", nn.Softmax: "softmax",
    nn.MaxPool3d: "max_pool", nn.AvgPool3d: "avg_pool", nn.AdaptiveAvgPool3d: "adaptive_pool",
    nn.AdaptiveMaxPool3d: "max_pool", nn.Flatten: "flatten", nn.Linear: "linear", nn.Identity: "identity",
    nn.Dropout: "dropout", nn.Dropout3d: "dropout", nn.LayerNorm: "layer_norm",
}  # fmt: skip

#: Methods that change their tensor, and the ones that make a new one of it: values of a graph do not change.
_OUT_OF_PLACE = {"add_": "add", "mul_": "mul", "relu_": "relu"}


class _Tracer(fx.Tracer):
    """Leaves: blocks, and PyTorch's own modules."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(CHECKS))
        self.refused: dict[str, str] = {}  # by module, why it could not be followed
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Block) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:  # torch.fx stands in the way of every module of the process
            return forward(*args, **kwargs)
        before, depth = list(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except (fx.proxy.TraceError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
            while len(self.module_stack) > depth:
                self.module_stack.popitem(last=True)
            known = set(before)
            for node in reversed([n for n in self.graph.nodes if n not in known]):
                self.graph.erase_node(node)
            path = self.path_of_module(m)
            self.refused[path] = f"{type(m).__name__}: {str(error).splitlines()[0]}"
            return self.create_proxy("call_module", path, args, kwargs)


def trace(module: nn.Module, args: tuple[Any, ...]) -> Graph:
    """The graph of ``module(*args)`` in eval mode.

    args: a nest of tensors (of which nothing is looked at) and of plain values, for which the graph is made. Parameters
    are the module's own; batch norms are folded as they are now.
    """
    leaves, treespec = pytree.tree_flatten(args)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    names = [f"x{i}" for i in tensors]

    class Call(nn.Module):
        """A module with one argument a tensor, as torch.fx follows them."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def flat(self, *values: Any) -> Any:
            filled = list(leaves)
            for i, value in zip(tensors, values, strict=True):
                filled[i] = value
            return self.module(*pytree.tree_unflatten(filled, treespec))

    scope: dict[str, Any] = {}
    exec(f"def forward(self, {', '.join(names)}): return self.flat({', '.join(names)})", scope)
    Call.forward = scope["forward"]
    modes = [(part, part.training) for part in module.modules()]
    tracer = _Tracer()
    try:
        module.eval()
        followed = tracer.trace(Call())
    finally:
        for part, mode in modes:
            part.training = mode
    return _Reader(module, tracer.refused).read(followed)


class _Reader:
    """From torch.fx's nodes to ours."""

    def __init__(self, module: nn.Module, refused: dict[str, str]) -> None:
        self.module, self.refused = module, refused
        self.graph = Graph([], [], None)
        self.values: dict[fx.Node, Any] = {}
        self.copies: dict[str, nn.Module] = {}

    def read(self, followed: fx.Graph) -> Graph:
        for node in followed.nodes:
            if node.op == "output":
                self.graph.output = self.of(node.args[0])
            elif node.op == "call_function" and node.target in CHECKS:
                continue
            else:
                self.values[node] = getattr(self, node.op)(node)
        self._drop_unused()
        return self.graph

    def of(self, nest: Any) -> Any:
        """A nest with our nodes in the places of torch.fx's, of ordinary lists and dictionaries."""
        if isinstance(nest, fx.Node):
            return self.values[nest]
        if isinstance(nest, slice):
            return slice(*(self.of(v) for v in (nest.start, nest.stop, nest.step)))
        if isinstance(nest, dict):
            return {k: self.of(v) for k, v in nest.items()}
        if isinstance(nest, list):
            return [self.of(v) for v in nest]
        if isinstance(nest, tuple):
            parts = [self.of(v) for v in nest]
            return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)
        return nest

    def add(self, node: Node) -> Node:
        self.graph.nodes.append(node)
        return node

    def placeholder(self, node: fx.Node) -> Node:
        found = Node("input", stage=str(len(self.graph.inputs)))
        self.graph.inputs.append(found)
        return found

    def get_attr(self, node: fx.Node) -> Any:
        value: Any = self.module
        for name in str(node.target).split(".")[1:]:
            value = getattr(value, name)
        return value.detach().clone() if isinstance(value, torch.Tensor) else value

    def call_function(self, node: fx.Node) -> Node:
        name = GLUE.get(node.target)
        run = node.target if name is None else Function.of(node.target)
        return self._call(node, run, name, f"{getattr(node.target, '__name__', node.target)} is no glue")

    def call_method(self, node: fx.Node) -> Node:
        method = str(node.target)
        run = Method(_OUT_OF_PLACE.get(method, method))
        return self._call(node, run, METHODS.get(method), f"method {method} is no glue")

    def _call(self, node: fx.Node, run: Any, name: str | None, reason: str) -> Node:
        args, kwargs = self.of(node.args), dict(self.of(node.kwargs))
        kwargs.pop("inplace", None)  # values of a graph do not change
        if name == "dropout":
            kwargs["training"] = False
        stage = next((n.stage for n in Node("", args, kwargs).inputs if n.op != "input"), "")
        return self.add(
            Node(name or OPAQUE, args, kwargs, run=run, stage=stage, reason="" if name else reason)
        )

    def call_module(self, node: fx.Node) -> Node:
        path = str(node.target).removeprefix("module").removeprefix(".")
        module = self.module.get_submodule(path)
        args, kwargs = self.of(node.args), self.of(node.kwargs)
        stage = self._stage(path)
        if str(node.target) in self.refused:
            reason = self.refused[str(node.target)]
        elif isinstance(module, Block) and not module.op:
            with torch.no_grad():
                return self._block(module.spec(), args, kwargs, stage)
        elif isinstance(module, Block):
            return self.add(Node(module.op, args, kwargs, run=self._kept(path, module).float(), stage=stage))
        elif name := MODULES.get(type(module)):
            return self.add(Node(name, args, kwargs, run=self._kept(path, module), stage=stage))
        else:
            reason = f"{type(module).__name__} is none of our blocks"
        return self.add(
            Node(
                OPAQUE,
                args,
                kwargs,
                run=self._kept(path, module),
                stage=stage,
                reason=f"{path}: {reason}" if path else reason,
            )
        )

    def _block(self, spec: Any, args: tuple[Any, ...], kwargs: dict[str, Any], stage: str) -> Node:
        values = [*args, *kwargs.values()]  # blocks take maps and nothing else
        if not isinstance(spec, LateralSpec):
            return self.add(Node(spec.op, tuple(values), spec=spec, stage=stage))
        slow, fast = values
        if spec.kind == "none":
            return slow
        if spec.sums:
            return self.add(Node(spec.op, (fast, slow), spec=spec, stage=stage))
        lateral = self.add(Node(spec.op, (fast,), spec=spec, stage=stage))
        return self.add(Node("cat", ([slow, lateral],), {"dim": 1}, run=torch.cat, stage=stage))

    def _kept(self, path: str, module: nn.Module) -> nn.Module:
        """A module's copy for inference."""
        if path not in self.copies:
            kept = self.copies[path] = copy.deepcopy(module).eval().requires_grad_(False)
            if type(module) in MODULES and getattr(kept, "inplace", False):
                kept.inplace = False  # type: ignore[assignment]  # values of a graph do not change
        return self.copies[path]

    def _stage(self, path: str) -> str:
        """A module's path; of one of several in a row, or of a part of it, the row's."""
        names = path.split(".")
        for i in range(1, len(names)):
            row = ".".join(names[:i])
            if isinstance(self.module.get_submodule(row), nn.Sequential):
                return row
        return path

    def _drop_unused(self) -> None:
        used = set(self.graph.outputs())
        for node in reversed(self.graph.nodes):
            if node in used:
                used.update(node.inputs)
        self.graph.nodes = [node for node in self.graph.nodes if node in used]


class Function:
    """A function by its name: some of PyTorch's cannot be pickled."""

    def __init__(self, home: str, name: str) -> None:
        self.home, self.name = home, name
        self.call = getattr(importlib.import_module(home), name)

    @staticmethod
    def of(function: Any) -> Function:
        """The name of one of `GLUE`."""
        homes = (torch, F, operator, builtins)
        found = ((m.__name__, n) for m in homes for n, v in vars(m).items() if v is function)
        return Function(*next(found))

    def __reduce__(self) -> tuple[Any, ...]:
        return Function, (self.home, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


class Method:
    """A tensor's method as a function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.name)(*args, **kwargs)
