"""What a run says: top-5 lists and the comparison table as text, everything as one JSON document."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from slowfast_kernels import report
from slowfast_kernels.cli import measure
from slowfast_kernels.cli.runner import Setting, Tally

Ceilings = Mapping[str, float] | None


def show_video(result: Mapping[str, Any]) -> None:
    """Print a video's line, notes, and its top-5, the reference's beside it if there is one."""
    info, views = result["info"], len(result["views"])
    report.say(
        f"\n{result['file']}: {info['codec']} {info['width']}x{info['height']}, {info['frames']} frames at "
        f"{info['fps']:.4g}/s, {report.count(views, 'view')}"
    )
    if result["damaged_packets"]:
        report.say(f"  note: {result['damaged_packets']} damaged packets, the picture before each was used")
    for note in result["notes"]:
        report.say(f"  note: {note}")
    if "top5" not in result:
        return
    reference = result.get("top5_reference")
    header = ["top-5", "score", *(["reference", "score"] if reference else [])]
    rows = []
    for i, entry in enumerate(result["top5"]):
        row = [f"{i + 1}. {_name(entry)}", f"{entry['score']:.4f}"]
        if reference:
            row += [_name(reference[i]), f"{reference[i]['score']:.4f}"]
        rows.append(row)
    report.say("\n".join("  " + line for line in report.table(rows, header).splitlines()))


def summarise(
    setting: Setting, tally: Tally, macs: int, ceilings: Ceilings, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The numbers of the comparison table; adds the direct-convolution floor to ``tally.stages``.

    ``macs`` are the multiply-adds of one view, ``results`` the videos that were processed.
    """
    peaks = {name: _peak(setting, name, ceilings) for name in ("frozen", "reference")}
    summary: dict[str, Any] = {
        "frozen": _side(tally.frozen, tally.frozen_memory, macs, peaks["frozen"]),
        "pack_pathways": measure.spread(tally.pack),
        "macs_per_view": macs,
        "ceilings": ceilings,
    }
    if not setting.compare:
        return summary
    floors = measure.direct_floor_seconds(tally.profile, peaks["frozen"], (ceilings or {}).get("copy_gbs"))
    for stage in tally.stages:
        stage["direct_floor_s"] = floors.get(stage["stage"])
    summary["reference"] = _side(tally.reference, tally.reference_memory, macs, peaks["reference"])
    summary["speedup"] = summary["reference"]["median_s"] / summary["frozen"]["median_s"]
    summary[setting.compared] = {"max_abs_error": tally.max_abs, "rel_l2_error": tally.rel_l2}
    if not setting.features:
        pairs = [[[e["class"] for e in r[key]] for key in ("top5", "top5_reference")] for r in results]
        summary["top5_same_order"] = all(a == b for a, b in pairs)
        summary["top5_same_classes"] = all(set(a) == set(b) for a, b in pairs)
    summary["stages"] = tally.stages
    summary["profile"] = tally.profile
    return summary


def show_summary(setting: Setting, summary: Mapping[str, Any], missing: str | None) -> None:
    """Print the table, reference beside ours; ``missing`` says why there are no ceilings."""
    frozen = summary["frozen"]
    if not setting.compare:
        report.say(
            f"\n{_milliseconds(frozen)} per view (median of {frozen['runs']}, {setting.ours}); "
            "--compare shows the reference beside it"
        )
        return
    reference, sides = summary["reference"], (summary["reference"], frozen)
    rows = [
        ["latency per view, median", *(_milliseconds(s) for s in sides)],
        [f"  interleaved runs, {_threads_or_gpu(setting)}", *(str(s["runs"]) for s in sides)],
        ["speed-up", "1.00x", f"{summary['speedup']:.2f}x"],
        ["arithmetic, as direct convolution", *(f"{s['gflops']:.0f} GFLOP/s" for s in sides)],
        ["  of the measured FMA ceiling (1)", *(_percent(s["ceiling_fraction"]) for s in sides)],
        ["peak memory above the weights (2)", *(_mebibytes(s["peak_memory_bytes"]) for s in sides)],
        [f"{setting.compared}, largest error", "", f"{summary[setting.compared]['max_abs_error']:.2e}"],
        [f"{setting.compared}, relative L2 error", "", f"{summary[setting.compared]['rel_l2_error']:.2e}"],
    ]
    if not setting.features:
        order, classes = summary["top5_same_order"], summary["top5_same_classes"]
        rows.append(["top-5", "", "same order" if order else "same classes" if classes else "different"])
    report.say("\n" + report.table(rows, ["", "reference fp32", setting.ours]))
    report.say("(1) above 100 % where Winograd kernels need fewer multiplications than direct convolution")
    report.say("(2) as each side holds them; bench memory also counts packed copies of weights")
    if setting.reason:
        report.say(f"both sides are plain PyTorch: {setting.reason}")
    if reference["ceiling_fraction"] is None and missing:
        report.say(f"ceiling not measured: {missing}")


