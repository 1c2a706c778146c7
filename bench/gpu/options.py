"""The options of ``bench/gpu.sh``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slowfast_kernels.bench import store
from slowfast_kernels.bench.gpu import profile
from slowfast_kernels.bench.gpu.worker import PARTS
from slowfast_kernels.bench.harness import Setting

#: part -> (seconds it is given, what it is). Together under ten minutes; what one leaves over goes to the last.
BUDGETS: dict[str, tuple[float, str]] = {
    "smoke": (75, "the library, cuDNN's fused calls, a graph, rates, every CUDA op, the deep convolutions"),
    "ceilings": (25, "copy bandwidth, matrix products, launches, conv3d as cuDNN has it"),
    "network": (220, "the whole network, its stems, laterals, blocks, stages against every peer"),
    "pack": (15, "pack_pathways against copy bandwidth"),
    "roi": (35, "roi_head_pool, forward and backward, against torchvision and torch"),
    "correctness": (80, "every op, case and dtype on Triton and CUDA; pytest -m gpu; compute-sanitizer"),
    "compile": (70, "torch.compile of the network; with max-autotune it takes minutes to compile"),
    "ops": (40, "single ops on SlowFast's real calls"),
    "profile": (60, "Nsight Compute on the calls of --profile, where there are some"),
}

#: The three ten-minute runs of a first contact, as options; README.md says what each decides.
RUNS: dict[int, str] = {
    1: "--only smoke --only ceilings --only network --batch 8 --item 'network=*bf16'"
    " --seconds smoke=100 --seconds ceilings=30 --minutes 9.2",
    2: "--only network --only pack --only roi --only correctness --batch 8 --item 'network=model *bf16'"
    " --seconds network=160 --seconds pack=25 --seconds roi=75 --minutes 9.2",
    3: "--only network --only compile --only profile --batch 1,8,32"
    " --item 'network=model b1 bf16,model b32 bf16' --item 'compile=* b8 bf16,* b1 bf16'"
    " --seconds network=170 --seconds compile=250 --minutes 9.2"
    " --profile bottleneck3d/res3.slow.1 --profile bottleneck3d/res2.slow.1 --profile bottleneck3d/res2.fast.1"
    " --profile bottleneck3d/res4.fast.1 --profile pack_pathways/view",
}

EPILOG = f"""\
parts, in this order, and the seconds each is given:
{chr(10).join(f"  {name:12s} {seconds:4.0f}  {text}" for name, (seconds, text) in BUDGETS.items())}

files in OUT: gpu.json (everything), gpu.md (tables, targets first), speedups.png, roofline.png (with matplotlib),
log.txt (what the parts printed), events.jsonl (as it came), pytest.txt, sanitizer.txt, ncu-*; results.tar.gz has all
of them and, in cache/, the tiles that were measured. Figures are rewritten while a part runs, the others after it.

a first contact, ten minutes each (bench/gpu/README.md):
{chr(10).join(f"  --run {number}  {text}" for number, text in RUNS.items())}

examples:
  bench/gpu.sh /tmp/gpu
  bench/gpu.sh /tmp/gpu --run 1
  bench/gpu.sh /tmp/gpu --skip compile --skip ops
  bench/gpu.sh /tmp/gpu --only network --item 'network=model *,slow res*' --batch 8
  bench/gpu.sh /tmp/gpu --only correctness --op 'roi*'
  bench/gpu.sh /tmp/gpu --only ops --op bottleneck3d --case 'res2.fast*' --seconds ops=300 --minutes 20
  bench/gpu.sh /tmp/gpu --only compile --batch 8 --minutes 26    # max-autotune: minutes of compiling
  bench/gpu.sh /tmp/gpu --only profile --profile bottleneck3d/res2.slow.1 --batch 8
  bench/gpu.sh /tmp/gpu --dry-run
  SLOWFAST_AUTOTUNE=cuda,plans bench/gpu.sh /tmp/gpu    # measures tiles and providers of new shapes, keeps the winners

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
        "--item",
        action="append",
        default=[],
        metavar="PART=PATTERN",
        help="only a part's items of such names (gpu.json has them): shell patterns, comma-separated; repeatable",
    )
    p.add_argument(
        "--rounds", type=int, default=0, metavar="N", help="samples of each contender (default: 21)"
    )
    p.add_argument("--model", default="slowfast_8x8_r50", help="preset (default: slowfast_8x8_r50)")
    p.add_argument("--tests", metavar="PATH", help="what pytest -m gpu is given (default: tests)")
    p.add_argument("--seconds", action="append", default=[], metavar="PART=N", help="another time for a part")
    p.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="OP/CASE",
        help="also a call of the CUDA kernels under ncu (part profile); repeatable",
    )
    p.add_argument(
        "--run",
        type=int,
        choices=RUNS,
        help="the options of a first contact; others given beside it add to them",
    )
    p.add_argument("--minutes", type=float, default=9.5, help="time for everything (default: 9.5)")
    p.add_argument("--save", action="store_true", help="also keep the run under bench/results/<gpu>/")
    return p


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The options; those that ``--run`` stands for come before the others."""
    args = parser().parse_args(list(argv))
    return parser().parse_args([*shlex.split(RUNS[args.run]), *argv]) if args.run else args


def setting_of(args: argparse.Namespace) -> Setting:
    """The setting that options ask for; ValueError for unusable ones."""
    for name in [*args.skip, *args.only]:
        if name not in PARTS:
            raise ValueError(f"expected a part among {', '.join(PARTS)}, got {name!r}")
    wanted = dict(pair.partition("=")[::2] for pair in args.item)
    for pair in args.item:
        if pair.partition("=")[0] not in PARTS or not pair.partition("=")[2]:
            raise ValueError(
                f"--item: expected PART=PATTERN with a part among {', '.join(PARTS)}, got {pair!r}"
            )
    for call in args.profile:
        profile.entry_of(call)  # raises for one that there is not
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
    common |= {"tests": args.tests or "tests", "wanted": wanted, "profile": tuple(args.profile)}
    if not dry:
        return Setting(rounds=args.rounds or 21, **common)
    # Small enough for an interpreter and an emulator.
    common |= {"limit": args.limit or 1, "tests": args.tests or "tests/bench/test_bench_gpu.py"}
    overrides = {"blocks": [1, 1, 1, 1]}
    return Setting(rounds=2, shrink=16, check_shrink=16, crop=32, frames=8, overrides=overrides, **common)


def seconds_of(pairs: Sequence[str]) -> dict[str, float]:
    """Seconds of every part, some as asked for; ValueError for unusable ones."""
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


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be run here; raises ValueError."""
    if not args.dry_run and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available to torch (--dry-run runs the same code on the CPU)")
    if args.dry_run and args.save:
        raise ValueError("--save: a dry run measures nothing, there is nothing to keep")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"OUT: expected a folder, got the file {args.out}")
    kept = store.RESULTS.resolve()
    if args.dry_run and (args.out.resolve() == kept or kept in args.out.resolve().parents):
        raise ValueError(f"OUT: a dry run does not write under {store.RESULTS}")
