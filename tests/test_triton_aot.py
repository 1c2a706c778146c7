"""Every Triton kernel compiled ahead of time, on any machine: the heuristics' tiles at every real shape."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from slowfast_kernels._triton.aot import SHARED_LIMIT
from slowfast_kernels.ops._cases import op_names
from slowfast_kernels.ops._registration import OPS

#: Kernels that are products of matrices.
GEMM = {"conv_kernel", "tail_kernel", "stem_kernel"}

#: What is compiled: every kernel in bfloat16 for both architectures, in float16 for one; float32's modes on the ops
#: that take few starts and still reach every form of a convolution; marked slow, everything.
RUNS = {
    "bf16": ["--dtypes", "bf16", "--targets", "80", "90"],
    "fp16": ["--dtypes", "fp16", "--targets", "90"],
    "fp32": ["--ops", "stem3d", "lateral_fusion", "--dtypes", "fp32", "--targets", "90"],
    "everything": [],
}
PARAMS = [pytest.param(name, marks=pytest.mark.slow if name == "everything" else ()) for name in RUNS]


@pytest.fixture(scope="module", params=PARAMS)
def rows(request, tmp_path_factory):
    """(name of the run, a row per kernel), compiled by a process without the interpreter; Triton keeps a cache."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the triton package is not installed")
    file = tmp_path_factory.mktemp("aot") / "rows.json"
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SLOWFAST_EMULATE")}
    command = [sys.executable, "-m", "slowfast_kernels._triton.aot", "--jobs", "1", "--json", str(file)]
    done = subprocess.run([*command, *RUNS[request.param]], env=environment, capture_output=True, text=True)
    assert file.exists(), done.stdout + done.stderr
    found = json.loads(file.read_text())
    bad = any(row["error"] or row["spills"] for row in found)
    assert (done.returncode != 0) == bad, "the exit status does not tell what the rows do"
    return request.param, found


def named(row):
    return f"{row['kernel']} of {row['case']}, {row['dtype']}, {row['target']}"


def test_everything_compiles(rows):
    errors = [f"{named(row)}: {row['error']}" for row in rows[1] if row["error"]]
    assert not errors, "\n".join(errors)


def test_every_op_is_there(rows):
    name, found = rows
    expected = {op for op in op_names() if "triton" in OPS[op].providers}
    assert {row["op"] for row in found} == ({"stem3d", "lateral_fusion"} if name == "fp32" else expected)
    if name in ("fp32", "everything"):
        modes = {f"fp32 {mode}" for mode in ("ieee", "tf32", "tf32x3", "bf16x3")}
        assert {row["dtype"] for row in found} >= modes


def test_no_registers_spill(rows):
    spilled = [f"{named(row)}: {row['spills']} bytes" for row in rows[1] if row["spills"]]
    assert not spilled, "\n".join(spilled)


def test_shared_memory_fits(rows):
    for row in rows[1]:
        assert row["shared"] <= SHARED_LIMIT[int(row["target"].removeprefix("sm_"))], named(row)


def test_products_run_on_matrix_units(rows):
    """wgmma on Hopper, mma before; float32 in full precision has none."""
    products = [r for r in rows[1] if r["kernel"] in GEMM and r["dtype"] != "fp32 ieee"]
    assert {r["kernel"] for r in products} == ({"conv_kernel"} if rows[0] == "fp32" else GEMM)
    for row in products:
        hopper = row["target"] == "sm_90" and not row["dtype"].startswith("fp32")
        assert row["wgmma" if hopper else "mma"], f"{named(row)} does without matrix units"
