"""The command line of the GPU measurements: starts a worker for each part, collects, writes after each."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from slowfast_kernels import _extension, report
from slowfast_kernels.bench import harness, store
from slowfast_kernels.bench.gpu import results, targets
from slowfast_kernels.bench.gpu.machine import Setting
from slowfast_kernels.bench.gpu.measure import NO_TIME, PROVIDERS
from slowfast_kernels.bench.gpu.worker import PARTS, STARTED, setting_to

#: part -> (seconds it is given, what it is). Together under ten minutes; what one leaves over goes to the last.
BUDGETS: dict[str, tuple[float, str]] = {
    "ceilings": (25, "copy bandwidth, matrix products, launches, conv3d as cuDNN has it"),
    "model": (150, "the whole network against every peer, batch 1, 8, 32 and float32"),
    "parts": (100, "stems, laterals, Fast blocks, Slow stages against every peer"),
    "pack": (20, "pack_pathways against copy bandwidth"),
    "roi": (40, "roi_head_pool, forward and backward, against torchvision and torch"),
    "correctness": (90, "every op, case and dtype on Triton and CUDA; pytest -m gpu; compute-sanitizer"),
    "compile": (80, "torch.compile of the network; with max-autotune it takes minutes to compile"),
    "ops": (50, "single ops on SlowFast's real calls"),
}

#: Environment variable with the seconds that building the library took already.
SPENT = "SLOWFAST_BENCH_SPENT"

#: Parts whose items may run side by side, as they measure no time.
SIDE_BY_SIDE = ("correctness",)

#: Processes of such a part at most.
PROCESSES = 8

#: Parts whose items may take all of the part's time.
UNDIVIDED = ("correctness", "compile")

#: A part may finish the item it is at for so long before it is stopped.
GRACE = 20.0

#: Share of a part's time that one item may take before it is stopped and the others go on.
SHARE = 0.85

#: How often a part is started again behind an item that took the process down.
RESTARTS = 8

EPILOG = f"""\
parts, in this order, and the seconds each is given:
{chr(10).join(f"  {name:12s} {seconds:4.0f}  {text}" for name, (seconds, text) in BUDGETS.items())}

files in OUT: gpu.json (everything), gpu.md (tables, targets first), speedups.png, roofline.png (with matplotlib),
log.txt (what the parts printed), events.jsonl (as it came), pytest.txt, sanitizer.txt. Figures are rewritten while
a part runs, pictures after it.

examples:
  bench/gpu.sh /tmp/gpu
  bench/gpu.sh /tmp/gpu --skip compile --skip ops
  bench/gpu.sh /tmp/gpu --only parts --batch 8
  bench/gpu.sh /tmp/gpu --only correctness --op 'roi*'
  bench/gpu.sh /tmp/gpu --only ops --op bottleneck3d --case 'res2.fast*' --seconds ops=300 --minutes 20
  bench/gpu.sh /tmp/gpu --only compile --batch 8 --minutes 26    # max-autotune: minutes of compiling
  bench/gpu.sh /tmp/gpu --dry-run
  SLOWFAST_AUTOTUNE=1 bench/gpu.sh /tmp/gpu    # times the tiles of each new shape first and keeps the winners

SLOWFAST_REVISION names the revision in the results where the tree is no git repository.

