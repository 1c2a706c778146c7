"""What a run leaves behind: a JSON document, a page with tables, pictures."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slowfast_kernels import report
from slowfast_kernels.bench import harness, plots, store
from slowfast_kernels.bench.gpu.targets import Row
from slowfast_kernels.bench.ops import milliseconds, percent, times_faster
from slowfast_kernels.bench.roofline import GPU_PEAKS, direct_floor, fraction

DRY = "DRY RUN on a CPU: tiny shapes, interpreted and emulated kernels. No figure here is a measurement."

HEADER = ("what", "who", "median", "p20-p80", "GB/s", "TFLOP/s", "of direct floor", "vs best peer", "parity")

#: Parts whose records are comparisons of contenders.
COMPARED = ("parts", "pack", "roi", "model", "ops", "compile")


def ceilings_of(parts: Mapping[str, Any]) -> dict[str, float]:
    """The ceilings by name."""
    found = {}
    for record in parts.get("ceilings", {}).get("records", ()):
        if record["value"] is not None:
            found[record["name"]] = record["value"]
    return found


def compared(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of every part that compares."""
    return [{"part": p, **r} for p in COMPARED for r in parts.get(p, {}).get("records", ())]


def derive(record: dict[str, Any], ceilings: Mapping[str, float]) -> dict[str, Any]:
    """The record with GB/s, TFLOP/s, the part of the direct-convolution floor and the speed-up over the best peer in
    each row.

    The floor of several layers is the sum of their floors.
    """
    units = record.get("units") or [(record["flops"], record["bytes"])]
    floors = [direct_floor(flops, nbytes, record["dtype"], ceilings, GPU_PEAKS) for flops, nbytes in units]
    least = sum(f for f in floors if f is not None)
    peers = [r["median_s"] for r in record["rows"] if not r["ours"] and r["green"]]
    for row in record["rows"]:
        seconds = row["median_s"]
        row["gbs"] = record["bytes"] / seconds / 1e9 if record["bytes"] else None
        row["tflops"] = record["flops"] / seconds / 1e12 if record["flops"] else None
        row["direct_floor_fraction"] = fraction(least or None, seconds)
        row["speedup"] = min(peers) / seconds if peers and row["green"] else None
    return {**record, "direct_floor_s": least or None}


# --- the page --------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: str = ".0f") -> str:
    return "-" if value is None else format(value, digits)


