"""Parts of the network as the targets name them, and the whole model, against every peer."""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels import backends, freeze
from slowfast_kernels.bench import peers
from slowfast_kernels.bench.compare import Builder, records
from slowfast_kernels.bench.gpu.items import Item
from slowfast_kernels.bench.gpu.machine import DTYPES, GpuMachine
from slowfast_kernels.bench.harness import Contender, detached
from slowfast_kernels.bench.parts import Part, made_by
from slowfast_kernels.bench.peers import module_run, modules_run
from slowfast_kernels.bench.plain import SlowFast, plain
from slowfast_kernels.bench.subject import Subject, clips, lateral_maps
from slowfast_kernels.bench.targets import FROZEN, PROVIDERS
from slowfast_kernels.ops._cases import bytes_of
from slowfast_kernels.ops._registration import OPS, RecordCalls

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
            *inputs, spec = OPS[name].split(given)
            least = spec.cost_in_place(*inputs) if name == "lateral_fusion" else spec.cost(*inputs)
            found.append([least.flops, least.bytes])
    return found


def _about(units: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {"flops": sum(f for f, _ in units), "bytes": sum(b for _, b in units), "units": units}


# --- parts ---------------------------------------------------------------------------------------------------


def _part(
    machine: GpuMachine, name: str, batch: int, seed: int
) -> tuple[list[nn.Module], list[list[Tensor]]]:
    """(our modules, inputs of each in float32) of a part of the network."""
    model, generator = _subject(machine).model, _generator(machine, seed)
    if name == "laterals":
        return list(model.lateral), lateral_maps(model, batch, generator)
    if name in DEEP:
        at = STAGES.index(name.split()[1])  # the lateral connection before it
        maps, _ = lateral_maps(model, batch, generator)[at]
        added = model.lateral[at].conv.out_channels
        # what the lateral connection adds: of the same kind, behind a ReLU as well
        maps = torch.cat([maps, maps[:, :added].roll(1, 0).flip(3)], dim=1) if added else maps
        stage = getattr(model, name.split()[1])["slow"]
        return [stage], [peers.channels_last([maps])]
    given = dict(zip(model.config.pathways, clips(model.config, batch, generator), strict=True))
    if name.endswith(" stem"):
        path = name.split()[0]
        return [model.stem[path]], [[given[path]]]
    # What comes before is computed by the reference: values as in the network, whatever our kernels do.
    with torch.inference_mode(), backends.use_backend("reference"):
        early = nn.ModuleDict({"stem": model.stem, "lateral": model.lateral[:1]})
        early = copy.deepcopy(early).to(machine.device)
        slow, fast = (early["stem"][p](given[p]) for p in ("slow", "fast"))  # type: ignore[index]
        if name == "slow res2":
            slow = early["lateral"][0](slow, fast)  # type: ignore[index]
    slow, fast = (x.clone(memory_format=torch.channels_last_3d) for x in (slow, fast))
    if name == "slow res2":
        return [model.res2["slow"]], [[slow]]
    assert name == "fast blocks", name
    blocks = nn.Sequential(*(getattr(model, stage)["fast"] for stage in STAGES))
    return [blocks], [[fast]]


MODEL = "model"
NAMES = ("fast stem", "slow stem", "laterals", "fast blocks", "slow res2")

#: The stages that no target is about, but most of the time; at one batch only.
DEEP = ("slow res3", "slow res4", "slow res5")
STAGES = ("res2", "res3", "res4", "res5")


def items(machine: GpuMachine) -> list[Item]:
    """The whole model and its parts, by one process: what cuDNN found out about a layer serves both.

    The middle batch in bf16 first: the model, the stages that decide, the targets' parts; then the other batches, then
    float32.
    """
    s = machine.setting
    deep = () if machine.dry else DEEP
    others = [b for b in s.batches if b != s.middle]
    jobs = [(name, s.middle, "bf16") for name in (MODEL, *deep, *NAMES)]
    jobs += [(MODEL, batch, "bf16") for batch in others]
    jobs += [(name, batch, "bf16") for batch in others for name in NAMES]
    jobs += [(name, s.middle, dtype) for dtype in ("tf32", "fp32") for name in (MODEL, *NAMES)]
    if machine.dry:  # an interpreter is slow: everything once, and one part of every other kind
        jobs = [job for i, job in enumerate(jobs) if i <= len(NAMES) or job[0] in (MODEL, "laterals")]
    return [
        Item(f"{name} b{batch} {dtype}", functools.partial(_measure, machine, name, batch, dtype))
        for name, batch, dtype in jobs
    ]


def _measure(machine: GpuMachine, name: str, batch: int, dtype: str) -> Iterator[dict[str, Any]]:
    if name == MODEL:
        return _measure_model(machine, batch, dtype, ())
    return _measure_part(machine, name, batch, dtype)


def _measure_part(
    machine: GpuMachine, name: str, batch: int, dtype: str, modes: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Its record, after partial ones. modes: of torch.compile, beside the frozen form alone."""
    kind = DTYPES[dtype]
    with machine.unmeasured():
        modules, first = _part(machine, name, batch, 1)
    nbytes = sum(bytes_of(*x) for x in first) // (2 if kind != torch.float32 else 1)
    # Another set of inputs is the first one shifted along the batch and the rows: other values, same kind.
    wide = [first] + [
        [[torch.roll(x, (i, 2 * i), (0, 3)) for x in group] for group in first]
        for i in range(1, machine.sets(nbytes, batch))
    ]
    inputs = [[peers.channels_last([x.to(kind) for x in group]) for group in one] for one in wide]
    del wide
    builders: dict[str, Builder] = {
        who: functools.partial(_planned, machine, who, modules, inputs, kind)
        for who in (FROZEN, *(() if modes else PROVIDERS[1:]))
    }

    def build(who: str, forms: Sequence[Callable[[], Any]]) -> Contender:
        nets = [form() for form in forms]
        return Contender(who, [modules_run(nets, one) for one in inputs])

    def place(fold: bool, dtype: torch.dtype) -> list[nn.Module]:
        return [peers.placed(plain(m, fold), machine.device, dtype) for m in modules]

    eager, folded = place(False, kind), place(True, kind)
    forms: list[dict[str, Callable[[], Any]]]
    if modes:
        forms = [
            {mode: functools.partial(peers.MODES[mode].compiled, f, x, _backend(machine)) for mode in modes}
            for f, x in zip(folded, inputs[0], strict=True)
        ]
    else:
        forms = [peers.gpu_forms(p, f) for p, f in zip(eager, folded, strict=True)]
    for who in reversed(forms[0]):  # the strongest first
        builders[who] = functools.partial(build, who, [form[who] for form in forms])
    with torch.inference_mode(), machine.arithmetic("fp32"), machine.unmeasured():
        values = [[x.float() for x in group] for group in inputs[0]]
        exact = detached(modules_run(place(False, torch.float32), values)())
        del values
    about = _about(work_of(modules, first, kind)) | {"what": name, "batch": batch, "dtype": dtype}
    with machine.arithmetic(dtype):
        yardstick = detached(modules_run(eager, inputs[0])())
        ahead = (FROZEN, *PROVIDERS)
        yield from records(machine, builders, exact, yardstick, compiled_ahead=ahead, **about)


def _planned(
    machine: GpuMachine,
    who: str,
    modules: Sequence[nn.Module],
    inputs: Sequence[Sequence[Sequence[Tensor]]],
    dtype: torch.dtype,
) -> Contender:
    """A part of the network as a frozen model on this device holds and runs it: by whoever is fastest, or by one."""
    from slowfast_kernels.plans.gpu import GpuTarget

    allowed = {"triton": ("triton", "convolutions"), "cuda": ("cuda", "blocks", "triton", "convolutions")}
    target = GpuTarget(machine.device, dtype, allowed.get(who))
    own = [copy.deepcopy(m).eval().requires_grad_(False).to(machine.device) for m in modules]
    runs = [Part(own, one, target) for one in inputs]
    return Contender(who, runs, ours=True, note=made_by(runs[0].plan))


# --- the whole model -------------------------------------------------------------------------------------------


def _sizes(machine: GpuMachine) -> list[tuple[int, str]]:
    s = machine.setting
    batches = [s.middle, *(b for b in s.batches if b != s.middle)]
    return [(b, "bf16") for b in batches] + [(s.middle, d) for d in ("tf32", "fp32")]


def compile_items(machine: GpuMachine) -> list[Item]:
    """torch.compile, with ours in the same run: of the whole model in the ways that compile in a minute, of the Slow
    pathway's stages, and last "max-autotune", which takes minutes."""
    quick, slow = [m for m in peers.MODES if m != "compile_autotune"], ["compile_autotune"]

    def models(modes: Sequence[str], *dtypes: str) -> list[Item]:
        return [
            Item(f"{mode} b{b} {d}", functools.partial(_measure_model, machine, b, d, (mode,)))
            for b, d in _sizes(machine)
            for mode in modes
            if d in dtypes
        ]

    parts = [
        Item(
            f"{VIEWED} {name} b{b} bf16",
            functools.partial(_measure_part, machine, name, b, "bf16", (VIEWED,)),
        )
        for name in ("slow res2", *DEEP)
        for b in (machine.setting.middle,)
    ]
    return [*models(quick, "bf16"), *parts, *models(slow, "bf16"), *models([*quick, *slow], "tf32", "fp32")]


#: The mode that stages of the network are compiled in as well.
VIEWED = "compile_views"


def _backend(machine: GpuMachine) -> str:
    """A dry run compiles with the backend "eager", which traces and generates no code."""
    return "eager" if machine.dry else "inductor"


def _measure_model(
    machine: GpuMachine, batch: int, dtype: str, modes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Its record, after partial ones. Contenders take their inputs as a user's call gives them: a captured one copies
    them first."""
    kind, model = DTYPES[dtype], _subject(machine).model
    sets = [[x.to(kind) for x in clips(model.config, batch, _generator(machine, seed))] for seed in (1, 2)]

    def placed(fold: bool, dtype: torch.dtype) -> nn.Module:
        return peers.placed(SlowFast(model, fold), machine.device, dtype)

    trained, folded = placed(False, kind), placed(True, kind)
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
        makers[mode] = _once(
            functools.partial(peers.MODES[mode].compiled, folded, sets[0], _backend(machine))
        )
    forms = peers.gpu_forms(trained, folded)
    makers |= {who: forms[who] for who in ((peers.EAGER,) if modes else reversed(forms))}
    # Ours, then the strongest: an item whose time is over leaves out the last. Eager PyTorch as it is called has a
    # target of its own.
    first, *rest = makers.items()
    builders: dict[str, Builder] = {FROZEN: frozen}
    builders |= _forms(captured, [first], GRAPH) | _forms(plainly, [(peers.EAGER, makers[peers.EAGER])])
    builders |= _forms(captured, rest, GRAPH) | _forms(plainly, list(makers.items()))
    about = _about(work_of([model], [sets[0]], kind)) | {"what": MODEL, "batch": batch, "dtype": dtype}
    with machine.arithmetic(dtype), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.inference_mode(), machine.unmeasured():
            yardstick = detached(trained(*sets[0]))
        for record in records(machine, builders, exact, yardstick, compiled_ahead=(FROZEN,), **about):
            texts = list(dict.fromkeys(str(w.message) for w in caught))
            for row in record["rows"]:
                row["graph"] = row["note"] == "captured"
                if row["who"] == FROZEN:
                    row["graph"], row["note"] = how(ours[0], texts)
            yield record
    sys.stderr.write("".join(f"warning: {text}\n" for text in texts))


def _forms(
    build: Callable[[str, Callable[[], Any]], Contender],
    makers: Sequence[tuple[str, Callable[[], Any]]],
    suffix: str = "",
) -> dict[str, Builder]:
    """Builders of one way to call several peers."""
    return {who + suffix: functools.partial(build, who + suffix, make) for who, make in makers}


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


def how(net: Any, warned: Sequence[str]) -> tuple[bool, str]:
    """Whether a frozen model replays a graph, and who computes its layers."""
    plans = list(getattr(net, "_plans", {}).values())
    graph = any(getattr(instance, "graph", None) is not None for _, idle in plans for instance in idle)
    notes = [made_by(plan) for plan, _ in plans]
    return graph, "; ".join([*notes, *(text for text in warned if "no CUDA graph" in text)])