def _threads_or_gpu(setting: Setting) -> str:
    if setting.device.type != "cpu":
        return torch.cuda.get_device_name()
    return report.count(torch.get_num_threads(), "thread")


def plot(path: str, setting: Setting, name: str, summary: Mapping[str, Any]) -> None:
    """Draw the time per stage, what was measured and where over it."""
    size = f"{setting.input.frames} frames of {setting.crop}x{setting.crop}"
    what = f"{name}, {size}, batch 1: {setting.ours} {summary['speedup']:.2f}x as fast as the reference fp32"
    stamp = report.environment()
    where = [_threads_or_gpu(setting)]
    if setting.device.type == "cpu":
        where = [stamp["processor"], report.count(stamp["cores"], "core"), *where, stamp["isa"]]
    title = f"{what}\n{', '.join(where)}, torch {stamp['torch']}"
    report.plot_stages(path, summary["stages"], title, setting.ours)


def write_features(
    path: str,
    name: str,
    weights: str,
    results: Sequence[Mapping[str, Any]],
    features: Mapping[str, torch.Tensor],
) -> None:
    """Write the vectors of every view, and each video's mean, as .npz or .json (see ``run --help``).

    ``features`` are float32[views, C] by file.
    """
    if path.endswith(".npz"):
        views = [(i, view) for i, result in enumerate(results) for view in result["views"]]
        np.savez(
            path,
            videos=np.array([result["file"] for result in results]),
            mean=np.stack([features[result["file"]].mean(0).numpy() for result in results]),
            views=np.concatenate([features[result["file"]].numpy() for result in results]),
            video=np.array([i for i, _ in views]),
            clip=np.array([view["clip"] for _, view in views]),
            crop=np.array([view["crop"] for _, view in views]),
        )
        return
    videos = [
        {
            "file": result["file"],
            "mean": features[result["file"]].mean(0),
            "views": [
                {"clip": view["clip"], "crop": view["crop"], "features": vector}
                for view, vector in zip(result["views"], features[result["file"]], strict=True)
            ],
        }
        for result in results
    ]
    stamp = {"format": "slowfast-kernels features 1", "model": name, "weights": weights}
    report.write_json(path, {**stamp, "videos": videos})


def document(
    setting: Setting,
    name: str,
    weights: str,
    results: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON document of a run."""
    return {
        "format": "slowfast-kernels run 2",
        "environment": report.environment(),
        "model": {
            "name": name,
            "weights": weights,
            "parameters": sum(p.numel() for p in setting.model.parameters()),
            "config": setting.config.to_dict(),
        },
        "settings": {
            "views": setting.views,
            "crop": setting.crop,
            "short_side": setting.short_side,
            "sampling": setting.rule,
            "ensemble": setting.input.ensemble,
            "dtype": str(setting.dtype).removeprefix("torch."),
            "device": str(setting.device),
            "backend": setting.backend,
            "kernels": "plain PyTorch" if setting.reason else "fused",
            "reason": setting.reason,
            "output": "features" if setting.features else "scores",
            "compare": setting.compare,
        },
        "videos": results,
        "summary": summary,
    }


def _peak(setting: Setting, side: str, ceilings: Ceilings) -> float | None:
    """Arithmetic ceiling in GFLOP/s for what a side computes in (fp32 where bf16 has no units of its own)."""
    found = ceilings or {}
    bf16 = side == "frozen" and setting.dtype == torch.bfloat16
    return (found.get("bf16_gflops") if bf16 else None) or found.get("fp32_gflops")


def _side(times: Sequence[float], memory: int | None, macs: int, peak: float | None) -> dict[str, Any]:
    result = {**measure.spread(times), "peak_memory_bytes": memory, "ceiling_gflops": peak}
    result["gflops"] = 2e-9 * macs / result["median_s"]
    result["ceiling_fraction"] = result["gflops"] / peak if peak else None
    return result


def _milliseconds(side: Mapping[str, Any]) -> str:
    return f"{1e3 * side['median_s']:.1f} ms"


def _mebibytes(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 2**20:.0f} MiB"


def _percent(fraction: float | None) -> str:
    return "not measured" if fraction is None else f"{100 * fraction:.0f} %"


def _name(entry: Mapping[str, Any]) -> str:
    return entry["label"] if entry["label"] is not None else f"class {entry['class']}"
