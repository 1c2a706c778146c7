"""Every Triton kernel compiled ahead of time, on any machine: the heuristics' tiles at every real shape."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slowfast_kernels._triton.aot import SHARED_LIMIT
from slowfast_kernels.ops._cases import op_names
from slowfast_kernels.ops._registration import OPS

#: Parts that the starts are compiled in, for the test processes to share: a minute or so each.
SHARES = 8

#: The oldest Triton that the kernels have to compile with, and where `make test` puts it.
OLDEST = (Path(__file__).parent / "requirements-triton.txt").read_text().strip()
OLDEST_AT = Path(__file__).parent.parent / "build" / "triton-3.6"

#: Where the kernels are that read through descriptors.
DESCRIPTOR_MODULE = "slowfast_kernels.ops.conv_bn_act3d.triton_descriptor"

#: Kernels that are products of matrices.
PRODUCTS = {"conv_kernel", "descriptor_kernel", "tail_kernel", "stem_kernel"}

#: Kernels whose maps come and go through TMA: on sm_90 only, in half precision.
DESCRIPTORS = {"descriptor_kernel", "split_sum_kernel"}

#: Kernels whose code knows nothing of the activations' type: they count as bfloat16's, which comes first.
TYPELESS = {"roi_taps_kernel", "scores_kernel", "windows_kernel"}

#: Kernels that a type or a mode of float32 products has none of, or has at all.
ABSENT = {
    "bf16": set(),
    "fp16": TYPELESS,
    "fp32 ieee": TYPELESS | DESCRIPTORS | {"stem_kernel", "tail_kernel"},
}
PRESENT = {
    "fp32 tf32": {"conv_kernel", "tail_kernel"},
    "fp32 tf32x3": {"conv_kernel"},
    "fp32 bf16x3": {"conv_kernel"},
}


def compiled(tmp_path, *options, python_path=()):
    """What `python -m slowfast_kernels._triton.aot` writes, in a process without the interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the triton package is not installed")
    file = tmp_path / "rows.json"
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SLOWFAST_EMULATE")}
    paths = [*map(str, python_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    command = [sys.executable, "-m", "slowfast_kernels._triton.aot", "--jobs", "1", "--json", str(file)]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert file.exists(), done.stdout + done.stderr
    document = json.loads(file.read_text())
    bad = any(row.get("error") or row.get("spills") for row in document["rows"])
    assert (done.returncode != 0) == bad, "the exit status does not tell what the rows do"
    assert f"Triton {document['triton']}: {len(document['rows'])} " in done.stdout
    return document


def faults(row):
    """What is wrong with a compiled kernel."""
    if row["error"]:
        return [row["error"]]
    found = []
    if row["spills"]:
        found.append(f"{row['spills']} bytes are spilled")
    if row["shared"] > SHARED_LIMIT[int(row["target"].removeprefix("sm_"))]:
        found.append(f"{row['shared']} bytes of shared memory")
    if row["kernel"] in PRODUCTS and row["dtype"] != "fp32 ieee":  # full precision does without matrix units
        unit = "wgmma" if row["target"] == "sm_90" and not row["dtype"].startswith("fp32") else "mma"
        if not row[unit]:
            found.append(f"no {unit}")
    if row["kernel"] in DESCRIPTORS and not row["tma"]:
        found.append("no tma")
    if row["kernel"] == "descriptor_kernel" and row["loop_accesses"]:
        found.append(f"{row['loop_accesses']} accesses besides TMA's between the products")
    return found


def assert_faultless(rows):
    found = [
        f"{row['kernel']} of {row['batch']} x {row['case']}, {row['dtype']}, {row['target']}: {fault}"
        for row in rows
        for fault in faults(row)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("share", [f"{k}/{SHARES}" for k in range(1, SHARES + 1)])
def test_kernels_compile(share, tmp_path):
    """Every start of every real case, all of them: types and float32 modes, both architectures, 1, 8 and 32 clips.

    No errors, no spills, shared memory within what a block may have; products on matrix units, in half precision on
    Hopper through wgmma, with descriptors straight from what TMA brought. Starts that Triton compiles from the same
    source with the same options are compiled once.
    """
    document = compiled(tmp_path, "--share", share)
    rows = document["rows"]
    first = int(share.partition("/")[0]) - 1
    assert len(rows) == len(range(first, document["starts"], SHARES)) > 0
    assert {row["target"] for row in rows} == {f"sm_{capability}" for capability in SHARED_LIMIT}
    assert_faultless(rows)


def test_every_kernel_is_there(tmp_path):
    """The starts above cover every op, and every kernel of the sources in every type and mode that it is used with."""
    rows = compiled(tmp_path, "--list")["rows"]
    with_triton = {op for op in op_names() if "triton" in OPS[op].providers}
    modules = [importlib.import_module(f"slowfast_kernels.ops.{op}.triton") for op in with_triton]
    modules += map(importlib.import_module, ("slowfast_kernels._triton.roi", DESCRIPTOR_MODULE))
    every = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert every >= PRODUCTS
    expected = {dtype: every - absent for dtype, absent in ABSENT.items()} | PRESENT
    found = {dtype: {row["kernel"] for row in rows if row["dtype"] == dtype} for dtype in expected}
    assert found == expected
    assert {row["target"] for row in rows if row["kernel"] in DESCRIPTORS} == {"sm_90"}
    assert {row["dtype"] for row in rows} == set(expected)
    for dtype in ("bf16", "fp16", "fp32"):
        assert {row["op"] for row in rows if row["dtype"].startswith(dtype)} == with_triton
    assert {row["batch"] for row in rows} == {1, 8, 32}


@pytest.mark.parametrize("target", ["80", "90"])
def test_kernels_compile_with_the_oldest_triton(target, tmp_path):
    """One start of every kernel and configuration (constants, tiles, warps) in bfloat16, for 8 clips; those of split
    sums for 1.
    """
    if not OLDEST_AT.is_dir():
        pytest.skip(f"{OLDEST} is missing: pip install --no-deps --target build/{OLDEST_AT.name} {OLDEST}")
    options = ("--configurations", "--dtypes", "bf16", "--targets", target)
    calls = [("--batches", "8"), *([("--batches", "1", "--ops", "conv_bn_act3d")] if target == "90" else [])]
    met = set()
    for call in calls:
        document = compiled(tmp_path, *options, *call, python_path=[OLDEST_AT])
        assert f"triton=={document['triton']}" == OLDEST
        assert_faultless(document["rows"])
        met |= {row["kernel"] for row in document["rows"]}
    assert met >= (PRODUCTS | DESCRIPTORS if target == "90" else PRODUCTS - DESCRIPTORS)


GOOD = {"error": None, "spills": 0, "shared": SHARED_LIMIT[80], "wgmma": True, "mma": True, "tma": True}
GOOD |= {"loop_accesses": 0}


@pytest.mark.parametrize(
    "kernel, dtype, target, changes, expected",
    [
        ("conv_kernel", "bf16", "sm_90", {}, []),
        ("conv_kernel", "bf16", "sm_80", {"wgmma": False}, []),
        ("pool_kernel", "bf16", "sm_90", {"wgmma": False, "mma": False}, []),
        ("conv_kernel", "fp32 ieee", "sm_90", {"wgmma": False, "mma": False}, []),
        ("conv_kernel", "fp16", "sm_90", {"wgmma": False}, ["no wgmma"]),
        ("tail_kernel", "fp32 tf32", "sm_90", {"mma": False}, ["no mma"]),
        ("stem_kernel", "bf16", "sm_80", {"mma": False}, ["no mma"]),
        ("conv_kernel", "bf16", "sm_90", {"tma": False, "loop_accesses": 8}, []),
        ("descriptor_kernel", "bf16", "sm_90", {"tma": False}, ["no tma"]),
        ("split_sum_kernel", "fp16", "sm_90", {"tma": False}, ["no tma"]),
        (
            "descriptor_kernel",
            "bf16",
            "sm_90",
            {"loop_accesses": 2},
            ["2 accesses besides TMA's between the products"],
        ),
        ("pool_kernel", "bf16", "sm_80", {"spills": 8}, ["8 bytes are spilled"]),
        ("pool_kernel", "bf16", "sm_90", {"shared": SHARED_LIMIT[90]}, []),
        ("pool_kernel", "bf16", "sm_80", {"shared": SHARED_LIMIT[80] + 1}, ["166913 bytes of shared memory"]),
        ("pool_kernel", "bf16", "sm_80", {"error": "E"}, ["E"]),
    ],
)
def test_faults_are_seen(kernel, dtype, target, changes, expected):
    assert faults({"kernel": kernel, "dtype": dtype, "target": target, **GOOD, **changes}) == expected
