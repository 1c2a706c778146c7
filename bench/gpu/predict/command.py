"""``slowfast-kernels bench gpu-predict``: predicted times as tables, JSON, and the documentation's page."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from slowfast_kernels import report
from slowfast_kernels.bench.gpu.predict.machine import Machine, measured
from slowfast_kernels.bench.gpu.predict.model import FORMS, Prediction, Row, forms, predict
from slowfast_kernels.cli import Parser
from slowfast_kernels.models import configure

TITLE = "Predicted, not yet measured"

ABOUT = (
    "Computed from the plan's own launches (tiles, grids, bytes, products, wavefronts of shared memory) and from "
    "constants of an H200, most of which are assumptions: bench/gpu/predict/machine.py says where each comes from. "
    "Nothing was calibrated: read ratios rather than times."
)

#: Constants whose part in the figure the page shows: those that nobody has measured on the machine.
UNCERTAIN = (
    "wgmma", "dram", "l2", "clock", "mma_per_clk", "mma_k8", "launch", "fill", "cudnn_loop", "triton_loop",
    "descriptor_loop", "l2_latency", "dram_latency", "mma_latency", "shared_latency", "barrier", "overlap",
)  # fmt: skip

STEPS = ("stage", "op", "provider", "kernels", "limiter", "us")
SUMS = ("batch", "sum", "Slow chain, us", "Fast chain, us", "model, us")


def us(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def whole(seconds: float) -> str:
    return f"{1e6 * seconds:.0f}"


def step_lines(p: Prediction) -> list[tuple[str, ...]]:
    """A line for each step of the plan."""
    return [(row.stage, row.op, row.provider, row.kernels, row.limiter, us(row.seconds)) for row in p.rows]


def sum_lines(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    """The chains and the model."""
    found = []
    for p in predictions:
        chains = (whole(p.chain(lane)) for lane in (0, 1))
        found.append((str(p.batch), "plan", *chains, whole(p.seconds())))
        found.append((str(p.batch), "floor of all steps", "", "", whole(p.floor)))
    return found


def stage_lines(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    """Stages by who computes them, a column of a batch each."""
    found: dict[tuple[str, str], list[str]] = {}
    for i, p in enumerate(predictions):
        for key, rows in p.stages().items():
            texts = found.setdefault(key, ["", *[""] * len(predictions)])
            texts[0] = ", ".join(dict.fromkeys(row.limiter for row in _longest(rows)))
            texts[1 + i] = whole(sum(row.seconds for row in rows))
    return [(*key, *texts) for key, texts in found.items()]


def _longest(rows: Sequence[Row]) -> list[Row]:
    """The steps that take most of a stage's time."""
    top = max(row.seconds for row in rows)
    return [row for row in rows if row.seconds >= 0.5 * top]


def form_lines(model: str, batches: Sequence[int], machine: Machine) -> list[tuple[str, ...]]:
    """Stages of residual blocks in every form, at each batch."""
    found = []
    for batch in batches:
        for stage, times in forms(model, batch, machine).items():
            best = min(times.values())
            texts = (
                whole(times[f]) + ("*" if times[f] == best else "") if f in times else "-" for f in FORMS
            )
            found.append((str(batch), stage, *texts))
    return found


def sensitivity_lines(model: str, batch: int, machine: Machine, share: float = 0.2) -> list[tuple[str, ...]]:
    """How much the model's time changes where a constant is a `share` less or more, the largest change first."""
    base = predict(model, batch, machine).seconds()
    changes = {}
    for name in UNCERTAIN:
        others = (replace(machine, **{name: getattr(machine, name) * (1 + sign * share)}) for sign in (-1, 1))
        changes[name] = [predict(model, batch, other).seconds() / base - 1 for other in others]
    order = sorted(UNCERTAIN, key=lambda name: -max(map(abs, changes[name])))
    return [(n, f"{getattr(machine, n):.4g}", *(f"{100 * c:+.1f} %" for c in changes[n])) for n in order]


