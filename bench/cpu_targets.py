"""Measures the targets of a CPU, each against its peer in one interleaved run behind a parity check."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from slowfast_kernels import ops
from slowfast_kernels.bench import memory, models, peers, roi_peers
from slowfast_kernels.bench.compare import Builder, Record, Run, builder, compare, run
from slowfast_kernels.bench.harness import FP32_LIMIT, CpuMachine, Machine, Setting
from slowfast_kernels.bench.parts import Part
from slowfast_kernels.bench.plain import plain
from slowfast_kernels.bench.subject import Subject, described, lateral_maps
from slowfast_kernels.bench.targets import FROZEN, OUR_OP, OURS, Row, Target, named, read
from slowfast_kernels.models import configure
from slowfast_kernels.plans.cpu import CpuTarget
from slowfast_kernels.testing import relative_l2

Call = Callable[[], Any]


def row_of(machine: Machine, target: Target, calls: Mapping[str, Call], peer: str) -> Row:
    """Everything timed interleaved, ours checked against the peer."""
    expected = calls[peer]()
    builders = {name: builder(name, call, ours=name in (OURS, OUR_OP)) for name, call in calls.items()}
    found = compare(
        machine, builders, expected, expected, dtype="fp32", limit=FP32_LIMIT, base=OURS, label=target.key
    )
    return read(replace(target, mine=named(OURS), peer=named(peer)), [found])


# --- whole models ------------------------------------------------------------------------------------------

#: Rows of whole models: the dtype and the peer of each.
MODELS = (
    ("fp32", "eager_cl3d", Target("fp32", "fp32, against torch eager channels_last_3d", 1.5)),
    ("fp32", "openvino", Target("openvino", "fp32, against OpenVINO fp32", 0.95)),
    ("bf16", "autocast_cl3d", Target("bf16", "bf16, against torch autocast channels_last_3d", 1.3,
                                     note="parity: distance from fp32, at most twice the peer's")),
)  # fmt: skip


def model_rows(machine: Machine, subject: Subject) -> list[Row]:
    """The three rows of whole models: every contender of both precisions in one interleaved run."""
    eager = {"fp32": ("eager_cl3d", "eager_cl3d_folded"), "bf16": ("autocast_cl3d", "autocast_cl3d_folded")}
    builders: dict[str, Builder] = {}
    for dtype, names in eager.items():
        wanted = [peers.PEERS[n] for n in (*names, "openvino")]
        made = models.contenders(machine, subject, dtype, wanted, reference=False)
        builders |= {f"{name} {dtype}": build for name, build in made.items()}
    found = run(machine, builders, label="models")
    return [_model_row(found, dtype, f"{peer} {dtype}", target) for dtype, peer, target in MODELS]


def _model_row(found: Run, dtype: str, peer: str, target: Target) -> Row:
    ours, limit, errors = f"{FROZEN} {dtype}", FP32_LIMIT, {}
    if peer in found.kept:
        expected = found.kept[peer if dtype == "fp32" else "eager_cl3d fp32"]
        errors = {n: relative_l2(out, expected) for n, out in found.kept.items() if n.endswith(dtype)}
        limit = FP32_LIMIT if dtype == "fp32" else 2 * errors[peer]
    return read(replace(target, mine=named(ours), peer=named(peer)), [found.record(errors, limit, ours)])


# --- parts of the network ----------------------------------------------------------------------------------


def _part_row(
    machine: Machine,
    target: Target,
    frozen: Call,
    modules: Sequence[nn.Module],
    inputs: Sequence[Sequence[Tensor]],
) -> Row:
    """Parts of the network on their inputs: ours frozen, ours as modules, and torch's forms of them."""
    calls = {OURS: frozen, OUR_OP: peers.modules_run(modules, inputs)}
    for name, fold, last in (
        ("eager_cl3d", False, True),
        ("eager_cl3d_folded", True, True),
        ("eager", False, False),
    ):
        kind = torch.channels_last_3d if last else torch.contiguous_format
        nets = [plain(m, fold).to(memory_format=kind) for m in modules]  # type: ignore[call-overload]
        calls[name] = peers.modules_run(
            nets, [[x.contiguous(memory_format=kind) for x in xs] for xs in inputs]
        )
    return row_of(machine, target, calls, "eager_cl3d")


