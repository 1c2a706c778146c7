"""One part in a process of its own: does its items one after the other and writes what happens as JSON lines.

A GPU program that reads where it must not takes its whole process down. The process that started this one then
starts it again behind the item that failed, so one broken kernel costs one item.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slowfast_kernels.bench.gpu import ceilings, correctness, network, single
from slowfast_kernels.bench.gpu.machine import Machine, Setting, first_line
from slowfast_kernels.bench.gpu.measure import DeviceLost, Item

#: Exit status of a worker whose device is gone and which wants to be started again.
LOST = 3

#: part -> its items; in the order they are run.
PARTS: dict[str, Callable[[Machine], list[Item]]] = {
    "ceilings": ceilings.items,
    "correctness": correctness.items,
    "parts": network.part_items,
    "pack": single.pack_items,
    "roi": single.roi_items,
    "model": network.model_items,
    "ops": single.items,
    "compile": network.compile_items,
}


def setting_from(text: str) -> Setting:
    """A setting from its JSON form."""
    values = json.loads(text)
    return Setting(**{**values, "batches": tuple(values["batches"])})


def setting_to(setting: Setting) -> str:
    """A setting as JSON."""
    return json.dumps(asdict(setting))


def work(part: str, setting: Setting, events: Path, skip: Sequence[str], seconds: float) -> int:
    """Do the part's items, but those in ``skip``, until the time is over; returns the exit status."""
    machine = Machine(setting)
    machine.deadline = time.monotonic() + seconds
    with events.open("a") as file, machine.session():

        def tell(event: str, **more: Any) -> None:
            file.write(json.dumps({"event": event, "part": part, **more}, default=str) + "\n")
            file.flush()

        items = PARTS[part](machine)
        items = [item for item in items[: setting.items or None] if item.key not in skip]
        for done, item in enumerate(items):
            if machine.late():
                tell("late", keys=[i.key for i in items[done:]])
                break
            tell("start", key=item.key, left=len(items) - done)
            begin = time.monotonic()
            # Items differ: one may take three times its share.
            machine.item_deadline = begin + 3 * (machine.deadline - begin) / (len(items) - done)
            try:
                records = item.run()
            except DeviceLost as error:
                tell("failed", key=item.key, reason=f"the device was lost: {first_line(error)}")
                return LOST
            except Exception as error:
                traceback.print_exc()
                if not machine.alive():
                    tell("failed", key=item.key, reason=f"the device was lost: {first_line(error)}")
                    return LOST
                tell("failed", key=item.key, reason=f"{type(error).__name__}: {first_line(error)}")
            else:
                tell("done", key=item.key, records=records, seconds=round(time.monotonic() - begin, 3))
            machine.tidy()
        tell("end")
    return 0


def main(argv: Sequence[str]) -> int:
    """worker PART SETTING EVENTS SECONDS [SKIPPED...]"""
    part, setting, events, seconds, *skip = argv
    return work(part, setting_from(setting), Path(events), skip, float(seconds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
