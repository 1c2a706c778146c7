"""Compile every Triton kernel ahead of time for the real shapes, on any machine.

    python -m slowfast_kernels._triton.aot [--ops ...] [--dtypes bf16 fp16 fp32] [--targets 80 90] [--json FILE]

The calls come from the ops' ``cases.py``, on meta tensors; equal starts are compiled once. Prints, or writes,
one row a kernel: registers, spilled bytes, shared memory, whether it uses wgmma. Exit status 1 if a kernel does
not compile, spills, or does not fit in shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from slowfast_kernels import precision
from slowfast_kernels._triton.launch import Launch, compile_launch, recording
from slowfast_kernels.ops._cases import cases_of, op_names
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.testing import RecordCalls, with_gradients

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

#: Shared memory that one block may have, bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}


def recorded(op: str, dtype: torch.dtype, batch: int = 8) -> list[tuple[str, Launch]]:
    """(case, start) of every kernel that the real cases of a public op start through its Triton provider."""
    found = []
    for case in cases_of(op):
        if not case.real:
            continue
        args, kwargs = case.args(dtype=dtype, device="meta", batch=batch)
        if f"{op}_bwd" in OPS:  # its gradient has kernels of its own
            (args, kwargs), _ = with_gradients((args, kwargs))
        with RecordCalls() as record:
            out = getattr(__import__("slowfast_kernels").ops, op)(*args, **kwargs)
            results = [y for y in (out if isinstance(out, (tuple, list)) else (out,)) if y.requires_grad]
            if results:
                torch.autograd.backward(results, [torch.empty_like(y) for y in results])
        for name, values in record.calls:
            provider = OPS[name].providers.get("triton") if name in OPS else None
            if provider is None or provider.refuses(*values):
                continue
            with recording() as launches:
                provider.run(*values)
            found += [(case.name, item) for item in launches]
    return found


def unique(ops: list[str], dtypes: list[str]) -> list[tuple[str, str, str, Launch]]:
    """(op, case, dtype, start), one for each machine code."""
    kept: dict[Any, tuple[str, str, str, Launch]] = {}
    for op in ops:
        for name in dtypes:
            for mode in precision.FP32_MODES if name == "fp32" else ("auto",):
                with precision.fp32_precision(mode):
                    for case, item in recorded(op, DTYPES[name]):
                        label = name if mode == "auto" else f"{name} {mode}"
                        kept.setdefault(item.key, (op, case, label, item))
    return list(kept.values())


def cuobjdump() -> str:
    """The disassembler inside the triton package, or the one on the PATH."""
    import triton

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


def row_of(op: str, case: str, dtype: str, item: Launch, capability: int) -> dict[str, Any]:
    """Compile one start and describe the result."""
    row: dict[str, Any] = {
        "op": op, "kernel": item.name, "case": case, "dtype": dtype, "target": f"sm_{capability}",
        "warps": item.warps, "stages": item.stages, "constants": {k: v for k, v in item.constants if v is not None},
        "error": None,
    }  # fmt: skip
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
    row["wgmma"] = "wgmma" in kernel.asm["ptx"]
    row["mma"] = "mma." in kernel.asm["ptx"]
    if kernel.metadata.shared > SHARED_LIMIT[capability]:
        row["error"] = f"{kernel.metadata.shared} bytes of shared memory, {SHARED_LIMIT[capability]} at most"
    return row


def _share(indices: list[int], ops: list[str], dtypes: list[str], targets: list[int]) -> list[dict[str, Any]]:
    # Kernels do not travel between processes: each collects the starts itself and compiles its share.
    torch.set_num_threads(1)
    items = unique(ops, dtypes)
    return [row_of(*items[i], target) for i in indices for target in targets]


def compile_all(
    ops: list[str], dtypes: list[str], targets: list[int], jobs: int = 1, progress: bool = False
) -> list[dict[str, Any]]:
    """Rows of every kernel of ``ops`` for every target."""
    count = len(unique(ops, dtypes))
    chunks = [list(range(start, min(start + 4, count))) for start in range(0, count, 4)]
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=count * len(targets), desc="compiling", disable=not progress)
    if jobs <= 1:
        for chunk in chunks:
            rows += _share(chunk, ops, dtypes, targets)
            bar.update(len(chunk) * len(targets))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            for part in [pool.submit(_share, chunk, ops, dtypes, targets) for chunk in chunks]:
                rows += part.result()
                bar.update(len(part.result()))
    bar.close()
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m slowfast_kernels._triton.aot", description=__doc__.splitlines()[0]
    )
    with_triton = [op for op in op_names() if "triton" in OPS[op].providers]
    parser.add_argument("--ops", nargs="*", default=with_triton, choices=with_triton, metavar="OP")
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--targets", nargs="*", type=int, default=[80, 90], choices=list(SHARED_LIMIT))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", help="write the rows to this file")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET=1 is set: the interpreter does not compile")
    rows = compile_all(args.ops, args.dtypes, args.targets, args.jobs, progress=sys.stderr.isatty())
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    bad = [r for r in rows if r["error"] or r["spills"]]
    for r in rows if not args.json else bad:
        state = r["error"] or (
            f"{r['registers']:3d} registers, {r['spills']} spilled, {r['shared']:6d} shared"
            f"{', wgmma' if r['wgmma'] else ', mma' if r['mma'] else ''}"
        )
        print(f"{r['target']} {r['kernel']:28s} {r['dtype']:12s} {r['case']:32s} {state}")
    print(f"{len(rows)} kernels compiled, {len(bad)} with errors or spills")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
