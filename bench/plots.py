"""Pictures of the tables. matplotlib is imported only here and only when a picture is asked for."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slowfast_kernels import report
from slowfast_kernels._optional import needs
from slowfast_kernels.bench.roofline import PEAKS
from slowfast_kernels.bench.subject import described
from slowfast_kernels.bench.tables import milliseconds

OURS, OTHER, LIMIT = "#0b6e99", "#9aa5b1", "#c0392b"
MARKERS = {
    "stem3d": "s",
    "bottleneck3d": "o",
    "conv_a": "^",
    "conv_b": "v",
    "conv_c": "D",
    "lateral_fusion": "P",
    "pool_concat_head": "*",
    "pack_pathways": "h",
}

PathLike = str | os.PathLike[str]


def _pyplot() -> Any:
    with needs("a picture", extra="bench"):
        import matplotlib

        matplotlib.use("Agg", force=False)
        from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: PathLike) -> list[Path]:
    figure.savefig(path, format=None if Path(path).suffix else "png", bbox_inches="tight", pad_inches=0.15)
    _pyplot().close(figure)
    return [Path(path)]


def _panels(count: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many axes side by side, their sizes in inches, and the axes."""
    figure, axes = _pyplot().subplots(1, count, figsize=(width * count, height), dpi=110, squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _legend_below(axes: Any, y: float, **more: Any) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, y), **more)


