"""What a run says: top-5 lists and the comparison table as text, everything as one JSON document."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slowfast_kernels import report
from slowfast_kernels.cli import measure
from slowfast_kernels.cli.runner import Setting, Tally

Ceilings = Mapping[str, float] | None


def show_video(result: Mapping[str, Any]) -> None:
    """Print a video's line and its top-5, the reference's beside it if there is one."""
    info, views = result["info"], len(result["views"])
    report.say(
        f"\n{result['file']}: {info['codec']} {info['width']}x{info['height']}, {info['frames']} frames at "
        f"{info['fps']:.4g}/s, {views} view{'s' if views != 1 else ''}"
    )
    if result["damaged_packets"]:
        report.say(f"  note: {result['damaged_packets']} damaged packets, the picture before each was used")
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
    """The numbers of the comparison table; adds the roofline floor to ``tally.stages``.

    ``macs`` are the multiply-adds of one view, ``results`` the videos that were processed.
    """
    peaks = {name: _peak(setting, name, ceilings) for name in ("fused", "reference")}
    summary: dict[str, Any] = {
        "fused": _side(tally.fused, tally.fused_memory, macs, peaks["fused"]),
        "pack_pathways": measure.spread(tally.pack),
        "macs_per_view": macs,
        "ceilings": ceilings,
    }
    if not setting.compare:
        return summary
    floors = measure.direct_floor_seconds(tally.profile, peaks["fused"], (ceilings or {}).get("copy_gbs"))
    for stage in tally.stages:
        stage["direct_floor_s"] = floors.get(stage["stage"])
    pairs = [[[e["class"] for e in r[key]] for key in ("top5", "top5_reference")] for r in results]
    summary["reference"] = _side(tally.reference, tally.reference_memory, macs, peaks["reference"])
    summary["speedup"] = summary["reference"]["median_s"] / summary["fused"]["median_s"]
    summary["logits"] = {"max_abs_error": tally.max_abs, "rel_l2_error": tally.rel_l2}
    summary["top5_same_order"] = all(a == b for a, b in pairs)
    summary["top5_same_classes"] = all(set(a) == set(b) for a, b in pairs)
    summary["stages"] = tally.stages
    summary["profile"] = tally.profile
    return summary


def show_summary(setting: Setting, summary: Mapping[str, Any], missing: str | None) -> None:
    """Print the table, reference beside fused; ``missing`` says why there are no ceilings."""
    dtype = "bf16" if setting.dtype == torch.bfloat16 else "fp32"
    fused = summary["fused"]
    if not setting.compare:
        report.say(
            f"\n{_milliseconds(fused)} per view (median of {fused['runs']}, fused, {dtype}); "
            "--compare shows the reference beside it"
        )
        return
    reference, sides = summary["reference"], (summary["reference"], fused)
    on_cpu = setting.device.type == "cpu"
    where = f"{torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name()
    order, classes = summary["top5_same_order"], summary["top5_same_classes"]
    rows = [
        ["latency per view, median", *(_milliseconds(s) for s in sides)],
        [f"  interleaved runs, {where}", *(str(s["runs"]) for s in sides)],
        ["speed-up", "1.00x", f"{summary['speedup']:.2f}x"],
        ["arithmetic", *(f"{s['gflops']:.0f} GFLOP/s" for s in sides)],
        ["fraction of the measured FMA ceiling", *(_percent(s["ceiling_fraction"]) for s in sides)],
        ["peak memory above the weights", *(_mebibytes(s["peak_memory_bytes"]) for s in sides)],
        ["logits, largest error", "", f"{summary['logits']['max_abs_error']:.2e}"],
        ["logits, relative L2 error", "", f"{summary['logits']['rel_l2_error']:.2e}"],
        ["top-5", "", "same order" if order else "same classes" if classes else "different"],
    ]
    report.say("\n" + report.table(rows, ["", "reference fp32", f"fused {dtype}"]))
    if reference["ceiling_fraction"] is None and missing:
        report.say(f"ceiling not measured: {missing}")


def document(
    setting: Setting,
    name: str,
    weights: str,
    results: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON document of a run."""
    return {
        "format": "slowfast-kernels run 1",
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
            "compare": setting.compare,
        },
        "videos": results,
        "summary": summary,
    }


def _peak(setting: Setting, side: str, ceilings: Ceilings) -> float | None:
    """Arithmetic ceiling in GFLOP/s for what a side computes in (fp32 where bf16 has no units of its own)."""
    found = ceilings or {}
    bf16 = side == "fused" and setting.dtype == torch.bfloat16
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
