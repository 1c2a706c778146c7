"""The command line of the GPU measurements: starts a worker for each part, collects, writes after each."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slowfast_kernels import _extension, report
from slowfast_kernels.bench import harness, store
from slowfast_kernels.bench.gpu import results, targets
from slowfast_kernels.bench.gpu.machine import Setting
from slowfast_kernels.bench.gpu.measure import PROVIDERS
from slowfast_kernels.bench.gpu.worker import PARTS, setting_to

#: part -> (seconds it is given, what it is). Together with the starts of the processes under ten minutes.
BUDGETS: dict[str, tuple[float, str]] = {
    "ceilings": (15, "copy bandwidth, matrix products, launches, conv3d as cuDNN has it"),
    "correctness": (120, "every op, case and dtype on Triton and CUDA; pytest -m gpu; compute-sanitizer"),
    "parts": (60, "stems, laterals, Fast blocks, Slow res2 against every peer"),
    "pack": (10, "pack_pathways against copy bandwidth"),
    "roi": (30, "roi_head_pool, forward and backward, against torchvision and torch"),
    "model": (65, "the whole network against every peer, batch 1, 8, 32 and float32"),
    "ops": (130, "single ops on SlowFast's real calls"),
    "compile": (70, "torch.compile max-autotune, with and without CUDA graphs; slow to compile"),
}

#: A part may finish the item it is at for so long before it is stopped.
GRACE = 25.0

#: Share of a part's time that one item may take before it is stopped and the others go on.
SHARE = 0.6

#: How often a part is started again behind an item that took the process down.
RESTARTS = 8

EPILOG = f"""\
parts, in this order, and the seconds each is given:
{chr(10).join(f"  {name:12s} {seconds:4.0f}  {text}" for name, (seconds, text) in BUDGETS.items())}

files in OUT: gpu.json (everything), gpu.md (tables, targets first), speedups.png, roofline.png (with matplotlib),
log.txt (what the parts printed), events.jsonl (as it came). All are rewritten after each part.

examples:
  bench/gpu.sh /tmp/gpu
  bench/gpu.sh /tmp/gpu --skip compile --skip ops
  bench/gpu.sh /tmp/gpu --only parts --batch 8
  bench/gpu.sh /tmp/gpu --only correctness --op 'roi*'
  bench/gpu.sh /tmp/gpu --only ops --op bottleneck3d --case 'res2.fast*' --seconds ops=300 --minutes 20
  bench/gpu.sh /tmp/gpu --only compile --seconds compile=1500 --minutes 26
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

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


Say = Callable[[str], None]


def run_part(
    name: str,
    setting: Setting,
    seconds: float,
    out: Path,
    say: Say,
    worker: Sequence[str],
    grace: float = GRACE,
) -> Part:
    """Run a part's worker, again behind every item that takes it down, and collect what it says."""
    part, begin = Part(), time.monotonic()
    for _ in range(RESTARTS + 1):
        left = seconds - (time.monotonic() - begin)
        if left <= 0:
            part.status = part.status if part.status != "not run" else "no time"
            break
        seen = len(part.done) + len(part.failed)
        status, running = _run_worker(name, setting, left, out, say, worker, part, grace)
        if running is not None:
            part.failed[running] = f"the process {status}"
        if status == "done":
            part.status = "done" if not part.late else "out of time"
            break
        part.status = status
        if len(part.done) + len(part.failed) == seen:
            break
    part.seconds = time.monotonic() - begin
    return part


def _run_worker(
    name: str,
    setting: Setting,
    seconds: float,
    out: Path,
    say: Say,
    worker: Sequence[str],
    part: Part,
    grace: float,
) -> tuple[str, str | None]:
    """One worker to its end: ("done", "died: ...", "did not end ..."), and the item it was at if it died."""
    events = out / "events.jsonl"
    start = events.stat().st_size if events.exists() else 0
    command = [*worker, name, setting_to(setting), str(events), f"{seconds:.1f}", *part.done, *part.failed]
    begin, running = time.monotonic(), None
    since, share = begin, math.inf if name == "compile" else max(SHARE * seconds, 20.0)
    with (out / "log.txt").open("a") as log:
        log.write(f"\n==== {name} {time.strftime('%H:%M:%S')}\n")
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                ended = process.poll() is not None
                start, lines = _new_lines(events, start)
                now = time.monotonic()
                for line in lines:
                    running, since = _take(json.loads(line), part, running, say), now
                if ended:
                    break
                if now - begin > seconds + grace:
                    return f"did not end within {seconds + grace:.0f} s", running
                if running is not None and now - since > share:
                    return f"did not end within {share:.0f} s, its share", running
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                # It has a session of its own: this ends it and what it started, nothing else.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    code = process.returncode
    if code == 0:
        return "done", None
    return f"died ({f'signal {-code}' if code < 0 else f'exit status {code}'}; see log.txt)", running


def _new_lines(path: Path, start: int) -> tuple[int, list[str]]:
    """Whole lines written since position ``start``, and the new position."""
    if not path.exists():
        return start, []
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return start + len(whole), whole.decode().splitlines()


def _take(event: Mapping[str, Any], part: Part, running: str | None, say: Say) -> str | None:
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
    stamp["library"] = _extension.cuda_missing() or library.name
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
            # A refusal is an answer; anything else from a kernel of ours is a defect.
            if who in (*PROVIDERS, "frozen") and "cannot run here" not in reason:
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
    begin = time.monotonic()
    if args.dry_run:  # before a worker looks for a device
        os.environ.update(TRITON_INTERPRET="1", SLOWFAST_EMULATE="1", CUDA_VISIBLE_DEVICES="")
    try:
        setting, budgets = setting_of(args), _seconds(args.seconds)
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
    if importlib.util.find_spec("matplotlib") is None:
        report.say("matplotlib is not installed: no pictures")
    report.say("")
    worker = worker or (sys.executable, "-m", "slowfast_kernels.bench.gpu.worker")
    names = [n for n in PARTS if n not in args.skip and (not args.only or n in args.only)]
    parts: dict[str, Part] = {}
    document, rows = document_of(stamp, setting, parts, command)
    for name in names:
        left = 60 * args.minutes - (time.monotonic() - begin)
        seconds = min(budgets[name], left - 5)
        say(f"{name}: {BUDGETS[name][1]} (at most {max(seconds, 0):.0f} s)")
        parts[name] = Part(status="no time")
        if seconds > 0:
            parts[name] = run_part(
                name, setting, seconds, out, say, worker, min(GRACE, max(left - seconds, 5))
            )
        say(f"{name}: {parts[name].status}, {parts[name].seconds:.0f} s")
        document, rows = document_of(stamp, setting, parts, command)
        results.write(out, document, rows)
    results.draw(out, document, rows)
    report.say("")
    report.say(results.DRY if args.dry_run else "targets")
    for line in results.target_table(rows):
        report.say(line)
    if args.save:
        folder = store.RESULTS / store.gpu_slug(stamp)
        results.write(folder, document, rows)
        results.draw(folder, document, rows)
        report.say(f"saved under {folder}")
    report.say(f"results: {out}/gpu.md, {out}/gpu.json")
    wrong = failures(document)
    for text in wrong[:40]:
        report.say(f"FAILED: {text}")
    return 1 if wrong else 0
