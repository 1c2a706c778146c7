"""Parts of the network as the targets name them, and the whole model, against every peer."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels import backends, freeze, ops
from slowfast_kernels.bench import peer_model, peers
from slowfast_kernels.bench.compare import Builder, compare
from slowfast_kernels.bench.gpu import kernels
from slowfast_kernels.bench.gpu.items import Item
from slowfast_kernels.bench.gpu.machine import DTYPES, GpuMachine
from slowfast_kernels.bench.harness import Contender, detached
from slowfast_kernels.bench.peers import module_run, modules_run, together
from slowfast_kernels.bench.subject import Subject, clips, lateral_maps, plain_stages
from slowfast_kernels.bench.targets import FROZEN, PROVIDERS
from slowfast_kernels.nn import ConvBN, Lateral
from slowfast_kernels.ops._cases import bytes_of
from slowfast_kernels.plans.plan import Instance, Plan
from slowfast_kernels.testing import RecordCalls

GRAPH = " graph"  # what the name of a contender ends in when the harness captured it as a user would


@functools.cache
def _subject(machine: GpuMachine) -> Subject:
    s = machine.setting
    return Subject(s.model, frames=s.frames, crop=s.crop, overrides=s.overrides)


def _generator(machine: GpuMachine, seed: int) -> torch.Generator:
    return torch.Generator(machine.device).manual_seed(seed)


# --- work ----------------------------------------------------------------------------------------------------


def work_of(
    modules: Sequence[nn.Module], inputs: Sequence[Sequence[Tensor]], dtype: torch.dtype
) -> list[list[int]]:
    """[FLOPs, least bytes] of every stem, block, lateral connection and head of modules: the units that can be one
    kernel each. Laterals are taken to find the Slow maps where they belong."""
    found = []
    for module, values in zip(modules, inputs, strict=True):
        twin = copy.deepcopy(module).eval().to("meta")
        for part in twin.modules():
            if isinstance(part, nn.Conv3d | nn.Linear):
                part.to(dtype)
        like = [torch.empty_like(x, dtype=dtype, device="meta") for x in values]
        with RecordCalls() as record, torch.no_grad(), backends.use_backend("auto"):
            twin(like) if hasattr(twin, "config") else twin(*like)
        for name, given in record.calls:
            schema = getattr(torch.ops.slowfast, name).default._schema.arguments
            cost = importlib.import_module(f"slowfast_kernels.ops.{name}.cost").cost
            known = inspect.signature(cost).parameters
            call = {a.name: v for a, v in zip(schema, given, strict=False) if a.name in known}
            if name == "lateral_fusion":
                call |= {"kind": "conv", "out": call["slow"]}
            least = cost(**call)
            found.append([least.flops, least.bytes])
    return found


def _about(units: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {"flops": sum(f for f, _ in units), "bytes": sum(b for _, b in units), "units": units}


# --- parts ---------------------------------------------------------------------------------------------------


def fixed(module: nn.Module) -> nn.Module:
    """The module with its batch norms folded once, as a frozen model holds them, instead of at every call."""
    for part in module.modules():
        if isinstance(part, ConvBN | Lateral):
            value = part.folded()
            part.folded = lambda value=value: value  # type: ignore[assignment, misc]
    return module


def _placed(machine: GpuMachine, module: nn.Module, dtype: str) -> nn.Module:
    """A copy of one of our modules on the device: convolutions in ``dtype``, batch norms folded in float32."""
    module = copy.deepcopy(module).eval().requires_grad_(False).to(machine.device)
    module = fixed(module)
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.Linear):
            part.to(DTYPES[dtype])
    return module


def _part(
    machine: GpuMachine, name: str, batch: int, seed: int
) -> tuple[list[nn.Module], list[list[Tensor]], Callable[[Any, bool], nn.Module]]:
    """(our modules, inputs of each in float32, the plain form of each: folded or not) of a part of the network."""
    model, generator = _subject(machine).model, _generator(machine, seed)
    if name == "laterals":
        return list(model.lateral), lateral_maps(model, batch, generator), peer_model.plain_lateral
    if name in DEEP:
        at = STAGES.index(name.split()[1])  # the lateral connection before it
        maps, _ = lateral_maps(model, batch, generator)[at]
        added = model.lateral[at].conv.out_channels
        # what the lateral connection adds: of the same kind, behind a ReLU as well
        maps = torch.cat([maps, maps[:, :added].roll(1, 0).flip(3)], dim=1) if added else maps
        stage = getattr(model, name.split()[1])["slow"]
        return [stage], [peers.channels_last([maps])], peer_model.plain_stage
    given = dict(zip(model.config.pathways, clips(model.config, batch, generator), strict=True))
    if name.endswith(" stem"):
        path = name.split()[0]
        return [model.stem[path]], [[given[path]]], peer_model.PlainStem
    # What comes before is computed by the reference: values as in the network, whatever our kernels do.
    with torch.inference_mode(), backends.use_backend("reference"):
        early = nn.ModuleDict({"stem": model.stem, "lateral": model.lateral[:1]})
        early = copy.deepcopy(early).to(machine.device)
        slow, fast = (early["stem"][p](given[p]) for p in ("slow", "fast"))  # type: ignore[index]
        if name == "slow res2":
            slow = early["lateral"][0](slow, fast)  # type: ignore[index]
    slow, fast = (x.clone(memory_format=torch.channels_last_3d) for x in (slow, fast))
    if name == "slow res2":
        return [model.res2["slow"]], [[slow]], peer_model.plain_stage
    assert name == "fast blocks", name
    blocks = nn.Sequential(*(getattr(model, stage)["fast"] for stage in STAGES))
    return [blocks], [[fast]], plain_stages


NAMES = ("fast stem", "slow stem", "laterals", "fast blocks", "slow res2")

#: The stages that no target is about; at one batch only.
DEEP = ("slow res3", "slow res4", "slow res5")
STAGES = ("res2", "res3", "res4", "res5")


def part_items(machine: GpuMachine) -> list[Item]:
    """Every part at the middle batch in bf16, then at the other batches, then in float32."""
    s = machine.setting
    jobs = [(name, s.middle, "bf16") for name in NAMES]
    jobs += [] if machine.dry else [(name, s.middle, "bf16") for name in DEEP]
    jobs += [(name, b, "bf16") for b in s.batches if b != s.middle for name in NAMES]
    jobs += [(name, s.middle, d) for d in ("tf32", "fp32") for name in NAMES]
    if machine.dry:  # an interpreter is slow: each part once, and one of every other kind
        jobs = [job for i, job in enumerate(jobs) if i < len(NAMES) or job[0] == "laterals"]
    return [
        Item(f"{name} b{batch} {dtype}", functools.partial(_measure_part, machine, name, batch, dtype))
        for name, batch, dtype in jobs
    ]


def _measure_part(machine: GpuMachine, name: str, batch: int, dtype: str) -> list[dict[str, Any]]:
    kind = DTYPES[dtype]
    with machine.unmeasured():
        modules, first, plain = _part(machine, name, batch, 1)
    nbytes = sum(bytes_of(*x) for x in first) // (2 if kind != torch.float32 else 1)
    # Another set of inputs is the first one shifted along the batch and the rows: other values, same kind.
    wide = [first] + [
        [[torch.roll(x, (i, 2 * i), (0, 3)) for x in group] for group in first]
        for i in range(1, machine.sets(nbytes, batch))
    ]
    inputs = [[peers.channels_last([x.to(kind) for x in group]) for group in one] for one in wide]
    del wide
    own = [_placed(machine, m, dtype) for m in modules]
    builders: dict[str, Builder] = {}
    if not name.endswith(" stem"):  # a planned stem copies the caller's clip first, which is no part of it
        builders[FROZEN] = functools.partial(_planned, machine, name, inputs, kind)
    for provider in PROVIDERS[1:]:
        builders[provider] = functools.partial(_own_part, name, own, inputs, provider)

    def build(who: str, forms: Sequence[Callable[[], nn.Module]]) -> Contender:
        nets = [form() for form in forms]
        return Contender(who, [modules_run(nets, one) for one in inputs])

    def place(fold: bool, dtype: torch.dtype) -> list[nn.Module]:
        return [peers.placed(plain(m, fold), machine.device, dtype) for m in modules]

    eager = place(False, kind)
    forms = [peers.gpu_forms(p, f) for p, f in zip(eager, place(True, kind), strict=True)]
    for who in reversed(forms[0]):  # the strongest first
        builders[who] = functools.partial(build, who, [form[who] for form in forms])
    with torch.inference_mode(), machine.arithmetic("fp32"), machine.unmeasured():
        values = [[x.float() for x in group] for group in inputs[0]]
        exact = detached(modules_run(place(False, torch.float32), values)())
        del values
    about = _about(work_of(modules, first, kind)) | {"what": name, "batch": batch, "dtype": dtype}
    with machine.arithmetic(dtype), kernels.packing_once():
        yardstick = detached(modules_run(eager, inputs[0])())
        return [compare(machine, builders, exact, yardstick, compiled_ahead=(FROZEN, *PROVIDERS), **about)]


def _own_part(
    name: str, modules: Sequence[nn.Module], inputs: Sequence[Sequence[Sequence[Tensor]]], provider: str
) -> Contender:
    def on(one: Sequence[Sequence[Tensor]]) -> Callable[[], Any]:
        if name == "laterals":
            run = together([_into_buffer(m, *pair) for m, pair in zip(modules, one, strict=True)])
        else:
            run = modules_run(modules, one)

        def with_provider() -> Any:
            with backends.use_backend(provider):
                return run()

        return with_provider

    note = "the Slow maps lie in the fused buffer" if name == "laterals" else ""
    return Contender(provider, [on(one) for one in inputs], ours=True, note=note)


def _planned(
    machine: GpuMachine, name: str, inputs: Sequence[Sequence[Sequence[Tensor]]], dtype: torch.dtype
) -> Contender:
    """Residual blocks or lateral connections as a frozen model on this device holds and runs them."""
    from slowfast_kernels.plans.gpu import GpuNetwork

    with torch.no_grad():
        network = GpuNetwork(copy.deepcopy(_subject(machine).model).to(machine.device), dtype)
        if name == "laterals":
            chains: list[list[Any]] = [[lateral] for lateral in network.lateral]
        elif name == "fast blocks":
            chains = [[stages["fast"] for stages in network.stages.values()]]
        else:
            chains = [[network.stages[name.split()[1]]["slow"]]]
        runs = [_bound(machine, chains, one, dtype) for one in inputs]
    return Contender(FROZEN, runs, ours=True, note=_made_by(runs[0].plan))


class _Bound:
    """Layers in a plan of their own on given inputs, which lie where the layer before would have left them."""

    def __init__(self, plan: Plan, instance: Instance, outputs: int) -> None:
        self.plan, self.instance, self.outputs = plan, instance, outputs

    def __call__(self) -> Sequence[Tensor]:
        with torch.inference_mode():
            return list(self.instance.run([]))[-self.outputs :]


def _bound(
    machine: GpuMachine,
    chains: Sequence[Sequence[Any]],
    inputs: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
) -> _Bound:
    plan = Plan()
    sources, results = [], []
    for chain, values in zip(chains, inputs, strict=True):
        if len(values) == 2:
            slow, fast = values
            n, c, *rest = slow.shape
            out = plan.buffer([n, c + chain[0].added(fast.shape[1]), *rest], dtype)
            x = plan.buffer(fast.shape, dtype)
            chain[0].add(plan, "lateral", x, out)
            sources += [(out.slice(0, c), slow), (x, fast)]
            results.append(out)
            continue
        x = plan.buffer(values[0].shape, dtype)
        sources.append((x, values[0]))
        for layer in chain:
            out = plan.buffer(layer.out_shape(x.shape), dtype)
            layer.add(plan, "blocks", x, out)
            x = out
        results.append(x)
    # A last step that uses them keeps inputs and outputs alive (no buffer is laid over them), and returns them.
    plan.add("keep", "keep", lambda *views: views, (*(v for v, _ in sources), *results), 0, 0)
    for view, _ in sources:
        view.buffer.first = 0
    plan.lay_out()
    instance = Instance(plan, machine.device)
    for view, value in sources:
        view.bind(instance.arena).copy_(value)
    return _Bound(plan, instance, len(results))


def _made_by(plan: Plan) -> str:
    """Who computes the layers of a plan: "7 bottleneck3d by cuda, 2 conv_a by cudnn"."""
    names = (getattr(step.run, "__name__", "") for step in plan.steps)
    found = Counter(
        f"{step.op} by {name.removeprefix('by_')}"
        for step, name in zip(plan.steps, names, strict=True)
        if name.startswith("by_")
    )
    return ", ".join(f"{count} {text}" for text, count in found.items())


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


def model_items(machine: GpuMachine) -> list[Item]:
    """bf16 at every batch, the middle one first; float32 at the middle batch."""
    return [
        Item(f"model b{batch} {dtype}", functools.partial(_measure_model, machine, batch, dtype, ()))
        for batch, dtype in _sizes(machine)
    ]


def _sizes(machine: GpuMachine) -> list[tuple[int, str]]:
    s = machine.setting
    batches = [s.middle, *(b for b in s.batches if b != s.middle)]
    return [(b, "bf16") for b in batches] + [(s.middle, d) for d in ("tf32", "fp32")]


def compile_items(machine: GpuMachine) -> list[Item]:
    """torch.compile of the whole model, each mode with ours and eager in one run: plainly at every batch first, then
    "max-autotune", which takes minutes to compile."""
    return [
        Item(f"{mode} b{b} {d}", functools.partial(_measure_model, machine, b, d, (mode,)))
        for dtypes in (("bf16",), ("tf32", "fp32"))
        for mode in peers.MODES
        for b, d in _sizes(machine)
        if d in dtypes
    ]


def _measure_model(machine: GpuMachine, batch: int, dtype: str, modes: Sequence[str]) -> list[dict[str, Any]]:
    """One record. Contenders take their inputs as a user's call gives them: a captured one copies them first."""
    kind, model = DTYPES[dtype], _subject(machine).model
    sets = [[x.to(kind) for x in clips(model.config, batch, _generator(machine, seed))] for seed in (1, 2)]

    def placed(fold: bool, dtype: torch.dtype) -> nn.Module:
        return peers.placed(peer_model.PlainSlowFast(model, fold), machine.device, dtype)

    plain, folded = placed(False, kind), placed(True, kind)
    with machine.arithmetic("fp32"), machine.unmeasured(), torch.inference_mode():
        # the same rounded inputs as everybody's
        exact = detached(placed(False, torch.float32)(*(x.float() for x in sets[0])))
    on_device = copy.deepcopy(model).to(machine.device)
    ours: list[Any] = []

    def frozen() -> Contender:
        ours[:] = [freeze(on_device, kind)]
        return Contender(FROZEN, [functools.partial(ours[0], one) for one in sets], ours=True, graph=False)

    def plainly(who: str, make: Callable[[], Callable[..., Any]]) -> Contender:
        net = make()
        return Contender(who, [module_run(net, one) for one in sets], graph=False)

    def captured(who: str, make: Callable[[], Callable[..., Any]]) -> Contender:
        net = make()

        def call(*x: Tensor) -> Any:
            with torch.inference_mode():
                return net(*x)

        replay = machine.replayed(call, *sets[0])
        calls = [functools.partial(replay, *one) for one in sets]
        return Contender(who, calls, graph=False, note="captured")

    makers: dict[str, Callable[[], Callable[..., Any]]] = {}
    for mode in modes:
        # A dry run compiles with the "eager" backend, which traces and generates no code.
        how: dict[str, Any] = {"backend": "eager"} if machine.dry else {"mode": peers.MODES[mode]}
        makers[mode] = _once(functools.partial(peers.compiled, folded, sets[0], **how))
    forms = peers.gpu_forms(plain, folded)
    makers |= {who: forms[who] for who in ((peers.EAGER,) if modes else reversed(forms))}
    # Ours, then the strongest: an item whose time is over leaves out the last.
    builders: dict[str, Builder] = {FROZEN: frozen}
    for who, make in makers.items():
        builders[who + GRAPH] = functools.partial(captured, who + GRAPH, make)
    for who, make in reversed(makers.items()):
        builders[who] = functools.partial(plainly, who, make)
    about = _about(work_of([model], [sets[0]], kind)) | {"what": "model", "batch": batch, "dtype": dtype}
    with machine.arithmetic(dtype), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.inference_mode(), machine.unmeasured():
            yardstick = detached(plain(*sets[0]))
        record = compare(machine, builders, exact, yardstick, compiled_ahead=(FROZEN,), **about)
    texts = list(dict.fromkeys(str(w.message) for w in caught))
    sys.stderr.write("".join(f"warning: {text}\n" for text in texts))
    for row in record["rows"]:
        row["graph"] = row["note"] == "captured"
        if row["who"] == FROZEN:
            row["graph"], row["note"] = _how(ours[0], texts)
    return [record]


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same callable, which does its work, or fails, once."""
    found: list[Any] = []

    def remembered() -> Any:
        if not found:
            try:
                found.append(make())
            except peers.Unavailable as error:
                found.append(error)
        if isinstance(found[0], peers.Unavailable):
            raise found[0]
        return found[0]

    return remembered


def _how(net: Any, warned: Sequence[str]) -> tuple[bool, str]:
    """Whether a frozen model replays a graph, and who computes its layers."""
    plans = list(getattr(net, "_plans", {}).values())
    graph = any(getattr(instance, "graph", None) is not None for _, idle in plans for instance in idle)
    notes = [_made_by(plan) for plan, _ in plans]
    return graph, "; ".join([*notes, *(text for text in warned if "no CUDA graph" in text)])
