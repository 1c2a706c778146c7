"""Single ops on SlowFast's real calls: every provider of ours, and the peers on the same layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from slowfast_kernels import backends, ops, testing
from slowfast_kernels.bench import peers, registry, roi_peers
from slowfast_kernels.bench.compare import Builder, builder, compare
from slowfast_kernels.bench.gpu.items import Item
from slowfast_kernels.bench.gpu.machine import DTYPES, GpuMachine
from slowfast_kernels.bench.harness import Contender, detached
from slowfast_kernels.bench.plain import op_module
from slowfast_kernels.bench.registry import Entry
from slowfast_kernels.bench.targets import PROVIDERS
from slowfast_kernels.ops._cases import Args, Case, bytes_of, cases_of, op_names

#: Parts of the network, which are also measured at the other batches and in float32.
WHOLE = ("stem3d", "bottleneck3d", "lateral_fusion", "pool_concat_head")

#: How many of an op's arguments, from the first on, are feature maps.
MAPS = {"conv_bn_act3d": 1, "stem3d": 1, "bottleneck3d": 1, "lateral_fusion": 2, "pool_concat_head": 2}


def items(machine: GpuMachine) -> list[Item]:
    """The middle batch in bf16 first, then the other batches and float32 of the whole layers."""
    setting = machine.setting
    others = [b for b in setting.batches if b != setting.middle]
    jobs = [(e, setting.middle) for e in _calls(machine, op_names(), "bf16")]
    jobs += [(e, batch) for batch in others for e in _calls(machine, WHOLE, "bf16")]
    jobs += [(e, setting.middle) for dtype in ("tf32", "fp32") for e in _calls(machine, WHOLE, dtype)]
    return [
        Item(f"{entry.name} b{batch} {entry.dtype}", functools.partial(_one, machine, entry, batch))
        for entry, batch in jobs
    ]


def _calls(machine: GpuMachine, names: Sequence[str], dtype: str) -> list[Entry]:
    """Calls of a SlowFast forward, those that the other parts measure left out, the frequent ones first."""
    setting = machine.setting
    found = []
    for op in names:
        if not registry.matches(op, setting.op) or op in ("roi_head_pool", "pack_pathways"):
            continue
        cases = [c for c in cases_of(op) if c.real and registry.matches(c.name, setting.case)]
        # roi_align3d is no part of the classifier (and too slow to interpret); other uncounted calls are rare
        cases = [c for c in cases if c.count or (op == "roi_align3d" and not machine.dry)]
        found += [Entry(op, c, dtype) for c in cases[: setting.limit or None]]
    return found


def _one(machine: GpuMachine, entry: Entry, batch: int) -> list[dict[str, Any]]:
    with machine.arithmetic(entry.dtype):
        return [measure_call(machine, entry, batch)]


def calls_of(machine: GpuMachine, entry: Entry, batch: int) -> tuple[dict[str, Any], list[Args]]:
    """What the record of a call says of it, and the call on as many sets of maps as are rotated among."""
    first = machine.draw(entry.case, entry.dtype, batch)
    said = entry.about(*first) | {"what": f"{entry.op} {entry.case.name}", "batch": batch}
    maps = MAPS.get(entry.op, len(first[0]))
    sets = [first]
    for seed in range(1, machine.sets(said["bytes"], batch)):
        args, _ = machine.draw(entry.case, entry.dtype, batch, seed)
        # weights are the first set's for all: a network has them once
        sets.append(((*args[:maps], *first[0][maps:]), first[1]))
    return said, sets


def measure_call(machine: GpuMachine, entry: Entry, batch: int) -> dict[str, Any]:
    """The record of one call."""
    said, sets = calls_of(machine, entry, batch)
    exact, yardstick = exact_of(machine, entry, sets[0]), reference_of(entry, sets[0])
    builders = ours(entry, sets) | _peers(machine, entry, sets)
    # Boxes and indices computed by kernels that only compile would lead others astray.
    ahead = () if entry.op.startswith("roi") else PROVIDERS
    return compare(machine, builders, exact, yardstick, compiled_ahead=ahead, **said)


def exact_of(machine: GpuMachine, entry: Entry, call: Args) -> Any:
    """The reference's answer in float32 products (float64 for float32 arguments)."""
    low = any(isinstance(a, Tensor) and a.dtype in (torch.bfloat16, torch.float16) for a in call[0])
    call = _widened(call) if low else testing.to_float64(call)
    with machine.arithmetic("fp32"), machine.unmeasured():
        return reference_of(entry, call)


def _widened(call: Args) -> Args:
    args, kwargs = call
    return pytree.tree_map_only(Tensor, lambda a: a.float() if a.is_floating_point() else a, args), kwargs


def reference_of(entry: Entry, call: Args) -> Any:
    """Plain PyTorch's answer in the arguments' own type."""
    return detached(registry.runner(entry, "reference", *call)())


def ours(entry: Entry, sets: Sequence[Args]) -> dict[str, Builder]:
    """Our providers as contenders, each on its sets of inputs."""
    return {p: functools.partial(own, entry, p, sets) for p in PROVIDERS}


def own(entry: Entry, provider: str, sets: Sequence[Args]) -> Contender:
    """One of our providers, weights packed before."""
    runner = registry.runner if provider == "reference" else registry.prepared
    return Contender(provider, [runner(entry, provider, *s) for s in sets], ours=True)


