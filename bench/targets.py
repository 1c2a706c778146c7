"""The project's speed targets, on a CPU and on a GPU: which records each is read from, what was found, the tables.

A ratio is the peer's median over ours (for memory, its peak over ours), both of one interleaved run and behind a
parity check: larger is better, and the target is the least it should be. On a CPU the peer is named, and "also" shows
the ratio for its other forms, and of our plain op where the row's is the frozen form, so that nobody has to take the
choice on trust. On a GPU it is the fastest green peer against the fastest green form of ours; where several records fit
(numbers of boxes, torch.compile apart) the least ratio counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from slowfast_kernels import report
from slowfast_kernels.bench import peers
from slowfast_kernels.bench.compare import Record, fastest
from slowfast_kernels.bench.harness import Gate
from slowfast_kernels.bench.roofline import fraction
from slowfast_kernels.bench.tables import mebibytes, milliseconds, percent, times_faster

HEADER = ("target", "at least", "measured", "verdict", "ours", "peer", "rounds' p20-p80", "parity")
OURS = "ours"
OUR_OP = "our plain op"  # the public op instead of the frozen form: another form of ours, not of the peer
FROZEN = "frozen"

#: Providers of ours that a GPU is measured with; "auto" takes the best one that there is for each call.
PROVIDERS = ("auto", "triton", "cuda")

Wanted = Callable[[Record], bool]


def anyone(row: Record) -> bool:
    return True


def named(who: str) -> Wanted:
    return lambda row: row["who"] == who


@dataclass(frozen=True)
class Target:
    """A target, which records it is read from, and whom it is measured against.

    least: the ratio to reach, None where there is no target. unit: of the amounts, "s" or "bytes"; "%": the ratio is a
    fraction.
    """

    key: str
    what: str
    least: float | None
    record: Wanted = anyone
    peer: Wanted = anyone
    mine: Wanted = anyone
    unit: str = "s"
    note: str = ""


@dataclass
class Row:
    """One target and what was found. ratio is None where it was not measured and behind a red parity check."""

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
    ours_who: str = ""
    peer_who: str = ""
    direct_floor: float | None = None  # seconds
    dry: bool = False

    @classmethod
    def of(cls, target: Target) -> Row:
        return cls(target.key, target.what, target.least, unit=target.unit, note=target.note)

    @property
    def met(self) -> bool:
        return self.ratio is not None and (self.target is None or self.ratio >= self.target)

    @property
    def verdict(self) -> str:
        if self.dry:
            return "dry run"
        if self.ratio is None:
            return "not yet measured" if self.error is None else "parity red"
        return "no target" if self.target is None else "met" if self.met else "missed"

    @property
    def parity(self) -> str:
        return "-" if self.error is None else str(Gate(self.error, self.error_limit or 0.0))

    def amount(self, value: float | None) -> str:
        """A time or a size as text."""
        if value is None:
            return "-"
        return mebibytes(value) if self.unit == "bytes" else milliseconds(value)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met, "verdict": self.verdict}

    def take(self, record: Record, mine: Record, peer: Record | None, ratio: float) -> None:
        """Fill in two rows of a record."""
        self.ratio, self.paired = ratio, peer.get("paired") if peer else None
        self.ours, self.ours_who = mine["median_s"], mine["who"]
        self.peer, self.peer_who = (peer["median_s"], peer["who"]) if peer else (None, "")
        self.error, self.error_limit = mine["error"], mine["error_limit"]
        self.direct_floor = record.get("direct_floor_s")


def read(target: Target, records: Iterable[Record]) -> Row:
    """A target's row: the least ratio of all records that fit."""
    row, red, absent = Row.of(target), "", ""
    for record in filter(target.record, records):
        own = [r for r in record["rows"] if r["ours"] and target.mine(r)]
        mine = fastest(own)
        peer = fastest([r for r in record["rows"] if not r["ours"]], target.peer)
        if mine is None and own:
            red = ", ".join(f"{r['who']} {r['error']:.1e}" for r in own)
            if row.ratio is None:
                row.error, row.error_limit = own[0]["error"], own[0]["error_limit"]
        elif mine is None or peer is None:
            absent = absent or _reasons(record, target, peer)
        else:
            ratio = peer["median_s"] / mine["median_s"]
            if row.ratio is None or ratio < row.ratio:
                row.take(record, mine, peer, ratio)
                row.also = _also(record, mine, peer)
    if red:
        row.note = red if row.ratio is None else f"parity red: {red}"
    elif row.ratio is None and absent:
        row.note = absent
    return row


def _also(record: Record, mine: Record, peer: Record) -> dict[str, float]:
    """Ratios of ours to the other green peers, and of our plain op to this one."""
    found = {}
    for row in sorted(record["rows"], key=lambda r: str(r["who"])):
        if row["green"] and row["who"] == OUR_OP:
            found[OUR_OP] = peer["median_s"] / row["median_s"]
        elif row["green"] and row not in (mine, peer) and not row["ours"]:
            found[row["who"]] = row["median_s"] / mine["median_s"]
    return found


def _reasons(record: Record, target: Target, peer: Record | None) -> str:
    """Why there is nothing to compare: a side is missing, or a peer's output does not agree."""
    if peer is not None:
        return "; ".join(f"{who}: {why}" for who, why in record["missing"].items() if who == OURS)
    found = []
    for who, reason in record["missing"].items():
        if target.peer({"who": who, "graph": True}) and who not in PROVIDERS:
            found.append(f"{who}: {reason}")
    red = [r for r in record["rows"] if not r["ours"] and not r["green"] and target.peer(r)]
    found += [f"{r['who']}: its own error is {r['error']:.1e}" for r in red]
    return "no peer: " + ("; ".join(found) or "none fits")


