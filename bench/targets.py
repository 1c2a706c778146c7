"""The project's speed targets, each measured against its peer in one interleaved run behind a parity check.

A row's ratio is the peer's median over ours (for memory, its peak over ours): larger is better, and the
target is the least it should be. "also" shows the ratio for other forms of the peer, and of our plain op
where the row's is the frozen form, so that nobody has to take the choice on trust.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from slowfast_kernels import ops, report
from slowfast_kernels.bench import frozen_parts, harness, memory, models, peers, roi_peers, torchvision_ops
from slowfast_kernels.bench.ops import milliseconds, times_faster
from slowfast_kernels.bench.peer_model import plain_lateral, plain_stage
from slowfast_kernels.bench.subject import Subject, described
from slowfast_kernels.models import configure

HEADER = ("target", "at least", "measured", "verdict", "ours", "peer", "rounds' p20-p80", "parity")
OURS = "ours"
OUR_OP = "our plain op"  # the public op instead of the frozen form: another form of ours, not of the peer


@dataclass
class Row:
    """One target and what was found. ratio is None behind a red parity check, target where there is none."""

    key: str
    what: str
    target: float | None
    ratio: float | None = None
    ours: float | None = None  # seconds, or bytes for memory
    peer: float | None = None
    unit: str = "s"
    paired: tuple[float, float] | None = None
    error: float | None = None
    error_limit: float | None = None
    also: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool:
        return self.ratio is not None and (self.target is None or self.ratio >= self.target)

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not measured" if self.error is None else "parity red"
        return "no target" if self.target is None else "met" if self.met else "missed"

    def amount(self, value: float | None) -> str:
        """A time or a size as text."""
        if value is None:
            return "-"
        return milliseconds(value) if self.unit == "s" else memory.mebibytes(value)

    @property
    def parity(self) -> str:
        return "-" if self.error is None else str(harness.Gate(self.error, self.error_limit or 0.0))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


@dataclass
class Setting:
    """What all rows share."""

    threads: int
    rounds: int = 15
    progress: bool = True
    model: str = "slowfast_8x8_r50"
    crop: int | None = None


def row_of(
    row: Row,
    runs: Mapping[str, Callable[[], Any]],
    peer: str,
    setting: Setting,
    *,
    limit: float = harness.FP32_LIMIT,
    rounds: int | None = None,
) -> Row:
    """Check ours against the peer, time everything interleaved, fill the row."""
    expected = runs[peer]()
    check = harness.gate(runs[OURS](), expected, limit)
    row.error, row.error_limit = check.error, check.limit
    compared = harness.interleaved(
        runs, rounds=rounds or setting.rounds, warmup=1, label=row.key, progress=setting.progress
    )
    others = {n: harness.relative_l2(runs[n](), expected) <= limit for n in runs if n not in (OURS, peer)}
    return _fill(row, compared, OURS, peer, check.green, {n for n, ok in others.items() if ok})


def _fill(row: Row, compared: harness.Comparison, ours: str, peer: str, green: bool, others: set[str]) -> Row:
    row.ours, row.peer = compared.timings[ours].median, compared.timings[peer].median
    if green:
        row.ratio, row.paired = compared.ratio(ours, peer), compared.paired(ours, peer)
        for name in sorted(others):
            row.also[name] = compared.ratio(name, peer) if name == OUR_OP else compared.ratio(ours, name)
    return row


# --- whole models ------------------------------------------------------------------------------------------


def model_rows(subject: Subject, setting: Setting) -> list[Row]:
    """The three rows of whole models: every contender of both precisions in one interleaved run."""
    rows = {
        "eager_cl3d": Row("fp32", "fp32, against torch eager channels_last_3d", 1.5),
        "openvino": Row("openvino", "fp32, against OpenVINO fp32", 0.95),
        "autocast_cl3d": Row("bf16", "bf16, against torch autocast channels_last_3d", 1.3),
    }
    show = models.announce(setting.progress)
    runs: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    wanted = {
        "fp32": ["eager_cl3d", "eager_cl3d_folded", "openvino"],
        "bf16": ["autocast_cl3d", "autocast_cl3d_folded", "openvino"],
    }
    for dtype, names in wanted.items():
        chosen = [peers.PEERS[n] for n in names]
        made, lost = models.contenders(
            subject, dtype, chosen, setting.threads, reference=False, progress=show
        )
        runs.update({f"{name} {dtype}": run for name, run in made.items()})
        missing.update({f"{name} {dtype}": reason for name, reason in lost.items()})
    outputs = {name: run() for name, run in runs.items()}
    exact = outputs["eager_cl3d fp32"]
    compared = harness.interleaved(
        runs, rounds=setting.rounds, warmup=1, label="models", progress=setting.progress
    )
    for name, row in rows.items():
        dtype = "bf16" if row.key == "bf16" else "fp32"
        ours, peer = f"{models.OURS} {dtype}", f"{name} {dtype}"
        if peer not in runs:
            row.note = missing[peer]
            continue
        if dtype == "fp32":
            check = harness.gate(outputs[ours], outputs[peer])
        else:
            check = harness.gate_low_precision(outputs[ours], outputs[peer], exact)
            row.note = "parity: distance from fp32, at most twice the peer's"
        row.error, row.error_limit = check.error, check.limit
        others = {n for n in runs if n.endswith(dtype) and n not in (ours, peer)}
        _fill(row, compared, ours, peer, check.green, others)
    return list(rows.values())


# --- parts of the network ----------------------------------------------------------------------------------


def _module_run(modules: Sequence[Any], inputs: Sequence[Sequence[Tensor]]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return [module(*x) for module, x in zip(modules, inputs, strict=True)]

    return run


#: Torch forms of a part of the network: name, batch norms folded, channels_last_3d memory.
FORMS = (("eager_cl3d", False, True), ("eager_cl3d_folded", True, True), ("eager", False, False))


def _formats(modules: Sequence[Any], last: bool) -> list[Any]:
    kind = torch.channels_last_3d if last else torch.contiguous_format
    return [m.to(memory_format=kind) for m in modules]


def fast_stages_row(subject: Subject, setting: Setting) -> Row:
    """Fast pathway's res2 and res3, on what its stem hands them."""
    row = Row(
        "fast stages",
        "Fast pathway res2 and res3 stages, fp32, against torch eager channels_last_3d",
        4.0,
        note="ours: as in a frozen model, weights packed before",
    )
    model = subject.model
    stages = [model.res2["fast"], model.res3["fast"]]
    with torch.inference_mode():
        x = model.stem["fast"](subject.inputs[1]).clone(memory_format=torch.channels_last_3d)
    runs: dict[str, Callable[[], Any]] = {
        OURS: frozen_parts.stages([block for stage in stages for block in stage], x, torch.float32),
        OUR_OP: _module_run([torch.nn.Sequential(*stages)], [[x]]),
    }
    for name, fold, last in FORMS:
        net = torch.nn.Sequential(*(plain_stage(stage, fold) for stage in stages))
        source = x if last else x.contiguous()
        runs[name] = _module_run(_formats([net], last), [[source]])
    return row_of(row, runs, "eager_cl3d", setting)


