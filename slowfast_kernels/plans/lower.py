"""From a graph to a plan: shapes, memory, and for every node whoever computes it on this device.

A target brings layers for our ops (`Target.layer`) and says how they go into a plan. Glue runs on PyTorch: what it can
write in place goes into the plan's memory, what it returns is new.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .. import backends
from ..graph import passes
from ..graph.graph import OPAQUE, Graph, Node, substituted
from ..graph.shapes import UNKNOWN, flops_counted, infer, own_dtype
from ..nn.block import Block
from ..ops._memory import channels_last
from ..ops._prepared import Prepared
from ..ops._spec import bytes_of
from ..ops.conv_bn_act3d.chain import ConvChain
from .plan import Input, Plan, View, copied, for_the_caller

#: Glue that hands its argument on.
SAME = ("identity", "dropout", "contiguous", "clone", "detach")

#: Glue that writes its result where it is told.
WRITERS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "relu": functools.partial(torch.clamp, min=0),
}


class Target:
    """A device and a type of maps, and how our ops run there.

    provider: of ops that take their weights at every call. two_lanes: steps of the graph's lanes run side by side.
    captures: a plan becomes a graph of the device's, so that it reads the caller's tensors first and nowhere else.
    """

    provider: str
    two_lanes = captures = False

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.backend = backends.current()
        self.layers: dict[Node, Prepared] = {}

    def prepare(self, graph: Graph) -> None:
        """Weights packed, once for all plans; the graph then holds their shapes alone."""
        with torch.no_grad():
            # the largest first: what packing needs meanwhile then fits where a larger one's was
            for chain in sorted(passes.chains(graph), key=_weights, reverse=True):
                self.prepare_chain(chain)
        for node in graph.nodes:
            if node.spec is not None:
                node.spec = node.spec.map(lambda t: torch.empty_like(t, device="meta"))
            elif isinstance(node.run, nn.Module):
                node.run.to(self.device)

    def prepare_chain(self, chain: Sequence[Node]) -> None:
        """Layers of nodes that run one after another."""
        for node in chain:
            if node.spec is not None:
                self.layers[node] = self.layer(node.spec)

    def layer(self, spec: Any) -> Prepared:
        """What computes an op."""
        raise NotImplementedError

    def reads(self, layer: Prepared, value: Input) -> bool:
        """Whether a layer takes the caller's tensor as it lies."""
        return layer.any_layout

    def backend_of(self, op: str) -> str:
        """The backend in force for an op that takes its weights at every call: a head."""
        return self.backend

    def emit(self, plan: Plan, layer: Any, stage: str, op: str, out: View, inputs: Sequence[Any]) -> None:
        """Append the calls of a layer."""
        if isinstance(layer, ConvChain):
            emit_convolutions(self, plan, layer, stage, out, inputs[0])
        else:
            emit_call(plan, layer, stage, op, out, inputs)

    def emit_chain(self, plan: Plan, chain: Sequence[Node], x: View, out: View) -> None:
        """Append the calls of residual blocks, each of which reads the one before."""
        for node in chain:
            layer = self.layers[node]
            y = out if node is chain[-1] else plan.buffer(layer.out_shape(x.shape), self.dtype)
            self.emit(plan, layer, node.stage, node.op, y, [x])
            x = y


def _weights(chain: Sequence[Node]) -> int:
    return sum(t.numel() for node in chain if node.spec is not None for t in node.spec.tensors)


def nbytes(*views: Any) -> int:
    """Bytes that views cover."""
    return bytes_of(*(v for v in views if v is not None))


def emit_call(
    plan: Plan,
    layer: Prepared,
    stage: str,
    op: str,
    out: View,
    inputs: Sequence[Any],
    fresh: Callable[..., Any] | None = None,
) -> None:
    """Append one call of a prepared op; or of ``fresh``, which returns the result in memory of its own."""
    shapes = [x.shape for x in inputs if x is not None]
    args: Sequence[Any] = (*inputs, *[None] * (layer.arity - len(inputs)))
    if fresh is None:
        args = (out, *args, *(plan.buffer(shape, dtype) for shape, dtype in layer.scratch(*shapes)))
    moved, produces = nbytes(*inputs, out) + layer.nbytes, out if fresh else None
    plan.add(
        stage, op, fresh or layer.into, args, layer.flops(*shapes), moved, produces=produces,
        provider=layer.provider,
    )  # fmt: skip