exit status: 0 everything that was run is right; 1 a wrong result, a crash, or an item that failed; 2 unusable
options or no GPU. What the time did not allow is listed and is no failure.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(
        prog="bench/gpu.sh",
        description="Check and measure the kernels on this machine's NVIDIA GPU against its ceilings and peers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("out", nargs="?", type=Path, default=Path("build/gpu-results"), metavar="OUT")
    p.add_argument(
        "--dry-run", action="store_true", help="the same code on the CPU, tiny: for tests of this script"
    )
    p.add_argument("--skip", action="append", default=[], metavar="PART", help="leave a part out; repeatable")
    p.add_argument("--only", action="append", default=[], metavar="PART", help="only this part; repeatable")
    p.add_argument("--batch", metavar="LIST", help="batches, comma-separated (default: 1,8,32)")
    p.add_argument(
        "--op", metavar="PATTERN", help="correctness, ops: names or shell patterns, comma-separated"
    )
    p.add_argument("--case", metavar="PATTERN", help="correctness, ops: calls, likewise")
    p.add_argument("--limit", type=int, default=0, metavar="N", help="at most N calls of each op")
    p.add_argument("--items", type=int, default=0, metavar="N", help="at most the first N items of each part")
    p.add_argument(
        "--rounds", type=int, default=0, metavar="N", help="samples of each contender (default: 21)"
    )
    p.add_argument("--model", default="slowfast_8x8_r50", help="preset (default: slowfast_8x8_r50)")
    p.add_argument("--tests", metavar="PATH", help="what pytest -m gpu is given (default: tests)")
    p.add_argument("--seconds", action="append", default=[], metavar="PART=N", help="another time for a part")
    p.add_argument("--minutes", type=float, default=9.5, help="time for everything (default: 9.5)")
    p.add_argument("--save", action="store_true", help="also keep the run under bench/results/<gpu>/")
    return p


def setting_of(args: argparse.Namespace) -> Setting:
    """The setting that options ask for; ValueError for unusable ones."""
    for name in [*args.skip, *args.only]:
        if name not in PARTS:
            raise ValueError(f"expected a part among {', '.join(PARTS)}, got {name!r}")
    dry = args.dry_run
    try:
        batches = tuple(int(b) for b in (args.batch or ("1,2" if dry else "1,8,32")).split(","))
    except ValueError:
        batches = ()
    if not batches or min(batches) < 1:
        raise ValueError(
            f"--batch: expected whole numbers of at least 1, comma-separated, got {args.batch!r}"
        )
    common: dict[str, Any] = {"dry": dry, "batches": batches, "op": args.op, "case": args.case}
    common |= {"model": args.model, "limit": args.limit, "items": args.items, "out": str(args.out.resolve())}
    common |= {"tests": args.tests or "tests"}
    if not dry:
        return Setting(rounds=args.rounds or 21, **common)
    # Small enough for an interpreter and an emulator.
    common |= {"limit": args.limit or 1, "tests": args.tests or "tests/bench/test_bench_gpu.py"}
    overrides = {"blocks": [1, 1, 1, 1]}
    return Setting(rounds=2, shrink=16, check_shrink=16, crop=32, frames=8, overrides=overrides, **common)


# --- parts -------------------------------------------------------------------------------------------------------


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


Say = Callable[[str], None]


def run_part(
    name: str,
    setting: Setting,
    seconds: float,
    out: Path,
    say: Say,
    worker: Sequence[str],
    grace: float = GRACE,
    processes: int = 1,
    part: Part | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Part:
    """Run a part's worker, again behind every item that takes it down, and collect what it says in ``part``.

    processes: so many workers side by side, each with its share of the items.
    progress:  called whenever something came.
    """
    part, begin = part or Part(), time.monotonic()

    def one(i: int) -> str:
        share = replace(setting, share=(i, processes))
        return _run_share(name, share, seconds, out, say, worker, part, grace, progress)

    if processes == 1:
        states = [one(0)]
    else:
        with ThreadPoolExecutor(processes) as pool:
            states = list(pool.map(one, range(processes)))
    bad = [s for s in states if s != "done"]
    part.status = bad[0] if bad else "out of time" if part.late else "done"
    part.seconds = time.monotonic() - begin
    return part


def _run_share(
    name: str,
    setting: Setting,
    seconds: float,
    out: Path,
    say: Say,
    worker: Sequence[str],
    part: Part,
    grace: float,
    progress: Callable[[], None],
) -> str:
    """One worker, again behind every item that takes it down; returns how the last one ended."""
    begin, status = time.monotonic(), "no time"
    for _ in range(RESTARTS + 1):
        left = seconds - (time.monotonic() - begin)
        if left <= 0:
            break
        ended = _Ended()
        _run_worker(name, setting, left, out, say, worker, part, grace, progress, ended)
        status = ended.status
        if ended.running is not None:
            part.failed[ended.running] = f"the process {status}"
        if status == "done" or (ended.running is None and ended.items == 0):
            break
    return status


@dataclass
class _Ended:
    """How a worker ended: "done", "died: ...", "did not end ..."; the item it was at, if it was; items it finished."""

    status: str = "died"
    running: str | None = None
    items: int = 0


def _run_worker(
    name: str,
    setting: Setting,
    seconds: float,
    out: Path,
    say: Say,
    worker: Sequence[str],
    part: Part,
    grace: float,
    progress: Callable[[], None],
    ended: _Ended,
) -> None:
    """One worker to its end."""
    events = out / "events.jsonl"
    start = events.stat().st_size if events.exists() else 0
    command = [*worker, name, setting_to(setting), str(events), f"{seconds:.1f}", *part.done, *part.failed]
    begin = since = time.monotonic()
    share = math.inf if name in UNDIVIDED else max(SHARE * seconds, 20.0)
    environment = {**os.environ, STARTED: str(time.time())}
    with (out / "log.txt").open("a") as log:
        log.write(f"\n==== {name} {time.strftime('%H:%M:%S')}\n")
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        try:
            while True:
                over = process.poll() is not None
                start, lines = _new_lines(events, start)
                now = time.monotonic()
                for event in map(json.loads, lines):
                    if event.get("share", 0) == setting.share[0]:
                        ended.items += event["event"] in ("done", "failed")
                        ended.running, since = _take(event, part, say), now
                        progress()
                if over:
                    break
                if now - begin > seconds + grace:
                    ended.status = f"did not end within {seconds + grace:.0f} s"
                    return
                if ended.running is not None and now - since > share:
                    ended.status = f"did not end within {share:.0f} s, its share"
                    return
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                _end(process)
    code = process.returncode
    if code == 0:
        ended.status, ended.running = "done", None
    else:
        ended.status = f"died ({f'signal {-code}' if code < 0 else f'exit status {code}'}; see log.txt)"


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


def _new_lines(path: Path, start: int) -> tuple[int, list[str]]:
    """Whole lines written since position ``start``, and the new position."""
    if not path.exists():
        return start, []
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return start + len(whole), whole.decode().splitlines()


def _take(event: Mapping[str, Any], part: Part, say: Say) -> str | None:
    """Note what an event says; returns the item that is running behind it."""
    kind, name = event["event"], event["part"]
    if kind == "start":
        return str(event["key"])
    if kind == "done":
        part.done[event["key"]] = event["seconds"]
        part.records += event["records"]
        for record in event["records"]:
            say(f"  {name}: {summary(record)}")
    elif kind == "failed":
        part.failed[event["key"]] = event["reason"]
        say(f"  {name}: {event['key']}: FAILED: {event['reason']}")
    elif kind == "late":
        part.late += event["keys"]
        say(f"  {name}: no time left for {len(event['keys'])} more")
    return None


def summary(record: Mapping[str, Any]) -> str:
    """A record in one line."""
    if "value" in record:
        value = "-" if record["value"] is None else f"{record['value']:.4g}"
        return f"{record['name']} {value} {record['unit']}"
    if "failures" in record:
        line = results.correctness_lines([record])[0]
        return f"{line[0]}: {line[1]}, {line[2]} passed" + (f"; {line[6]}" if line[6] else "")
    name = f"{record['what']} b{record['batch']} {record['dtype']}"
    green = [r for r in record["rows"] if r["green"]]
    mine, peer = (min((r for r in green if r["ours"] == k), key=_median, default=None) for k in (True, False))
    red = [r["who"] for r in record["rows"] if r["ours"] and not r["green"]]
    texts = [f"{r['who']} {1e3 * r['median_s']:.4g} ms" for r in (mine, peer) if r is not None]
    ratio = f", {peer['median_s'] / mine['median_s']:.2f}x" if mine and peer else ""
    return f"{name}: {' against '.join(texts) or 'nothing ran'}{ratio}" + (
        f"; RED: {', '.join(red)}" if red else ""
    )


def _median(row: Mapping[str, Any]) -> float:
    return float(row["median_s"])


# --- the stamp ---------------------------------------------------------------------------------------------------


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _older(library: Path) -> str:
    """What to say of a library whose sources changed after it was built."""
    sources = Path(harness.__file__).resolve().parents[1] / "csrc"
    times = [p.stat().st_mtime for folder in ("cuda", "bindings") for p in (sources / folder).glob("*.*")]
    stale = library.exists() and bool(times) and max(times) > library.stat().st_mtime
    return " (older than its sources)" if stale else ""


def environment(dry: bool) -> dict[str, Any]:
    """Machine, device, versions, revision. Only reads: the GPU's settings stay as they are."""
    stamp = harness.environment()
    stamp["revision"] = os.environ.get("SLOWFAST_REVISION") or stamp["revision"]
    for name in ("triton", "torchvision", "numpy"):
        stamp[name] = report.version_of(name)
    stamp["cudnn"] = torch.backends.cudnn.version()
    nvcc = _output("nvcc", "--version") if shutil.which("nvcc") else None
    stamp["nvcc"] = nvcc.splitlines()[-1] if nvcc else None
    library = _extension.LIB_DIR / ("libslowfast_emulated.so" if dry else "libslowfast_cuda.so")
    stamp["library"] = _extension.cuda_missing() or library.name + _older(library)
    if not dry:
        major, minor = torch.cuda.get_device_capability()
        stamp["capability"] = f"{major}.{minor}"
        fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
        found = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0")
        if found:
            driver, *rest = (x.strip() for x in found.split(","))
            stamp["driver"] = driver
            names = ("SM", "memory", "SM at most", "power limit", "temperature")
            stamp["clocks"] = ", ".join(f"{n} {v}" for n, v in zip(names, rest, strict=True))
    return stamp


# --- all ---------------------------------------------------------------------------------------------------------


def document_of(
    stamp: Mapping[str, Any], setting: Setting, parts: Mapping[str, Part], command: str
) -> tuple[dict[str, Any], list[targets.Row]]:
    """The document of what there is so far, and the targets' rows."""
    plain = {name: part.to_dict() for name, part in parts.items()}
    if "correctness" in plain:  # told apart by kinds of numbers, for several processes
        plain["correctness"]["records"] = results.merged(plain["correctness"]["records"])
    ceilings = results.ceilings_of(plain)
    records = [results.derive(r, ceilings) for r in results.compared(plain)]
    rows = targets.rows(records, ceilings, setting.dry, setting.middle)
    document = store.document(
        "gpu",
        stamp,
        ceilings,
        dry_run=setting.dry,
        note=results.DRY if setting.dry else "",
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
    for record in document["parts"].get("correctness", {}).get("records", ()):
        found += [f"{record['what']}: {text}" for text in record["failures"]]
    for record in document["compared"]:
        what = f"{record['what']} b{record['batch']} {record['dtype']}"
        for who, reason in record["missing"].items():
            # A refusal is an answer, and so is the end of the time; anything else from a kernel of ours is a defect.
            if who in (*PROVIDERS, "frozen") and "cannot run here" not in reason and reason != NO_TIME:
                found.append(f"{what}, {who}: {reason}")
        for row in record["rows"]:
            if row["ours"] and not row["green"]:
                gate = harness.Gate(row["error"], row["error_limit"])
                found.append(f"{what}, {row['who']}: {gate}")
    return found


def _seconds(pairs: Sequence[str]) -> dict[str, float]:
    found = {name: seconds for name, (seconds, _) in BUDGETS.items()}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = 0.0
        if name not in BUDGETS or found[name] <= 0:
            raise ValueError(
                f"--seconds: expected PART=N with a part among {', '.join(BUDGETS)}, got {pair!r}"
            )
    return found


def _check(args: argparse.Namespace) -> None:
    if not args.dry_run and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available to torch (--dry-run runs the same code on the CPU)")
    if args.dry_run and args.save:
        raise ValueError("--save: a dry run measures nothing, there is nothing to keep")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"OUT: expected a folder, got the file {args.out}")
    kept = store.RESULTS.resolve()
    if args.dry_run and (args.out.resolve() == kept or kept in args.out.resolve().parents):
        raise ValueError(f"OUT: a dry run does not write under {store.RESULTS}")


def main(argv: Sequence[str], worker: Sequence[str] = ()) -> int:
    """Run the parts; returns the exit status (see ``--help``)."""
    args = parser().parse_args(list(argv))
    begin = time.monotonic() - float(os.environ.get(SPENT) or 0.0)
    if args.dry_run:  # before a worker looks for a device
        os.environ.update(TRITON_INTERPRET="1", SLOWFAST_EMULATE="1", CUDA_VISIBLE_DEVICES="")
    try:
        setting, budgets = setting_of(args), _seconds(args.seconds)
        asked = {pair.partition("=")[0] for pair in args.seconds}
        _check(args)
    except ValueError as error:
        sys.stderr.write(f"bench/gpu.sh: error: {error}\n")
        return 2
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    for name in ("events.jsonl", "log.txt"):
        (out / name).unlink(missing_ok=True)

    def say(text: str) -> None:
        report.say(f"[{time.monotonic() - begin:5.0f} s] {text}")

    stamp = environment(args.dry_run)
    command = shlex.join(["bench/gpu.sh", *argv])
    for line in [*harness.stamp_lines(stamp), *results.gpu_lines(stamp)]:
        report.say(line)
    if args.dry_run:
        report.say(results.DRY)
    pictures = importlib.util.find_spec("matplotlib") is not None
    if not pictures:
        report.say("matplotlib is not installed: no pictures")
    report.say("")
    worker = worker or (sys.executable, "-m", "slowfast_kernels.bench.gpu.worker")
    names = [n for n in PARTS if n not in args.skip and (not args.only or n in args.only)]
    parts: dict[str, Part] = {}
    writer = Writer(out, stamp, setting, parts, command)
    watch = Clocks() if not args.dry_run else None
    for name in names:
        left = 60 * args.minutes - (time.monotonic() - begin)
        # The last one may have what the others left; what a part is given includes the start of its process.
        given = max(budgets[name], left - 5) if name == names[-1] and name not in asked else budgets[name]
        seconds = min(given, left - 5)
        say(f"{name}: {BUDGETS[name][1]} (at most {max(seconds, 0):.0f} s)")
        part = parts[name] = Part(status="no time")
        if seconds > 0:
            part.status = "running"
            many = 1 if args.dry_run or name not in SIDE_BY_SIDE else _processes()
            grace = min(GRACE, max(left - seconds, 5))
            run_part(name, setting, seconds, out, say, worker, grace, many, part, writer.now_and_then)
        part.clocks = watch.since_last() if watch else ""
        say(f"{name}: {part.status}, {part.seconds:.0f} s" + (f"; {part.clocks}" if part.clocks else ""))
        writer.write()
        if pictures:
            results.draw(out, writer.document, writer.rows)
    document, rows = writer.document, writer.rows
    if watch:
        watch.close()
    report.say("")
    report.say(results.DRY if args.dry_run else "targets")
    for line in results.target_table(rows):
        report.say(line)
    if args.save:
        folder = store.RESULTS / store.gpu_slug(stamp)
        results.write(folder, document, rows)
        if pictures:
            results.draw(folder, document, rows)
        report.say(f"saved under {folder}")
    report.say(f"results: {out}/gpu.md, {out}/gpu.json")
    wrong = failures(document)
    for text in wrong[:40]:
        report.say(f"FAILED: {text}")
    return 1 if wrong else 0


def _processes() -> int:
    return max(1, min(PROCESSES, (os.cpu_count() or 1) // 2))


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
        results.write(self._out, self.document, self.rows)
        self._last = time.monotonic()


class Clocks:
    """What nvidia-smi says of the GPU every two seconds: clocks, power, temperature, why clocks are held down.

    It only reads. Without nvidia-smi, or where it does not know the fields, there is nothing to say.
    """

    FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active")

    #: Bits of the last field that slow work down; idling and the application's own setting do not.
    SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)",
              0x80: "power brake"}  # fmt: skip

    def __init__(self, every: float = 2.0) -> None:
        self._rows: list[tuple[float, ...]] = []
        self._over, self._every = threading.Event(), every
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        asked = [
            "nvidia-smi",
            f"--query-gpu={','.join(self.FIELDS)}",
            "--format=csv,noheader,nounits",
            "-i",
            "0",
        ]
        while not self._over.wait(self._every):
            line = _output(*asked)
            if line is None:
                return
            *numbers, reasons = (cell.strip() for cell in line.split(","))
            with contextlib.suppress(ValueError):  # "[N/A]"
                self._rows.append((*map(float, numbers), int(reasons, 16)))

    def since_last(self) -> str:
        """The samples since the last call in a line of text, "" without any."""
        rows, self._rows = self._rows, []
        if not rows:
            return ""
        sm, memory, power, heat, bits = zip(*rows, strict=True)
        reasons = [text for bit, text in self.SLOWED.items() if any(int(b) & bit for b in bits)]
        return (
            f"SM {min(sm):.0f} to {max(sm):.0f}, median {statistics.median(sm):.0f} MHz,"
            f" memory {max(memory):.0f} MHz, {max(power):.0f} W, {max(heat):.0f} C at most,"
            + (f" held down by {', '.join(reasons)}" if reasons else " not held down")
        )

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()