def _beside(axes: Any, x: float, y: float, text: str) -> None:
    """A label to the right of the end of a bar."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def machine(stamp: Mapping[str, Any]) -> str:
    """The machine and its software for a title."""
    cores = report.count(stamp["cores"], "core")
    return f"{stamp['processor']}, {cores}, {stamp['isa']}, torch {stamp['torch']}"


def _of(result: Mapping[str, Any]) -> str:
    """The network of a result for a title."""
    return described(*(result[k] for k in ("model", "frames", "crop", "batch", "threads")))


def _title(figure: Any, *lines: str) -> None:
    text = "\n".join(line for line in lines if line)
    if text:
        figure.suptitle(text, fontsize=10)


def _ratio_bars(
    axes: Any, names: Sequence[str], ratios: Sequence[float], labels: Sequence[str], **bars: Any
) -> None:
    """Bars from 1 (as fast as the peer) on a logarithmic axis, the first on top, each with its label beside it."""
    places = [len(names) - 1 - i for i in range(len(names))]
    axes.barh(places, [r - 1 for r in ratios], left=1, height=0.7, **bars)
    low, high = min([*ratios, 0.8]), max([*ratios, 1.5])
    for y, ratio, label in zip(places, ratios, labels, strict=True):
        _beside(axes, max(ratio, 1), y, label)
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xscale="log", xlim=(low / 1.15, high * (high / low) ** 0.45), ylim=(-0.6, len(names) - 0.4))
    ticks = [m * 10**e for e in range(-1, 4) for m in (1, 2, 5) if low / 1.15 <= m * 10**e <= high * 1.5]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1)


def roofline(
    path: PathLike,
    results: Sequence[Mapping[str, Any]],
    ceilings: Mapping[str, Any],
    where: str = "",
    titles: Sequence[str] = (),
) -> list[Path]:
    """FLOP/s over FLOP per byte of every stage of a frozen model, under the ceilings of the same run; a panel for each
    precision.

    results: of ``models.measure`` with their "stages". The area of a mark is its share of the time. Titles: over the
    panels, default: what was measured.
    """
    plt = _pyplot()
    from matplotlib.lines import Line2D

    figure, panels = _panels(len(results), 8, 5.6)
    rows = [r for result in results for r in result["stages"] if _drawable(r)]
    stages, ops = sorted({_stage(r) for r in rows}), sorted({r["op"] for r in rows})
    colours = {stage: plt.get_cmap("tab10")(i % 10) for i, stage in enumerate(stages)}
    for axes, result, title in zip(panels, results, titles or [_of(r) for r in results], strict=True):
        _roofline(axes, result, ceilings, colours)
        axes.set_title(f"{title}, {result['dtype']}" if not titles else title, fontsize=10)

    def mark(label: str, **style: Any) -> Any:
        return Line2D([], [], **{"marker": "o", "linestyle": "", "color": "#555", "label": label, **style})

    legends = {
        "stage (colour)": [mark(s, color=colours[s]) for s in stages],
        "op (form)": [mark(op, marker=MARKERS.get(op, "X")) for op in ops],
        "pathway (edge)": [
            mark("Fast: black edge", color="white", markeredgecolor="black"),
            mark("all others: white edge"),
        ],
        "share of the time (area)": [mark(f"{s:.0%}", markersize=_area(s) ** 0.5) for s in (0.01, 0.05, 0.2)],
    }
    for left, (name, handles) in zip((0.02, 0.27, 0.65, 0.84), legends.items(), strict=True):
        style: dict[str, Any] = {"fontsize": 8, "title_fontsize": 8, "frameon": False, "loc": "upper left"}
        columns = 2 if len(handles) > 4 else 1
        figure.legend(handles=handles, title=name, ncols=columns, bbox_to_anchor=(left, 0.0), **style)
    note = "FLOPs are those of direct convolution: Winograd kernels may run above the ceiling."
    figure.text(0.02, -0.24, note, fontsize=8)
    figure.subplots_adjust(left=0.08 / len(results), right=0.99, top=0.88, bottom=0.09, wspace=0.12)
    _title(figure, where)
    return _save(figure, path)


def _drawable(row: Mapping[str, Any]) -> bool:
    return bool(row["flops"] and row["bytes"] and row["seconds"] > 0)


def _stage(row: Mapping[str, Any]) -> str:
    return str(row["stage"].split(".")[0])


def _area(share: float) -> float:
    """Of a mark, in square points."""
    return 30 + 900 * share


def _roofline(
    axes: Any, result: Mapping[str, Any], ceilings: Mapping[str, Any], colours: Mapping[str, Any]
) -> None:
    rows = [r for r in result["stages"] if _drawable(r)]
    total = sum(r["seconds"] for r in result["stages"])
    for row in rows:
        axes.scatter(
            row["flops"] / row["bytes"],
            row["flops"] / row["seconds"] / 1e9,
            s=_area(row["seconds"] / total),
            marker=MARKERS.get(row["op"], "X"),
            color=colours[_stage(row)],
            alpha=0.8,
            edgecolor="black" if row["stage"].endswith(".fast") else "white",
            linewidth=0.9,
            zorder=3,
        )
    at = [r["flops"] / r["bytes"] for r in rows] or [1.0, 100.0]
    low, high = min(at) / 2, max(at) * 2
    peak = ceilings[PEAKS[result["dtype"]]]
    label = {"color": LIMIT, "fontsize": 8, "zorder": 4, "bbox": {"color": "white", "pad": 0.8}}
    for key, name, style in (
        ("copy_gbs", "memory", "-"),
        ("l3_copy_gbs", "L3", "--"),
        ("l2_copy_gbs", "L2", ":"),
    ):
        bandwidth = ceilings.get(key)
        if bandwidth:
            xs = [low * (high / low) ** (i / 200) for i in range(201)]
            axes.plot(xs, [min(peak, x * bandwidth) for x in xs], style, color=LIMIT, linewidth=1.5)
            # On the line itself, near its lower end.
            x = min(low * 1.5, 0.6 * peak / bandwidth)
            axes.text(max(x, low), max(x, low) * bandwidth, f"{name} {bandwidth:.0f} GB/s", **label)
    axes.axhline(peak, color=LIMIT, linewidth=1.5)
    # At the left end, where calls are too short of arithmetic to come near it.
    text = f"{result['dtype']} FMA ceiling {peak:.0f} GFLOP/s"
    axes.text(low * 1.1, peak * 1.05, text, color=LIMIT, fontsize=8, va="bottom")
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP per byte (least traffic of the call)")
    axes.set_ylabel("GFLOP/s (FLOPs of direct convolution)")


def models(path: PathLike, results: Sequence[Mapping[str, Any]], where: str = "") -> list[Path]:
    """Bars of the median time of every contender, with the spread; one panel for each precision."""
    figure, panels = _panels(len(results), 6, 4.2)
    for axes, result in zip(panels, results, strict=True):
        rows = sorted(result["rows"], key=lambda r: -r["median_s"])
        for y, row in enumerate(rows):
            middle, low, high = (1e3 * row[k] for k in ("median_s", "p20_s", "p80_s"))
            axes.barh(y, middle, color=OURS if row["who"] == "frozen" else OTHER)
            axes.errorbar(
                middle, y, xerr=[[middle - low], [high - middle]], color="#333", capsize=3, linewidth=1
            )
            _beside(axes, high, y, f"{middle:.0f} ms")
        axes.set_yticks(range(len(rows)), [r["who"] for r in rows])
        axes.set_xlabel("milliseconds per call: median, 20th to 80th percentile")
        axes.set_title(f"{_of(result)}, {result['dtype']}", fontsize=9)
        axes.margins(x=0.18)
    _title(figure, where)
    figure.tight_layout()
    return _save(figure, path)


def ink(colour: Sequence[float]) -> str:
    """Black or white, whichever reads better on a colour (red, green, blue from 0 to 1)."""
    red, green, blue = colour[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def scaling(path: PathLike, results: Sequence[Mapping[str, Any]], where: str = "") -> list[Path]:
    """Time per FLOP over that of the smallest call, for every batch and length: 1 everywhere is linear growth."""
    plt = _pyplot()
    batches = sorted({r["batch"] for result in results for r in result["rows"]})
    kinds = [
        (result, frames) for result in results for frames in sorted({r["frames"] for r in result["rows"]})
    ]
    figure, (axes,) = _panels(1, 2 + 0.75 * len(kinds) * len(batches), 4.6)
    width, colours = 0.84 / len(kinds), plt.get_cmap("Paired")
    for k, (result, frames) in enumerate(kinds):
        rows = [r for r in result["rows"] if r["frames"] == frames]
        at = [batches.index(r["batch"]) - 0.42 + (k + 0.5) * width for r in rows]
        label = f"{result['dtype']}, {frames} frames"
        axes.bar(at, [r["to_first"] for r in rows], width * 0.94, color=colours(k), label=label)
        for x, row in zip(at, rows, strict=True):
            text = f"{row['to_first']:.2f}\n{1e3 * row['median_s']:.0f} ms"
            style = {"ha": "center", "va": "top", "fontsize": 7, "color": ink(colours(k))}
            # well below the line of linear growth, which would strike it through
            axes.text(x, 0.88 * row["to_first"], text, **style)
    axes.axhline(1, color=LIMIT, linewidth=1.5, zorder=0, label="1: linear growth")
    axes.set_xticks(range(len(batches)), [f"batch {b}" for b in batches])
    axes.set_ylabel("time per FLOP, over that of the first bar")
    _legend_below(axes, -0.08, ncols=len(kinds) + 1)
    net = results[0]
    threads = report.count(net["threads"], "thread")
    axes.set_title(f"{net['model']}, {net['crop']}x{net['crop']}, {threads}\n{where}", fontsize=10)
    return _save(figure, path)


def _best(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Our fastest form that has a speed-up; red checks have none."""
    return max((r for r in record["rows"] if r["speedup"]), key=lambda r: r["speedup"], default=None)