def emit_convolutions(target: Target, plan: Plan, layer: ConvChain, stage: str, out: View, x: View) -> None:
    """Append a residual block's convolutions, one call each, the last with the residual or the shortcut."""
    y = x
    for name, conv in zip("ab", layer.inner, strict=False):
        z = plan.buffer(conv.out_shape(y.shape), x.dtype)
        target.emit(plan, conv, stage, f"conv_{name}", z, [y])
        y = z
    residual, second = (None, x) if layer.shortcut else (x, None)
    target.emit(plan, layer.last, stage, "conv_c", out, [y, residual, second])


def lower(
    graph: Graph, inputs: Sequence[torch.Tensor | None], target: Target, resident: bool = False
) -> Plan:
    """The calls of a graph for inputs of these shapes (tensors without memory; None for one of any shape).

    resident: inputs and outputs are in the plan's memory (`Plan.inputs`, and views in its output): a part of a network,
    whose surroundings leave and find them there.
    """
    return _Lowering(graph, inputs, target, resident).run()


class _Lowering:
    def __init__(
        self, graph: Graph, inputs: Sequence[torch.Tensor | None], target: Target, resident: bool
    ) -> None:
        self.graph, self.target, self.plan, self.resident = graph, target, Plan(), resident
        self.metas = infer(graph, inputs, target.dtype)
        self.values: dict[Node, Any] = {
            node: Input(i, None if x is None else tuple(x.shape), None if x is None else x.dtype)
            for i, (node, x) in enumerate(zip(graph.inputs, inputs, strict=True))
        }
        self.clips: dict[Node, View] = {}  # inputs that lie in the plan's memory, as maps
        self.fused: dict[Node, View] = {}  # of concatenations

    def run(self) -> Plan:
        if self.resident:
            self.values.update({node: self._place(node) for node in self.graph.inputs})
            self.plan.inputs = [self.values[node] for node in self.graph.inputs]
            self.plan.keep(*self.plan.inputs)
        chains = passes.chains(self.graph)
        if self.target.captures:
            first = [chain for chain in chains if self._reads_as_it_lies(chain[0])]
            for chain in first:
                self._emit(chain)
            self._read_inputs({chain[0] for chain in first})
            chains = [chain for chain in chains if chain not in first]
        for chain in chains:
            self._emit(chain)
        self.plan.lane = 0
        for node in dict.fromkeys(self.graph.outputs()):
            self._hand_out(node)
        self.plan.output = substituted(self.graph.output, self.values.__getitem__)
        self.plan.lay_out()
        return self.plan

    def _emit(self, chain: Sequence[Node]) -> None:
        self._lane(chain[0])
        if len(chain) == 1 and chain[0].op not in passes.BLOCKS:
            node = chain[0]
            self.values[node] = self._op(node) if node.spec is not None else self._call(node)
        else:
            self.values[chain[-1]] = self._blocks(chain)

    def _lane(self, node: Node) -> None:
        self.plan.lane = node.lane if self.target.two_lanes else 0

    # --- what a device's graph cannot follow: the caller's tensors are read before anything else

    def _reads_as_it_lies(self, node: Node) -> bool:
        """Whether an op of one input takes the caller's tensor: it then runs before all others."""
        value = self.values.get(node.args[0]) if node.spec is not None and len(node.args) == 1 else None
        return (
            isinstance(value, Input)
            and value.shape is not None
            and self.target.reads(self.target.layers[node], value)
        )

    def _read_inputs(self, readers: set[Node]) -> None:
        """Everybody but these reads a copy: our ops of a map, glue of the tensor as it was given."""
        users = self.graph.users()
        for node in self.graph.inputs:
            value = self.values[node]
            if not isinstance(value, Input) or value.shape is None:
                continue
            apart = [user for user in users[node] if user not in readers]
            ops = [user for user in apart if user.spec is not None]
            if ops:
                self._lane(ops[0])
                self._clip(node, value, ops[0].stage)
            if len(ops) < len(apart):
                view = self.clips.get(node)
                if view is None or view.dtype != value.dtype:
                    assert value.dtype is not None
                    view = self.plan.buffer(value.shape, value.dtype)
                    self.plan.lane = 0
                    self.plan.add("input", "input", copy_into, (view, value), 0, 2 * nbytes(view))
                self.values[node] = view

    def _clip(self, node: Node, value: Input, stage: str) -> View:
        """A copy of the caller's map, of the type of the maps."""
        if node not in self.clips:
            assert value.shape is not None
            view = self.plan.buffer(value.shape, self.target.dtype)
            self.plan.add(stage, "input", copy_into, (view, value), 0, 2 * nbytes(view))
            self.clips[node] = view
        return self.clips[node]

    def _hand_out(self, node: Node) -> None:
        """A node's value for the caller."""
        value = self.values[node]
        if isinstance(value, View) and value.buffer.produced:
            return
        if self.resident:
            self.plan.keep(value)
        elif isinstance(value, (View, Input)):
            self.values[node] = self._new("output", "output", copied, [value])

    # --- places

    def _place(self, node: Node) -> View:
        """Where a node's result goes."""
        if node.over is not None:
            return self.values[node.over]
        shape = tuple(self.metas[node].shape)
        if node.into is None or not self._fits(node.into):
            return self.plan.buffer(shape, self.target.dtype)
        first = 0
        for part in node.into.args[0]:
            if part is node:
                break
            first += self.metas[part].shape[1]
        return self._fused(node.into).slice(first, first + shape[1])

    def _fused(self, cat: Node) -> View:
        if cat not in self.fused:
            self.fused[cat] = self._place(cat)
        return self.fused[cat]

    def _fits(self, cat: Node) -> bool:
        """Whether a concatenation is of maps of one extent, and so one map itself."""
        metas = [self.metas[part] for part in cat.args[0]]
        if any(not isinstance(m, torch.Tensor) or m.dim() != 5 for m in metas):
            return False
        return len({(m.shape[0], *m.shape[2:]) for m in metas}) == 1

    def _map(self, node: Node | None, layer: Any, stage: str) -> Any:
        """A node's value as an input of our ops."""
        if node is None:
            return None
        value = self.values[node]
        if node in self.clips:
            return self.clips[node]
        taken = not isinstance(value, Input) or value.shape is None or self.target.reads(layer, value)
        return value if taken else self._clip(node, value, stage)

    # --- nodes

    def _blocks(self, chain: Sequence[Node]) -> Any:
        first, last = chain[0], chain[-1]
        if self.metas[last] is UNKNOWN:
            for node in chain:
                self.values[node] = self._op(node)
            return self.values[last]
        x = self._map(first.args[0], self.target.layers[first], first.stage)
        out = self._place(last)
        self.target.emit_chain(self.plan, chain, x, out)
        return out

    def _op(self, node: Node) -> Any:
        layer = self.target.layers[node]
        if self.metas[node] is UNKNOWN:
            run = functools.partial(_at_once, layer, self.target.dtype)
            return self._new(
                node.stage, node.op, run, [self.values[v] for v in node.args], provider=layer.provider
            )
        inputs = [self._map(v, layer, node.stage) for v in node.args]
        out = self._place(node)
        self.target.emit(self.plan, layer, node.stage, node.op, out, inputs)
        return out

    def _call(self, node: Node) -> Any:
        meta = self.metas[node]
        args, kwargs = substituted((node.args, node.kwargs), self.values.__getitem__)
        if meta is not UNKNOWN and not any(isinstance(m, torch.Tensor) for m in pytree.tree_leaves(meta)):
            return meta  # a shape, say
        if passes.is_channel_cat(node) and meta is not UNKNOWN and self._fits(node):
            return self._concatenated(node)
        if node.op in SAME:
            return args[0]
        alias = _slices(node.op, args, kwargs, meta)
        if alias is not None:
            return alias
        map_like = isinstance(meta, torch.Tensor) and meta.dim() == 5 and meta.is_floating_point()
        if map_like and (run := _writer(node, args, kwargs, meta)) is not None:
            out = self._place(node)
            self.plan.add(node.stage, node.op, run, (out, *args[:2]), 0, nbytes(out, *_views(args)))
            return out
        run, provider = self._caller(node, map_like), "torch"
        flops: int | Callable[[], int] = 0
        if isinstance(node.run, Block):
            flops, provider = _flops_of_head(node, self.metas), self._provider_of(node)
        elif node.op == "linear" and isinstance(meta, torch.Tensor):
            flops = 2 * meta.numel() * self.metas[node.inputs[0]].shape[-1]
        elif node.op == OPAQUE and meta is not UNKNOWN:
            flops = functools.partial(flops_counted, node, self.metas)
        leaves, treespec = pytree.tree_flatten((args, kwargs))
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (View, Input))]
        call = functools.partial(_filled, run, leaves, treespec, where)
        return self._new(node.stage, node.op, call, [leaves[i] for i in where], meta, flops, provider)

    def _concatenated(self, node: Node) -> View:
        fused, first = self._fused(node), 0
        for part in node.args[0]:
            width = self.metas[part].shape[1]
            if part.into is not node:
                view = fused.slice(first, first + width)
                self.plan.add(node.stage, "cat", copy_into, (view, self.values[part]), 0, 2 * nbytes(view))
            first += width
        return fused

    def _new(
        self,
        stage: str,
        op: str,
        run: Any,
        args: Sequence[Any],
        meta: Any = UNKNOWN,
        flops: int | Callable[[], int] = 0,
        provider: str = "torch",
    ) -> View:
        """A step that returns a value of its own."""
        tensor = meta if isinstance(meta, torch.Tensor) else None
        shape, dtype = (None, self.target.dtype) if tensor is None else (tuple(tensor.shape), tensor.dtype)
        if tensor is not None and tensor.dim() == 5 and dtype.is_floating_point:
            dtype = self.target.dtype
        out = View(self.plan.result(shape, dtype))
        moved = nbytes(*(v for v in (*args, out) if v is not None and v.shape is not None))
        self.plan.add(stage, op, run, args, flops, moved, produces=out, provider=provider)
        return out

    def _caller(self, node: Node, map_like: bool) -> Callable[..., Any]:
        assert node.run is not None
        if isinstance(node.run, Block):
            return functools.partial(_head, node.run, self.target.backend_of(node.op))
        if node.op == OPAQUE:
            return functools.partial(_opaque, node.run, self.target.dtype)
        return functools.partial(_glue, node.run, self.target.dtype, map_like)

    def _provider_of(self, node: Node) -> str:
        return self.target.provider if node.kwargs.get("output", "scores") == "scores" else "torch"


