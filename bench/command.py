"""The command line of ``slowfast-kernels bench``."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from slowfast_kernels import report
from slowfast_kernels._optional import MissingExtra
from slowfast_kernels.bench import (
    harness,
    memory,
    models,
    ops,
    peers,
    plots,
    probe,
    registry,
    scaling,
    store,
    targets,
)
from slowfast_kernels.bench.gpu import profile
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.models import configure

KINDS = {
    "targets": "the project's speed targets, each against its peer (a few minutes)",
    "models": "the whole network against every peer, and where its time goes",
    "ops": "single ops on SlowFast's real shapes, every provider and the peers",
    "scaling": "batch 1, 2, 4, 8 and 32, 64 frames: cost must grow linearly",
    "memory": "peak resident memory of inference above the weights",
}

EPILOG = f"""\
kinds:
{chr(10).join(f"  {name:9s} {text}" for name, text in KINDS.items())}

peers: {", ".join(peers.PEERS)}, all, none
  (default: {", ".join(peers.DEFAULT)}; compile takes minutes for a whole network)

examples:
  slowfast-kernels bench targets
  slowfast-kernels bench models --dtype bf16 --peers openvino,autocast_cl3d --plot roofline.png
  slowfast-kernels bench ops --op 'bottleneck3d' --case 'res2.fast*' --dtype fp32,bf16
  slowfast-kernels bench ops --profile --op bottleneck3d --case res2.fast.0
  slowfast-kernels bench scaling --runs 5 --json scaling.json