def document(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Everything, as JSON: seconds, bytes, multiplications."""
    return {
        "note": f"{TITLE}. {ABOUT}",
        "machine": asdict(predictions[0].machine),
        "predictions": [
            {
                "model": p.model,
                "batch": p.batch,
                "dtype": "bf16",
                "seconds": p.seconds(),
                "chains": {"slow": p.chain(0), "fast": p.chain(1)},
                "floor_seconds": p.floor,
                "steps": [_step(row) for row in p.rows],
            }
            for p in predictions
        ],
    }


def _step(row: Row) -> dict[str, Any]:
    return {
        "stage": row.stage, "op": row.op, "provider": row.provider, "lane": row.lane, "limiter": row.limiter,
        "seconds": row.seconds if row.known else None,
        "launches": [
            {
                "kernel": one.work.kernel, "seconds": one.time.seconds, "terms": dict(one.time.terms),
                "blocks": one.work.blocks, "resident": one.work.resident, "products": one.work.products,
                "wavefronts": one.work.count.wavefronts, "l2_bytes": one.work.l2, "dram_bytes": one.dram_bytes,
            }
            for one in row.launches
        ],
    }  # fmt: skip


#: docs/gpu-predicted.md.
PAGE = """\
# GPU times: predicted, not yet measured

<!-- written by `make docs` from bench/gpu/predict; change it there -->

{about}

`slowfast-kernels bench gpu-predict` prints the same for any preset and batch, step by step, and with the ceilings of a
GPU run in the place of assumptions (`--machine gpu.json`).

## Sums

{sums_are}

{sums}

## Stages

{stages}

## Who computes a stage

Microseconds of a stage's blocks in every form, a star at the least. What a plan takes where nothing was measured
(`slowfast_kernels/plans/gpu.py`) follows from it, except where forms are closer than such a model can tell.

{forms}

## What the figure hangs on

Change of the model's time at batch 8 where a constant is a fifth less, and a fifth more: what to measure first.

{sensitivity}
"""


def page() -> str:
    """docs/gpu-predicted.md."""
    model, batches, machine = "slowfast_8x8_r50", (1, 8, 32), Machine()
    predictions = [predict(model, b, machine) for b in batches]

    def table(rows: Sequence[Sequence[str]], *header: str) -> str:
        return f"```text\n{report.table(rows, header)}\n```"

    def text(*sentences: str) -> str:
        return textwrap.fill(" ".join(sentences), 118, break_on_hyphens=False)

    return PAGE.format(
        about=text(
            "SlowFast-R50 8x8, 224x224, bfloat16, one H200. No figure of this page was measured.", ABOUT
        ),
        sums_are=text(
            f"Two streams are taken to save {machine.overlap:.0%} of the sum of both chains.",
            "cuDNN is taken to have engines for a convolution with shift, residual and ReLU in one, and to find its",
            "best tile. The floor is the sum of what every step takes at least: its direct products at the wgmma rate,",
            "or each of its tensors once at DRAM's bandwidth.",
        ),
        sums=table(sum_lines(predictions), *SUMS),
        stages=table(
            stage_lines(predictions), "stage", "provider", "limited by", *(f"batch {b}, us" for b in batches)
        ),
        forms=table(form_lines(model, batches, machine), "batch", "stage", *FORMS),
        sensitivity=table(sensitivity_lines(model, 8, machine), "constant", "value", "-20 %", "+20 %"),
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = Parser(
        prog="slowfast-kernels bench gpu-predict",
        description=f"{TITLE}: times of a frozen network on an H200, step by step, from a static model; needs no GPU. "
        f"{ABOUT}",
    )
    p.add_argument("--model", default="slowfast_8x8_r50", help="preset (default: slowfast_8x8_r50)")
    p.add_argument(
        "--batch", default="1,8,32", metavar="LIST", help="batches, comma-separated (default: 1,8,32)"
    )
    p.add_argument(
        "--machine", type=Path, metavar="FILE",
        help="constants that replace the assumed ones: a run's gpu.json, or {constant: value}",
    )  # fmt: skip
    p.add_argument("--forms", action="store_true", help="also every stage in every form")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything predicted")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command; exit status 0, or 2 with one line on the standard error for unusable options."""
    args = parser().parse_args(list(argv))
    try:
        batches = [int(b) for b in args.batch.split(",")] if args.batch.replace(",", "").isdigit() else [0]
        if min(batches) < 1:
            raise ValueError(
                f"--batch: expected whole numbers of at least 1, comma-separated, got {args.batch!r}"
            )
        if args.json:
            report.check_output("--json", args.json)
        configure(args.model)
        machine = measured(args.machine) if args.machine else Machine()
    except ValueError as error:
        sys.stderr.write(f"slowfast-kernels bench: error: {' '.join(str(error).split())}\n")
        return 2
    predictions = [predict(args.model, b, machine) for b in batches]
    report.say(f"{TITLE.upper()}. {ABOUT}\n")
    for p in predictions:
        report.say(f"{p.model}, batch {p.batch}, bf16\n{report.table(step_lines(p), STEPS)}\n")
    if args.forms:
        report.say(report.table(form_lines(args.model, batches, machine), ("batch", "stage", *FORMS)) + "\n")
    report.say(report.table(sum_lines(predictions), SUMS))
    if unknown := [row.op for row in predictions[0].rows if not row.known]:
        report.say(
            f"not predicted, as it depends on the call's values, and not in the sums: {', '.join(unknown)}"
        )
    if args.json:
        report.write_json(args.json, document(predictions))
        report.say(f"wrote {args.json}")
    return 0
