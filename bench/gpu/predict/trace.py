"""The launches of a frozen plan: its steps run on tensors without memory, and whatever would start a kernel is noted.

So every figure is of the tile and the provider that the plan picks, whatever picks them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slowfast_kernels import backends
from slowfast_kernels._triton.launch import Launch, recording
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.plans.gpu import GpuTarget
from slowfast_kernels.plans.network import Network
from slowfast_kernels.plans.plan import Input, Instance, Plan, Step

#: Providers of an H200 on which everything is installed.
EVERYBODY = ("cuda", "blocks", "chain", "triton", "convolutions", "cudnn")

#: PyTorch's names of a plain convolution.
CONVOLUTIONS = ("aten::conv2d", "aten::convolution")


@dataclass
class Call:
    """What one step starts: a native op of ours or an op of PyTorch's with its arguments, or a Triton kernel."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    launch: Launch | None = None


class _Noted(TorchDispatchMode):
    """Our native ops do nothing; all calls are noted in their order, Triton's launches among them."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.launches, self.seen = launches, 0

    def flush(self) -> None:
        for item in self.launches[self.seen :]:
            self.calls.append(Call(item.name, (), {}, launch=item))
        self.seen = len(self.launches)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.flush()
        name, kwargs = func._schema.name, kwargs or {}
        if func.namespace != "slowfast":
            result = func(*args, **kwargs)
            if name in CONVOLUTIONS:  # cuDNN's results lie as its inputs do
                result = result.contiguous(memory_format=torch.channels_last)
            self.calls.append(Call(name, args, kwargs, result))
            return result
        short = name.removeprefix("slowfast::")
        if short not in OPS:
            self.calls.append(Call(short, args, kwargs))
            return None
        call = OPS[short].split(args)  # a public op: whoever would run it starts its kernels
        able = [
            p for n in backends.ORDER["cuda"] if (p := OPS[short].providers.get(n)) and not p.refuses(*call)
        ]
        with self:
            result = (able[0].run if able else OPS[short].reference)(*call)
        self.flush()
        return result


def planned(module: torch.nn.Module, providers: Sequence[str] = EVERYBODY) -> Network:
    """A module without memory prepared for a GPU whose plan may use `providers`; in bfloat16."""
    with backends.as_on_gpu(), torch.inference_mode():
        return Network(module, GpuTarget(torch.device("meta"), torch.bfloat16, providers))


def plan_of(network: Network, call: tuple[Any, ...]) -> tuple[Plan, list[torch.Tensor]]:
    """The plan of a call, and the call's tensors."""
    with backends.as_on_gpu(), torch.inference_mode():
        graph, inputs = network.graph(call)
        return network.plan(graph, inputs), inputs


def call_of(config: Any, batch: int) -> tuple[Any, ...]:
    """A model's arguments without memory: clips as `pack_pathways` leaves them; of a detector a box in each."""
    side, found = config.input.crop, []
    for p in config.pathways:
        shape = (batch, config.frames_of(p), side, side, config.pathway(p).in_channels)
        # not where the plan's memory begins, for tensors without memory all begin at 0
        x = torch.empty(8 + math.prod(shape), device="meta", dtype=torch.bfloat16)[8:].view(shape)
        found.append(x.permute(0, 4, 1, 2, 3))
    boxes = (torch.empty(batch, 5, device="meta"),) if config.head.takes_rois else ()
    return found if len(found) > 1 else found[0], *boxes


@dataclass
class Started:
    """A step and what it starts; None where that depends on values, as a detector's boxes are."""

    step: Step
    calls: list[Call] | None


def started(plan: Plan, inputs: Sequence[torch.Tensor]) -> tuple[list[Started], Instance]:
    """Of every step what it starts; and the instance whose memory the tensors of the calls would lie in."""
    instance, found = Instance(plan, "meta"), list[Started]()
    with backends.as_on_gpu(), torch.inference_mode():
        for i, one in enumerate(plan.steps):
            free = any(isinstance(a, Input) and a.shape is None for a in pytree.tree_leaves(one.args))
            if free or (found and found[-1].calls is None):  # and whatever comes behind it
                found.append(Started(one, None))
                continue
            with recording() as launches, _Noted(launches) as noted:
                instance.step(i, inputs)
            noted.flush()
            found.append(Started(one, noted.calls))
    return found, instance


# --- what of it comes from DRAM ------------------------------------------------------------------------------


class Cache:
    """The level-2 cache: what was touched last stays, as far as there is room."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.held: OrderedDict[Any, float] = OrderedDict()  # the last one touched last

    def touch(self, key: Any, nbytes: float) -> float:
        """Bytes of a piece of memory that have to be brought, or would have to be."""
        newer, found = 0.0, False
        for other, size in reversed(self.held.items()):
            if other == key:
                found = True
                break
            newer += size
        kept = min(nbytes, max(0.0, self.capacity - newer)) if found else 0.0
        self.held[key] = max(nbytes, self.held.pop(key, 0.0))
        return nbytes - kept


def place_of(tensor: torch.Tensor, step: Step, instance: Instance) -> Any:
    """What tells memory from memory: a buffer of the plan, or whatever the tensor lies in. None: the caller's."""
    storage = tensor.untyped_storage()._cdata
    if storage != instance.arena.untyped_storage()._cdata:
        return storage
    at = tensor.storage_offset() * tensor.element_size()
    for view in step.views:
        b = view.buffer
        if not b.produced and b.offset <= at < b.offset + b.nbytes:
            return "arena", b.offset
    return "arena", at


def reads_inputs(step: Step) -> bool:
    """Whether a step reads the caller's tensors, which come from elsewhere."""
    return any(isinstance(a, Input) for a in pytree.tree_leaves(step.args))
