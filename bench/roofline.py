"""Floors: the least time a call can take on this machine, from its work and the measured ceilings."""

from collections.abc import Mapping, Sequence
from typing import Any

#: Ceiling of the arithmetic, by dtype of the operands.
PEAKS = {"fp32": "fp32_gflops", "bf16": "bf16_gflops", "fp16": "fp32_gflops"}

#: The same on a GPU, which multiplies each in a way of its own.
GPU_PEAKS = {dtype: f"{dtype}_gflops" for dtype in ("bf16", "fp16", "tf32", "fp32")}


def floor(
    flops: float,
    nbytes: float,
    dtype: str,
    ceilings: Mapping[str, Any] | None,
    peaks: Mapping[str, str] = PEAKS,
) -> float | None:
    """Least seconds: the slower of the arithmetic at the measured rate and the least traffic at main memory's
    measured bandwidth. None where the ceilings were not measured.

    Working sets that fit a cache can beat the memory term, so a fraction above one is possible there.
    """
    if not ceilings:
        return None
    peak, bandwidth = ceilings.get(peaks[dtype]), ceilings.get("copy_gbs")
    terms = [flops / (peak * 1e9)] if peak else []
    terms += [nbytes / (bandwidth * 1e9)] if bandwidth else []
    return max(terms) if terms else None


def fraction(least: float | None, seconds: float) -> float | None:
    """Part of the floor that a time reaches: 1 at the floor."""
    return None if least is None or seconds <= 0 else least / seconds


def stages(
    profile: Sequence[Mapping[str, Any]], dtype: str, ceilings: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Rows of a frozen model's profile added up by stage and op: seconds, flops, bytes, calls, floor_s."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for step in profile:
        row = rows.setdefault(
            (step["stage"], step["op"]),
            {
                "stage": step["stage"],
                "op": step["op"],
                "calls": 0,
                "seconds": 0.0,
                "flops": 0,
                "bytes": 0,
                "floor_s": 0.0 if ceilings else None,
            },
        )
        row["calls"] += 1
        for key in ("seconds", "flops", "bytes"):
            row[key] += step[key]
        least = floor(step["flops"], step["bytes"], dtype, ceilings)
        if least is not None:
            row["floor_s"] += least
    return list(rows.values())
