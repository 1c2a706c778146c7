"""The first minute on a new machine: whether what the other parts are built on works there, and what decides between
ways to compute the deep layers.

A check is a record with a status of its own: "ok", "red" (a failure where it is ours) or "missing". Calls and
convolutions are records of contenders, as everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slowfast_kernels import _extension, _selftest, backends, freeze
from slowfast_kernels.bench import cudnn_forms, peers, plain, registry
from slowfast_kernels.bench.compare import Builder, compare, limit_of
from slowfast_kernels.bench.gpu import kernels, profile
from slowfast_kernels.bench.gpu.items import Item, check
from slowfast_kernels.bench.gpu.machine import GpuMachine
from slowfast_kernels.bench.gpu.network import how
from slowfast_kernels.bench.gpu.single import calls_of, exact_of, own, reference_of
from slowfast_kernels.bench.harness import Contender, detached, first_line
from slowfast_kernels.bench.registry import Entry
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.ops._cases import Case, call_of, cases_of, op_names
from slowfast_kernels.ops._memory import empty_channels_last
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.ops._spec import ConvAffine
from slowfast_kernels.ops.bottleneck3d import cuda as _declares_its_ops  # noqa: F401
from slowfast_kernels.ops.bottleneck3d import cuda_pack
from slowfast_kernels.ops.bottleneck3d.spec import BlockSpec
from slowfast_kernels.ops.conv_bn_act3d.spec import ConvSpec
from slowfast_kernels.testing import relative_l2

Record = dict[str, Any]

#: cuDNN's fused calls: clip, weight, padding of res4's 2-D views at batch 8.
FUSED = {
    "3x1x1": ((8, 1024, 8, 196), (256, 1024, 3, 1), (1, 0)),
    "1x3x3": ((64, 256, 14, 14), (256, 256, 3, 3), (1, 1)),
}

#: Stages of the Slow pathway that cuDNN, Triton and CUDA could all compute.
DEEP = ("res3.slow", "res4.slow", "res5.slow")


def items(machine: GpuMachine) -> list[Item]:
    """The library, cuDNN's fused calls, a graph, rates of the hardware, every CUDA op, the deep convolutions."""
    ops = [
        Item(f"{op} {case.name}", functools.partial(_call, machine, op, case))
        for op in op_names()
        if "cuda" in OPS[op].providers
        for case in _real(machine, op)
    ]
    convolutions = [
        Item(case.name, functools.partial(_convolution, machine, case)) for case in _deep(machine)
    ]
    return [
        Item("library", lambda: _library(machine)),
        *(Item(f"cudnn {name}", functools.partial(_fused, machine, name)) for name in FUSED),
        Item("graph", lambda: _graph(machine)),
        Item("products", lambda: _products(machine)),
        Item("read", lambda: _read(machine)),
        *ops,
        Item("compile convolutions", lambda: _compiled(machine)),
        *convolutions,
    ]


def _real(machine: GpuMachine, op: str) -> list[Case]:
    """Calls of a SlowFast forward, and of a detector's head (those of roi_align3d are too slow to emulate)."""
    boxes = op == "roi_head_pool" or (op == "roi_align3d" and not machine.dry)
    found = [c for c in cases_of(op) if c.real and (c.count or boxes)]
    return found[: machine.setting.limit or None]


