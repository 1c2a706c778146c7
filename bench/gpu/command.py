"""The command of the GPU measurements: starts a worker for each part, collects, writes after each."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from slowfast_kernels import autotune, report
from slowfast_kernels.bench import stamp, store, targets
from slowfast_kernels.bench.gpu import options, page
from slowfast_kernels.bench.gpu.clocks import Clocks
from slowfast_kernels.bench.gpu.document import Writer, failures
from slowfast_kernels.bench.gpu.parts import GRACE, Part, Supervisor
from slowfast_kernels.bench.gpu.worker import PARTS

#: Environment variable with the seconds that building the library took already.
SPENT = "SLOWFAST_BENCH_SPENT"

#: All files of a run in one.
ARCHIVE = "results.tar.gz"

#: Parts whose items may run side by side, as they measure no time.
SIDE_BY_SIDE = ("correctness",)

#: Processes of such a part at most.
PROCESSES = 8


def command(argv: Sequence[str]) -> int:
    """`main` as a program of its own: told to stop, it ends its workers first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return main(argv)


def main(argv: Sequence[str], worker: Sequence[str] = ()) -> int:
    """Run the parts; returns the exit status (see ``--help``)."""
    args = options.parsed(argv)
    begin = time.monotonic() - float(os.environ.get(SPENT) or 0.0)
    if args.dry_run:  # before a worker looks for a device
        os.environ.update(TRITON_INTERPRET="1", SLOWFAST_EMULATE="1", CUDA_VISIBLE_DEVICES="")
    try:
        setting, budgets = options.setting_of(args), options.seconds_of(args.seconds)
        asked = {pair.partition("=")[0] for pair in args.seconds}
        options.check(args)
    except ValueError as error:
        sys.stderr.write(f"bench/gpu.sh: error: {error}\n")
        return 2
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    for name in ("events.jsonl", "log.txt"):
        (out / name).unlink(missing_ok=True)

    def say(text: str) -> None:
        report.say(f"[{time.monotonic() - begin:5.0f} s] {text}")

    stamped = stamp.gpu_environment(args.dry_run)
    title = [page.DRY] if args.dry_run else []
    pictures = importlib.util.find_spec("matplotlib") is not None
    missing = [] if pictures else ["matplotlib is not installed: no pictures"]
    for line in (*stamp.stamp_lines(stamped), *stamp.gpu_lines(stamped), *title, *missing, ""):
        report.say(line)
    worker = worker or (sys.executable, "-m", "slowfast_kernels.bench.gpu.worker")
    idle = [] if args.profile else ["profile"]
    names = [n for n in PARTS if n not in (*args.skip, *idle) and (not args.only or n in args.only)]
    parts: dict[str, Part] = {}
    writer = Writer(out, stamped, setting, parts, shlex.join(["bench/gpu.sh", *argv]))
    watch = None if args.dry_run else Clocks()
    for name in names:
        left = 60 * args.minutes - (time.monotonic() - begin)
        # The last one may have what the others left; what a part is given includes the start of its process.
        given = max(budgets[name], left - 5) if name == names[-1] and name not in asked else budgets[name]
        seconds = min(given, left - 5)
        say(f"{name}: {options.BUDGETS[name][1]} (at most {max(seconds, 0):.0f} s)")
        part = parts[name] = Part(status="no time")
        if seconds > 0:
            part.status = "running"
            many = 1 if args.dry_run or name not in SIDE_BY_SIDE else _processes()
            grace = min(GRACE, max(left - seconds, 5))
            Supervisor(name, setting, seconds, out, say, worker, grace, many, part, writer.now_and_then).run()
        part.clocks = watch.since_last() if watch else ""
        say(f"{name}: {part.status}, {part.seconds:.0f} s" + (f"; {part.clocks}" if part.clocks else ""))
        writer.write()
        if pictures:
            page.draw(out, writer.document)
        archive(out, None if args.dry_run else autotune.cache_dir())
    if watch:
        watch.close()
    for line in ("", *(title or ["targets"]), *targets.gpu_table(writer.rows)):
        report.say(line)
    if args.save:
        folder = store.RESULTS / store.gpu_slug(stamped)
        store.save("gpu", writer.document, page.page(writer.document, writer.rows), folder)
        if pictures:
            page.draw(folder, writer.document)
        report.say(f"saved under {folder}")
    report.say(f"results: {out}/gpu.md, {out}/gpu.json; all of it: {out}/{ARCHIVE}")
    wrong = failures(writer.document)
    for text in wrong[:40]:
        report.say(f"FAILED: {text}")
    return 1 if wrong else 0


def archive(out: Path, cache: Path | None = None) -> None:
    """Put everything in OUT into one file there, for machines that hand back few; and the winners of the autotuner."""
    with tempfile.TemporaryDirectory(dir=out) as name:
        made = Path(name, ARCHIVE)
        with tarfile.open(made, "w:gz") as file:
            for path in sorted(out.iterdir()):
                if path.name not in (ARCHIVE, made.parent.name):
                    file.add(path, path.name)
            if cache is not None and cache.is_dir() and out.resolve() not in cache.resolve().parents:
                file.add(cache, "cache")
        os.replace(made, out / ARCHIVE)


def _processes() -> int:
    return max(1, min(PROCESSES, (os.cpu_count() or 1) // 2))
