"""The page and the pictures of a run, and what is said of each record while it comes in."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slowfast_kernels import report
from slowfast_kernels.bench import plots
from slowfast_kernels.bench.compare import fastest
from slowfast_kernels.bench.stamp import gpu_lines, stamp_lines
from slowfast_kernels.bench.tables import (
    median_and_spread,
    milliseconds,
    number,
    parity,
    percent,
    times_faster,
)
from slowfast_kernels.bench.targets import Row, gpu_table

DRY = "DRY RUN on a CPU: tiny shapes, interpreted and emulated kernels. No figure here is a measurement."

HEADER = (
    "what",
    "who",
    "median",
    "p20-p80",
    "predicted",
    "GB/s",
    "TFLOP/s",
    "of direct floor",
    "vs best peer",
    "parity",
)

#: Parts whose records are comparisons of contenders, and their titles on the page.
COMPARED = {
    "network": "The network and its parts",
    "pack": "pack_pathways",
    "roi": "roi_head_pool",
    "ops": "Single ops",
    "compile": "torch.compile",
    "smoke": "First minute: calls and convolutions",
}


def title(record: Mapping[str, Any]) -> str:
    """What a record compares: "fast stem b8 bf16"."""
    partial = ", so far" if record.get("partial") else ""
    return f"{record['what']} b{record['batch']} {record['dtype']}{partial}"


def lines(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A record as lines of the table, fastest first, the missing ones below with their reasons. A row may have
    "predicted" seconds."""
    times = f" x{record['count']}" if record.get("count", 1) > 1 else ""
    partial = " (so far)" if record.get("partial") else ""
    name = f"{record['what']}{times}, b{record['batch']} {record['dtype']}{partial}"
    found: list[tuple[str, ...]] = []
    for row in sorted(record["rows"], key=lambda r: r["median_s"]):
        who = f"*{row['who']}" if row["ours"] else row["who"]
        found.append(
            (
                name if not found else "",
                who + ("" if row["graph"] else " (no graph)"),
                *median_and_spread(row),
                prediction(row),
                number(row["gbs"]),
                number(row["gflops"] and row["gflops"] / 1e3, ".1f"),
                percent(row["direct_floor_fraction"]),
                times_faster(row["speedup"]) if row["ours"] else "",
                parity(row),
            )
        )
    if record["missing"] or not found:
        found.append((name if not found else "", "missing: " + (", ".join(record["missing"]) or "all")))
    return found


def prediction(row: Mapping[str, Any]) -> str:
    """What a static model said of a row, and how many times that the measurement is."""
    said = row.get("predicted")
    return f"{milliseconds(said)} (x{row['median_s'] / said:.2f})" if said else ""


def _together(told: Iterable[tuple[str, str, str]], words: str) -> list[str]:
    """(who, what is said, where) as lines, places of which the same is said put together."""
    where: dict[tuple[str, str], list[str]] = {}
    for who, text, name in told:
        where.setdefault((who, text), []).append(name)
    found = []
    for (who, text), names in where.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found.append(f"- {who} {words} {', '.join(names[:3])}{more}: {text}")
    return found


def missing_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who is missing where, and why."""
    told = ((who, reason, title(r)) for r in records for who, reason in r["missing"].items())
    return _together(told, "is missing in")


def note_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What rows say of themselves."""
    told = ((row["who"], row["note"], title(r)) for r in records for row in r["rows"])
    return _together((one for one in told if one[1] not in ("", "captured")), "in")


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


def summary(record: Mapping[str, Any]) -> str:
    """A record in one line."""
    if "check" in record:
        status = record["status"].upper() if record["status"] == "red" else record["status"]
        return f"{record['check']}: {status}" + (f"; {record['text']}" if record["text"] else "")
    if "value" in record:
        value = "-" if record["value"] is None else f"{record['value']:.4g}"
        return f"{record['name']} {value} {record['unit']}"
    if "failures" in record:
        line = correctness_lines([record])[0]
        return f"{line[0]}: {line[1]}, {line[2]} passed" + (f"; {line[6]}" if line[6] else "")
    mine, peer = (fastest([r for r in record["rows"] if r["ours"] == kind]) for kind in (True, False))
    red = [r["who"] for r in record["rows"] if r["ours"] and not r["green"]]
    texts = [f"{r['who']} {1e3 * r['median_s']:.4g} ms" for r in (mine, peer) if r is not None]
    ratio = f", {peer['median_s'] / mine['median_s']:.2f}x" if mine and peer else ""
    return f"{title(record)}: {' against '.join(texts) or 'nothing ran'}{ratio}" + (
        f"; RED: {', '.join(red)}" if red else ""
    )


def page(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The run as Markdown."""
    stamp, parts = document["environment"], document["parts"]
    out = [f"# {'Dry run' if document['dry_run'] else 'GPU'}: {stamp.get('gpu') or 'no GPU'}", ""]
    if document["dry_run"]:
        out += [f"**{DRY}**", ""]
    out += [f"`{document['command']}`", ""]
    out += [f"- {line}" for line in [*stamp_lines(stamp), *gpu_lines(stamp)]]
    out += ["", "## Targets", "", *gpu_table(rows), ""]
    out += [
        "Ratios are of one interleaved run, against the fastest peer whose output agrees. The direct floor is the "
        "least time of direct convolution that the ceilings measured in the same run allow, each tensor of a fused "
        "layer moved once; what fits the level-2 cache (batch 1) can be faster.",
        "",
    ]
    if parts.get("ceilings", {}).get("records"):
        values = [
            (r["name"], number(r["value"], ".4g") + " " + r["unit"], r.get("note", ""))
            for r in parts["ceilings"]["records"]
        ]
        out += ["## Ceilings", "", "```text", report.table(values), "```", ""]
    told = [r for part in parts.values() for r in part["records"] if "check" in r]
    if told:
        out += ["## Checks", "", *(f"- {summary(r)}" for r in told), ""]
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
    for part, text in COMPARED.items():
        records = [r for r in document["compared"] if r["part"] == part]
        if records:
            body = report.table([line for r in records for line in lines(r)], HEADER)
            out += [f"## {text}", "", "```text", body, "```", ""]
            for told in (missing_lines(records), note_lines(records)):
                out += [*told, ""] if told else []
    out += [
        "A star marks ours. GB/s counts the least traffic of a call, each tensor once. Predicted: by a static model of "
        "an H200 with none of its figures measured (docs/gpu-predicted.md), with measured over predicted.",
        "",
    ]
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


# --- pictures ----------------------------------------------------------------------------------------------------


def draw(folder: Path, document: Mapping[str, Any]) -> list[str]:
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