def _peers(machine: GpuMachine, entry: Entry, sets: Sequence[Args]) -> dict[str, Builder]:
    made = [op_module(entry.op, *call) for call in sets]
    if made[0] is None:
        runs = (registry.runner(entry, "reference", *call) for call in sets)
        return {"reference": builder("reference", *runs)}
    module = peers.placed(made[0][0], machine.device, DTYPES[entry.dtype])
    inputs = [peers.channels_last(one[1]) for one in made if one is not None]

    def build(name: str, form: Callable[[], nn.Module]) -> Contender:
        net = form()
        return Contender(name, [peers.module_run(net, x) for x in inputs])

    return {n: functools.partial(build, n, form) for n, form in peers.gpu_forms(module, module).items()}


# --- pack_pathways -------------------------------------------------------------------------------------------


def pack_items(machine: GpuMachine) -> list[Item]:
    """uint8 frames to the clips of both pathways, against copy bandwidth."""
    return [
        Item(f"pack b{batch}", functools.partial(_pack, machine, batch)) for batch in machine.setting.batches
    ]


def _pack(machine: GpuMachine, batch: int) -> list[dict[str, Any]]:
    case = next(c for c in cases_of("pack_pathways") if c.name == "view")
    entry = Entry("pack_pathways", case, "bf16")
    first = machine.draw(case, entry.dtype, batch)
    said = entry.about(*first) | {"what": f"{entry.op} {entry.case.name}", "batch": batch}
    # Frames are always read from memory here: there is no layer before that left them in the cache.
    count = max(2, machine.sets(said["bytes"], max(batch, 2)))
    sets = [first, *(machine.draw(case, entry.dtype, batch, seed) for seed in range(1, count))]
    mean, std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)

    def torch_form() -> Contender:
        frames, alpha = first[0][:2]
        pack = peers.TorchPack(frames, alpha, mean, std)
        return Contender("torch", [functools.partial(pack, args[0], DTYPES[entry.dtype]) for args, _ in sets])

    exact, yardstick = reference_of(entry, testing.to_float64(first)), reference_of(entry, first)
    builders: dict[str, Builder] = {**ours(entry, sets), "torch": torch_form}
    return [compare(machine, builders, exact, yardstick, **said)]


# --- roi_head_pool -------------------------------------------------------------------------------------------


def roi_items(machine: GpuMachine) -> list[Item]:
    """AVA's detection head: forward and backward, by number of boxes."""
    cases = [c for c in cases_of("roi_head_pool") if c.real]
    return [
        Item(f"{kind} {case.name} {dtype}", functools.partial(_roi, machine, case, dtype, kind))
        for case in cases[: machine.setting.limit or None]
        for dtype in ("bf16", "fp16")
        for kind in ("forward", "backward")
    ]


def _roi(machine: GpuMachine, case: Case, dtype: str, kind: str) -> list[dict[str, Any]]:
    entry, backward = Entry("roi_head_pool", case, dtype), kind == "backward"
    first = machine.draw(case, dtype)
    said = entry.about(*first) | {"what": f"{entry.op} {kind}, {case.name}", "batch": 1, "backward": backward}
    sets = [
        first,
        *(machine.draw(case, dtype, seed=seed) for seed in range(1, machine.sets(said["bytes"], 2))),
    ]

    def pooled(provider: str) -> Callable[..., Tensor]:
        def pool(slow: Tensor, fast: Tensor, rois: Tensor) -> Tensor:
            with backends.use_backend(provider):
                return ops.roi_head_pool(slow, fast, rois)

        return pool

    def build(name: str, make: Callable[[], Callable[..., Tensor]], mine: bool) -> Contender:
        pool = make()
        if backward:
            return Contender(name, [_backward(pool, *call[0]) for call in sets], ours=mine)
        # These ask the device for the sizes of the boxes, which nothing can capture.
        waits = name.startswith("torch_")
        runs = [peers.module_run(pool, call[0]) for call in sets]
        return Contender(name, runs, ours=mine, graph=not waits, note="waits for the device" * waits)

    def other(load: Callable[[], roi_peers.Align]) -> Callable[..., Tensor]:
        return functools.partial(roi_peers.head_pool, load())

    builders: dict[str, Builder] = {
        name: functools.partial(build, name, functools.partial(pooled, name), True) for name in PROVIDERS
    }
    for name, load in roi_peers.GPU_ALIGNS.items():
        builders[name] = functools.partial(build, name, functools.partial(other, load), False)
    if backward:
        exact, yardstick = (
            detached(_backward(pooled("reference"), *call[0])())
            for call in (testing.to_float64(first), first)
        )
        # Written once: the gradients of both maps; read: the upstream gradient, of next to no size.
        said |= {"flops": 0, "bytes": bytes_of(*first[0][:2])}
    else:
        exact, yardstick = exact_of(machine, entry, first), reference_of(entry, first)
    return [compare(machine, builders, exact, yardstick, **said)]


def _backward(pool: Callable[..., Tensor], slow: Tensor, fast: Tensor, rois: Tensor) -> Callable[[], Any]:
    """The backward alone, of a forward made here: gradients of both maps."""
    leaves = [x.detach().clone(memory_format=torch.channels_last_3d).requires_grad_() for x in (slow, fast)]
    out = pool(*leaves, rois)
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)
