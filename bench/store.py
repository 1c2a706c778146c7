"""Where measured runs are kept: ``bench/results/cpu-<processor>/<what>.{json,md,png}``, ``.../<gpu>/gpu.*``."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slowfast_kernels import report
from slowfast_kernels.bench import harness

RESULTS = Path(__file__).resolve().parent / "results"


def slug(stamp: Mapping[str, Any]) -> str:
    """Folder name of a machine: processor, cores, instruction set."""
    words = f"{stamp['processor']} {stamp['cores']} cores {stamp['isa']}"
    return "cpu-" + re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def gpu_slug(stamp: Mapping[str, Any]) -> str:
    """Folder name of a GPU: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", stamp["gpu"].lower()).strip("-")


def document(
    what: str, stamp: Mapping[str, Any], ceilings: Mapping[str, Any] | None, **rest: Any
) -> dict[str, Any]:
    """A run as one JSON document."""
    return {"what": what, "environment": stamp, "ceilings": ceilings, **rest}


def markdown(
    what: str, stamp: Mapping[str, Any], ceilings: Mapping[str, Any] | None, text: str, command: str
) -> str:
    """A run as a page: how it was made, where, and `text`, which is Markdown."""
    lines = [f"# {what}", "", f"`{command}`", ""]
    lines += [f"- {line}" for line in harness.stamp_lines(stamp)]
    if ceilings:
        lines.append(f"- ceilings measured in the same run: {ceiling_line(ceilings)}")
    return "\n".join([*lines, "", text, ""])


def ceiling_line(ceilings: Mapping[str, Any]) -> str:
    """The ceilings in one line."""
    parts = [f"fp32 {ceilings['fp32_gflops']:.0f} GFLOP/s ({ceilings['fp32_isa']})"]
    parts.append(f"bf16 {ceilings['bf16_gflops']:.0f} GFLOP/s ({ceilings['bf16_isa']})")
    if ceilings.get("int8_gops"):
        parts.append(f"int8 {ceilings['int8_gops']:.0f} GOP/s ({ceilings['int8_isa']})")
    parts.append(f"memory copy {ceilings['copy_gbs']:.0f} GB/s, read {ceilings['read_gbs']:.0f} GB/s")
    return ", ".join([*parts, report.count(ceilings["threads"], "thread")])


def save(what: str, found: Mapping[str, Any], page: str, folder: Path | None = None) -> Path:
    """Write the JSON and the Markdown of a run; returns the folder (pictures go there too)."""
    where = folder or RESULTS / slug(found["environment"])
    where.mkdir(parents=True, exist_ok=True)
    report.write_json(where / f"{what}.json", found)
    (where / f"{what}.md").write_text(page)
    return where