def lateral_row(subject: Subject, setting: Setting) -> Row:
    """The four lateral connections with their concatenation, on maps of the network's sizes."""
    row = Row(
        "lateral",
        "lateral fusion (four, with the concat), fp32, against torch eager",
        3.0,
        note="ours: as in a frozen model, where the Slow tensor already lies in the fused buffer; our plain "
        "op (ops.lateral_fusion) copies it there and packs the weights at every call",
    )
    model = subject.model
    config = model.config
    generator = torch.Generator().manual_seed(3)
    pairs, side = [], config.input.crop // 4
    for i, part in enumerate(model.lateral):
        if i > 1:
            side = (side - 1) // 2 + 1
        frames = {p: config.frames_of(p) for p in ("slow", "fast")}
        widths = {
            p: config.pathway(p).width if i == 0 else config.pathway(p).out_channels(i - 1) for p in frames
        }
        assert part.conv.in_channels == widths["fast"]
        pair = [
            torch.randn(subject.batch, widths[p], frames[p], side, side, generator=generator).relu()
            for p in ("slow", "fast")
        ]
        pairs.append([x.contiguous(memory_format=torch.channels_last_3d) for x in pair])
    runs: dict[str, Callable[[], Any]] = {
        OURS: frozen_parts.laterals(model.lateral, [(s, f) for s, f in pairs], torch.float32),
        OUR_OP: _module_run(list(model.lateral), pairs),
    }
    for name, fold, last in FORMS:
        nets = _formats([plain_lateral(part, fold) for part in model.lateral], last)
        inputs = pairs if last else [[x.contiguous() for x in pair] for pair in pairs]
        runs[name] = _module_run(nets, inputs)
    return row_of(row, runs, "eager_cl3d", setting)


