"""The project's GPU targets, each read out of the records of one run.

A ratio is the fastest green peer's time over the fastest green form of ours, both of the same record and so of
one interleaved run; where several records fit (numbers of boxes, torch.compile apart) the least ratio counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slowfast_kernels.bench.gpu import peers
from slowfast_kernels.bench.gpu.measure import PROVIDERS

NOT_YET = "not yet measured"

Record = Mapping[str, Any]


@dataclass
class Row:
    """A target: ``ratio`` is what it is about (a fraction for pack_pathways), None where it was not measured."""

    key: str
    what: str
    target: float
    unit: str = "x"
    ratio: float | None = None
    ours: float | None = None  # seconds
    ours_who: str = ""
    peer: float | None = None
    peer_who: str = ""
    error: float | None = None
    error_limit: float | None = None
    direct_floor: float | None = None  # seconds
    note: str = ""
    dry: bool = False

    @property
    def verdict(self) -> str:
        if self.dry:
            return "dry run"
        if self.ratio is None:
            return self.note if self.note.startswith("parity red") else NOT_YET
        return "met" if self.ratio >= self.target else "missed"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Target:
    """Which records a target is read from, and whom it is measured against."""

    key: str
    what: str
    least: float
    record: Callable[[Record], bool]
    peer: Callable[[Record], bool] = lambda row: True
    mine: Callable[[Record], bool] = lambda row: True


#: Targets that torch.compile is a peer of.
WITH_COMPILE = ("model 8", "model 32", "latency")


def _part(name: str) -> Callable[[Record], bool]:
    return lambda r: r["what"] == name and r["dtype"] == "bf16"


def _roi(kind: str) -> Callable[[Record], bool]:
    return lambda r: r["what"].startswith(f"roi_head_pool {kind}") and r["dtype"] == "bf16"


def _model(batch: int) -> Callable[[Record], bool]:
    return lambda r: r["what"] == "model" and r["dtype"] == "bf16" and r["batch"] == batch


def targets(batch: int = 8) -> list[Target]:
    """The rows, those of parts of the network at this batch."""

    def at(name: str) -> Callable[[Record], bool]:
        return lambda r: _part(name)(r) and r["batch"] == batch

    graph: Callable[[Record], bool] = lambda row: bool(row["graph"])  # noqa: E731
    return [
        Target("model 8", "whole model, batch 8", 1.5, _model(8)),
        Target("model 32", "whole model, batch 32", 1.5, _model(32)),
        Target("latency", "whole model, batch 1, graph against graph", 1.5, _model(1), graph),
        Target(
            "eager",
            "whole model against eager channels_last_3d, batch 8",
            3.0,
            _model(8),
            _named(peers.EAGER),
        ),
        Target("fast stem", "Fast stem + pool", 3.0, at("fast stem")),
        Target("slow stem", "Slow stem + pool", 2.0, at("slow stem")),
        Target("laterals", "four laterals with concat", 3.0, at("laterals")),
        Target("fast blocks", "Fast blocks", 2.0, at("fast blocks")),
        Target("slow res2", "Slow res2", 1.6, at("slow res2")),
        Target(
            "roi forward",
            "roi_head_pool forward against torchvision",
            3.0,
            _roi("forward"),
            _named("torchvision"),
        ),
        Target(
            "roi backward",
            "roi_head_pool backward against torchvision",
            5.0,
            _roi("backward"),
            _named("torchvision"),
        ),
    ]


def _named(who: str) -> Callable[[Record], bool]:
    return lambda row: row["who"] == who


def rows(records: Iterable[Record], ceilings: Mapping[str, float], dry: bool, batch: int = 8) -> list[Row]:
    """Every target with what was found."""
    records = list(records)
    found = [_row(target, records) for target in targets(batch)]
    found.append(_pack(records, ceilings))
    for row in found:
        row.dry = dry
    return found


def _least(rows: Sequence[Record], wanted: Callable[[Record], bool]) -> Record | None:
    return min((r for r in rows if r["green"] and wanted(r)), key=lambda r: r["median_s"], default=None)


def _row(target: Target, records: Sequence[Record]) -> Row:
    row = Row(target.key, target.what, target.least)
    for record in filter(target.record, records):
        own = [r for r in record["rows"] if r["ours"]]
        mine = _least(own, target.mine)
        peer = _least([r for r in record["rows"] if not r["ours"]], target.peer)
        if mine is None or peer is None:
            if mine is None and own:
                row.note = "parity red: " + ", ".join(f"{r['who']} {r['error']:.1e}" for r in own)
            elif peer is None:
                row.note = row.note or "no peer: " + _reasons(record, target)
            continue
        ratio = peer["median_s"] / mine["median_s"]
        if row.ratio is None or ratio < row.ratio:
            row.ratio = ratio
            row.ours, row.ours_who = mine["median_s"], mine["who"]
            row.peer, row.peer_who = peer["median_s"], peer["who"]
            row.error, row.error_limit = mine["error"], mine["error_limit"]
            row.direct_floor = record.get("direct_floor_s")
    if row.ratio is not None and not row.note.startswith("parity red"):
        absent = _absent(target, records)
        row.note = f"without {', '.join(absent)}" if absent else ""
    return row


def _absent(target: Target, records: Sequence[Record]) -> list[str]:
    """Peers that the target is about and that no record of it has: the best one may be among them."""
    fitting = [r for r in records if target.record(r)]
    there = {row["who"] for r in fitting for row in r["rows"]}
    names = [who for r in fitting for who in r["missing"] if who not in (*PROVIDERS, "frozen")]
    if target.key in WITH_COMPILE:
        names += peers.COMPILED
    known = {"graph": True}
    return [w for w in dict.fromkeys(names) if w not in there and target.peer({"who": w, **known})]


def _reasons(record: Record, target: Target) -> str:
    """Why there is no peer that fits: missing, or its output does not agree."""
    found = []
    for who, reason in record["missing"].items():
        if target.peer({"who": who, "graph": True}) and who not in PROVIDERS:
            found.append(f"{who}: {reason}")
    red = [r for r in record["rows"] if not r["ours"] and not r["green"] and target.peer(r)]
    found += [f"{r['who']}: its own error is {r['error']:.1e}" for r in red]
    return "; ".join(found) or "none fits"


def _pack(records: Sequence[Record], ceilings: Mapping[str, float]) -> Row:
    """pack_pathways as a fraction of the copy bandwidth measured in the same run, at the largest batch."""
    row = Row("pack", "pack_pathways, of copy bandwidth", 0.9, unit="%")
    copy = ceilings.get("copy_gbs")
    fitting = [r for r in records if r["what"] == "pack_pathways view" and r["dtype"] == "bf16"]
    for record in sorted(fitting, key=lambda r: r["batch"]):
        mine = _least([r for r in record["rows"] if r["ours"]], lambda r: True)
        peer = _least([r for r in record["rows"] if not r["ours"]], lambda r: True)
        if mine is None or not copy:
            continue
        row.ratio = record["bytes"] / mine["median_s"] / 1e9 / copy
        row.ours, row.ours_who = mine["median_s"], f"{mine['who']}, batch {record['batch']}"
        row.peer, row.peer_who = (peer["median_s"], peer["who"]) if peer else (None, "")
        row.error, row.error_limit = mine["error"], mine["error_limit"]
        row.direct_floor = record.get("direct_floor_s")
    return row
