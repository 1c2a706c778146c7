"""Where measured runs are kept: ``bench/results/cpu-<processor>/<what>.{json,md,png}``, ``.../<gpu>/gpu.*``."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slowfast_kernels import report
from slowfast_kernels.bench.stamp import stamp_lines

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def _dashed(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def slug(stamp: Mapping[str, Any]) -> str:
    """Folder name of a machine: processor, cores, instruction set."""
    return "cpu-" + _dashed(f"{stamp['processor']} {stamp['cores']} cores {stamp['isa']}")


def gpu_slug(stamp: Mapping[str, Any]) -> str:
    """Folder name of a GPU: "nvidia-h200"."""
    return _dashed(stamp["gpu"])


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
    lines += [f"- {line}" for line in stamp_lines(stamp)]
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
    """Write the JSON and the Markdown of a run; returns the folder (pictures go there too). Whoever reads them, or
    stops the run, finds whole files."""
    where = folder or RESULTS / slug(found["environment"])
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where) as name:
        report.write_json(Path(name, f"{what}.json"), found)
        Path(name, f"{what}.md").write_text(page)
        for suffix in ("json", "md"):
            os.replace(Path(name, f"{what}.{suffix}"), where / f"{what}.{suffix}")
    return where
