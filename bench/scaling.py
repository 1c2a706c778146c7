"""How cost grows with the batch and with the length of the clip. It must grow linearly."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from slowfast_kernels import report
from slowfast_kernels.bench import harness
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.bench.tables import mebibytes, median_and_spread, milliseconds

BATCHES = (1, 2, 4, 8)
FRAMES = (32, 64)
HEADER = ("batch", "frames", "GFLOP", "median", "p20-p80", "per clip", "ms per GFLOP", "to the first",
          "workspace")  # fmt: skip


def measure(
    setting: harness.Setting, dtype: str, *, batches: Sequence[int] = BATCHES, frames: Sequence[int] = FRAMES
) -> dict[str, Any]:
    """Times of the frozen model for every batch and length, all timed interleaved with each other.

    "to the first" is the time per FLOP over that of the first row: 1 is linear growth.
    """
    lengths = [Subject(setting.model, frames=t, crop=setting.crop, calibrate=False) for t in frames]
    subjects = [subject.with_batch(b) for subject in lengths for b in batches]
    runs, workspaces = {}, {}
    for subject in tqdm(subjects, desc="preparing", disable=not setting.progress, leave=False):
        key, model = f"batch {subject.batch} frames {subject.frames}", subject.frozen(dtype)
        workspaces[key] = getattr(model, "workspace_bytes", None)
        runs[key] = functools.partial(subject.call, model)
    compared = harness.interleaved(
        runs, rounds=setting.rounds, label=f"scaling {dtype}", progress=setting.progress
    )
    rows: list[dict[str, Any]] = []
    for subject, (key, timing) in zip(subjects, compared.timings.items(), strict=True):
        per_flop = timing.median / (2 * subject.macs)
        workspace = workspaces[key]
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
        "model": setting.model,
        "dtype": dtype,
        "crop": size.crop,
        "threads": setting.threads,
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
                *median_and_spread(row),
                milliseconds(row["median_s"] / row["batch"]),
                f"{1e12 * row['seconds_per_flop']:.3f}",
                f"{row['to_first']:.2f}",
                "-" if row["workspace_bytes"] is None else mebibytes(row["workspace_bytes"]),
            )
            for row in result["rows"]
        ]
        text.append(f"{result['model']} {result['dtype']}\n" + report.table(lines, HEADER))
    return "\n\n".join(text)