def fast_stages_row(machine: Machine, subject: Subject) -> Row:
    """Fast pathway's res2 and res3, on what its stem hands them."""
    target = Target(
        "fast stages",
        "Fast pathway res2 and res3 stages, fp32, against torch eager channels_last_3d",
        4.0,
        note="ours: as in a frozen model, weights packed before",
    )
    model = subject.model
    stages = nn.Sequential(model.res2["fast"], model.res3["fast"])
    with torch.inference_mode():
        x = model.stem["fast"](subject.inputs[1]).clone(memory_format=torch.channels_last_3d)
    frozen = Part([stages], [[x]], CpuTarget(torch.device("cpu"), torch.float32))
    return _part_row(machine, target, frozen, [stages], [[x]])


def lateral_row(machine: Machine, subject: Subject) -> Row:
    """The four lateral connections with their concatenation, on maps of the network's sizes."""
    target = Target(
        "lateral",
        "lateral fusion (four, with the concat), fp32, against torch eager",
        3.0,
        note="ours: as in a frozen model, where the Slow tensor already lies in the fused buffer; our plain "
        "op (ops.lateral_fusion) copies it there and packs the weights at every call",
    )
    pairs = lateral_maps(subject.model, subject.batch, torch.Generator().manual_seed(3))
    parts = list(subject.model.lateral)
    frozen = Part(parts, pairs, CpuTarget(torch.device("cpu"), torch.float32))
    return _part_row(machine, target, frozen, parts, pairs)


# --- input and detection head ------------------------------------------------------------------------------


