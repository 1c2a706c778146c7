"""One part in a process of its own: does its items one after the other and writes what happens as JSON lines.

A GPU program that reads where it must not takes its whole process down. The process that started this one then
starts it again behind the item that failed, so one broken kernel costs one item.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slowfast_kernels.bench import registry
from slowfast_kernels.bench.compare import DeviceLost
from slowfast_kernels.bench.gpu import ceilings, correctness, network, profile, single, smoke
from slowfast_kernels.bench.gpu.items import Item, shared
from slowfast_kernels.bench.gpu.machine import GpuMachine, machine_for
from slowfast_kernels.bench.harness import Setting, first_line

#: Shares, least and largest, of the time left that one item plans with while others wait.
SHARES = (0.3, 0.6)

#: Exit status of a worker whose device is gone and which wants to be started again.
LOST = 3

#: Environment variable with the time (seconds of the epoch) at which a worker was started.
STARTED = "SLOWFAST_BENCH_STARTED"

#: part -> its items; in the order they are run: what the targets are about first.
PARTS: dict[str, Callable[[GpuMachine], list[Item]]] = {
    "smoke": smoke.items,
    "ceilings": ceilings.items,
    "network": network.items,
    "pack": single.pack_items,
    "roi": single.roi_items,
    "correctness": correctness.items,
    "compile": network.compile_items,
    "ops": single.items,
    "profile": profile.items,
}


def setting_from(text: str) -> Setting:
    """A setting from its JSON form."""
    values = json.loads(text)
    return Setting(**values | {name: tuple(values[name]) for name in ("batches", "share", "profile")})


def setting_to(setting: Setting) -> str:
    """A setting as JSON."""
    return json.dumps(asdict(setting))


def work(part: str, setting: Setting, events: Path, skip: Sequence[str], seconds: float) -> int:
    """Do the part's items, but those in ``skip``, until the time is over; returns the exit status."""
    machine = machine_for(setting)
    machine.deadline = time.monotonic() + seconds
    # unbuffered: a line is one write, which other processes' lines do not fall into
    with events.open("ab", buffering=0) as file, machine.session():

        def tell(event: str, **more: Any) -> None:
            more |= {"share": setting.share[0]}
            file.write(json.dumps({"event": event, "part": part, **more}, default=str).encode() + b"\n")

        pattern = setting.wanted.get(part)
        items = [item for item in PARTS[part](machine) if registry.matches(item.key, pattern)]
        items = shared(items, setting.share)
        items = [item for item in items[: setting.items or None] if item.key not in skip]
        for done, item in enumerate(items):
            if machine.late():
                tell("late", keys=[i.key for i in items[done:]])
                break
            begin = time.monotonic()
            # The first items matter most: one may take what is many times its share, and leaves the rest something.
            left, many = machine.deadline - begin, len(items) - done
            least, most = SHARES if many > 1 else (1.0, 1.0)
            seconds = left * min(max(3 / many, least), most)
            machine.item_deadline = begin + seconds
            tell("start", key=item.key, left=many, seconds=round(seconds, 3))
            try:
                for record in item.run():
                    tell("record", key=item.key, record=record)
            except Exception as error:
                traceback.print_exc()
                lost = isinstance(error, DeviceLost) or not machine.alive()
                what = "the device was lost" if lost else type(error).__name__
                tell("failed", key=item.key, reason=f"{what}: {first_line(error)}")
                if lost:
                    return LOST
            else:
                tell("done", key=item.key, seconds=round(time.monotonic() - begin, 3))
            machine.tidy()
        tell("end")
    return 0


def main(argv: Sequence[str]) -> int:
    """worker PART SETTING EVENTS SECONDS [SKIPPED...]"""
    part, setting, events, seconds, *skip = argv
    # What was started in sessions of its own ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Its time runs from when it was started: importing torch takes some of it.
    late = time.time() - float(os.environ.get(STARTED) or time.time())
    return work(part, setting_from(setting), Path(events), skip, float(seconds) - max(0.0, late))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
