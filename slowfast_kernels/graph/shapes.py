"""Shapes of a graph's values for inputs of some shape, and the operations that they take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from .. import backends
from ..nn.block import Block
from ..ops.lateral_fusion.spec import LateralSpec
from .graph import Graph, Node, substituted

#: What no inference could tell.
UNKNOWN = object()


def infer(graph: Graph, inputs: Sequence[torch.Tensor | None], dtype: torch.dtype) -> dict[Node, Any]:
    """Every node's value without memory: a tensor on the meta device, a nest of such, or what plain value it is.

    inputs: without memory as well; None for one of any shape: what follows from it is `UNKNOWN`. dtype: of the maps.
    """
    given = (UNKNOWN if x is None else x for x in inputs)
    metas: dict[Node, Any] = dict(zip(graph.inputs, given, strict=True))
    for node in graph.nodes:
        metas[node] = _infer(node, metas, dtype)
    return metas


def flops(graph: Graph, metas: dict[Node, Any]) -> int:
    """Floating-point operations of our ops and of linear layers, a multiply-add counting as two."""
    total = 0
    for node in graph.nodes:
        if node.spec is not None and not (isinstance(node.spec, LateralSpec) and node.spec.sums):
            total += node.spec.flops(*(metas[v].shape for v in node.inputs))
    return total


def _infer(node: Node, metas: dict[Node, Any], dtype: torch.dtype) -> Any:
    # nothing that needs a plan comes after a head
    if isinstance(node.run, Block) or any(metas[v] is UNKNOWN for v in node.inputs):
        return UNKNOWN
    if node.spec is not None:
        shapes = [metas[v].shape for v in node.inputs]
        lateral = isinstance(node.spec, LateralSpec)
        shape = node.spec.lateral_shape(shapes[0]) if lateral else node.spec.out_shape(*shapes)  # type: ignore[attr-defined]
        return torch.empty(tuple(shape), dtype=dtype, device="meta")
    args, kwargs = substituted((node.args, node.kwargs), metas.__getitem__)
    try:
        with torch.no_grad(), backends.use_backend("auto"):
            return _called(node, args, kwargs)
    except Exception:  # whatever a function does not allow of tensors without memory
        return UNKNOWN


def _called(node: Node, args: Any, kwargs: Any) -> Any:
    assert node.run is not None
    tensors = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
    if node.op in _STAND_INS and tensors and not isinstance(node.run, nn.AdaptiveAvgPool3d):
        return _STAND_INS[node.op](*args, **kwargs)
    if not isinstance(node.run, nn.Module):
        return node.run(*args, **kwargs)
    own = [*node.run.parameters(), *node.run.buffers()]
    twin = copy.deepcopy(node.run, {id(t): torch.empty_like(t, device="meta") for t in own})
    dtype = own_dtype(node.run)
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs)
    )
    if isinstance(twin, nn.AdaptiveAvgPool3d):
        return nn.AdaptiveMaxPool3d(twin.output_size)(*args)
    return twin(*args, **kwargs)


def _same(x: torch.Tensor, *rest: Any, **kwargs: Any) -> torch.Tensor:
    return x


def _broadcast(*values: Any, **kwargs: Any) -> torch.Tensor:
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    return torch.broadcast_tensors(*tensors)[0]


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return tensors[0].new_empty(shape)


def _stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return _cat([t.unsqueeze(dim) for t in tensors], dim)


def _adaptive(x: torch.Tensor, size: Any, *rest: Any, **kwargs: Any) -> Any:
    return F.adaptive_max_pool3d(x, size)


#: What has the shape of glue whose own way to tell it, without memory, imports PyTorch's compiler: seconds, and a
#: hundred megabytes.
_STAND_INS: dict[str, Callable[..., Any]] = {
    "relu": _same,
    "layer_norm": _same,
    "cat": _cat,
    "stack": _stack,
    "mean": torch.sum,
    "adaptive_pool": _adaptive,
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum"), _broadcast),
}


def own_dtype(module: nn.Module) -> torch.dtype:
    """Type of a module's parameters."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def flops_counted(node: Node, metas: dict[Node, Any]) -> int:
    """Floating-point operations of a call, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    args, kwargs = substituted((node.args, node.kwargs), metas.__getitem__)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _called(node, args, kwargs)
    return counter.get_total_flops()
