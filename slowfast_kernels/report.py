"""What a run found, for people and for programs: text table, JSON document, picture of the time per stage."""

import json
import math
import os
import platform
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import slowfast_kernels
from slowfast_kernels._optional import needs

__all__ = [
    "STAGES",
    "check_output",
    "check_picture",
    "count",
    "environment",
    "plot_stages",
    "table",
    "version_of",
    "wrapped",
    "write_json",
]

#: Stages of the network in the order of its forward pass.
STAGES = ("stem", "res2", "res3", "res4", "res5", "lateral", "head")


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Machine and versions: what a measurement must carry to be compared with another."""
    from slowfast_kernels import backends

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    stamp: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "slowfast_kernels": slowfast_kernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": version_of("av"),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "isa": backends.cpu_isa(),
    }
    if torch.cuda.is_available():
        stamp["gpu"] = torch.cuda.get_device_name()
        stamp["cuda"] = torch.version.cuda
    return stamp


def table(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """Rows of cells as aligned text: first column to the left, the others to the right."""
    body = [tuple(row) for row in rows]
    lines = ([tuple(header)] if header else []) + body
    if not lines:
        return ""
    columns = max(len(line) for line in lines)
    lines = [line + ("",) * (columns - len(line)) for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(columns)]

    def render(line: tuple[str, ...]) -> str:
        cells = [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    out = [render(line) for line in lines]
    if header:
        out.insert(1, "-" * max(len(line) for line in out))
    return "\n".join(out)


def wrapped(notes: Iterable[str], width: int = 120) -> list[str]:
    """Notes under a table as lines of at most this width; what belongs to a note is indented."""
    return [line for note in notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]


def count(number: int, thing: str) -> str:
    """ "1 thread", "2 threads"."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _plain(value: Any) -> Any:
    """JSON's own types only; what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def check_output(option: str, path: str | os.PathLike[str], suffixes: Collection[str] = ()) -> None:
    """Refuse a file that cannot be written, before any work; raises ValueError that names the option.

    suffixes: what the name may end in (".npz"), if not in anything.
    """
    file = Path(path)
    if str(path) == "-":
        raise ValueError(f"{option} -: expected the name of a file (standard output has the tables)")
    if file.is_dir():
        raise ValueError(f"{option} {path}: expected a file, got a folder")
    folder = file.resolve().parent
    if not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise ValueError(f"{option} {path}: expected a file in a folder that exists and can be written")
    if suffixes and file.suffix not in suffixes:
        raise ValueError(f"{option} {path}: expected a name that ends in {' or '.join(suffixes)}")


def check_picture(option: str, path: str | os.PathLike[str]) -> None:
    """Refuse a picture that cannot be drawn or written, before any work. Raises ValueError, or MissingExtra where
    there is no matplotlib."""
    with needs(option, extra="video"):
        import matplotlib  # noqa: F401
        from matplotlib.backend_bases import FigureCanvasBase
    # A name without a suffix is a PNG.
    known = ["", *(f".{suffix}" for suffix in FigureCanvasBase.get_supported_filetypes())]
    check_output(option, path)
    if Path(path).suffix.lower() not in known:
        raise ValueError(f"{option} {path}: expected a picture's suffix, one of {' '.join(known[1:])}")


def write_json(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write ``document`` as indented JSON; infinities and NaN become null."""
    Path(path).write_text(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")


def plot_stages(
    path: str | os.PathLike[str], stages: Sequence[Mapping[str, Any]], title: str, ours: str = "fused"
) -> None:
    """Bars of time per stage, reference beside ours, Fast pathway hatched, direct-convolution floor as a line.

    Args:
        path: the picture (its suffix chooses the format, PNG by default).
        stages: rows with ``stage`` ("res2.slow", "lateral", ...), ``reference_s`` and ``frozen_s`` (seconds, None
            if not measured) and ``direct_floor_s`` (seconds, None if unknown).
        title: text over the picture.
        ours: what the frozen model is called, after what it runs on.
    """
    with needs("a picture", extra="video"):
        import matplotlib

        matplotlib.use("Agg", force=False)
        from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    def total(stage: str, key: str, fast: bool | None = None) -> float:
        picked = [
            row.get(key) or 0.0
            for row in stages
            if row["stage"].split(".")[0] == stage
            and (fast is None or (row["stage"].split(".")[-1] == "fast") == fast)
        ]
        return 1e3 * sum(picked)

    present = [s for s in STAGES if any(row["stage"].split(".")[0] == s for row in stages)]
    sides = (("reference_s", "reference", "#9aa5b1"), ("frozen_s", ours, "#0b6e99"))
    kinds = [side for side in sides if any(row.get(side[0]) is not None for row in stages)]
    figure, axes = plt.subplots(figsize=(9, 4.8), dpi=110)
    width = 0.8 / max(len(kinds), 1)
    for k, (key, _, colour) in enumerate(kinds):
        for x, stage in enumerate(present):
            left = x - 0.4 + k * width
            slow, fast = total(stage, key, False), total(stage, key, True)
            axes.bar(left, slow, width, align="edge", color=colour, edgecolor="white", linewidth=0.5)
            if fast:
                axes.bar(
                    left,
                    fast,
                    width,
                    bottom=slow,
                    align="edge",
                    color=colour,
                    edgecolor="white",
                    linewidth=0.5,
                    hatch="////",
                )
            top, text = slow + fast, _short(slow + fast)
            label = axes.annotate(text, (left + width / 2, top), xytext=(0, 2), textcoords="offset points")
            # In front of the floor's line, which may run through it.
            label.set(ha="center", va="bottom", fontsize=8, zorder=5)
            label.set_bbox({"color": "white", "pad": 0.6, "alpha": 0.85})
    floors = any(row.get("direct_floor_s") for row in stages)
    if floors:
        for x, stage in enumerate(present):
            floor = total(stage, "direct_floor_s")
            if not floor:
                continue
            axes.plot([x - 0.44, x + 0.44], [floor, floor], color="#c0392b", linewidth=1.8)
    handles: list[Any] = [
        Patch(facecolor=colour, label=f"{name} ({sum(total(s, key) for s in present):.0f} ms)")
        for key, name, colour in kinds
    ]
    if any(row["stage"].endswith(".fast") for row in stages):
        handles.append(Patch(facecolor="white", edgecolor="#555", hatch="////", label="Fast pathway's part"))
    if floors:
        floor_sum = sum(total(s, "direct_floor_s") for s in present)
        handles += axes.plot(
            [], [], color="#c0392b", linewidth=1.8, label=f"{FLOOR_LABEL} ({floor_sum:.0f} ms)"
        )
    # Below the axes, where no bar can stand behind it.
    axes.legend(handles=handles, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.07))
    axes.set_xticks(range(len(present)), present)
    axes.set_ylabel("milliseconds per view, median")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, format=None if Path(path).suffix else "png", bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


#: In legends. Winograd kernels may run below it.
FLOOR_LABEL = "direct-convolution floor; Winograd may run below it"


def _short(value: float) -> str:
    """Three significant digits, or whole numbers beyond them."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def say(text: str) -> None:
    """Print a line of results to the standard output at once (progress bars own the standard error)."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