# --- what runs -----------------------------------------------------------------------------------------------


def copy_into(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A map into the plan's memory; nothing if it lies there already."""
    return out if x.data_ptr() == out.data_ptr() and x.stride() == out.stride() else out.copy_(x)


def pool_frames(out: torch.Tensor, x: torch.Tensor, window: int) -> None:
    """Max over `window` frames with the same stride."""
    t = out.shape[2]
    out.copy_(x[:, :, 0 : t * window : window])
    for k in range(1, window):
        torch.maximum(out, x[:, :, k : t * window : window], out=out)


def _views(nest: Any) -> list[Any]:
    return [v for v in pytree.tree_leaves(nest) if isinstance(v, (View, Input))]


def _slices(op: str, args: Any, kwargs: Any, meta: Any) -> Any:
    """Channels of a map, which are places in it; None for what is to be computed."""
    x = args[0] if args else None
    if op == "index" and isinstance(x, (tuple, list, dict)):
        return x[args[1]]
    if not isinstance(x, View) or x.shape is None or len(x.shape) != 5:
        return None
    if op in ("chunk", "split") and kwargs.get("dim", args[2] if len(args) > 2 else 0) in (1, -4):
        found, first = [], 0
        for part in meta:
            found.append(x.slice(first, first + part.shape[1]))
            first += part.shape[1]
        return tuple(found)
    if op == "index" and isinstance(args[1], tuple) and len(args[1]) >= 2:
        everything, channels, *rest = args[1]
        whole = all(s == slice(None) for s in (everything, *rest))
        if whole and isinstance(channels, slice) and channels.step in (None, 1):
            first, last, _ = channels.indices(x.shape[1])
            return x.slice(first, max(first, last))
    return None


def _writer(node: Node, args: Sequence[Any], kwargs: Any, meta: torch.Tensor) -> Callable[..., Any] | None:
    """What writes a map's glue into the plan's memory: out, then at most two arguments."""
    if node.op in WRITERS and not kwargs and isinstance(node.run, nn.Module) is False:
        if all(not isinstance(a, View) or a.shape == tuple(meta.shape) for a in args):
            return functools.partial(_write, WRITERS[node.op])
        return None
    if node.op == "relu":
        return functools.partial(_write, WRITERS["relu"])
    if node.op == "max_pool" and len(args) == 2 and not kwargs and not isinstance(node.run, nn.Module):
        window = args[1]
        if isinstance(window, tuple) and window[1:] == (1, 1):
            return _pool
    return None


def _write(function: Callable[..., Any], out: torch.Tensor, *args: Any) -> None:
    function(*args, out=out)


def _pool(out: torch.Tensor, x: torch.Tensor, window: tuple[int, int, int]) -> None:
    pool_frames(out, x, window[0])


def _filled(
    run: Callable[..., Any], leaves: Sequence[Any], treespec: Any, where: Sequence[int], *values: Any
) -> Any:
    """A call with tensors in their places of its arguments."""
    filled = list(leaves)
    for i, value in zip(where, values, strict=True):
        filled[i] = value
    args, kwargs = pytree.tree_unflatten(filled, treespec)
    return run(*args, **kwargs)


def _cast(nest: Any, dtype: torch.dtype, maps_only: bool = False) -> Any:
    def cast(t: torch.Tensor) -> torch.Tensor:
        return t.to(dtype) if t.is_floating_point() and (t.dim() == 5 or not maps_only) else t

    return pytree.tree_map_only(torch.Tensor, cast, nest)


def _as_maps(nest: Any, dtype: torch.dtype) -> Any:
    """Maps as our kernels take them."""

    def laid(t: torch.Tensor) -> torch.Tensor:
        return channels_last(t.to(dtype)) if t.dim() == 5 and t.is_floating_point() else t

    return pytree.tree_map_only(torch.Tensor, laid, nest)


def _glue(function: Callable[..., Any], dtype: torch.dtype, map_like: bool, *args: Any, **kwargs: Any) -> Any:
    """Of maps in the type of the maps, other values in float32."""
    with for_the_caller():
        if not map_like:
            args, kwargs = _cast((args, kwargs), torch.float32)
        return _as_maps(function(*args, **kwargs), dtype)


def _opaque(function: Callable[..., Any], dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    """In the type of the parameters, on values of its own."""
    own = own_dtype(function) if isinstance(function, nn.Module) else torch.float32
    with for_the_caller():
        args, kwargs = pytree.tree_map_only(
            torch.Tensor,
            lambda t: t.to(own, copy=True) if t.is_floating_point() else t.clone(),
            (args, kwargs),
        )
        return _as_maps(function(*args, **kwargs), dtype)


def _head(
    module: Callable[..., Any], backend: str, maps: Sequence[torch.Tensor], *rest: Any, **kwargs: Any
) -> torch.Tensor:
    """A head's weights are float32."""
    with for_the_caller(), backends.use_backend(backend):
        return module(maps, *rest, **kwargs)


def _at_once(layer: Prepared, dtype: torch.dtype, *inputs: torch.Tensor | None) -> torch.Tensor:
    """An op on maps whose shapes no plan knew."""
    return layer.run(*(None if x is None else channels_last(x.to(dtype)) for x in inputs))


def _flops_of_head(node: Node, metas: dict[Node, Any]) -> int:
    """Of the classifier: once a clip, the same for any number of boxes and positions."""
    if node.kwargs.get("output", "scores") != "scores":
        return 0
    weight: torch.Tensor = node.run.proj.weight  # type: ignore[union-attr]
    return 2 * metas[node.inputs[0]].shape[0] * weight.numel()
