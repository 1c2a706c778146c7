"""The command line of ``slowfast-kernels bench``."""

import argparse
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slowfast_kernels import report
from slowfast_kernels._optional import MissingExtra
from slowfast_kernels.bench import (
    cpu_targets,
    harness,
    memory,
    models,
    ops,
    peers,
    plots,
    probe,
    registry,
    scaling,
    stamp,
    store,
    targets,
)
from slowfast_kernels.bench.gpu import profile
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.cli import Parser
from slowfast_kernels.models import configure


@dataclass(frozen=True)
class Kind:
    """A kind of benchmark: what it measures, how, and which options mean something to it.

    run: (arguments, threads, ceilings) -> what was found. options: keys of `OPTIONS`. dtypes: the default ones.
    """

    run: Callable[[argparse.Namespace, int, Mapping[str, Any] | None], "Found"]
    summary: str
    about: str
    examples: str
    options: Sequence[str]
    dtypes: Sequence[str] = ("fp32", "bf16")
    runs: int = 15

    @property
    def default_dtypes(self) -> str:
        return ",".join(self.dtypes)


def parser() -> argparse.ArgumentParser:
    """The options, those of each kind in a parser of its own."""
    top = Parser(
        prog="slowfast-kernels bench",
        description="Measure ops and models against the machine's ceilings and other runtimes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = top.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, kind in KINDS.items():
        sub = kinds.add_parser(
            name,
            help=kind.summary,
            description=f"{kind.summary[0].upper()}{kind.summary[1:]}.\n\n{kind.about}",
            epilog=f"examples:\n{textwrap.indent(kind.examples.strip(), '  ')}\n\n{RULES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option in (*kind.options, *SHARED):
            settings = {k: v.format(kind=kind) if k == "help" else v for k, v in OPTIONS[option].items()}
            sub.add_argument(f"--{settings.get('dest', option)}", **settings)
    kinds.add_parser("gpu", add_help=False, help="all of it on an NVIDIA GPU, as bench/gpu.sh runs it")
    kinds.add_parser(
        "gpu-predict", add_help=False, help="times on a GPU from a static model; nothing is measured"
    )
    return top


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one kind of benchmark (without a word: targets); exit status 0, or 2 with one line on the standard
    error for unusable options."""
    words = list(argv or [])
    if words[:1] == ["gpu"]:
        from slowfast_kernels.bench.gpu.command import command  # slow to import

        return command(words[1:])
    if words[:1] == ["gpu-predict"]:
        from slowfast_kernels.bench.gpu.predict.command import main as predict  # slow to import

        return predict(words[1:])
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["targets", *words]
    args = parser().parse_args(words)
    args.progress = not args.quiet and sys.stderr.isatty()
    try:
        _check(args)
        with harness.threads(args.threads) as count:
            return _profile(args, words) if getattr(args, "profile", False) else _run(args, count, words)
    except ValueError as error:
        sys.stderr.write(f"slowfast-kernels bench: error: {' '.join(str(error).split())}\n")
        return 2


def _run(args: argparse.Namespace, threads: int, words: Sequence[str]) -> int:
    stamped = stamp.environment()
    ceilings = _ceilings(threads, args)
    for line in stamp.stamp_lines(stamped):
        report.say(line)
    report.say(f"ceilings: {store.ceiling_line(ceilings)}" if ceilings else "ceilings: not measured")
    report.say("")
    found = KINDS[args.kind].run(args, threads, ceilings)
    report.say(found.text)
    document = store.document(args.kind, stamped, ceilings, **found.data)
    written: list[Path] = []
    if args.json:
        report.write_json(args.json, document)
        written.append(args.json)
    where = plots.machine(stamped)
    if args.plot:
        written += found.plot(args.plot, where)
    if args.save:
        command = shlex.join(["slowfast-kernels", "bench", *words])
        text = found.page or f"```text\n{found.text}\n```"
        page = store.markdown(args.kind, stamped, ceilings, text, command)
        folder = store.save(args.kind, document, page)
        written += [folder / f"{args.kind}.json", folder / f"{args.kind}.md"]
        written += found.plot(folder / f"{args.kind}.png", where)
    for path in written:
        report.say(f"wrote {path}")
    return 0


def _profile(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Ops under the profilers, one call after the other, instead of a measurement."""
    for number, entry in enumerate(args.entries):
        report.say(("\n" if number else "") + profile.profile(entry, words, args.batch or 1))
    return 0


@dataclass
class Found:
    """Outcome of one kind: text, data for JSON, how to draw it, and the text of its page (default: the text)."""

    text: str
    data: Mapping[str, Any]
    draw: Callable[[Path, str], list[Path]]
    page: str = ""

    def plot(self, path: Path, where: str) -> list[Path]:
        """Draw the pictures, `where` (the machine) in their titles; returns the files written."""
        try:
            return self.draw(path, where)
        except MissingExtra as error:
            sys.stderr.write(f"no picture: {error}\n")
            return []


Results = list[dict[str, Any]]


def _found(
    results: Results, table: Callable[[Results], str], draw: Callable[[Path, Results, str], list[Path]]
) -> Found:
    return Found(table(results), {"results": results}, lambda path, where: draw(path, results, where))


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be used before anything is measured; sets args.dtypes, args.groups, args.entries."""
    kind = KINDS[args.kind]
    if args.kind == "ops":
        _check_profile(args)
    if args.json:
        report.check_output("--json", args.json)
    if args.plot:
        report.check_picture("--plot", args.plot)
    args.runs = getattr(args, "runs", None) or kind.runs
    if hasattr(args, "dtype"):
        args.dtypes = [d.strip() for d in args.dtype.split(",")] if args.dtype else list(kind.dtypes)
        known = ("fp32", "bf16") if args.kind != "ops" else tuple(registry.DTYPES)
        for dtype in args.dtypes:
            if dtype not in known:
                raise ValueError(f"--dtype: expected {' or '.join(known)}, got {dtype!r}")
            if hasattr(args, "peers"):
                _peers(args, dtype)
    if args.kind == "ops":
        args.entries = [e for dtype in args.dtypes for e in registry.entries(args.op, args.case, dtype)]
    if args.kind == "targets":
        args.groups = [g.strip() for g in args.only.split(",")] if args.only else list(cpu_targets.GROUPS)
        for group in args.groups:
            if group not in cpu_targets.GROUPS:
                raise ValueError(f"--only: expected some of {', '.join(cpu_targets.GROUPS)}, got {group!r}")
    if hasattr(args, "model"):
        configure(args.model)


def _check_profile(args: argparse.Namespace) -> None:
    """Under a profiler nothing is compared or kept; elsewhere ops run on the batch of their cases."""
    useless = ("peers", "runs", "cold", "json", "plot", "save") if args.profile else ("batch",)
    for option in useless:
        if getattr(args, option):
            raise ValueError(
                f"--{option}: expected {'no --profile' if args.profile else '--profile'} beside it"
            )


def _ceilings(threads: int, args: argparse.Namespace) -> dict[str, Any] | None:
    # A roofline picture shows the caches' bandwidths too, and what is kept has them.
    quick = not (args.save or (args.plot and args.kind == "models"))
    try:
        return probe.ceilings(threads, quick=quick)
    except RuntimeError as error:
        sys.stderr.write(f"no ceilings: {error}\n")
        return None


def _peers(args: argparse.Namespace, dtype: str) -> list[peers.Peer]:
    return [] if args.peers == "none" else peers.select(args.peers, dtype, networks=args.kind != "ops")


def _setting(args: argparse.Namespace, threads: int) -> harness.Setting:
    given = {name: getattr(args, name) for name in ("model", "crop", "frames") if hasattr(args, name)}
    return harness.Setting(rounds=args.runs, threads=threads, progress=args.progress, **given)


def _targets(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> Found:
    setting = _setting(args, threads)
    rows, network = cpu_targets.measure(setting, args.groups), cpu_targets.network_of(setting)
    return Found(
        targets.table(rows),
        {"network": network, "rows": [row.to_dict() for row in rows]},
        lambda path, where: plots.targets(path, rows, f"{network}\n{where}"),
        targets.markdown(rows, network),
    )


def _models(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> Found:
    machine = harness.CpuMachine(_setting(args, threads), warmup=0)
    subject = Subject(args.model, batch=args.batch, frames=args.frames, crop=args.crop)
    results = [
        models.measure(machine, subject, dtype, wanted=_peers(args, dtype), ceilings=ceilings)
        for dtype in args.dtypes
    ]

    def draw(path: Path, results: Results, where: str) -> list[Path]:
        """The roofline, and the bars beside it."""
        made = plots.roofline(path, results, ceilings, where=where) if ceilings else []
        return made + plots.models(path.with_name(f"{path.stem}-peers{path.suffix}"), results, where)

    return _found(results, models.tables, draw)


def _ops(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> Found:
    machine = harness.CpuMachine(_setting(args, threads), cold_bytes=(64 << 20) if args.cold else 0)
    results = [
        ops.measure(machine, entry, wanted=_peers(args, entry.dtype), cold=args.cold, ceilings=ceilings)
        for entry in tqdm(args.entries, desc="ops", unit="call", disable=not args.progress, leave=False)
    ]
    return _found(results, ops.table, plots.ops)


def _scaling(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> Found:
    setting = _setting(args, threads)
    return _found([scaling.measure(setting, d) for d in args.dtypes], scaling.table, plots.scaling)


def _memory(args: argparse.Namespace, threads: int, ceilings: Mapping[str, Any] | None) -> Found:
    setting, results = _setting(args, threads), []
    for dtype in args.dtypes:
        who = [targets.FROZEN, *(p.name for p in _peers(args, dtype))]
        results.append(memory.measure(setting, dtype, who, batch=args.batch))
    return _found(results, memory.table, plots.memory)


#: Every option by name; a kind lists those that mean something to it.
OPTIONS: dict[str, dict[str, Any]] = {
    "peers": {"metavar": "LIST", "help": "comma-separated names, 'all' or 'none' (see below)"},
    "model": {
        "metavar": "NAME",
        "default": "slowfast_8x8_r50",
        "help": "preset (default: slowfast_8x8_r50; slowfast-kernels info lists them)",
    },
    "op": {"metavar": "PATTERN", "help": "ops: names or shell patterns, comma-separated (default: all)"},
    "case": {"metavar": "PATTERN", "help": "calls: names or shell patterns, comma-separated (default: all)"},
    "dtype": {"metavar": "LIST", "help": "comma-separated (default: {kind.default_dtypes})"},
    "only": {"metavar": "LIST", "help": f"some of {', '.join(cpu_targets.GROUPS)} (default: all)"},
    "profile": {
        "action": "store_true",
        "help": "instead of timing, run each call under NVTX ranges and torch.profiler; prints the ncu command",
    },
    "batch": {"metavar": "N", "type": _positive, "default": 1, "help": "clips in a call (default 1)"},
    "profiled-batch": {
        "metavar": "N",
        "type": _positive,
        "dest": "batch",
        "help": "clips in a call, with --profile (default 1)",
    },
    "crop": {
        "metavar": "N",
        "type": _positive,
        "help": "side of the frames in pixels (default: the preset's)",
    },
    "frames": {
        "metavar": "N",
        "type": _positive,
        "help": "frames of the densest clip (default: the preset's)",
    },
    "threads": {"metavar": "N", "type": _positive, "help": "for everybody (default: torch's number)"},
    "runs": {"metavar": "N", "type": _positive, "help": "samples of each contender (default {kind.runs})"},
    "cold": {"action": "store_true", "help": "empty the caches before every sample"},
    "json": {"metavar": "FILE", "type": Path, "help": "write everything measured"},
    "plot": {"metavar": "FILE", "type": Path, "help": "write a picture (.png, .svg, .pdf, ...)"},
    "save": {"action": "store_true", "help": "keep table, JSON and picture in bench/results/, by machine"},
    "quiet": {"action": "store_true", "help": "no progress bars (nor are there any where nobody sees them)"},
}

#: Options of every kind.
SHARED = ("threads", "json", "plot", "save", "quiet")

KINDS = {
    "targets": Kind(
        _targets,
        "the project's speed targets, each against its peer (a few minutes)",
        "The table and the picture of the README come from one run of this.",
        """
slowfast-kernels bench targets --plot targets.png
slowfast-kernels bench targets --only models,roi --runs 5
slowfast-kernels bench targets --crop 64 --runs 2          a quick look whether everything runs
""",
        ("model", "only", "crop", "runs"),
    ),
    "models": Kind(
        _models,
        "the whole network against every peer, and where its time goes",
        "--plot FILE draws the roofline, and the times beside it as FILE's name with -peers.",
        """
slowfast-kernels bench models --dtype bf16 --peers openvino,autocast_cl3d
slowfast-kernels bench models --dtype fp32,bf16 --plot roofline.png
slowfast-kernels bench models --peers none --batch 4 --crop 256
""",
        ("model", "dtype", "peers", "batch", "crop", "frames", "runs"),
    ),
    "ops": Kind(
        _ops,
        "single ops on SlowFast's real shapes, every provider and the peers",
        f"ops: {', '.join(registry.op_names())}",
        """
slowfast-kernels bench ops --op bottleneck3d --case 'res2.fast*' --dtype fp32,bf16
slowfast-kernels bench ops --op 'roi*' --peers torchvision
slowfast-kernels bench ops --op stem3d --profile           its calls one after the other under a profiler
""",
        ("op", "case", "dtype", "peers", "runs", "cold", "profile", "profiled-batch"),
        dtypes=("fp32",),
    ),
    "scaling": Kind(
        _scaling,
        "batch 1, 2, 4 and 8 at 32 and 64 frames: cost must grow linearly",
        "All sizes are timed interleaved with each other.",
        """
slowfast-kernels bench scaling --dtype fp32 --plot scaling.png
slowfast-kernels bench scaling --crop 112 --runs 5 --json scaling.json
""",
        ("model", "dtype", "crop", "runs"),
        runs=7,
    ),
    "memory": Kind(
        _memory,
        "peak resident memory of inference, told both ways",
        "Above the weights as each contender holds them, and (strict) above their plain size, so that packed copies "
        "count.",
        """
slowfast-kernels bench memory --dtype fp32,bf16
slowfast-kernels bench memory --peers eager_cl3d --crop 256 --json memory.json
""",
        ("model", "dtype", "peers", "batch", "crop", "frames"),
        dtypes=("fp32",),
    ),
}

EPILOG = """\
examples:
  slowfast-kernels bench                                  the targets
  slowfast-kernels bench models --plot roofline.png
  slowfast-kernels bench ops --op bottleneck3d
  slowfast-kernels bench ops --help                       the options of a kind
"""

RULES = f"""\
peers: {", ".join(peers.PEERS)}
  (default: {", ".join(peers.DEFAULT)}; compile takes minutes for a
  whole network; torchvision runs RoI ops only)

Times are medians of interleaved runs; conversion, packing and compilation are never timed; a speed-up is
printed only behind a green parity check (relative L2 distance of the outputs).
"""
