"""Pictures of the tables. matplotlib is imported only here and only when a picture is asked for."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slowfast_kernels._optional import needs
from slowfast_kernels.bench.roofline import PEAKS

OURS, OTHER, LIMIT = "#0b6e99", "#9aa5b1", "#c0392b"
MARKERS = {
    "stem3d": "s",
    "bottleneck3d": "o",
    "conv_a": "^",
    "conv_b": "v",
    "conv_c": "D",
    "lateral_fusion": "P",
}

PathLike = str | os.PathLike[str]


def _pyplot() -> Any:
    with needs("a picture", extra="bench"):
        import matplotlib

        matplotlib.use("Agg", force=False)
        from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: PathLike) -> None:
    figure.tight_layout()
    figure.savefig(path, format=None if Path(path).suffix else "png")
    _pyplot().close(figure)


def roofline(path: PathLike, result: Mapping[str, Any], ceilings: Mapping[str, Any], title: str = "") -> None:
    """FLOP/s over FLOP per byte of every stage of a frozen model, under the ceilings of the same run.

    result: of ``models.measure`` with its "stages". The area of a mark is its share of the time.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(9, 5.6), dpi=110)
    rows = [r for r in result["stages"] if r["flops"] and r["bytes"] and r["seconds"] > 0]
    total = sum(r["seconds"] for r in result["stages"])
    stages = sorted({r["stage"].split(".")[0] for r in rows})
    colours = {stage: plt.get_cmap("tab10")(i % 10) for i, stage in enumerate(stages)}
    for row in rows:
        axes.scatter(
            row["flops"] / row["bytes"],
            row["flops"] / row["seconds"] / 1e9,
            s=30 + 900 * row["seconds"] / total,
            marker=MARKERS.get(row["op"], "o"),
            color=colours[row["stage"].split(".")[0]],
            alpha=0.75,
            edgecolor="black" if row["stage"].endswith(".fast") else "white",
            linewidth=0.8,
        )
    at = [r["flops"] / r["bytes"] for r in rows] or [1.0, 100.0]
    low, high = min(at) / 2, max(at) * 2
    peak = ceilings[PEAKS[result["dtype"]]]
    for key, style in (("copy_gbs", "-"), ("l3_copy_gbs", "--"), ("l2_copy_gbs", ":")):
        bandwidth = ceilings.get(key)
        if bandwidth:
            xs = [low * (high / low) ** (i / 200) for i in range(201)]
            axes.plot(xs, [min(peak, x * bandwidth) for x in xs], style, color=LIMIT, linewidth=1.5)
            name = {"copy_gbs": "main memory", "l3_copy_gbs": "L3", "l2_copy_gbs": "L2"}[key]
            axes.annotate(
                f"{name} {bandwidth:.0f} GB/s", (low * 1.1, low * 1.2 * bandwidth), color=LIMIT, fontsize=8
            )
    axes.axhline(peak, color=LIMIT, linewidth=1.5)
    axes.annotate(
        f"{result['dtype']} ceiling {peak:.0f} GFLOP/s", (low * 1.1, peak * 1.04), color=LIMIT, fontsize=8
    )
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP per byte (least traffic of the call)")
    axes.set_ylabel("GFLOP/s")
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", linestyle="", color=colours[s], label=s) for s in stages]
    handles += [
        Line2D([], [], marker=MARKERS.get(op, "o"), linestyle="", color="#555", label=op)
        for op in sorted({r["op"] for r in rows})
    ]
    handles.append(
        Line2D([], [], marker="o", linestyle="", markerfacecolor="white", color="black", label="Fast pathway")
    )
    axes.legend(handles=handles, fontsize=7, ncols=2, loc="lower right", frameon=False)
    axes.set_title(title or f"{result['model']} {result['dtype']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def models(path: PathLike, results: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Bars of the median time of every contender, with the spread; one panel for each precision."""
    plt = _pyplot()
    figure, panels = plt.subplots(1, len(results), figsize=(5.5 * len(results), 4.2), dpi=110, squeeze=False)
    for axes, result in zip(panels[0], results, strict=True):
        rows = sorted(result["rows"], key=lambda r: -r["median_s"])
        for y, row in enumerate(rows):
            middle, low, high = (1e3 * row[k] for k in ("median_s", "p20_s", "p80_s"))
            axes.barh(y, middle, color=OURS if row["who"] == "frozen" else OTHER)
            axes.errorbar(
                middle, y, xerr=[[middle - low], [high - middle]], color="#333", capsize=3, linewidth=1
            )
            axes.text(high, y, f" {middle:.0f} ms", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [r["who"] for r in rows])
        axes.set_xlabel("milliseconds per call, median and p20-p80")
        axes.set_title(f"{result['model']} {result['dtype']}", fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def scaling(path: PathLike, results: Sequence[Mapping[str, Any]]) -> None:
    """Time over work for every batch and length; a line through the origin is linear growth."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.6), dpi=110)
    for result in results:
        lengths = sorted({r["frames"] for r in result["rows"]})
        for length in lengths:
            rows = [r for r in result["rows"] if r["frames"] == length]
            work = [2 * r["macs"] / 1e9 for r in rows]
            times = [1e3 * r["median_s"] for r in rows]
            axes.plot(work, times, marker="o", linewidth=1, label=f"{result['dtype']}, {length} frames")
            for x, y, r in zip(work, times, rows, strict=True):
                axes.annotate(
                    f"b{r['batch']}", (x, y), fontsize=7, textcoords="offset points", xytext=(3, -9)
                )
        first = result["rows"][0]
        end = max(2 * r["macs"] / 1e9 for r in result["rows"])
        axes.plot([0, end], [0, 1e12 * first["seconds_per_flop"] * end], ":", color=LIMIT, linewidth=1)
    axes.plot([], [], ":", color=LIMIT, label="linear from the first row")
    axes.set(xlabel="GFLOP", ylabel="milliseconds", xlim=(0, None), ylim=(0, None))
    axes.set_title(results[0]["model"], fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def ops(path: PathLike, results: Sequence[Mapping[str, Any]]) -> None:
    """How many times faster than torch eager each call is, on a logarithmic axis; red checks are left out."""
    plt = _pyplot()
    best = []
    for result in results:
        ours = [r for r in result["rows"] if r["who"].startswith("cpu") and r["speedup_vs_eager"]]
        if ours:
            best.append((f"{result['op']} {result['case']}", max(r["speedup_vs_eager"] for r in ours)))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.2 * len(best)), dpi=110)
    best.sort(key=lambda pair: pair[1])
    axes.barh(range(len(best)), [v for _, v in best], color=OURS)
    axes.set_yticks(range(len(best)), [n for n, _ in best], fontsize=7)
    axes.axvline(1, color=LIMIT, linewidth=1)
    axes.set(xscale="log", xlabel="times faster than torch eager (channels_last_3d)")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def targets(path: PathLike, rows: Sequence[Any]) -> None:
    """Measured ratio over target of every row."""
    plt = _pyplot()
    rows = [r for r in rows if r.ratio is not None]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.4 * len(rows)), dpi=110)
    for y, row in enumerate(reversed(rows)):
        axes.barh(y, row.ratio, color=OURS if row.met else LIMIT)
        axes.plot([row.target, row.target], [y - 0.4, y + 0.4], color="black", linewidth=2)
        axes.text(row.ratio, y, f" {row.ratio:.2f}x", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [r.what for r in reversed(rows)], fontsize=7)
    axes.set(xscale="log", xlabel="times faster (or smaller) than the peer; black: target")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def memory(path: PathLike, results: Sequence[Mapping[str, Any]]) -> None:
    """Bars of the peak above the weights."""
    plt = _pyplot()
    bars = [(f"{r['who']} {result['dtype']}", r) for result in results for r in result["rows"]]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.4 * len(bars)), dpi=110)
    for y, (_, row) in enumerate(reversed(bars)):
        axes.barh(y, row["peak_bytes"] / 2**20, color=OURS if row["who"] == "frozen" else OTHER)
        axes.text(row["peak_bytes"] / 2**20, y, f" {row['peak_bytes'] / 2**20:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _ in reversed(bars)])
    axes.set_xlabel("peak resident MiB above the weights")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def speedups(path: PathLike, records: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """The fastest green form of ours against the fastest green peer, one bar for each record of a GPU run; red
    checks are left out."""
    plt = _pyplot()
    bars = []
    for record in records:
        found = [r["speedup"] for r in record["rows"] if r["ours"] and r["speedup"]]
        if found:
            bars.append((f"{record['what']}, b{record['batch']} {record['dtype']}", max(found)))
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.16 * len(bars)), dpi=110)
    axes.barh(range(len(bars)), [v for _, v in reversed(bars)], color=OURS)
    axes.set_yticks(range(len(bars)), [n for n, _ in reversed(bars)], fontsize=6)
    axes.axvline(1, color=LIMIT, linewidth=1)
    axes.set(xscale="log", xlabel="times faster than the fastest peer")
    axes.set_title(title, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