def _medians(machine: GpuMachine, **runs: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each call, all measured side by side."""
    ready = {name: machine.prepare(Contender(name, [run])) for name, run in runs.items()}
    return {name: timing.median for name, timing in machine.compare(ready).timings.items()}


# --- what everything is built on --------------------------------------------------------------------------------


def _library(machine: GpuMachine) -> Iterator[Record]:
    """The CUDA library loads, and an op of it computes on the stream of the call."""
    name = "libslowfast_emulated.so" if machine.dry else "libslowfast_cuda.so"
    reason = _extension.cuda_missing()
    if reason is not None:
        there = (_extension.LIB_DIR / name).exists()
        yield check(f"{name} loads", "red" if there else "missing", reason)
        return
    yield check(f"{name} loads", "ok")
    x = torch.randn(1 << (10 if machine.dry else 20), device=machine.device)
    right = torch.equal(_selftest.scaled(x, 2.5), x * 2.5)
    yield check("an op of it computes", "ok" if right else "red", "" if right else "another result")


def _fused(machine: GpuMachine, name: str) -> Iterator[Record]:
    """cuDNN's convolution with bias, (addition,) ReLU in one call: on memory that holds NaN, against float32."""
    shape, weight_shape, padding = FUSED[name]
    if machine.dry:
        shape, weight_shape = (2, 16, *shape[2:]), (16, 16, *weight_shape[2:])
    draw = functools.partial(torch.randn, device=machine.device)
    x, weight = (
        t.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for t in (draw(shape), draw(weight_shape) * (weight_shape[1] * weight_shape[2]) ** -0.5)
    )
    bias = draw(weight_shape[0]).to(torch.bfloat16)
    with machine.arithmetic("fp32"), machine.unmeasured():
        y = F.conv2d(x.float(), weight.float(), bias.float(), padding=padding)
    z = draw(y.shape).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    more = ([1, 1], padding, [1, 1], 1)
    calls: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "cudnn_convolution_relu": (
            lambda: torch.cudnn_convolution_relu(x, weight, bias, *more),
            y.relu(),
        ),
        "cudnn_convolution_add_relu": (
            lambda: torch.cudnn_convolution_add_relu(x, weight, z, 1.0, bias, *more),
            (y + z).relu(),
        ),
        "conv2d, add, relu": (lambda: F.relu(F.conv2d(x, weight, bias, padding=padding) + z), (y + z).relu()),
    }
    for who, (call, exact) in calls.items():
        yield _checked(machine, f"{who} {name}", call, exact)


def _checked(machine: GpuMachine, name: str, call: Callable[[], Tensor], exact: Tensor) -> Record:
    """One call of somebody else's on poisoned memory: whether it is right, its time, its kernels."""
    machine.poison_everything()
    try:
        with machine.checking():
            got = call()
        machine.synchronize()
    except RuntimeError as reason:  # no engine
        machine.synchronize()  # raises where the device is lost
        return check(name, "missing", first_line(reason), ours=False)
    error = relative_l2(got, exact)
    limit = limit_of("bf16", 0.0)
    bad = int(got.isnan().sum())
    seconds = _medians(machine, call=call)["call"]
    told = f"{bad} values of {got.numel()} are NaN" if bad else f"error {error:.1e}"
    names = _kernels(call, name)
    text = f"{told}; {1e6 * seconds:.1f} us; {', '.join(names) or 'kernels not known'}"
    status = "ok" if error <= limit else "red"
    return check(name, status, text, ours=False, seconds=seconds, error=error, nan=bad, kernels=names)


def _kernels(call: Callable[[], Any], name: str) -> list[str]:
    """Names of the kernels that a call starts, the longest-running first; none where no profiler works."""
    try:
        events = profile.trace(call, name)
    except RuntimeError:
        return []
    found = [e for e in events if e.device_type.name == "CUDA" and e.key != name]
    return [e.key for e in sorted(found, key=lambda e: -e.self_device_time_total)]


def _graph(machine: GpuMachine) -> Iterator[Record]:
    """A tiny frozen model: step by step against plain PyTorch, and its graph against that."""
    subject = Subject(frames=8, crop=64 if not machine.dry else 32, overrides={"blocks": (1, 1, 1, 1)})
    clips = [x.to(machine.device, torch.bfloat16) for x in subject.inputs]
    model = subject.model.to(machine.device)
    twin = plain.SlowFast(subject.model, True).to(machine.device)
    with torch.inference_mode(), machine.unmeasured():
        with machine.arithmetic("fp32"):
            exact = twin(*(x.float() for x in clips))
        limit = limit_of("bf16", relative_l2(twin.to(torch.bfloat16)(*clips), exact))
    net = freeze(model, torch.bfloat16)
    first, *later = (detached(net(clips)) for _ in range(4))  # by itself, captured, replayed twice
    machine.synchronize()
    error = relative_l2(first, exact)
    yield check(
        "a frozen model computes",
        "ok" if error <= limit else "red",
        f"error {error:.1e}, at most {limit:.1e}",
        error=error,
    )
    graph, by = how(net, ())
    yield check("a graph was captured", "ok" if graph else "missing" if machine.dry else "red", by)
    same = all(torch.equal(first, again) for again in later)
    apart = max(relative_l2(again, first) for again in later)
    text = "bit for bit" if same else f"apart by {apart:.1e}"
    yield check("replays compute the same", "ok" if apart <= 1e-3 else "red", text, error=apart)


