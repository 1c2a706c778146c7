"""Predictions beside what a GPU run has measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from slowfast_kernels.bench.gpu.predict.machine import Machine
from slowfast_kernels.bench.gpu.predict.model import Prediction, Row, predict
from slowfast_kernels.bench.harness import Setting, first_line
from slowfast_kernels.bench.targets import FROZEN

#: What the harness measures as one -> the plan's stages that it consists of.
STAGES: dict[str, Sequence[str]] = {
    "fast stem": ("stem.fast",),
    "slow stem": ("stem.slow",),
    "laterals": ("lateral.0", "lateral.1", "lateral.2", "lateral.3"),
    "fast blocks": ("res2.fast", "res3.fast", "res4.fast", "res5.fast"),
    **{f"slow {name}": (f"{name}.slow",) for name in ("res2", "res3", "res4", "res5")},
}


@functools.cache
def _predicted(model: str, batch: int) -> Prediction | str:
    """Of the assumed machine: a prediction that was fitted to the run would say nothing about it."""
    try:
        return predict(model, batch, Machine())
    except Exception as error:  # a run's results do not depend on a prediction
        return first_line(error)


def seconds_of(what: str, p: Prediction) -> float | None:
    """Predicted seconds of the whole model or of a part; None of what is no part of it or not all known."""

    def part(row: Row) -> bool:
        """A part's inputs lie where its kernels read them."""
        return what == "model" or (row.stage in STAGES[what] and row.op != "input")

    if what != "model" and what not in STAGES:
        return None
    rows = [row for row in p.rows if part(row)]
    if not rows or not all(row.known for row in rows):
        return None
    return p.seconds() if what == "model" else sum(row.seconds for row in rows)


def with_prediction(record: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """The record, its row of a frozen model or part with `predicted` seconds where there is a prediction."""
    plain = not (setting.dry or setting.overrides or setting.frames or setting.crop)
    if not plain or record["dtype"] != "bf16" or record.get("part") not in ("network", "compile"):
        return record
    found = _predicted(setting.model, record["batch"])
    seconds = None if isinstance(found, str) else seconds_of(record["what"], found)
    if seconds is not None:
        for row in record["rows"]:
            if row["who"] == FROZEN:
                row["predicted"] = seconds
    return record
