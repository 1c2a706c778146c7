"""Direct-convolution floors: the least time of a call on this machine whose convolutions are computed directly.

Work is counted as direct convolution's in all tables and pictures. Winograd and polyphase kernels need fewer
multiplications: they may run below this floor, and above the ceiling in FLOP/s.
"""

from collections.abc import Mapping, Sequence
from typing import Any

#: What tables and pictures say about the floor, below them.
DIRECT_FLOOR = (
    "direct floor: least time of direct convolution at the measured ceilings; FLOPs are counted as direct "
    "convolution's. Winograd kernels need fewer multiplications and may run below it (above 100%); so may all "
    "others where a busy machine had its ceilings measured too low."
)

#: Ceiling of the arithmetic, by dtype of the operands.
PEAKS = {"fp32": "fp32_gflops", "bf16": "bf16_gflops", "fp16": "fp32_gflops"}

#: The same on a GPU, which multiplies each in a way of its own.
GPU_PEAKS = {dtype: f"{dtype}_gflops" for dtype in ("bf16", "fp16", "tf32", "fp32")}


def direct_floor(
    flops: float,
    nbytes: float,
    dtype: str,
    ceilings: Mapping[str, Any] | None,
    peaks: Mapping[str, str] = PEAKS,
) -> float | None:
    """Least seconds: the slower of the arithmetic at the measured rate and the least traffic at main memory's
    measured bandwidth. None where the ceilings were not measured.

    flops are those of direct convolution. Winograd kernels, and working sets that fit a cache, can be faster.
    """
    if not ceilings:
        return None
    peak, bandwidth = ceilings.get(peaks[dtype]), ceilings.get("copy_gbs")
    terms = [flops / (peak * 1e9)] if peak else []
    terms += [nbytes / (bandwidth * 1e9)] if bandwidth else []
    return max(terms) if terms else None


def fraction(least: float | None, seconds: float) -> float | None:
    """Direct-convolution floor over a time: 1 at the floor, above 1 below it."""
    return None if least is None or seconds <= 0 else least / seconds


def stages(
    profile: Sequence[Mapping[str, Any]], dtype: str, ceilings: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Rows of a frozen model's profile added up by stage and op: seconds, flops, bytes, calls, direct_floor_s."""
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
                "direct_floor_s": 0.0 if ceilings else None,
            },
        )
        row["calls"] += 1
        for key in ("seconds", "flops", "bytes"):
            row[key] += step[key]
        least = direct_floor(step["flops"], step["bytes"], dtype, ceilings)
        if least is not None:
            row["direct_floor_s"] += least
    return list(rows.values())