# --- input and detection head ------------------------------------------------------------------------------


def torch_pack(
    frames: Tensor, alpha: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Normalise and split as SlowFast training code does, step by step."""
    x = frames.float() / 255.0
    x = (x - torch.tensor(mean)) / torch.tensor(std)
    fast = x.permute(0, 4, 1, 2, 3)
    index = torch.linspace(0, frames.shape[1] - 1, frames.shape[1] // alpha).long()
    return fast.index_select(2, index), fast


def torch_pack_in_place(
    frames: Tensor, alpha: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The same with the constants put together and no temporaries."""
    scale = 1 / (255 * torch.tensor(std))
    x = frames.to(torch.float32).mul_(scale).sub_(torch.tensor(mean) / torch.tensor(std))
    fast = x.permute(0, 4, 1, 2, 3)
    index = torch.linspace(0, frames.shape[1] - 1, frames.shape[1] // alpha).long()
    return fast.index_select(2, index), fast


def pack_row(setting: Setting, frames: int = 32, side: int = 256) -> Row:
    """uint8 frames to the clips of both pathways."""
    row = Row("pack", f"pack_pathways on {frames} frames of {side}x{side}, against the torch expression", 4.0)
    pixels = torch.randint(
        0, 256, (1, frames, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    mean, std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
    runs = {
        OURS: lambda: ops.pack_pathways(pixels, 4, mean, std),
        "torch": lambda: torch_pack(pixels, 4, mean, std),
        "torch in place": lambda: torch_pack_in_place(pixels, 4, mean, std),
    }
    return row_of(row, runs, "torch", setting)


def boxes(count: int, height: int, width: int, seed: int = 5) -> Tensor:
    """[count, 5]: people-sized boxes (a fifth to four fifths of the height, upright) in a height x width
    frame."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 4, generator=generator)
    h = (0.2 + 0.6 * u[:, 0]) * height
    w = (0.3 + 0.4 * u[:, 1]) * h
    x, y = u[:, 2] * (width - w), u[:, 3] * (height - h)
    return torch.stack([torch.zeros(count), x, y, x + w, y + h], dim=1)


#: The head around each RoIAlign: key, what the row says, the align; the first is the one everybody has.
ALIGNS: dict[str, tuple[str, roi_peers.Align]] = {
    "torchvision": ("mean, torchvision's compiled RoIAlign, max", roi_peers.align_torchvision),
    "vectorised": ("mean, RoIAlign in vectorised torch, max", roi_peers.align_vectorised),
}


#: Torch's mean of both pathways over the frames, which every composition begins with.
MEAN = "mean over frames"


def roi_rows(setting: Setting, counts: Sequence[int] = (1, 8, 64), small: bool = False) -> list[Row]:
    """roi_head_pool at AVA's shapes against torch compositions: a row each, the worst number of boxes in it.

    The compositions get their maps in NCDHW memory, where torch's mean over frames is ten times faster. All numbers of
    boxes are in "also"; so are maps in channels_last_3d memory, as a channels-last network hands them over, and the
    peer without its mean over frames: RoIAlign and the maximum alone."""
    generator = torch.Generator().manual_seed(6)
    cs, cf, h, w = (64, 8, 5, 7) if small else (2048, 256, 16, 29)
    plain = [torch.randn(1, c, t, h, w, generator=generator).relu() for c, t in ((cs, 8), (cf, 32))]
    last = [peers.channels_last(x) for x in plain]
    where = f"roi_head_pool, AVA shapes, {counts[0]} to {counts[-1]} boxes"
    found = {key: Row(f"roi {key}", f"{where}, against {text}", 4.0) for key, (text, _) in ALIGNS.items()}
    try:
        torchvision_ops.load()
    except peers.Unavailable as error:
        found["torchvision"].note = str(error)
    there = [key for key, row in found.items() if not row.note]
    for count in counts:
        rois = boxes(count, 16 * h, 16 * w)

        def head(align: roi_peers.Align, maps: Sequence[Tensor], rois: Tensor = rois) -> Callable[[], Any]:
            return _inference(lambda: roi_peers.head_pool(align, maps[0], maps[1], rois))

        runs = {
            OURS: _inference(functools.partial(ops.roi_head_pool, last[0], last[1], rois)),
            MEAN: _inference(lambda: [x.mean(dim=2) for x in plain]),
        }
        for key in there:
            runs[key] = head(ALIGNS[key][1], plain)
            runs[f"{key}, channels_last_3d maps"] = head(ALIGNS[key][1], last)
        runs["vectorised, as two products"] = head(roi_peers.align_matmul, plain)
        _roi_fill({key: found[key] for key in there}, runs, count, setting)
    return list(found.values())


def _inference(call: Callable[[], Any]) -> Callable[[], Any]:
    return torch.inference_mode()(call)


def _roi_fill(
    found: Mapping[str, Row], runs: Mapping[str, Callable[[], Any]], count: int, setting: Setting
) -> None:
    """Time all forms for one number of boxes in one interleaved run and fill the rows."""
    expected = runs["vectorised"]()
    errors = {name: harness.relative_l2(run(), expected) for name, run in runs.items() if name != MEAN}
    compared = harness.interleaved(
        runs, rounds=setting.rounds, warmup=1, label=f"roi {count}", progress=setting.progress
    )
    for key, row in found.items():
        answer = harness.gate(runs[OURS](), runs[key]())
        one = Row("", "", None, error=answer.error, error_limit=answer.limit)
        _fill(one, compared, OURS, key, answer.green, set())
        if one.ratio is not None:
            rest = compared.timings[key].median - compared.timings[MEAN].median
            one.also["without torch's mean"] = rest / compared.timings[OURS].median
            forms = [n for n in runs if n.startswith(f"{key}, ") and errors[n] <= answer.limit]
            one.also |= {n.removeprefix(f"{key}, "): compared.ratio(OURS, n) for n in forms}
        _worst(row, one, "1 box" if count == 1 else f"{count} boxes")


def _worst(total: Row, one: Row, count: str) -> None:
    """Keep the least ratio of the numbers of boxes in the row; a red check of any of them stays."""
    for name, ratio in {
        count: one.ratio,
        **{f"{count} {n}": r for n, r in one.also.items()},
    }.items():
        if ratio is not None:
            total.also[name] = ratio
    red = total.error is not None and total.ratio is None
    if not red and (total.ratio is None or one.ratio is None or one.ratio < total.ratio):
        for key in ("ratio", "ours", "peer", "paired", "error", "error_limit"):
            setattr(total, key, getattr(one, key))


# --- memory ------------------------------------------------------------------------------------------------


def memory_rows(setting: Setting) -> list[Row]:
    """Peak resident memory of inference, in processes of their own (see ``memory``), told both ways."""
    where = "peak resident memory of inference above the weights"
    rows = {
        "peak": Row(
            "memory",
            f"{where} as each side holds them, against eager (fp32)",
            2.0,
            unit="bytes",
            note="VmHWM minus what was resident once the model was loaded",
        ),
        "strict": Row(
            "memory strict",
            f"{where} in their plain size, against eager (fp32)",
            None,
            unit="bytes",
            note="packed and transformed copies of weights count: VmHWM minus what was resident before the model and "
            "minus the weights' plain size",
        ),
    }
    result = memory.measure(
        setting.model,
        "fp32",
        who=(memory.OURS, "eager_cl3d", "eager"),
        threads=setting.threads,
        crop=setting.crop,
    )
    found = {r["who"]: r for r in result["rows"]}
    ours, peer, other = (found.get(who) for who in (memory.OURS, "eager_cl3d", "eager"))
    for kind, row in rows.items():
        if ours and peer:
            row.ours, row.peer = ours[f"{kind}_bytes"], peer[f"{kind}_bytes"]
            row.ratio = peer[f"{kind}_to_ours"]
            if other and other[f"{kind}_to_ours"] is not None:
                row.also["eager (NCDHW)"] = other[f"{kind}_to_ours"]
        else:
            row.note = "; ".join(f"{n}: {reason}" for n, reason in result["missing"].items())
    return list(rows.values())


# --- all ---------------------------------------------------------------------------------------------------

GROUPS = ("models", "fast", "lateral", "pack", "roi", "memory")


def measure(setting: Setting, groups: Sequence[str] = GROUPS) -> list[Row]:
    """Every target's row, in the order of the project's list."""
    subject = Subject(setting.model, crop=setting.crop)
    tasks: dict[str, Callable[[], list[Row]]] = {
        "models": lambda: model_rows(subject, setting),
        "fast": lambda: [fast_stages_row(subject, setting)],
        "lateral": lambda: [lateral_row(subject, setting)],
        "pack": lambda: [pack_row(setting)],
        "roi": lambda: roi_rows(setting),
        "memory": lambda: memory_rows(setting),
    }
    found: list[Row] = []
    with _bar(len(groups), setting.progress) as step:
        for group in GROUPS:
            if group in groups:
                found += tasks[group]()
                step(group)
    return found


@contextlib.contextmanager
def _bar(total: int, show: bool) -> Iterator[Callable[[str], None]]:
    with tqdm(total=total, desc="targets", disable=not show, leave=False) as bar:

        def step(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        yield step


def network_of(setting: Setting) -> str:
    """What was measured, in words: network, size, batch, threads."""
    size = configure(setting.model).input
    return described(setting.model, size.frames, setting.crop or size.crop, 1, setting.threads)


def table(rows: Sequence[Row]) -> str:
    """The rows as text; what each is, and its notes, below."""
    lines = [
        (
            row.key,
            times_faster(row.target),
            times_faster(row.ratio),
            row.verdict,
            row.amount(row.ours),
            row.amount(row.peer),
            "-" if row.paired is None else f"{row.paired[0]:.2f}-{row.paired[1]:.2f}",
            row.parity,
        )
        for row in rows
    ]
    return "\n".join([report.table(lines, HEADER), "", *report.wrapped(_notes(rows))])


def markdown(rows: Sequence[Row], network: str) -> str:
    """The rows as a Markdown table, as the README shows it, and the notes."""
    lines = [f"| {network} | ours | peer | ratio | parity |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        ratio = f"**{row.ratio:.2g}x**" if row.ratio is not None else row.verdict
        lines.append(
            f"| {row.what} | {row.amount(row.ours)} | {row.amount(row.peer)} | {ratio} | {row.parity} |"
        )
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(rows))])


def _notes(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        also = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row.also.items())
        found.append(
            "; ".join(
                text for text in (f"{row.key}: {row.what}", f"also {also}" if also else "", row.note) if text
            )
        )
    return found
