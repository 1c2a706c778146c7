"""Runs a part in worker processes, again behind every item that takes one down, and collects what they say."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slowfast_kernels.bench.gpu.page import summary
from slowfast_kernels.bench.gpu.worker import STARTED, setting_to
from slowfast_kernels.bench.harness import Setting

#: Parts whose items may take all of the part's time.
UNDIVIDED = ("correctness", "compile")

#: Parts that measure no tiles, whatever SLOWFAST_AUTOTUNE says: their shapes are many and small, or seconds count.
UNTUNED = ("smoke", "correctness")

#: A part may finish the item it is at for so long before it is stopped.
GRACE = 20.0

#: An item may take so many times the seconds that it plans with before it is stopped and the others go on.
PLANNED = 1.5

#: Or so many seconds, if that is more.
LEAST_SHARE = 20.0

#: How often a part is started again behind an item that took the process down.
RESTARTS = 8


@dataclass
class Part:
    """What became of a part."""

    status: str = "not run"
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    clocks: str = ""

    def to_dict(self) -> dict[str, Any]:
        # Copies: workers' news come in while the document is written.
        return {k: v.copy() if isinstance(v, dict | list) else v for k, v in self.__dict__.items()}


@dataclass
class Supervisor:
    """Whoever runs a part.

    worker:    command line of a worker; the part, setting, events, seconds and what is done already come behind it.
    processes: so many workers side by side, each with its share of the items.
    progress:  called whenever something came.
    """

    name: str
    setting: Setting
    seconds: float
    out: Path
    say: Callable[[str], None]
    worker: Sequence[str]
    grace: float = GRACE
    processes: int = 1
    part: Part = field(default_factory=Part)
    progress: Callable[[], None] = lambda: None
    partial: dict[str, dict[str, Any]] = field(default_factory=dict)  # of an item that has more to tell

    def run(self) -> Part:
        """Run the part to its end."""
        begin = time.monotonic()
        if self.processes == 1:
            states = [self._share(0)]
        else:
            with ThreadPoolExecutor(self.processes) as pool:
                states = list(pool.map(self._share, range(self.processes)))
        bad = [s for s in states if s != "done"]
        self.part.status = bad[0] if bad else "out of time" if self.part.late else "done"
        self.part.seconds = time.monotonic() - begin
        return self.part

    def _share(self, i: int) -> str:
        """One process's share, begun again behind every item that takes it down; returns how the last one ended."""
        begin, status = time.monotonic(), "no time"
        for _ in range(RESTARTS + 1):
            left = self.seconds - (time.monotonic() - begin)
            if left <= 0:
                break
            one = _Worker(self, replace(self.setting, share=(i, self.processes)), left)
            status = one.run()
            if one.running is not None:
                self.part.failed[one.running] = f"the process {status}"
            if status == "done" or (one.running is None and one.items == 0):
                break
        return status

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Note what an event says; returns the item that is running behind it."""
        kind, name, part = event["event"], event["part"], self.part
        if kind == "start":
            return str(event["key"])
        if kind == "done":
            part.done[event["key"]] = event["seconds"]
            return None
        if kind == "record":
            self._add(event["key"], event["record"])
            return str(event["key"])
        if kind == "failed":
            part.failed[event["key"]] = event["reason"]
            self.say(f"  {name}: {event['key']}: FAILED: {event['reason']}")
        elif kind == "late":
            part.late += event["keys"]
            self.say(f"  {name}: no time left for {len(event['keys'])} more")
        return None

    def _add(self, key: str, record: dict[str, Any]) -> None:
        """A record, in the place of the item's partial one before."""
        old = self.partial.pop(key, None)
        self.part.records = [*(r for r in self.part.records if r is not old), record]
        if record.get("partial"):
            self.partial[key] = record
        self.say(f"  {self.name}: {summary(record)}")


class _Worker:
    """One worker process. running: the item it is at, or was at when it ended; items: those it finished."""

    def __init__(self, boss: Supervisor, setting: Setting, seconds: float) -> None:
        self._boss, self._setting, self._seconds = boss, setting, seconds
        self._events = boss.out / "events.jsonl"
        self._read = self._events.stat().st_size if self._events.exists() else 0
        self.running: str | None = None
        self.items = 0

    def run(self) -> str:
        """To its end; returns how it ended: "done", "died: ...", "did not end ..."."""
        boss, name = self._boss, self._boss.name
        given = [name, setting_to(self._setting), str(self._events), f"{self._seconds:.1f}"]
        command = [*boss.worker, *given, *boss.part.done, *boss.part.failed]
        environment = {**os.environ, STARTED: str(time.time())}
        if name in UNTUNED:
            environment["SLOWFAST_AUTOTUNE"] = "0"
        with (boss.out / "log.txt").open("a") as log:
            log.write(f"\n==== {name} {time.strftime('%H:%M:%S')}\n")
            log.flush()
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=environment
            )
            try:
                late = self._follow(process)
            finally:
                if process.poll() is None:
                    _end(process)
        if late:
            return late
        code = process.returncode
        if code == 0:
            self.running = None
            return "done"
        return f"died ({f'signal {-code}' if code < 0 else f'exit status {code}'}; see log.txt)"

    def _follow(self, process: subprocess.Popen[bytes]) -> str:
        """Take its news until it ends: ""; or until it should have ended: what is to be said of that."""
        begin = since = time.monotonic()
        whole = self._seconds + self._boss.grace
        share = math.inf
        while True:
            over = process.poll() is not None
            now = time.monotonic()
            for event in map(json.loads, self._new_lines()):
                if event.get("share", 0) == self._setting.share[0]:
                    self.items += event["event"] in ("done", "failed")
                    self.running = self._boss.take(event)
                    if event["event"] == "start":
                        since = now
                        if self._boss.name not in UNDIVIDED:
                            share = max(PLANNED * event.get("seconds", math.inf), LEAST_SHARE)
                    self._boss.progress()
            if over:
                return ""
            if now - begin > whole:
                return f"did not end within {whole:.0f} s"
            if self.running is not None and now - since > share:
                return f"did not end within {share:.0f} s, its share"
            time.sleep(0.05)

    def _new_lines(self) -> list[str]:
        """Whole lines written since the last look."""
        if not self._events.exists():
            return []
        with self._events.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode().splitlines()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker and what it started. It has a session of its own: nothing else is in it."""
    process.terminate()  # it ends those of its processes that have sessions of their own
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