# --- a GPU's -----------------------------------------------------------------------------------------------

#: Targets that torch.compile is a peer of.
WITH_COMPILE = ("model 8", "model 32", "latency")


def gpu_targets(batch: int = 8) -> list[Target]:
    """The targets read from records, those of parts of the network at this batch."""

    def at(name: str, batch: int = batch) -> Wanted:
        return lambda r: (r["what"], r["dtype"], r["batch"]) == (name, "bf16", batch)

    def roi(kind: str) -> Wanted:
        return lambda r: r["what"].startswith(f"roi_head_pool {kind}") and r["dtype"] == "bf16"

    def graph(row: Record) -> bool:
        return bool(row["graph"])

    eager, torchvision = named(peers.EAGER), named("torchvision")
    return [
        Target("model 8", "whole model, batch 8", 1.5, at("model", 8)),
        Target("model 32", "whole model, batch 32", 1.5, at("model", 32)),
        Target("latency", "whole model, batch 1, graph against graph", 1.5, at("model", 1), graph),
        Target("eager", "whole model against eager channels_last_3d, batch 8", 3.0, at("model", 8), eager),
        Target("fast stem", "Fast stem + pool", 3.0, at("fast stem")),
        Target("slow stem", "Slow stem + pool", 2.0, at("slow stem")),
        Target("laterals", "four laterals with concat", 3.0, at("laterals")),
        Target("fast blocks", "Fast blocks", 2.0, at("fast blocks")),
        Target("slow res2", "Slow res2", 1.6, at("slow res2")),
        Target("roi forward", "roi_head_pool forward against torchvision", 3.0, roi("forward"), torchvision),
        Target(
            "roi backward", "roi_head_pool backward against torchvision", 5.0, roi("backward"), torchvision
        ),
    ]


def gpu_rows(
    records: Iterable[Record], ceilings: Mapping[str, float], dry: bool, batch: int = 8
) -> list[Row]:
    """Every GPU target with what was found."""
    records, found = list(records), []
    for target in gpu_targets(batch):
        row = read(target, records)
        row.also = {}  # the peer is the best one already
        if row.ratio is not None and not row.note:
            absent = _absent(target, records)
            row.note = f"without {', '.join(absent)}" if absent else ""
        found.append(row)
    found.append(_pack(records, ceilings))
    for row in found:
        row.dry = dry
    return found


def _absent(target: Target, records: Sequence[Record]) -> list[str]:
    """Peers that the target is about and that no record of it has: the best one may be among them."""
    fitting = [r for r in records if target.record(r)]
    there = {row["who"] for r in fitting for row in r["rows"]}
    names = [who for r in fitting for who in r["missing"] if who not in (*PROVIDERS, FROZEN)]
    if target.key in WITH_COMPILE:
        names += peers.MODES
    return [w for w in dict.fromkeys(names) if w not in there and target.peer({"who": w, "graph": True})]


def _pack(records: Sequence[Record], ceilings: Mapping[str, float]) -> Row:
    """pack_pathways as a fraction of the copy bandwidth measured in the same run, at the largest batch."""
    row = Row("pack", "pack_pathways, of copy bandwidth", 0.9, unit="%")
    copy = ceilings.get("copy_gbs")
    fitting = [r for r in records if r["what"] == "pack_pathways view" and r["dtype"] == "bf16"]
    for record in sorted(fitting, key=lambda r: r["batch"]):
        mine = fastest([r for r in record["rows"] if r["ours"]])
        if mine is not None and copy:
            peer = fastest([r for r in record["rows"] if not r["ours"]])
            row.take(record, mine, peer, record["bytes"] / mine["median_s"] / 1e9 / copy)
            row.ours_who += f", batch {record['batch']}"
    return row


# --- tables --------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows of a CPU as text; what each is, and its notes, below."""
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
    return "\n".join([report.table(lines, HEADER), "", *report.wrapped(map(_told, rows))])


def markdown(rows: Sequence[Row], network: str) -> str:
    """The rows of a CPU as a Markdown table, as the README shows it, and the notes."""
    lines = [f"| {network} | ours | peer | ratio | parity |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        ratio = f"**{row.ratio:.2g}x**" if row.ratio is not None else row.verdict
        lines.append(
            f"| {row.what} | {row.amount(row.ours)} | {row.amount(row.peer)} | {ratio} | {row.parity} |"
        )
    return "\n".join([*lines, "", *(f"- {_told(row)}" for row in rows)])


def _told(row: Row) -> str:
    also = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row.also.items())
    parts = (f"{row.key}: {row.what}", f"also {also}" if also else "", row.note)
    return "; ".join(text for text in parts if text)


def gpu_table(rows: Sequence[Row]) -> list[str]:
    """The rows of a GPU as a Markdown table."""
    found = [
        "| target | at least | measured | verdict | ours | best peer | direct floor | of direct floor | parity error |",
        "|---|---:|---:|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        show = percent if row.unit == "%" else times_faster
        sides = ((row.ours, row.ours_who), (row.peer, row.peer_who))
        ours, peer = ("-" if time is None else f"{milliseconds(time)} ({who})" for time, who in sides)
        verdict = row.verdict + (f" ({row.note})" if row.note else "")
        least = "-" if row.direct_floor is None else milliseconds(row.direct_floor)
        part = percent(fraction(row.direct_floor, row.ours)) if row.ours else "-"
        cells = (row.what, show(row.target), show(row.ratio), verdict, ours, peer, least, part, row.parity)
        found.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return found