def lines(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A record as lines of the table, fastest first, the missing ones below with their reasons."""
    times = f" x{record['count']}" if record.get("count", 1) > 1 else ""
    name = f"{record['what']}{times}, b{record['batch']} {record['dtype']}"
    found: list[tuple[str, ...]] = []
    for row in sorted(record["rows"], key=lambda r: r["median_s"]):
        who = f"*{row['who']}" if row["ours"] else row["who"]
        found.append(
            (
                name if not found else "",
                who + ("" if row["graph"] else " (no graph)"),
                milliseconds(row["median_s"]),
                f"{milliseconds(row['p20_s'])}-{milliseconds(row['p80_s'])}",
                _number(row["gbs"]),
                _number(row["tflops"], ".1f"),
                percent(row["direct_floor_fraction"]),
                times_faster(row["speedup"]) if row["ours"] else "",
                str(harness.Gate(row["error"], row["error_limit"])),
            )
        )
    if record["missing"] or not found:
        found.append((name if not found else "", "missing: " + (", ".join(record["missing"]) or "all")))
    return found


def missing_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who is missing where, calls with the same reason put together."""
    where: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for who, reason in record["missing"].items():
            where.setdefault((who, reason), []).append(
                f"{record['what']} b{record['batch']} {record['dtype']}"
            )
    found = []
    for (who, reason), names in where.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found.append(f"- {who} is missing in {', '.join(names[:3])}{more}: {reason}")
    return found


def note_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What rows say of themselves, calls with the same note put together."""
    where: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for row in record["rows"]:
            if row["note"] and row["note"] != "captured":
                name = f"{record['what']} b{record['batch']} {record['dtype']}"
                where.setdefault((row["who"], row["note"]), []).append(name)
    found = []
    for (who, note), names in where.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found.append(f"- {who} in {', '.join(names[:3])}{more}: {note}")
    return found


def target_table(rows: Sequence[Row]) -> list[str]:
    """The targets as a Markdown table."""
    found = [
        "| target | at least | measured | verdict | ours | best peer | direct floor | of direct floor | parity error |",
        "|---|---:|---:|---|---|---|---:|---:|---:|",
    ]
    for row in rows:

        def show(value: float | None, row: Row = row) -> str:
            if value is None:
                return "-"
            return times_faster(value) if row.unit == "x" else percent(value)

        ours = f"{milliseconds(row.ours)} ({row.ours_who})" if row.ours is not None else "-"
        peer = f"{milliseconds(row.peer)} ({row.peer_who})" if row.peer is not None else "-"
        error = "-" if row.error is None else str(harness.Gate(row.error, row.error_limit or 0.0))
        verdict = row.verdict + (f" ({row.note})" if row.note and row.note != row.verdict else "")
        least = "-" if row.direct_floor is None else milliseconds(row.direct_floor)
        part = percent(fraction(row.direct_floor, row.ours)) if row.ours else "-"
        cells = (row.what, show(row.target), show(row.ratio), verdict, ours, peer, least, part, error)
        found.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return found


def correctness_lines(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One line for each op and provider."""
    found: list[tuple[str, ...]] = []
    for r in records:
        refused = sum(len(v) for v in r.get("refused", {}).values())
        verdict = "FAILED" if r["failures"] else ("ok" if r["passed"] else "not run")
        worst = ", ".join(f"{d} {e:.1e}" for d, e in r.get("worst", {}).items())
        text = r["failures"][0] if r["failures"] else (r["missing"] or r.get("summary") or worst)
        counts = (str(r["passed"]), str(len(r["failures"])), str(refused), str(r.get("not_reached", 0)))
        found.append((r["what"], verdict, *counts, text[:110]))
    return found


def gpu_lines(stamp: Mapping[str, Any]) -> list[str]:
    """What the stamp says of the device."""
    keys = (
        "gpu",
        "capability",
        "driver",
        "cuda",
        "cudnn",
        "triton",
        "torchvision",
        "nvcc",
        "clocks",
        "library",
    )
    return [f"{key}: {stamp[key]}" for key in keys if stamp.get(key)]


def page(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The run as Markdown."""
    stamp, parts = document["environment"], document["parts"]
    title = stamp.get("gpu") or "no GPU"
    out = [f"# {'Dry run' if document['dry_run'] else 'GPU'}: {title}", ""]
    if document["dry_run"]:
        out += [f"**{DRY}**", ""]
    out += [f"`{document['command']}`", ""]
    out += [f"- {line}" for line in [*harness.stamp_lines(stamp), *gpu_lines(stamp)]]
    out += ["", "## Targets", "", *target_table(rows), ""]
    out += [
        "Ratios are of one interleaved run, against the fastest peer whose output agrees. The direct floor is the "
        "least time of direct convolution that the ceilings measured in the same run allow, each tensor of a fused "
        "layer moved once; what fits the level-2 cache (batch 1) can be faster.",
        "",
    ]
    if parts.get("ceilings", {}).get("records"):
        values = [
            (r["name"], _number(r["value"], ".4g") + " " + r["unit"], r.get("note", ""))
            for r in parts["ceilings"]["records"]
        ]
        out += ["## Ceilings", "", "```text", report.table(values), "```", ""]
    checks = parts.get("correctness", {}).get("records")
    if checks:
        header = ("op and provider", "verdict", "passed", "failed", "refused", "not reached", "")
        out += ["## Correctness", "", "```text", report.table(correctness_lines(checks), header), "```", ""]
        failures = [f"- {r['what']}: {text}" for r in checks for text in r["failures"]]
        out += failures + [""] if failures else []
        reasons = {
            f"- {r['what']}: refused {len(calls)}: {reason}"
            for r in checks
            for reason, calls in r.get("refused", {}).items()
        }
        out += sorted(reasons) + [""] if reasons else []
    titles = {
        "parts": "Parts of the network",
        "pack": "pack_pathways",
        "roi": "roi_head_pool",
        "model": "Whole model",
        "ops": "Single ops",
        "compile": "torch.compile",
    }
    for part, text in titles.items():
        records = [r for r in document["compared"] if r["part"] == part]
        if records:
            body = report.table([line for r in records for line in lines(r)], HEADER)
            out += [f"## {text}", "", "```text", body, "```", ""]
            reasons_here = missing_lines(records)
            out += [*reasons_here, ""] if reasons_here else []
            made = note_lines(records)
            out += [*made, ""] if made else []
    out += ["A star marks ours. GB/s counts the least traffic of a call, each tensor once.", ""]
    out += ["## What was run", "", "```text", report.table(run_lines(parts), RUN_HEADER), "```", ""]
    troubles = [f"- {p}, {key}: {reason}" for p, v in parts.items() for key, reason in v["failed"].items()]
    return "\n".join(out + (["Not measured, and why:", "", *troubles, ""] if troubles else []))


RUN_HEADER = ("part", "status", "seconds", "done", "failed", "not reached", "clocks while it ran")


def run_lines(parts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What became of each part."""
    return [
        (
            name,
            part["status"],
            f"{part['seconds']:.0f}",
            str(len(part["done"])),
            str(len(part["failed"])),
            str(len(part["late"])),
            part.get("clocks", ""),
        )
        for name, part in parts.items()
    ]


# --- files -------------------------------------------------------------------------------------------------------


def draw(folder: Path, document: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The pictures: speed-ups, roofline. Returns their names; says why where there are none. Never raises: a run's
    figures do not depend on its pictures."""
    marked = DRY if document["dry_run"] else ""
    made = []
    records, ceilings = document["compared"], document["ceilings"]
    try:
        if any(r["rows"] for r in records):
            plots.speedups(folder / "speedups.png", records, marked)
            made.append("speedups.png")
        points = roofline_points(records)
        if points["stages"] and ceilings.get("bf16_gflops"):
            title = (
                marked or f"{document['environment'].get('gpu')}, single ops, bf16, batch {points['batch']}"
            )
            plots.roofline(folder / "roofline.png", [points], ceilings, titles=[title])
            made.append("roofline.png")
    except ImportError as error:
        sys.stderr.write(f"no pictures: {error}\n")
    except Exception as error:
        sys.stderr.write(f"no more pictures: {type(error).__name__}: {error}\n")
    return made


def roofline_points(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest green form of ours of every single op in bf16, as ``plots.roofline`` takes them."""
    found, batch = [], None
    for record in records:
        if record["part"] != "ops" or record["dtype"] != "bf16" or not record["flops"]:
            continue
        batch = batch or record["batch"]
        mine = [r["median_s"] for r in record["rows"] if r["ours"] and r["green"]]
        if mine and record["batch"] == batch:
            stage = ".".join(record["case"].split(".")[:2])
            entry = {"stage": stage, "op": record["op"], "seconds": min(mine)}
            found.append({**entry, "flops": record["flops"], "bytes": record["bytes"]})
    return {"model": "", "dtype": "bf16", "batch": batch, "stages": found}


def write(folder: Path, document: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """The JSON document and the page; whoever reads them, or stops the run, finds whole files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for file in store.save("gpu", document, page(document, rows), Path(name)).iterdir():
            os.replace(file, folder / file.name)


def merged(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Correctness records of the same op and provider as one, in the order in which they first came."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        one = found.setdefault(record["what"], {"passed": 0, "failures": [], "missing": None})
        for key, value in record.items():
            if key in ("passed", "not_reached"):
                one[key] = one.get(key, 0) + value
            elif key == "failures":
                one[key] = [*one[key], *value]
            elif key == "refused":
                before = one.setdefault(key, {})
                for reason, calls in value.items():
                    before[reason] = [*before.get(reason, []), *calls]
            elif key == "worst":
                one[key] = {**one.get(key, {}), **value}
            else:
                one[key] = value
    return sorted(found.values(), key=lambda r: "op" not in r)
