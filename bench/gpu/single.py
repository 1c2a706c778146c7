"""Single ops on SlowFast's real calls: every provider of ours, and the peers on the same layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels import backends, ops, testing
from slowfast_kernels.bench import registry, roi_peers
from slowfast_kernels.bench.gpu import kernels, peers
from slowfast_kernels.bench.gpu.machine import DTYPES, Contender, Machine, detached
from slowfast_kernels.bench.gpu.measure import PROVIDERS, Builder, Item, compare
from slowfast_kernels.bench.op_modules import op_module
from slowfast_kernels.ops._cases import Args, Case, bytes_of, cases_of, cost_of, op_names

#: Parts of the network, which are also measured at the other batches and in float32.
WHOLE = ("stem3d", "bottleneck3d", "lateral_fusion", "pool_concat_head")

#: How many of an op's arguments, from the first on, are feature maps.
MAPS = {"conv_bn_act3d": 1, "stem3d": 1, "bottleneck3d": 1, "lateral_fusion": 2, "pool_concat_head": 2}


def items(machine: Machine) -> list[Item]:
    """The middle batch in bf16 first, then the other batches and float32 of the whole layers."""
    setting = machine.setting
    jobs = [(op, case, setting.middle, "bf16") for op, case in _calls(machine, op_names())]
    for batch in setting.batches:
        if batch != setting.middle:
            jobs += [(op, case, batch, "bf16") for op, case in _calls(machine, WHOLE)]
    for dtype in ("tf32", "fp32"):
        jobs += [(op, case, setting.middle, dtype) for op, case in _calls(machine, WHOLE)]
    return [
        Item(f"{op}/{case.name} b{batch} {dtype}", functools.partial(_one, machine, op, case, batch, dtype))
        for op, case, batch, dtype in jobs
    ]


def _calls(machine: Machine, names: Sequence[str]) -> list[tuple[str, Case]]:
    """Calls of a SlowFast forward, those that the other parts measure left out, the frequent ones first."""
    setting = machine.setting
    found = []
    for op in names:
        if not registry._matches(op, setting.op) or op in ("roi_head_pool", "pack_pathways"):
            continue
        cases = [c for c in cases_of(op) if c.real and registry._matches(c.name, setting.case)]
        # roi_align3d is no part of the classifier (and too slow to interpret); other uncounted calls are rare
        cases = [c for c in cases if c.count or (op == "roi_align3d" and not machine.dry)]
        found += [(op, c) for c in cases[: setting.limit or None]]
    return found


def _one(machine: Machine, op: str, case: Case, batch: int, dtype: str) -> list[dict[str, Any]]:
    with machine.arithmetic(dtype):
        return [measure_call(machine, op, case, batch, dtype)]


def measure_call(machine: Machine, op: str, case: Case, batch: int, dtype: str) -> dict[str, Any]:
    """The record of one call."""
    first = machine.draw(case, dtype, batch)
    cost = cost_of(op, *first[0], **first[1])
    count = machine.sets(cost.bytes, batch)
    sets = [first]
    maps = MAPS.get(op, len(first[0]))
    for seed in range(1, count):  # weights are the first set's for all: a network has them once
        args, _ = machine.draw(case, dtype, batch, seed)
        sets.append(((*args[:maps], *first[0][maps:]), first[1]))
    exact, yardstick = exact_of(machine, op, first), reference_of(op, first)
    builders = ours(op, sets) | _peers(machine, op, sets, dtype)
    about = {"op": op, "case": case.name, "batch": batch, "count": case.count}
    about |= {"flops": cost.flops, "bytes": cost.bytes, "what": f"{op} {case.name}"}
    # Boxes and indices computed by kernels that only compile would lead others astray.
    ahead = () if op.startswith("roi") else PROVIDERS
    with kernels.packing_once():
        return compare(machine, builders, exact, yardstick, dtype=dtype, ahead=ahead, **about)


def exact_of(machine: Machine, op: str, call: Args) -> Any:
    """The reference's answer in float32 products (float64 for float32 arguments)."""
    low = any(isinstance(a, Tensor) and a.dtype in (torch.bfloat16, torch.float16) for a in call[0])
    call = testing.to_float64(call) if not low else _widened(call)
    with machine.arithmetic("fp32"), machine.unmeasured():
        return reference_of(op, call)


