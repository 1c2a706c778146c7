"""Compile every Triton kernel ahead of time for the real shapes, on any machine.

    python -m slowfast_kernels._triton.aot [--ops ...] [--dtypes bf16 fp16 fp32] [--targets 80 90] [--json FILE]

The calls come from the ops' ``cases.py``, on meta tensors, with 1, 8 and 32 clips; equal starts are compiled once.
Prints, or writes, one row a kernel: registers, spilled bytes, shared memory, whether it uses wgmma and TMA; and the
version of Triton. Exit status 1 if a kernel does not compile, spills, or does not fit in shared memory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm

from slowfast_kernels import precision
from slowfast_kernels._triton.launch import NEWEST, Launch, compile_launch, recording
from slowfast_kernels.ops._cases import cases_of, op_names
from slowfast_kernels.ops._registration import OPS, RecordCalls
from slowfast_kernels.testing import with_gradients

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

#: Shared memory that one block may have, bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}

#: Clips of a call: latency, the documented shapes, throughput. Tiles depend on it.
BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Start:
    """A kernel start on a GPU of some compute capability, and the call it was met in first.

    dtype: as printed, with the mode of float32 products.
    """

    op: str
    case: str
    batch: int
    dtype: str
    capability: int
    launch: Launch

    def row(self) -> dict[str, Any]:
        return {
            "op": self.op, "kernel": self.launch.name, "case": self.case, "batch": self.batch, "dtype": self.dtype,
            "target": f"sm_{self.capability}", "warps": self.launch.warps, "stages": self.launch.stages,
            "constants": {k: v for k, v in self.launch.constants if v is not None},
        }  # fmt: skip


def recorded(
    op: str, dtype: torch.dtype, batch: int = 8, real: bool = True, capability: int = NEWEST
) -> list[tuple[str, Launch]]:
    """(case, start) of every kernel that the real, or the other, cases of a public op start through Triton."""
    found = []
    for case in cases_of(op):
        if case.real != real:
            continue
        args, kwargs = case.args(dtype=dtype, device="meta", batch=batch)
        gradient = OPS.get(f"{op}_bwd")
        if gradient and "triton" in gradient.providers:  # it has kernels of its own
            (args, kwargs), _ = with_gradients((args, kwargs))
        with RecordCalls() as record:
            out = getattr(__import__("slowfast_kernels").ops, op)(*args, **kwargs)
            results = [y for y in (out if isinstance(out, (tuple, list)) else (out,)) if y.requires_grad]
            if results:
                torch.autograd.backward(results, [torch.empty_like(y) for y in results])
        for name, values in record.calls:
            provider = OPS[name].providers.get("triton") if name in OPS else None
            call = OPS[name].split(values) if name in OPS else ()
            if provider is None or provider.refuses(*call):
                continue
            with recording(capability) as launches:
                provider.run(*call)
            found += [(case.name, item) for item in launches]
    return found


@functools.cache
def unique(
    ops: tuple[str, ...],
    dtypes: tuple[str, ...],
    batches: tuple[int, ...] = BATCHES,
    configurations: bool = False,
    targets: tuple[int, ...] = tuple(SHARED_LIMIT),
) -> list[Start]:
    """Every start of the real cases once for every target, and one of each kernel that only other cases reach.

    configurations: only the first of the starts that differ in nothing but what 16 divides.
    """
    kept: dict[Any, Start] = {}
    for op, name, capability in itertools.product(ops, dtypes, targets):
        for mode in precision.FP32_MODES if name == "fp32" else ("auto",):
            label = name if mode == "auto" else f"{name} {mode}"
            with precision.fp32_precision(mode):
                met = [
                    Start(op, case, batch, label, capability, item)
                    for batch in batches
                    for case, item in recorded(op, DTYPES[name], batch, capability=capability)
                ]
                seen = {start.launch.name for start in met}
                for case, item in recorded(op, DTYPES[name], batches[0], False, capability):
                    if item.name not in seen:
                        seen.add(item.name)
                        met.append(Start(op, case, batches[0], label, capability, item))
            for start in met:
                item = start.launch
                key = item.configuration if configurations else item.key
                kept.setdefault((capability, key), start)
    return list(kept.values())


def cuobjdump() -> str:
    """The disassembler inside the triton package, or the one on the PATH."""
    inside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(inside) if inside.exists() else "cuobjdump"


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, stack and local bytes a thread, static shared bytes of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [cuobjdump(), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text))
    return {key.lower(): int(found[key]) for key in ("REG", "STACK", "LOCAL")}


def loop_accesses(ptx: str) -> int:
    """Loads and stores, and copies that are not TMA's, in the basic blocks that multiply through wgmma.

    What is left there of an operand that does not come straight from shared memory, and of a mask.
    """
    blocks: list[list[str]] = [[]]
    for line in ptx.splitlines():
        if line.startswith("$L__BB"):
            blocks.append([])
        blocks[-1].append(line)
        if re.search(r"\bbra\b", line):
            blocks.append([])
    access = re.compile(r"\b(ld|st)\.(global|shared|local)|\bldmatrix\b|\bstmatrix\b|\bcp\.async\.c[ag]\b")
    products = [block for block in blocks if any("wgmma.mma_async" in line for line in block)]
    return sum(bool(access.search(line)) for block in products for line in block)


def row_of(start: Start) -> dict[str, Any]:
    """Compile one start and describe the result."""
    item, capability = start.launch, start.capability
    row: dict[str, Any] = {**start.row(), "error": None}
    try:
        kernel = compile_launch(item, capability)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        return row
    used = resources(kernel.asm["cubin"])
    row |= {
        "registers": used["reg"],
        "spills": used["stack"] + used["local"],
        "shared": kernel.metadata.shared,
    }
    ptx = kernel.asm["ptx"]
    row |= {"wgmma": "wgmma" in ptx, "mma": "mma." in ptx, "tma": "cp.async.bulk.tensor" in ptx}
    row["loop_accesses"] = loop_accesses(ptx)
    if kernel.metadata.shared > SHARED_LIMIT[capability]:
        row["error"] = f"{kernel.metadata.shared} bytes of shared memory, {SHARED_LIMIT[capability]} at most"
    return row


def _rows(which: tuple[Any, ...], indices: Sequence[int]) -> list[dict[str, Any]]:
    # Kernels do not travel between processes: each has a list of the starts of its own.
    torch.set_num_threads(1)
    starts = unique(*which)
    return [row_of(starts[i]) for i in indices]


def compile_all(
    which: tuple[Any, ...], share: tuple[int, int] = (1, 1), jobs: int = 1, progress: bool = False
) -> list[dict[str, Any]]:
    """Rows of the starts of ``unique(*which)``.

    share: (K, N): of every N-th start only, from the K-th on.
    """
    indices = range(share[0] - 1, len(unique(*which)), share[1])
    chunks = [indices[i : i + 8] for i in range(0, len(indices), 8)]
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=len(indices), desc="compiling", disable=not progress)
    if jobs <= 1:
        for chunk in chunks:
            rows += _rows(which, chunk)
            bar.update(len(chunk))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            for part in [pool.submit(_rows, which, chunk) for chunk in chunks]:
                rows += part.result()
                bar.update(len(part.result()))
    bar.close()
    return rows


def _share(text: str) -> tuple[int, int]:
    k, n = (int(number) for number in text.split("/"))
    if not 1 <= k <= n:
        raise ValueError
    return k, n


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m slowfast_kernels._triton.aot", description=__doc__.splitlines()[0]
    )
    with_triton = [op for op in op_names() if "triton" in OPS[op].providers]
    parser.add_argument("--ops", nargs="*", default=with_triton, choices=with_triton, metavar="OP")
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), metavar="CLIPS")
    parser.add_argument("--targets", nargs="*", type=int, default=[80, 90], choices=list(SHARED_LIMIT))
    parser.add_argument(
        "--configurations", action="store_true", help="one start of those that differ in alignment"
    )
    parser.add_argument(
        "--share", type=_share, default=(1, 1), metavar="K/N", help="the K-th of N equal parts"
    )
    parser.add_argument("--list", action="store_true", help="what would be compiled, without compiling it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", help="write the rows to this file")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET=1 is set: the interpreter does not compile")
    which = (
        tuple(args.ops),
        tuple(args.dtypes),
        tuple(args.batches),
        args.configurations,
        tuple(args.targets),
    )
    starts = unique(*which)
    if args.list:
        rows = [start.row() for start in starts]
        bad = []
    else:
        rows = compile_all(which, args.share, args.jobs, progress=sys.stderr.isatty())
        bad = [r for r in rows if r["error"] or r["spills"]]
    if args.json:
        document = {"triton": triton.__version__, "starts": len(starts), "rows": rows}
        Path(args.json).write_text(json.dumps(document, indent=1))
    for r in rows if not args.json else bad:
        where = f"{r['kernel']:20s} {r['dtype']:11s} {r['batch']:3d} x {r['case']:24s}"
        if args.list:
            print(f"{r['target']} {where} {r['warps']} warps, {r['stages']} stages")
            continue
        state = r["error"] or (
            f"{r['registers']:3d} registers, {r['spills']} spilled, {r['shared']:6d} shared"
            f"{', wgmma' if r['wgmma'] else ', mma' if r['mma'] else ''}{', tma' if r['tma'] else ''}"
        )
        print(f"{r['target']} {where} {state}")
    if args.list:
        print(f"Triton {triton.__version__}: {len(rows)} starts")
    else:
        print(f"Triton {triton.__version__}: {len(rows)} kernels compiled, {len(bad)} with errors or spills")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