# --- our CUDA kernels ----------------------------------------------------------------------------------------------


def _call(machine: GpuMachine, op: str, case: Case) -> Iterator[Record]:
    """A call by CUDA against the reference; nothing where CUDA does not take it."""
    entry, provider = Entry(op, case, "bf16"), OPS[op].providers["cuda"]
    batch = 1 if op.startswith("roi") else machine.setting.middle
    said, sets = calls_of(machine, entry, batch)
    call = call_of(op, *sets[0])
    if registry.prepares(op) and call is not None and provider.cannot(call[2], torch.bfloat16):
        return
    exact, yardstick = exact_of(machine, entry, sets[0]), reference_of(entry, sets[0])
    builders = {"cuda": functools.partial(own, entry, "cuda", sets)}
    with machine.arithmetic("bf16"):
        yield compare(machine, builders, exact, yardstick, **said | {"what": entry.name})


# --- the deep convolutions -------------------------------------------------------------------------------------------


def _deep(machine: GpuMachine) -> list[Case]:
    """Every distinct convolution of the Slow pathway's res3 to res5; each is one on a 2-D view."""
    found = [c for c in cases_of("conv_bn_act3d") if c.count and c.name.startswith(DEEP)]
    return found[: machine.setting.limit or None]


def _compiled(machine: GpuMachine) -> Iterator[Record]:
    """Triton's kernels of all of them, compiled side by side: one after the other would take most of the part."""
    if backends.unavailable("triton"):
        return
    cases = _deep(machine)
    with kernels.compiling_ahead() as possible:
        for case in cases if possible else ():
            call = machine.draw(case, "bf16", machine.setting.middle)
            own(Entry("conv_bn_act3d", case, "bf16"), "triton", [call]).runs[0]()
    machine.tidy()
    text = f"{len(cases)} of them" if possible else "nothing is compiled ahead here"
    yield check("Triton's convolutions compile", "ok" if possible else "missing", text)


def _convolution(machine: GpuMachine, case: Case) -> Iterator[Record]:
    """One convolution with what follows it, by cuDNN in one call and in several, by Triton, and by CUDA as a wide
    block's conv_a."""
    entry = Entry("conv_bn_act3d", case, "bf16")
    said, sets = calls_of(machine, entry, machine.setting.middle)
    made = [plain.op_module(entry.op, *call) for call in sets]
    assert made[0] is not None
    module = peers.placed(made[0][0], machine.device, torch.bfloat16)
    inputs = [peers.channels_last(one[1]) for one in made if one is not None]

    def cudnn(name: str, how: str) -> Contender:
        net = cudnn_forms.ViewConv(module.conv, module.relu, how)  # type: ignore[arg-type]
        return Contender(name, [peers.module_run(net, x) for x in inputs])

    builders: dict[str, Builder] = {"triton": functools.partial(own, entry, "triton", sets)}
    builders["conv2d"] = functools.partial(cudnn, "conv2d", cudnn_forms.PARTS)
    if module.relu:
        builders["cudnn_fused"] = functools.partial(cudnn, "cudnn_fused", cudnn_forms.WHOLE)
    call = call_of(entry.op, *sets[0])
    assert call is not None
    if _wide_a(call[2], len(inputs[0])):
        builders["cuda"] = functools.partial(_by_cuda, call[2], inputs)
    exact, yardstick = exact_of(machine, entry, sets[0]), reference_of(entry, sets[0])
    with machine.arithmetic("bf16"):
        yield compare(machine, builders, exact, yardstick, **said | {"what": entry.name})