def _widened(call: Args) -> Args:
    args, kwargs = call
    wide = tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    return wide, kwargs


def reference_of(op: str, call: Args) -> Any:
    """Plain PyTorch's answer in the arguments' own type."""
    args, kwargs = call
    with torch.inference_mode(), backends.use_backend("reference"):
        return detached(getattr(ops, op)(*args, **kwargs))


def ours(op: str, sets: Sequence[Args]) -> dict[str, Builder]:
    """Our providers as contenders, each on its sets of inputs."""

    def build(provider: str) -> Contender:
        runs = []
        for args, kwargs in sets:

            def run(args: Any = args, kwargs: Any = kwargs) -> Any:
                with torch.inference_mode(), backends.use_backend(provider):
                    return getattr(ops, op)(*args, **kwargs)

            runs.append(run)
        return Contender(provider, runs, ours=True)

    return {provider: functools.partial(build, provider) for provider in PROVIDERS}


def _peers(machine: Machine, op: str, sets: Sequence[Args], dtype: str) -> dict[str, Builder]:
    made = op_module(op, *sets[0])
    if made is None:
        return {"reference": lambda: Contender("reference", [_plain(op, call) for call in sets])}
    module = peers.placed(made[0], machine.device, DTYPES[dtype])
    inputs = []
    for args, kwargs in sets:
        again = op_module(op, args, kwargs)
        assert again is not None
        inputs.append(peers.channels_last(again[1]))

    def build(name: str, form: Callable[[], nn.Module]) -> Contender:
        net = form()
        return Contender(name, [module_run(net, x) for x in inputs])

    return {n: functools.partial(build, n, form) for n, form in peers.forms(module, module).items()}


def _plain(op: str, call: Args) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode(), backends.use_backend("reference"):
            return getattr(ops, op)(*call[0], **call[1])

    return run


def module_run(module: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[[], Any]:
    """A module on given inputs as a callable without arguments."""

    def run() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return run


# --- pack_pathways -------------------------------------------------------------------------------------------


def pack_items(machine: Machine) -> list[Item]:
    """uint8 frames to the clips of both pathways, against copy bandwidth."""
    return [
        Item(f"pack b{batch}", functools.partial(_pack, machine, batch)) for batch in machine.setting.batches
    ]


def _pack(machine: Machine, batch: int, dtype: str = "bf16") -> list[dict[str, Any]]:
    case = next(c for c in cases_of("pack_pathways") if c.name == "view")
    first = machine.draw(case, dtype, batch)
    cost = cost_of("pack_pathways", *first[0], **first[1])
    # Frames are always read from memory here: there is no layer before that left them in the cache.
    count = max(2, machine.sets(cost.bytes, max(batch, 2)))
    sets = [first, *(machine.draw(case, dtype, batch, seed) for seed in range(1, count))]
    mean, std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)

    def torch_form() -> Contender:
        frames, alpha = first[0][:2]
        pack = peers.TorchPack(frames.shape[1], alpha, mean, std, frames.device)
        return Contender("torch", [lambda x=args[0]: pack(x, DTYPES[dtype]) for args, _ in sets])  # type: ignore[misc]

    exact = reference_of("pack_pathways", testing.to_float64(first))
    yardstick = reference_of("pack_pathways", first)
    builders: dict[str, Builder] = {**ours("pack_pathways", sets), "torch": torch_form}
    about: dict[str, Any] = {"op": "pack_pathways", "case": case.name, "count": case.count}
    about |= {"flops": cost.flops, "bytes": cost.bytes, "batch": batch}
    return [compare(machine, builders, exact, yardstick, dtype=dtype, what="pack_pathways view", **about)]


# --- roi_head_pool -------------------------------------------------------------------------------------------