def pack_row(machine: Machine, frames: int = 32, side: int = 256) -> Row:
    """uint8 frames to the clips of both pathways."""
    what = f"pack_pathways on {frames} frames of {side}x{side}, against the torch expression"
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (1, frames, side, side, 3), dtype=torch.uint8, generator=generator)
    given = (pixels, 4, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
    calls: dict[str, Call] = {
        OURS: lambda: ops.pack_pathways(*given),
        "torch": lambda: peers.torch_pack(*given),
        "torch in place": lambda: peers.torch_pack(*given, in_place=True),
    }
    return row_of(machine, Target("pack", what, 4.0), calls, "torch")


def boxes(count: int, height: int, width: int, seed: int = 5) -> Tensor:
    """[count, 5]: people-sized boxes (a fifth to four fifths of the height, upright) in a height x width
    frame."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 4, generator=generator)
    h = (0.2 + 0.6 * u[:, 0]) * height
    w = (0.3 + 0.4 * u[:, 1]) * h
    x, y = u[:, 2] * (width - w), u[:, 3] * (height - h)
    return torch.stack([torch.zeros(count), x, y, x + w, y + h], dim=1)


#: The head around each RoIAlign: what the row says, the align.
ALIGNS: dict[str, tuple[str, Callable[[], roi_peers.Align]]] = {
    "torchvision": ("mean, torchvision's compiled RoIAlign, max", roi_peers.torchvision_on_cpu),
    "vectorised": ("mean, RoIAlign in vectorised torch, max", lambda: roi_peers.align_vectorised),
}

#: Torch's mean of both pathways over the frames, which every composition begins with.
MEAN = "mean over frames"


def roi_rows(machine: Machine, counts: Sequence[int] = (1, 8, 64), small: bool = False) -> list[Row]:
    """roi_head_pool at AVA's shapes against torch compositions: a row each, the worst number of boxes in it.

    The compositions get their maps in NCDHW memory, where torch's mean over frames is ten times faster. All numbers of
    boxes are in "also"; so are maps in channels_last_3d memory, as a channels-last network hands them over, and the
    peer without its mean over frames: RoIAlign and the maximum alone."""
    generator = torch.Generator().manual_seed(6)
    cs, cf, h, w = (64, 8, 5, 7) if small else (2048, 256, 16, 29)
    plain = [torch.randn(1, c, t, h, w, generator=generator).relu() for c, t in ((cs, 8), (cf, 32))]
    last = peers.channels_last(plain)
    where = f"roi_head_pool, AVA shapes, {counts[0]} to {counts[-1]} boxes"
    targets = {k: Target(f"roi {k}", f"{where}, against {text}", 4.0) for k, (text, _) in ALIGNS.items()}
    found = {key: Row.of(target) for key, target in targets.items()}
    aligns: dict[str, roi_peers.Align] = {}
    for key, (_, load) in ALIGNS.items():
        try:
            aligns[key] = load()
        except peers.Unavailable as error:
            found[key].note = str(error)
    for count in counts:
        rois = boxes(count, 16 * h, 16 * w)
        calls: dict[str, Call] = {
            OURS: peers.module_run(ops.roi_head_pool, [*last, rois]),
            MEAN: peers.module_run(lambda *maps: [x.mean(dim=2) for x in maps], plain),
        }
        for key, align in aligns.items():
            head = functools.partial(roi_peers.head_pool, align)
            calls[key] = peers.module_run(head, [*plain, rois])
            calls[f"{key}, channels_last_3d maps"] = peers.module_run(head, [*last, rois])
        head = functools.partial(roi_peers.head_pool, roi_peers.align_matmul)
        calls["vectorised, as two products"] = peers.module_run(head, [*plain, rois])
        timed = run(
            machine, {n: builder(n, c, ours=n == OURS) for n, c in calls.items()}, label=f"roi {count}"
        )
        for key in aligns:
            one = _roi_row(timed, targets[key], key)
            _worst(found[key], one, "1 box" if count == 1 else f"{count} boxes")
    return list(found.values())


def _roi_row(timed: Run, target: Target, key: str) -> Row:
    """The row of one peer and one number of boxes."""
    names = [OURS, key, *(n for n in timed.kept if n.startswith(f"{key}, "))]
    errors = {n: relative_l2(timed.kept[n], timed.kept[key]) for n in names}
    one = read(replace(target, peer=named(key)), [timed.record(errors, FP32_LIMIT, OURS)])
    one.also = {name.removeprefix(f"{key}, "): ratio for name, ratio in one.also.items()}
    if one.ratio is not None:
        rest = timed.compared.timings[key].median - timed.compared.timings[MEAN].median
        one.also = {"without torch's mean": rest / timed.compared.timings[OURS].median, **one.also}
    return one


def _worst(total: Row, one: Row, count: str) -> None:
    """Keep the least ratio of the numbers of boxes in the row; a red check of any of them stays."""
    for name, ratio in {count: one.ratio, **{f"{count} {n}": r for n, r in one.also.items()}}.items():
        if ratio is not None:
            total.also[name] = ratio
    red = total.error is not None and total.ratio is None
    if not red and (total.ratio is None or one.ratio is None or one.ratio < total.ratio):
        for key in ("ratio", "ours", "peer", "paired", "error", "error_limit", "note"):
            setattr(total, key, getattr(one, key))


# --- memory ------------------------------------------------------------------------------------------------


def memory_rows(setting: Setting) -> list[Row]:
    """Peak resident memory of inference, in processes of their own (see ``memory``), told both ways."""
    where = "peak resident memory of inference above the weights"
    targets = {
        "peak": Target(
            "memory",
            f"{where} as each side holds them, against eager (fp32)",
            2.0,
            note="VmHWM minus what was resident once the model was loaded",
        ),
        "strict": Target(
            "memory strict",
            f"{where} in their plain size, against eager (fp32)",
            None,
            note="packed and transformed copies of weights count: VmHWM minus what was resident before the model and "
            "minus the weights' plain size",
        ),
    }
    who = (FROZEN, "eager_cl3d", "eager")
    result = memory.measure(setting, "fp32", who)
    found: dict[str, Record] = {r["who"]: r for r in result["rows"]}
    ours, peer, other = (found.get(name) for name in who)
    rows = []
    for kind, target in targets.items():
        row = Row.of(replace(target, unit="bytes"))
        if ours and peer:
            row.ours, row.peer = ours[f"{kind}_bytes"], peer[f"{kind}_bytes"]
            row.ratio = peer[f"{kind}_to_ours"]
            if other and other[f"{kind}_to_ours"] is not None:
                row.also["eager (NCDHW)"] = other[f"{kind}_to_ours"]
        else:
            row.note = "; ".join(f"{n}: {reason}" for n, reason in result["missing"].items())
        rows.append(row)
    return rows


# --- all ---------------------------------------------------------------------------------------------------

GROUPS: dict[str, Callable[[Machine, Subject], list[Row]]] = {
    "models": model_rows,
    "fast": lambda machine, subject: [fast_stages_row(machine, subject)],
    "lateral": lambda machine, subject: [lateral_row(machine, subject)],
    "pack": lambda machine, subject: [pack_row(machine)],
    "roi": lambda machine, subject: roi_rows(machine),
    "memory": lambda machine, subject: memory_rows(machine.setting),
}


def measure(setting: Setting, groups: Sequence[str]) -> list[Row]:
    """The rows of these groups, in the order of the project's list."""
    machine, subject = CpuMachine(setting, warmup=0), Subject(setting.model, crop=setting.crop)
    found: list[Row] = []
    with tqdm(GROUPS, desc="targets", disable=not setting.progress, leave=False) as bar:
        for group in bar:
            bar.set_postfix_str(group)
            found += GROUPS[group](machine, subject) if group in groups else []
    return found


def network_of(setting: Setting) -> str:
    """What was measured, in words: network, size, batch, threads."""
    size = configure(setting.model).input
    return described(setting.model, size.frames, setting.crop or size.crop, 1, setting.threads)
