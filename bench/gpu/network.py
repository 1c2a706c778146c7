"""Parts of the network as the targets name them, and the whole model, against every peer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels import backends, freeze, ops
from slowfast_kernels.bench import peer_model
from slowfast_kernels.bench.gpu import peers
from slowfast_kernels.bench.gpu.machine import DTYPES, Contender, Machine, Replayed, detached
from slowfast_kernels.bench.gpu.measure import PROVIDERS, Builder, Item, compare
from slowfast_kernels.bench.gpu.single import module_run
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.nn import ConvBN, Lateral
from slowfast_kernels.ops._cases import bytes_of

GRAPH = " graph"  # what the name of a contender ends in when the harness captured it as a user would


@functools.cache
def _subject(machine: Machine) -> Subject:
    s = machine.setting
    return Subject(s.model, frames=s.frames, crop=s.crop, overrides=s.overrides)


def _clips(machine: Machine, batch: int, seed: int) -> list[Tensor]:
    """Clips of both pathways in float32, drawn on the device."""
    config = _subject(machine).model.config
    generator = torch.Generator(machine.device).manual_seed(seed)
    side = config.input.crop
    found = []
    for p in config.pathways:
        shape = (batch, config.frames_of(p), side, side, config.pathway(p).in_channels)
        found.append(torch.randn(shape, generator=generator, device=machine.device).permute(0, 4, 1, 2, 3))
    return found


# --- parts ---------------------------------------------------------------------------------------------------


def fixed(module: nn.Module) -> nn.Module:
    """The module with its batch norms folded once, as a frozen model holds them, instead of at every call."""
    for part in module.modules():
        if isinstance(part, ConvBN | Lateral):
            value = part.folded()
            part.folded = lambda value=value: value  # type: ignore[assignment]
    return module


def _placed(machine: Machine, module: nn.Module, dtype: str) -> nn.Module:
    """A copy of one of our modules on the device: convolutions in ``dtype``, batch norms folded in float32."""
    module = copy.deepcopy(module).eval().requires_grad_(False).to(machine.device)
    module = fixed(module)
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.Linear):
            part.to(DTYPES[dtype])
    return module


Part = tuple[Sequence[nn.Module], list[list[Tensor]], Sequence[nn.Module], Sequence[nn.Module]]


def _part(machine: Machine, name: str, batch: int, seed: int) -> Part:
    """(our modules, inputs of each in float32, plain peers, folded peers) of a part of the network."""
    model, device = _subject(machine).model, machine.device
    clips = dict(zip(model.config.pathways, _clips(machine, batch, seed), strict=True))
    if name.endswith(" stem"):
        path = name.split()[0]
        stem = model.stem[path]
        return (
            [stem],
            [[clips[path]]],
            [peer_model.PlainStem(stem, False)],
            [peer_model.PlainStem(stem, True)],
        )
    # What comes before is computed by the reference: values as in the network, whatever our kernels do.
    with torch.inference_mode(), backends.use_backend("reference"):
        early = nn.ModuleDict({"stem": model.stem, "lateral": model.lateral[:1]})
        early = copy.deepcopy(early).to(device)
        slow, fast = (early["stem"][p](clips[p]) for p in ("slow", "fast"))  # type: ignore[index]
        if name == "slow res2":
            slow = early["lateral"][0](slow, fast)  # type: ignore[index]
    slow, fast = (x.clone(memory_format=torch.channels_last_3d) for x in (slow, fast))
    if name == "slow res2":
        stage = model.res2["slow"]
        return [stage], [[slow]], [peer_model.plain_stage(stage)], [peer_model.plain_stage(stage, True)]
    if name == "fast blocks":
        stages = [model.res2["fast"], model.res3["fast"], model.res4["fast"], model.res5["fast"]]
        plain, folded = (
            nn.Sequential(*(peer_model.plain_stage(stage, fold) for stage in stages))
            for fold in (False, True)
        )
        return [nn.Sequential(*stages)], [[fast]], [plain], [folded]
    assert name == "laterals", name
    parts, inputs = list(model.lateral), _lateral_maps(machine, batch, seed)
    plains, foldeds = ([peer_model.plain_lateral(p, fold) for p in parts] for fold in (False, True))
    return parts, inputs, plains, foldeds


def _lateral_maps(machine: Machine, batch: int, seed: int) -> list[list[Tensor]]:
    """Maps of both pathways before each of the lateral connections, non-negative as behind a ReLU."""
    model = _subject(machine).model
    config, found = model.config, []
    side = _half(_half(config.input.crop))
    generator = torch.Generator(machine.device).manual_seed(seed)
    for i, _ in enumerate(model.lateral):
        if i:
            strides = {config.pathway(p).strides[i - 1] for p in ("slow", "fast")}
            assert len(strides) == 1
            side = (side - 1) // strides.pop() + 1
        pair = []
        for p in ("slow", "fast"):
            path = config.pathway(p)
            width = path.width if i == 0 else path.out_channels(i - 1)
            shape = (batch, config.frames_of(p), side, side, width)
            x = torch.randn(shape, generator=generator, device=machine.device).relu_()
            pair.append(x.permute(0, 4, 1, 2, 3))
        found.append(pair)
    return found


def _half(n: int) -> int:
    return (n - 1) // 2 + 1


NAMES = ("fast stem", "slow stem", "laterals", "fast blocks", "slow res2")


def part_items(machine: Machine) -> list[Item]:
    """Every part at the middle batch in bf16, then at the other batches, then in float32."""
    s = machine.setting
    jobs = [(name, s.middle, "bf16") for name in NAMES]
    jobs += [(name, b, "bf16") for b in s.batches if b != s.middle for name in NAMES]
    jobs += [(name, s.middle, d) for d in ("tf32", "fp32") for name in NAMES]
    if machine.dry:  # an interpreter is slow: each part once, and one of every other kind
        jobs = [job for i, job in enumerate(jobs) if i < len(NAMES) or job[0] == "laterals"]
    return [
        Item(f"{name} b{batch} {dtype}", functools.partial(_measure_part, machine, name, batch, dtype))
        for name, batch, dtype in jobs
    ]


def _measure_part(machine: Machine, name: str, batch: int, dtype: str) -> list[dict[str, Any]]:
    kind = DTYPES[dtype]
    modules, first, plain, folded = _part(machine, name, batch, 1)
    nbytes = sum(bytes_of(*x) for x in first) // (2 if kind != torch.float32 else 1)
    # Another set of inputs is the first one shifted along the batch and the rows: other values, same kind.
    wide = [first] + [
        [[torch.roll(x, (i, 2 * i), (0, 3)) for x in group] for group in first]
        for i in range(1, machine.sets(nbytes, batch))
    ]
    inputs = [[peers.channels_last([x.to(kind) for x in group]) for group in one] for one in wide]
    own = [_placed(machine, m, dtype) for m in modules]
    builders: dict[str, Builder] = {}
    for provider in PROVIDERS:
        builders[provider] = functools.partial(_own_part, name, own, inputs, provider)

    def build(who: str, forms: Sequence[Callable[[], nn.Module]]) -> Contender:
        nets = [form() for form in forms]
        return Contender(who, [_together(nets, one) for one in inputs])

    def place(parts: Sequence[nn.Module]) -> list[nn.Module]:
        return [peers.placed(m, machine.device, kind) for m in parts]

    pairs = list(zip(place(plain), place(folded), strict=True))
    all_forms = [peers.forms(p, f) for p, f in pairs]
    for who in all_forms[0]:
        builders[who] = functools.partial(build, who, [forms[who] for forms in all_forms])
    with torch.inference_mode():
        values = [[x.float() for x in group] for group in inputs[0]]
        exact_nets = [peers.placed(m, machine.device, torch.float32) for m in plain]
        with machine.arithmetic("fp32"):
            exact = detached(_together(exact_nets, values)())
    with machine.arithmetic(dtype):
        yardstick = detached(_together([p for p, _ in pairs], inputs[0])())
        return [
            compare(
                machine, builders, exact, yardstick, dtype=dtype, what=name, batch=batch, flops=0, bytes=0
            )
        ]


def _together(nets: Sequence[Callable[..., Any]], inputs: Sequence[Sequence[Tensor]]) -> Callable[[], Any]:
    runs = [module_run(net, x) for net, x in zip(nets, inputs, strict=True)]
    return lambda: [run() for run in runs]


def _own_part(
    name: str, modules: Sequence[nn.Module], inputs: Sequence[Sequence[Sequence[Tensor]]], provider: str
) -> Contender:
    calls: list[Callable[[], Any]] = []
    for one in inputs:
        if name == "laterals":
            each = [_into_buffer(m, *pair) for m, pair in zip(modules, one, strict=True)]
        else:
            each = [module_run(m, x) for m, x in zip(modules, one, strict=True)]

        def run(each: list[Callable[[], Any]] = each) -> Any:
            with backends.use_backend(provider):
                return [call() for call in each]

        calls.append(run)
    note = "the Slow maps lie in the fused buffer" if name == "laterals" else ""
    return Contender(provider, calls, ours=True, note=note)


def _into_buffer(module: Any, slow: Tensor, fast: Tensor) -> Callable[[], Any]:
    """A lateral connection as in a frozen model: the layer before left the Slow maps in the fused buffer."""
    n, c, t, h, w = slow.shape
    scale, shift = module.folded()
    total = c + module.conv.out_channels
    rows = torch.empty((n, t, h, w, total), dtype=slow.dtype, device=slow.device)
    out = rows.permute(0, 4, 1, 2, 3)
    out[:, :c] = slow

    def run() -> Any:
        with torch.inference_mode():
            return ops.lateral_fusion(
                out[:, :c],
                fast,
                module.conv.weight,
                scale,
                shift,
                alpha=module.alpha,
                relu=module.relu,
                out=out,
            )

    return run


# --- the whole model -------------------------------------------------------------------------------------------


def model_items(machine: Machine) -> list[Item]:
    """bf16 at every batch, the middle one first; float32 at the middle batch."""
    s = machine.setting
    batches = [s.middle, *(b for b in s.batches if b != s.middle)]
    jobs = [(b, "bf16") for b in batches] + [(s.middle, d) for d in ("tf32", "fp32")]
    return [
        Item(f"model b{batch} {dtype}", functools.partial(_measure_model, machine, batch, dtype, ()))
        for batch, dtype in jobs
    ]


def compile_items(machine: Machine) -> list[Item]:
    """torch.compile of the whole model in bf16: each mode with ours and eager in one run."""
    batches = (machine.setting.middle, 1) if machine.setting.middle != 1 else (1,)
    return [
        Item(f"{name} b{batch}", functools.partial(_measure_model, machine, batch, "bf16", (name,)))
        for batch in batches
        for name in peers.COMPILED
    ]


def _measure_model(machine: Machine, batch: int, dtype: str, modes: Sequence[str]) -> list[dict[str, Any]]:
    """One record. Contenders take their inputs as a user's call gives them: a captured one copies them first."""
    kind, subject = DTYPES[dtype], _subject(machine)
    model = subject.model
    wide = [peers.channels_last(_clips(machine, batch, seed)) for seed in (1, 2)]
    clips = [[x.to(kind) for x in one] for one in wide]
    twins = {fold: peer_model.PlainSlowFast(model, fold) for fold in (False, True)}
    plain, folded = (peers.placed(twins[fold], machine.device, kind) for fold in (False, True))
    with machine.arithmetic("fp32"), torch.inference_mode():
        values = [x.float() for x in clips[0]]  # the same rounded inputs as everybody's
        exact = detached(peers.placed(twins[False], machine.device, torch.float32)(*values))
    on_device = copy.deepcopy(model).to(machine.device)

    def frozen() -> Callable[..., Any]:
        net = freeze(on_device, kind)
        return lambda *x: net(list(x))

    def plainly(who: str, make: Callable[[], Callable[..., Any]], mine: bool) -> Contender:
        net = make()
        return Contender(who, [module_run(net, one) for one in clips], ours=mine, graph=False)

    def captured(who: str, make: Callable[[], Callable[..., Any]], mine: bool) -> Contender:
        net = make()

        def call(*x: Tensor) -> Any:
            with torch.inference_mode():
                return net(*x)

        replay = Replayed(machine, call, *clips[0])
        contender = Contender(who, [lambda one=one: replay(*one) for one in clips], ours=mine, graph=False)
        contender.note = "captured"
        return contender

    makers: dict[str, tuple[Callable[[], Callable[..., Any]], bool]] = {"frozen": (frozen, True)}
    for who, form in peers.forms(plain, folded).items():
        if not modes or who == peers.EAGER:
            makers[who] = (form, False)
    builders: dict[str, Builder] = {}
    for who, (make, mine) in makers.items():
        builders[who] = functools.partial(plainly, who, make, mine)
        builders[who + GRAPH] = functools.partial(captured, who + GRAPH, make, mine)
    for mode in modes:

        def make_compiled(mode: str = mode) -> Callable[..., Any]:
            return peers.compiled(folded, peers.COMPILED[mode], clips[0], machine.dry)

        builders[mode] = functools.partial(plainly, mode, make_compiled, False)
    with machine.arithmetic(dtype):
        with torch.inference_mode():
            yardstick = detached(plain(*clips[0]))
        record = compare(
            machine,
            builders,
            exact,
            yardstick,
            dtype=dtype,
            what="model",
            batch=batch,
            flops=2 * subject.macs * batch,
            bytes=0,
        )
    for row in record["rows"]:
        row["graph"] = row["note"] == "captured" or row["who"] == "compile_graph"
    return [record]