def ops(path: PathLike, results: Sequence[Mapping[str, Any]], where: str = "") -> list[Path]:
    """How many times faster than the fastest peer our fastest form of each call is."""
    found = [(row, result) for result in results if (row := _best(result))]
    found.sort(key=lambda pair: -pair[0]["speedup"])
    figure, (axes,) = _panels(1, 9, 1.4 + 0.26 * len(found))
    names, labels = [], []
    for row, result in found:
        peer = next(r for r in result["rows"] if r["who"] == result["best_peer"])
        times = ", ".join(f"{r['who']} {milliseconds(r['median_s'])}" for r in (row, peer))
        labels.append(f"{row['speedup']:.2f}x  ({times})")
        names.append(f"{result['op']} {result['case']}, {result['dtype']}")
    _ratio_bars(axes, names, [row["speedup"] for row, _ in found], labels, color=OURS)
    axes.set_xlabel("times faster than the fastest peer (named in brackets)")
    threads = report.count(results[0]["threads"], "thread")
    axes.set_title(f"single ops on SlowFast's shapes, batch 1, {threads}\n{where}", fontsize=10)
    return _save(figure, path)


def targets(path: PathLike, rows: Sequence[Any], title: str = "") -> list[Path]:
    """Measured ratio of every row with its target, times and parity; what was not measured is left out."""
    rows = [r for r in rows if r.ratio is not None]
    figure, (axes,) = _panels(1, 9, 1.6 + 0.46 * len(rows))
    labels = []
    for row in rows:
        parity = f", parity {row.parity}" if row.error is not None else ""
        labels.append(f"{row.ratio:.2f}x  ({row.amount(row.ours)}, peer {row.amount(row.peer)}{parity})")
    names = ["\n".join(textwrap.wrap(r.what, 52)) for r in rows]
    colours = [OTHER if r.target is None else OURS if r.met else LIMIT for r in rows]
    _ratio_bars(axes, names, [r.ratio for r in rows], labels, color=colours)
    for y, row in enumerate(reversed(rows)):
        if row.target is not None:
            # A label that begins at the target moves behind it.
            axes.plot([row.target] * 2, [y - 0.42, y + 0.42], color="black", linewidth=2.5, zorder=3)
            text = axes.texts[len(rows) - 1 - y]
            if row.ratio <= row.target:
                text.xy = (row.target, y)
    axes.set_xlabel(
        "times faster, or smaller, than the peer (1x: equal)\nblack mark: the target; red: missed; grey: none"
    )
    axes.set_title(title, fontsize=10)
    return _save(figure, path)