Times are medians of interleaved runs; conversion, packing and compilation are never timed; a speed-up is
printed only behind a green parity check (relative L2 distance of the outputs).
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(
        prog="slowfast-kernels bench",
        description="Measure ops and models against the machine's ceilings and other runtimes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("kind", nargs="?", default="targets", choices=list(KINDS), help="default: targets")
    p.add_argument("--peers", metavar="LIST", help="comma-separated names, 'all' or 'none'")
    p.add_argument("--model", default="slowfast_8x8_r50", help="preset (default: slowfast_8x8_r50)")
    p.add_argument("--op", metavar="PATTERN", help="ops: names or shell patterns, comma-separated")
    p.add_argument("--case", metavar="PATTERN", help="ops: calls, names or shell patterns, comma-separated")
    p.add_argument("--dtype", metavar="LIST", help="fp32, bf16 or both (default: both; for ops fp32)")
    p.add_argument("--only", metavar="LIST", help=f"targets: some of {', '.join(targets.GROUPS)}")
    p.add_argument(
        "--profile", action="store_true", help="ops: one call under NVTX ranges and torch.profiler"
    )
    p.add_argument("--batch", type=_positive, default=1, help="models, memory, profile: clips in a call")
    p.add_argument("--crop", type=_positive, metavar="N", help="side of the frames (default: the preset's)")
    p.add_argument("--frames", type=_positive, metavar="N", help="models, memory: frames of the densest clip")
    p.add_argument("--threads", type=_positive, metavar="N", help="for everybody (default: torch's number)")
    p.add_argument(
        "--runs", type=_positive, metavar="N", help="samples of each contender (default: 15; scaling 7)"
    )
    p.add_argument("--cold", action="store_true", help="ops: empty the caches before every sample")
    p.add_argument("--full", action="store_true", help="targets: also what takes minutes; all cache levels")
    p.add_argument("--json", metavar="FILE", type=Path, help="write everything measured")
    p.add_argument("--plot", metavar="FILE", type=Path, help="write a picture (models: the roofline)")
    p.add_argument("--save", action="store_true", help="keep the run under bench/results/cpu-<processor>/")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one kind of benchmark; exit status 0, or 2 with one line on the standard error for unusable
    options."""
    words = list(argv or [])
    args = parser().parse_args(words)
    args.progress = not args.quiet and sys.stderr.isatty()
    if args.profile and args.kind not in words:
        args.kind = "ops"
    try:
        with harness.threads(args.threads) as count:
            return _run(args, count, words)
    except ValueError as error:
        sys.stderr.write(f"slowfast-kernels bench: error: {' '.join(str(error).split())}\n")
        return 2


def _run(args: argparse.Namespace, threads: int, words: Sequence[str]) -> int:
    _check(args)
    if args.profile:
        return _profile(args, words)
    stamp = harness.environment()
    ceilings = _ceilings(threads, args)
    kinds: dict[str, Callable[..., _Found]] = {
        "targets": _targets,
        "models": _models,
        "ops": _ops,
        "scaling": _scaling,
        "memory": _memory,
    }
    for line in harness.stamp_lines(stamp):
        report.say(line)
    report.say(f"ceilings: {store.ceiling_line(ceilings)}" if ceilings else "ceilings: not measured")
    report.say("")
    found = kinds[args.kind](args, threads, ceilings)
    report.say(found.text)
    document = store.document(args.kind, stamp, ceilings, **found.data)
    if args.json:
        report.write_json(args.json, document)
    if args.plot:
        found.plot(args.plot)
    if args.save:
        command = shlex.join(["slowfast-kernels", "bench", *words])
        page = store.markdown(args.kind, stamp, ceilings, found.text, command)
        folder = store.save(args.kind, document, page)
        found.plot(folder / f"{args.kind}.png")
        report.say(f"saved under {folder}")
    return 0


def _profile(args: argparse.Namespace, words: Sequence[str]) -> int:
    """One op under the profilers instead of a measurement."""
    if args.kind != "ops":
        raise ValueError(f"--profile: expected the kind ops, got {args.kind}")
    found = [e for dtype in args.dtypes for e in registry.entries(args.op, args.case, dtype)]
    if len(found) != 1:
        names = ", ".join(f"{e.name} {e.dtype}" for e in found[:4])
        raise ValueError(f"--profile: expected --op and --case of one call, got {len(found)}: {names}, ...")
    report.say(profile.profile(found[0], words, args.batch))
    return 0


class _Found:
    """Outcome of one kind: text, data for JSON, and how to draw it."""

    def __init__(self, text: str, data: Mapping[str, Any], plot: Callable[[Path], None]) -> None:
        self.text, self.data, self._plot = text, dict(data), plot

    def plot(self, path: Path) -> None:
        try:
            self._plot(path)
        except MissingExtra as error:
            sys.stderr.write(f"no picture: {error}\n")


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be used before anything is measured; sets args.dtypes and args.groups."""
    default = ["fp32"] if args.kind in ("ops", "memory") else ["fp32", "bf16"]
    args.dtypes = [d.strip() for d in args.dtype.split(",")] if args.dtype else default
    known = ("fp32", "bf16") if args.kind != "ops" else tuple(registry.DTYPES)
    for dtype in args.dtypes:
        if dtype not in known:
            raise ValueError(f"--dtype: expected {' or '.join(known)}, got {dtype!r}")
        _peers(args, dtype)
        if args.kind == "ops":
            registry.entries(args.op, args.case, dtype)
    args.groups = [g.strip() for g in args.only.split(",")] if args.only else list(targets.GROUPS)
    for group in args.groups:
        if group not in targets.GROUPS:
            raise ValueError(f"--only: expected some of {', '.join(targets.GROUPS)}, got {group!r}")
    configure(args.model)


def _ceilings(threads: int, args: argparse.Namespace) -> dict[str, Any] | None:
    # A roofline picture shows the caches' bandwidths too.
    quick = not (args.full or args.save or (args.plot and args.kind == "models"))
    try:
        return probe.ceilings(threads, quick=quick)
    except RuntimeError as error:
        sys.stderr.write(f"no ceilings: {error}\n")
        return None


def _peers(args: argparse.Namespace, dtype: str) -> list[peers.Peer]:
    return [] if args.peers == "none" else peers.select(args.peers, dtype)


def _subject(args: argparse.Namespace) -> Subject:
    return Subject(args.model, batch=args.batch, frames=args.frames, crop=args.crop)


def _targets(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> _Found:
    setting = targets.Setting(
        threads, args.runs or 15, args.progress, model=args.model, crop=args.crop, full=args.full
    )
    rows = targets.measure(setting, args.groups)
    data = {"rows": [row.to_dict() for row in rows]}
    return _Found(targets.table(rows), data, lambda path: plots.targets(path, rows))


def _models(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> _Found:
    subject = _subject(args)
    results = [
        models.measure(
            subject,
            dtype,
            wanted=_peers(args, dtype),
            threads=threads,
            rounds=args.runs or 15,
            ceilings=ceilings,
            progress=args.progress,
        )
        for dtype in args.dtypes
    ]
    parts = [models.table(results)]
    parts += [f"{r['model']} {r['dtype']}, frozen\n{models.stage_table(r)}" for r in results]

    def plot(path: Path) -> None:
        """The roofline of each precision, and the bars beside it."""
        for result in results:
            name = path.stem if len(results) == 1 else f"{path.stem}-{result['dtype']}"
            if ceilings:
                plots.roofline(path.with_name(name + path.suffix), result, ceilings)
        plots.models(path.with_name(f"{path.stem}-peers{path.suffix}"), results)

    return _Found("\n\n".join(parts), {"results": results}, plot)


def _ops(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> _Found:
    work = [e for dtype in args.dtypes for e in registry.entries(args.op, args.case, dtype)]
    results = []
    for entry in tqdm(work, desc="ops", disable=not args.progress, leave=False):
        results.append(
            ops.measure(
                entry,
                wanted=_peers(args, entry.dtype),
                threads=threads,
                rounds=args.runs or 15,
                cold=args.cold,
                ceilings=ceilings,
                progress=args.progress,
            )
        )
    return _Found(ops.table(results), {"results": results}, lambda path: plots.ops(path, results))


def _scaling(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> _Found:
    results = [
        scaling.measure(args.model, dtype, crop=args.crop, rounds=args.runs or 7, progress=args.progress)
        for dtype in args.dtypes
    ]
    return _Found(scaling.table(results), {"results": results}, lambda path: plots.scaling(path, results))


def _memory(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> _Found:
    results = []
    for dtype in args.dtypes:
        who = [memory.OURS, *(p.name for p in _peers(args, dtype))]
        results.append(
            memory.measure(
                args.model,
                dtype,
                who=who,
                threads=torch.get_num_threads(),
                batch=args.batch,
                frames=args.frames,
                crop=args.crop,
            )
        )

    return _Found(memory.table(results), {"results": results}, lambda path: plots.memory(path, results))