def _wide_a(spec: ConvSpec, inputs: int) -> bool:
    """Whether it is the first convolution of a block that the CUDA kernels take as a wide one."""
    point = spec.conv.kernel[1:] == (1, 1) and tuple(spec.stride) == (1, 1, 1)
    return inputs == 1 and spec.relu and point and spec.conv.weight.shape[0] in cuda_pack.WIDE


def _by_cuda(spec: ConvSpec, inputs: list[list[Tensor]]) -> Contender:
    if reason := backends.unavailable("cuda"):
        raise RuntimeError(f"slowfast::conv_bn_act3d cannot run here ({reason})")
    inner, (x,) = spec.conv.weight.shape[0], inputs[0]
    b, c = (ConvAffine(x.new_zeros(inner, inner, *kernel)) for kernel in ((1, 3, 3), (1, 1, 1)))
    packed = cuda_pack.pack(BlockSpec(spec.conv, b, c), x.dtype)

    def run(x: Tensor) -> Tensor:
        out = empty_channels_last(x, [x.shape[0], inner, *x.shape[2:]])
        torch.ops.slowfast._block_wide_a_run_cuda(x, packed.weights_a, packed.shift_a, packed.kernel_t, out)
        return out

    return Contender("cuda", [functools.partial(run, *one) for one in inputs], ours=True)


# --- the hardware --------------------------------------------------------------------------------------------------


def _places(machine: GpuMachine, per_processor: int) -> int:
    """Blocks of threads that fill the device so many times."""
    if machine.dry:
        return 2
    return per_processor * torch.cuda.get_device_properties(machine.device).multi_processor_count


def _products(machine: GpuMachine) -> Iterator[Record]:
    """mma.sync m16n8k8 against m16n8k16: whether half a product costs half."""
    if reason := backends.unavailable("cuda"):
        yield check("tensor cores", "missing", reason)
        return
    blocks, steps = _places(machine, 2), 2 if machine.dry else 4096
    sums = {d: torch.full((blocks * _selftest.THREADS,), torch.nan, device=machine.device) for d in (8, 16)}
    seconds = _medians(
        machine, **{f"m16n8k{d}": functools.partial(_selftest.products, d, steps, s) for d, s in sums.items()}
    )
    for depth, out in sums.items():
        name = f"m16n8k{depth}"
        right = bool((out == 32 * depth * steps).all())
        rate = blocks * steps * _selftest.STEP_FLOPS[depth] / seconds[name]
        text = f"{rate / 1e12:.1f} TFLOP/s" if right else "another sum"
        yield check(f"mma.sync {name}", "ok" if right else "red", text, value=rate / 1e9, unit="GFLOP/s")
    ratio = seconds["m16n8k16"] / seconds["m16n8k8"]
    text = f"a product of depth 16 takes {ratio:.2f} times one of depth 8"
    yield check("cost of depth", "ok", text, value=ratio, unit="")


def _read(machine: GpuMachine) -> Iterator[Record]:
    """What all multiprocessors together read from the level-2 cache, as operands are read."""
    if reason := backends.unavailable("cuda"):
        yield check("level-2 cache", "missing", reason)
        return
    blocks = _places(machine, 4)
    for kilobytes in (32,) if machine.dry else (8 << 10, 16 << 10):
        x = torch.randint(-1000, 1000, (kilobytes * 256,), dtype=torch.int32, device=machine.device)
        out = torch.zeros(blocks * _selftest.THREADS, dtype=torch.int32, device=machine.device)
        seconds = _medians(machine, read=functools.partial(_selftest.read, x, out))["read"]
        right = bool((out.view(blocks, -1).long().sum(1) % 2**32 == x.long().sum() % 2**32).all())
        rate = blocks * 4 * x.numel() / seconds
        text = f"{rate / 1e9:.0f} GB/s to all multiprocessors" if right else "another sum"
        name = f"reading {kilobytes} KiB that lie in the level-2 cache"
        yield check(name, "ok" if right else "red", text, value=rate / 1e9, unit="GB/s")