def memory(path: PathLike, results: Sequence[Mapping[str, Any]], where: str = "") -> list[Path]:
    """Both peaks side by side: above the weights as held, and above their plain size."""
    bars = [(f"{r['who']} {result['dtype']}", r) for result in results for r in result["rows"]]
    figure, (axes,) = _panels(1, 8, 1.6 + 0.6 * len(bars))
    kinds = (
        ("peak_bytes", "above the weights as held", 0.2, None),
        ("strict_bytes", "strict: above the weights' plain size (packed copies count)", -0.2, "////"),
    )
    for key, label, shift, hatch in kinds:
        for y, (_, row) in enumerate(reversed(bars)):
            colour = OURS if row["who"] == "frozen" else OTHER
            size = row[key] / 2**20
            axes.barh(y + shift, size, 0.38, color=colour, hatch=hatch, edgecolor="white")
            _beside(axes, size, y + shift, f"{size:.0f} MiB")
        axes.barh([0], [0], color=OTHER, hatch=hatch, edgecolor="white", label=label)
    axes.set_yticks(range(len(bars)), [name for name, _ in reversed(bars)])
    axes.set_xlabel("peak resident MiB of inference")
    axes.margins(x=0.15)
    _legend_below(axes, -0.35 if len(bars) < 4 else -0.15)
    axes.set_title(f"{_of(results[0])}\n{where}", fontsize=10)
    return _save(figure, path)


def speedups(path: PathLike, records: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """The same of every record of a GPU run."""
    found = [(row["speedup"], record) for record in records if (row := _best(record))]
    if not found:
        return
    ratios = [ratio for ratio, _ in found]
    names = [f"{r['what']}, b{r['batch']} {r['dtype']}" for _, r in found]
    figure, (axes,) = _panels(1, 9, 1.4 + 0.22 * len(found))
    _ratio_bars(axes, names, ratios, [f"{ratio:.2f}x" for ratio in ratios], color=OURS)
    axes.set_xlabel("times faster than the fastest peer")
    axes.set_title(title, fontsize=9)
    _save(figure, path)
