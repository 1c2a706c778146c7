"""How cost grows with the batch and with the length of the clip. It must grow linearly."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from slowfast_kernels import report
from slowfast_kernels.bench import harness
from slowfast_kernels.bench.ops import milliseconds
from slowfast_kernels.bench.subject import Subject

BATCHES = (1, 2, 4, 8)
FRAMES = (32, 64)
HEADER = (
    "batch",
    "frames",
    "GFLOP",
    "median",
    "p20-p80",
    "per clip",
    "ms per GFLOP",
    "to the first",
    "workspace",
)


def measure(
    name: str,
    dtype: str,
    *,
    batches: Sequence[int] = BATCHES,
    frames: Sequence[int] = FRAMES,
    crop: int | None = None,
    rounds: int = 7,
    progress: bool = True,
) -> dict[str, Any]:
    """Times of the frozen model for every batch and length, all timed interleaved with each other.

    "to the first" is the time per FLOP over that of the first row: 1 is linear growth.
    """
    lengths = [Subject(name, frames=t, crop=crop, calibrate=False) for t in frames]
    subjects = [subject.with_batch(b) for subject in lengths for b in batches]
    runs, frozen = {}, {}
    for subject in tqdm(subjects, desc="preparing", disable=not progress, leave=False):
        key = f"batch {subject.batch} frames {subject.frames}"
        model = subject.frozen(dtype)
        frozen[key] = model
        runs[key] = lambda subject=subject, model=model: subject.call(model)
    compared = harness.interleaved(runs, rounds=rounds, warmup=1, label=f"scaling {dtype}", progress=progress)
    rows: list[dict[str, Any]] = []
    for subject, (key, timing) in zip(subjects, compared.timings.items(), strict=True):
        per_flop = timing.median / (2 * subject.macs)
        workspace = getattr(frozen[key], "workspace_bytes", None)
        rows.append(
            {
                "batch": subject.batch,
                "frames": subject.frames,
                "macs": subject.macs,
                **timing.to_dict(),
                "seconds_per_flop": per_flop,
                "to_first": per_flop / (rows[0]["seconds_per_flop"] if rows else per_flop),
                "workspace_bytes": workspace() if workspace else None,
            }
        )
    size = subjects[0].model.config.input
    return {
        "model": name,
        "dtype": dtype,
        "crop": size.crop,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """All results as text."""
    text = []
    for result in results:
        lines = [
            (
                str(row["batch"]),
                str(row["frames"]),
                f"{2 * row['macs'] / 1e9:.1f}",
                milliseconds(row["median_s"]),
                f"{milliseconds(row['p20_s'])}-{milliseconds(row['p80_s'])}",
                milliseconds(row["median_s"] / row["batch"]),
                f"{1e12 * row['seconds_per_flop']:.3f}",
                f"{row['to_first']:.2f}",
                "-" if row["workspace_bytes"] is None else f"{row['workspace_bytes'] / 2**20:.0f} MiB",
            )
            for row in result["rows"]
        ]
        text.append(f"{result['model']} {result['dtype']}\n" + report.table(lines, HEADER))
    return "\n\n".join(text)