def roi_items(machine: Machine) -> list[Item]:
    """AVA's detection head: forward and backward, by number of boxes."""
    cases = [c for c in cases_of("roi_head_pool") if c.real]
    found = []
    for case in cases[: machine.setting.limit or None]:
        for dtype in ("bf16", "fp16"):
            for kind in ("forward", "backward"):
                run = functools.partial(_roi, machine, case, dtype, kind == "backward")
                found.append(Item(f"{kind} {case.name} {dtype}", run))
    return found


def _roi(machine: Machine, case: Case, dtype: str, backward: bool) -> list[dict[str, Any]]:
    first = machine.draw(case, dtype)
    cost = cost_of("roi_head_pool", *first[0], **first[1])
    op = "roi_head_pool"

    def own(provider: str) -> Callable[..., Tensor]:
        def pool(slow: Tensor, fast: Tensor, rois: Tensor) -> Tensor:
            with backends.use_backend(provider):
                return ops.roi_head_pool(slow, fast, rois)

        return pool

    def other(align: roi_peers.Align) -> Callable[..., Tensor]:
        def pool(slow: Tensor, fast: Tensor, rois: Tensor) -> Tensor:
            return head_pool(align, slow, fast, rois)

        return pool

    sets = [first, *(machine.draw(case, dtype, seed=seed) for seed in range(1, machine.sets(cost.bytes, 2)))]

    def build(name: str, make: Callable[[], Callable[..., Tensor]], mine: bool) -> Contender:
        pool = make()
        if not backward:
            # These ask the device for the sizes of the boxes, which nothing can capture.
            waits = name.startswith("torch_")
            runs = [module_run(pool, call[0]) for call in sets]
            return Contender(name, runs, ours=mine, graph=not waits, note="waits for the device" * waits)
        return Contender(name, [_backward(pool, *call[0]) for call in sets], ours=mine)

    builders: dict[str, Builder] = {
        name: functools.partial(build, name, functools.partial(own, name), True) for name in PROVIDERS
    }
    for name, align in peers.ALIGNS.items():
        builders[name] = functools.partial(build, name, lambda align=align: other(align()), False)  # type: ignore[misc]
    if backward:
        exact = detached(_backward(own("reference"), *testing.to_float64(first)[0])())
        yardstick = detached(_backward(own("reference"), *first[0])())
        # Written once: the gradients of both maps; read: the upstream gradient, of next to no size.
        work: dict[str, Any] = {"flops": 0, "bytes": bytes_of(*first[0][:2])}
    else:
        exact, yardstick = exact_of(machine, op, first), reference_of(op, first)
        work = {"flops": cost.flops, "bytes": cost.bytes}
    what = f"{op} {'backward' if backward else 'forward'}, {case.name}"
    about: dict[str, Any] = {
        "op": op,
        "case": case.name,
        "count": case.count,
        "batch": 1,
        "backward": backward,
    }
    return [compare(machine, builders, exact, yardstick, dtype=dtype, what=what, **about, **work)]


def head_pool(align: roi_peers.Align, slow: Tensor, fast: Tensor, rois: Tensor) -> Tensor:
    """The head composed from a RoIAlign: mean over time, align, maximum over the bins, both pathways together.

    The mean comes out in float32, in which the rest is computed, as autocast has it: the maximum then picks the
    bin that exact arithmetic picks, and gradients can be compared.
    """
    wide = torch.float64 if slow.dtype == torch.float64 else torch.float32
    pooled = [
        align(x.mean(dim=2, dtype=wide), rois, 7, 1 / 16, True).amax(dim=(-2, -1)) for x in (slow, fast)
    ]
    return torch.cat(pooled, dim=1).to(slow.dtype)


def _backward(pool: Callable[..., Tensor], slow: Tensor, fast: Tensor, rois: Tensor) -> Callable[[], Any]:
    """The backward alone, of a forward made here: gradients of both maps."""
    leaves = [x.detach().clone(memory_format=torch.channels_last_3d).requires_grad_() for x in (slow, fast)]
    out = pool(*leaves, rois)
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)
