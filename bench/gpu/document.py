"""What a run has found so far: one JSON document, which the page and the exit status are made of."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slowfast_kernels.bench import store, targets
from slowfast_kernels.bench.compare import NO_TIME, derive
from slowfast_kernels.bench.gpu.page import COMPARED, DRY, page, title
from slowfast_kernels.bench.gpu.parts import Part
from slowfast_kernels.bench.gpu.predict.beside import with_prediction
from slowfast_kernels.bench.gpu.worker import setting_to
from slowfast_kernels.bench.harness import Setting
from slowfast_kernels.bench.roofline import GPU_PEAKS
from slowfast_kernels.bench.tables import parity


def ceilings_of(parts: Mapping[str, Any]) -> dict[str, float]:
    """The ceilings by name."""
    found = {}
    for record in parts.get("ceilings", {}).get("records", ()):
        if record["value"] is not None:
            found[record["name"]] = record["value"]
    return found


def compared(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of contenders of every part."""
    records = ((p, r) for p in COMPARED for r in parts.get(p, {}).get("records", ()))
    return [{"part": p, **r} for p, r in records if "rows" in r]


def merged(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Correctness records of the same op and provider as one, in the order in which they first came."""
    found: dict[str, Any] = {}
    for record in records:
        found = _joined(found, {record["what"]: record})
    return sorted(found.values(), key=lambda r: "op" not in r)


def _joined(one: Any, other: Any) -> Any:
    """Counts added up, lists one behind the other, mappings likewise by key; of anything else the other."""
    if isinstance(other, Mapping):
        return {**one, **{k: _joined(one[k], v) if k in one else v for k, v in other.items()}}
    return one + other if isinstance(other, list) or type(other) is int else other


def document_of(
    stamp: Mapping[str, Any], setting: Setting, parts: Mapping[str, Part], command: str
) -> tuple[dict[str, Any], list[targets.Row]]:
    """The document of what there is so far, and the targets' rows."""
    plain = {name: part.to_dict() for name, part in parts.items()}
    if "correctness" in plain:  # told apart by kinds of numbers, for several processes
        plain["correctness"]["records"] = merged(plain["correctness"]["records"])
    ceilings = ceilings_of(plain)
    records = [with_prediction(derive(r, ceilings, GPU_PEAKS), setting) for r in compared(plain)]
    rows = targets.gpu_rows(
        [r for r in records if r["part"] != "smoke"], ceilings, setting.dry, setting.middle
    )
    document = store.document(
        "gpu",
        stamp,
        ceilings,
        dry_run=setting.dry,
        note=DRY if setting.dry else "",
        command=command,
        setting=json.loads(setting_to(setting)),
        targets=[row.to_dict() for row in rows],
        parts=plain,
        compared=records,
    )
    return document, rows


def failures(document: Mapping[str, Any]) -> list[str]:
    """What makes the exit status 1: wrong results, crashes, items that failed. Running out of time does not."""
    found = []
    for name, part in document["parts"].items():
        if part["status"].startswith("died") and not part["failed"]:
            found.append(f"{name}: {part['status']}")
        for key, reason in part["failed"].items():
            if "did not end within" not in reason:
                found.append(f"{name}, {key}: {reason}")
        for record in part["records"]:
            if record.get("status") == "red" and record["ours"]:
                found.append(f"{name}, {record['check']}: {record['text']}")
    for record in document["parts"].get("correctness", {}).get("records", ()):
        found += [f"{record['what']}: {text}" for text in record["failures"]]
    for record in document["compared"]:
        what = title(record)
        for who, reason in record["missing"].items():
            # A refusal is an answer, and so is the end of the time; anything else from a kernel of ours is a defect.
            if (
                who in (*targets.PROVIDERS, targets.FROZEN)
                and "cannot run here" not in reason
                and reason != NO_TIME
            ):
                found.append(f"{what}, {who}: {reason}")
        for row in record["rows"]:
            if row["ours"] and not row["green"]:
                found.append(f"{what}, {row['who']}: {parity(row)}")
    return found


class Writer:
    """Keeps the JSON and the page up to date while parts run."""

    def __init__(
        self,
        out: Path,
        stamp: Mapping[str, Any],
        setting: Setting,
        parts: Mapping[str, Part],
        command: str,
        every: float = 5.0,
    ) -> None:
        self._what = (stamp, setting, parts, command)
        self._out, self._every = out, every
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self.document, self.rows = document_of(*self._what)

    def write(self) -> None:
        """Write what there is."""
        with self._lock:
            self._write()

    def now_and_then(self) -> None:
        """Write, if that was some seconds ago."""
        if time.monotonic() - self._last > self._every and self._lock.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._lock.release()

    def _write(self) -> None:
        self.document, self.rows = document_of(*self._what)
        store.save("gpu", self.document, page(self.document, self.rows), self._out)
        self._last = time.monotonic()
