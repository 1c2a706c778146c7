"""bench/gpu.sh: its dry run goes through everything but the device, and what is wrong ends in the exit status."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tarfile
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from slowfast_kernels import _selftest, backends, bench
from slowfast_kernels.backends import Provider
from slowfast_kernels.bench import (
    compare,
    cudnn_forms,
    peers,
    plain,
    registry,
    roi_peers,
    store,
    targets,
)
from slowfast_kernels.bench import stamp as stamps
from slowfast_kernels.bench.gpu import (
    ceilings,
    clocks,
    command,
    correctness,
    kernels,
    network,
    options,
    profile,
    single,
    smoke,
    worker,
)
from slowfast_kernels.bench.gpu import machine as machine_module
from slowfast_kernels.bench.gpu import parts as parts_module
from slowfast_kernels.bench.gpu.document import Writer, document_of, failures, merged
from slowfast_kernels.bench.gpu.items import Item, check, shared
from slowfast_kernels.bench.gpu.machine import CudaMachine, DryMachine, moved
from slowfast_kernels.bench.gpu.page import COMPARED, HEADER, draw, lines, missing_lines, roofline_points
from slowfast_kernels.bench.gpu.page import DRY as DRY_TITLE
from slowfast_kernels.bench.gpu.page import page as render
from slowfast_kernels.bench.gpu.parts import Part, Supervisor
from slowfast_kernels.bench.harness import Contender, Setting
from slowfast_kernels.bench.plain import op_module
from slowfast_kernels.bench.roofline import GPU_PEAKS
from slowfast_kernels.bench.stamp import gpu_environment, gpu_lines
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.ops import _layers
from slowfast_kernels.ops._cases import cases_of
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.ops.conv_bn_act3d import cudnn
from slowfast_kernels.testing import relative_l2

ROOT = Path(store.__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "gpu.sh"
DRY = Setting(dry=True, batches=(1, 2), limit=1, rounds=2, shrink=16, check_shrink=16, crop=32, frames=8,
              overrides={"blocks": [1, 1, 1, 1]})  # fmt: skip


def run_script(*arguments, **environment):
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=env
    )


@pytest.fixture
def dry():
    """The machine of a dry run; cuDNN's switch as it was."""
    before = torch.backends.cudnn.benchmark
    machine = DryMachine(DRY)
    with machine.session():
        yield machine
    torch.backends.cudnn.benchmark = before


# --- the script --------------------------------------------------------------------------------------------


#: The commands of a first contact, cut short: the first item of every part (of the network another one each, of
#: correctness a quick op), and the part that none of them has.
RUNS = {
    1: [],
    2: ["--item", "network=laterals*", "--op", "pack_pathways,conv_bn_act3d", "--only", "ops"],
    3: ["--item", "network=fast stem*", "--item", "profile=pack*"],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Dry runs of the three, without PYTHONPATH or an installed package: run -> (OUT, process, document)."""
    found = {}
    for run, more in RUNS.items():
        out = tmp_path_factory.mktemp(f"gpu{run}")
        done = run_script(out, "--run", run, "--dry-run", "--items", "1", "--batch", "1", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        found[run] = out, done, json.loads((out / "gpu.json").read_text())
    return found


def parts_of(measured):
    return [(run, *one) for run, (_, _, document) in measured.items() for one in document["parts"].items()]


def test_the_runs_of_a_first_contact_go_through_every_part(measured):
    assert {name for _, name, _ in parts_of(measured)} == set(worker.PARTS)
    for run, name, part in parts_of(measured):
        # profiled are several calls, by name
        count = len(options.parsed(["--run", "3"]).profile) if name == "profile" else 1
        assert part["status"] == "done" and len(part["done"]) == min(count, 1), (run, name)
        assert not part["failed"], (run, name)
    compared = [r for _, _, document in measured.values() for r in document["compared"]]
    assert {r["part"] for r in compared} == set(COMPARED) - {"smoke"}  # whose first item compares nothing
    for record in compared:
        assert {r["who"] for r in record["rows"] if not r["ours"]}, record["what"]
        assert any(r["ours"] and r["green"] for r in record["rows"]), record["what"]
        assert all(r["median_s"] > 0 for r in record["rows"])
    statuses = {
        n: [r["status"] for r in p["records"]] for _, n, p in parts_of(measured) if n in ("smoke", "profile")
    }
    assert statuses["smoke"] in (["ok", "ok"], ["missing"]) and statuses["profile"] == ["missing"]


def test_a_run_of_a_first_contact_fits_into_ten_minutes():
    for run, words in options.RUNS.items():
        args = options.parsed(["--run", str(run)])
        setting, seconds = options.setting_of(args), options.seconds_of(args.seconds)
        assert args.minutes <= 9.5 and 60 * args.minutes >= sum(seconds[name] for name in args.only), words
        assert set(setting.wanted) <= set(args.only)
        for name, pattern in setting.wanted.items():
            machine = types.SimpleNamespace(setting=setting, dry=False)
            keys = [item.key for item in worker.PARTS[name](machine)]
            assert all(any(registry.matches(key, one) for key in keys) for one in pattern.split(",")), pattern
        assert args.batch and options.parsed(["--run", str(run), "--batch", "2"]).batch == "2"
    default = [seconds for name, (seconds, _) in options.BUDGETS.items() if name != "profile"]
    assert sum(default) <= 60 * options.parsed([]).minutes


def test_interpreted_kernels_are_among_the_contenders(measured):
    reason = backends.unavailable("triton") if backends.simulated("triton") else None
    if reason:
        pytest.skip(reason)
    compared = [r for _, _, document in measured.values() for r in document["compared"]]
    assert {r["part"] for r in compared for row in r["rows"] if row["who"] == "triton"} == {
        "network",
        "pack",
        "roi",
        "ops",
    }


def test_a_dry_run_cannot_be_mistaken(measured):
    for out, done, document in measured.values():
        page = (out / "gpu.md").read_text()
        assert document["dry_run"] is True and document["note"] == DRY_TITLE
        assert DRY_TITLE in page and DRY_TITLE in done.stdout and "Dry run" in page.splitlines()[0]
        assert {row["verdict"] for row in document["targets"]} == {"dry run"}
        assert document["environment"]["revision"]


def test_the_page_has_the_targets_and_every_table(measured):
    pages = [(out / "gpu.md").read_text() for out, _, _ in measured.values()]
    for page in pages:
        table = [line for line in page.splitlines() if line.startswith("| ")]
        assert len(table) == 13 and {line.count("|") for line in table} == {10}
        assert "## Targets\n" in page and "## What was run\n" in page
    for title in ("Checks", "Ceilings", "Correctness", "The network and its parts", "pack_pathways", "roi_head_pool",
                  "Single ops", "torch.compile"):  # fmt: skip
        assert any(f"## {title}\n" in page for page in pages), title
    assert "torchvision" in pages[1]  # there or missing: said either way
    pytest.importorskip("matplotlib")
    assert all((out / "speedups.png").stat().st_size > 1000 for out, _, _ in measured.values())


def test_one_file_brings_everything_home(measured, tmp_path):
    """Whatever is in OUT, and the tiles that were measured."""
    for out, done, _ in measured.values():
        with tarfile.open(out / command.ARCHIVE) as archive:
            names = set(archive.getnames())
        assert names == {p.name for p in out.iterdir()} - {command.ARCHIVE} and command.ARCHIVE in done.stdout
    out, cache = tmp_path / "out", tmp_path / "tiles"
    (cache / "plans").mkdir(parents=True)
    (cache / "plans" / "gpu.json").write_text("{}")
    out.mkdir()
    (out / "gpu.md").write_text("page")
    for folder, kept in ((cache, "cache/plans/gpu.json"), (out / "own", "own/gpu.json")):
        if not folder.exists():
            (cache / "plans").rename(folder)
        command.archive(out, folder)
        with tarfile.open(out / command.ARCHIVE) as archive:
            listed = archive.getnames()
        assert "gpu.md" in listed and kept in listed and command.ARCHIVE not in listed
        assert len(listed) == len(set(listed))  # a cache in OUT is packed once


def test_correctness_part_with_a_sanitizer_and_pytest(tmp_path):
    """The tool is a stand-in that runs its program; GPU tests are this file's, skipped where there is no GPU."""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/bash\n"
        'while [[ $1 == --* ]]; do shift 2; done; "$@"; status=$?\n'
        "echo '========= ERROR SUMMARY: 0 errors'; exit $status\n"
    )
    tool.chmod(0o755)
    out = tmp_path / "out"
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    done = run_script(out, "--dry-run", "--only", "correctness", "--op", "pack_pathways", PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {
        r["what"]: r for r in json.loads((out / "gpu.json").read_text())["parts"]["correctness"]["records"]
    }
    assert set(records) == {
        "pack_pathways triton",
        "pack_pathways cuda",
        "pytest -m gpu",
        "compute-sanitizer",
    }
    assert "skipped" in records["pytest -m gpu"]["summary"]
    assert "0 errors" in records["compute-sanitizer"]["summary"]
    for provider in ("triton", "cuda"):
        record = records[f"pack_pathways {provider}"]
        assert record["missing"] or record["passed"] == 8
    if not records["pack_pathways triton"]["missing"]:
        assert records["compute-sanitizer"]["passed"] > 0
        assert "checked pack_pathways triton" in (out / "sanitizer.txt").read_text()


def test_help_teaches():
    done = run_script("--help")
    assert done.returncode == 0
    for word in ("usage: bench/gpu.sh", "PYTHON=", "--rebuild", "examples:", "exit status", *worker.PARTS):
        assert word in done.stdout, word


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dry-run", "--only", "nothing"], "expected a part among"),
        (["--dry-run", "--batch", "0"], "--batch: expected"),
        (["--dry-run", "--seconds", "ops"], "--seconds: expected PART=N"),
        (["--dry-run", "--profile", "stem3d/nothing"], "case: expected a name"),
        (["--dry-run", "--item", "model b8"], "--item: expected PART=PATTERN"),
        (["--dry-run", "--save"], "a dry run measures nothing"),
        ([str(store.RESULTS / "x"), "--dry-run"], "does not write under"),
    ],
)
def test_unusable_options_are_refused_in_one_line(arguments, words, capsys, monkeypatch):
    for name in ("TRITON_INTERPRET", "SLOWFAST_EMULATE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the command sets them
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([str(tmp_path / "out")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_python_with_torch_is_said():
    done = run_script("--dry-run", PYTHON="/bin/false")
    assert done.returncode == 2 and "no Python with torch" in done.stderr


# --- wrong kernels -----------------------------------------------------------------------------------------


def broken(op, monkeypatch, change):
    """The op's Triton provider computes the reference and then ``change``s it."""
    entry = OPS[op]

    def run(*call):
        return change(entry.reference(*call))

    provider = Provider(run, prepare=lambda spec, *_: lambda *inputs: run(*inputs, spec))
    monkeypatch.setitem(entry.providers, "triton", provider)
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    monkeypatch.setattr(backends, "home", lambda name: "cpu")


def lose_the_last(out):
    # as a kernel that forgets its tail: what the allocator left stays
    whole = torch.empty(out.shape, dtype=out.dtype)
    whole.view(-1)[:-1] = out.reshape(-1)[:-1]
    return whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out * 1.01, "relative L2 error"),
        (lose_the_last, "NaN"),
        (lambda out: out[..., :-1], "expected shape"),
    ],
    ids=["values", "unwritten", "shape"],
)
def test_a_wrong_kernel_fails(change, words, dry, monkeypatch):
    broken("pool_concat_head", monkeypatch, change)
    cases = [c for c in cases_of("pool_concat_head") if c.name == "odd"]
    record = correctness.check_op(dry, "pool_concat_head", "triton", cases)
    assert record["passed"] == 0 and len(record["failures"]) == 4
    assert all(words in text for text in record["failures"])
    parts = {"correctness": Part(status="done", records=[record])}
    document, rows = document_of({"gpu": None, **STAMP}, DRY, parts, "test")
    assert failures(document) == [f"pool_concat_head triton: {t}" for t in record["failures"]]
    assert "FAILED" in render(document, rows)


STAMP = {"processor": "p", "cores": 1, "threads": 1, "isa": "none", "torch": "2", "python": "3", "revision": "r",
         "time": "t", "load": None}  # fmt: skip


def test_a_crash_and_a_refusal_differ(dry, monkeypatch):
    def crash(out):
        raise RuntimeError("launch failed")

    broken("pool_concat_head", monkeypatch, crash)
    cases = [c for c in cases_of("pool_concat_head") if c.name == "odd"]
    record = correctness.check_op(dry, "pool_concat_head", "triton", cases, ["bf16"])
    assert record["failures"] == ["odd, bf16: RuntimeError: launch failed"]
    refusing = Provider(lambda *args: None, lambda *args: "not today")
    monkeypatch.setitem(OPS["pool_concat_head"].providers, "triton", refusing)
    record = correctness.check_op(dry, "pool_concat_head", "triton", cases, ["bf16"])
    assert not record["failures"] and record["refused"] == {"triton: not today": ["odd, bf16"]}


def test_a_wrong_gradient_fails(dry, monkeypatch):
    broken("roi_head_pool_bwd", monkeypatch, lambda grad: grad * 1.1)
    entry = OPS["roi_head_pool"]
    monkeypatch.setitem(entry.providers, "triton", Provider(entry.reference))
    cases = [c for c in cases_of("roi_head_pool") if c.name == "one frame"]
    record = correctness.check_op(dry, "roi_head_pool", "triton", cases, ["fp32", "bf16"])
    assert record["passed"] == 2  # the forward
    assert [t.split(":")[0] for t in record["failures"]] == [
        "one frame, gradient, fp32",
        "one frame, gradient, bf16",
    ]


def test_a_wrong_kernel_gets_no_speed_up(dry, monkeypatch):
    broken("lateral_fusion", monkeypatch, lambda out: out * 1.1)
    monkeypatch.setattr(single, "PROVIDERS", ("triton",))
    case = next(c for c in cases_of("lateral_fusion") if c.real)
    entry = registry.Entry("lateral_fusion", case, "bf16")
    record = compare.derive(single.measure_call(dry, entry, 1), {}, GPU_PEAKS)
    assert not record["missing"], record["missing"]
    row = next(r for r in record["rows"] if r["who"] == "triton")
    assert not row["green"] and row["speedup"] is None and row["ours"]
    document, rows = document_of(STAMP, DRY, {"ops": Part(status="done", records=[record])}, "test")
    assert any("lateral_fusion" in text and "triton" in text for text in failures(document))
    assert "RED" in render(document, rows)


def test_calls_that_are_not_reached_are_counted(dry):
    dry.item_deadline = 0.0
    record = correctness.check_op(dry, "pool_concat_head", "triton", cases_of("pool_concat_head")[:3])
    if record["missing"]:
        pytest.skip(record["missing"])
    assert record["not_reached"] == 3 and record["passed"] == 0 and not record["failures"]


# --- the first minute ---------------------------------------------------------------------------------------


def test_what_somebody_elses_call_does_is_told(dry):
    """On poisoned memory, values that it leaves out are NaN; a call that cannot run says why."""
    exact = torch.randn(4, 6)

    def lost():
        raise RuntimeError("no engine for this convolution")

    found = [smoke._checked(dry, "call", lambda: exact.bfloat16(), exact),
             smoke._checked(dry, "call", lambda: lose_the_last(exact.bfloat16()), exact),
             smoke._checked(dry, "call", lost, exact)]  # fmt: skip
    assert [r["status"] for r in found] == ["ok", "red", "missing"]
    assert found[0]["seconds"] > 0 and found[1]["nan"] == 1 and "1 values of 24 are NaN" in found[1]["text"]
    assert "no engine" in found[2]["text"] and not any(r["ours"] for r in found)


def test_a_red_check_of_ours_fails_the_run():
    red = [check("theirs", "red", "NaN", ours=False), check("ours", "red", "another sum")]
    document, rows = document_of(STAMP, DRY, {"smoke": Part(status="done", records=red)}, "test")
    assert failures(document) == ["smoke, ours: another sum"]
    assert "- theirs: RED; NaN" in render(document, rows)


def test_the_deep_convolutions_are_all_of_them():
    convolutions = [c for c in _layers.every_convolution() if c.name.startswith(smoke.DEEP)]
    assert len(convolutions) == 3 * (4 + 6 + 3) + 3  # blocks of three, and shortcuts
    assert all(cudnn.cannot(c.spec, torch.bfloat16) is None for c in convolutions)
    cases = smoke._deep(types.SimpleNamespace(setting=Setting()))
    assert sum(c.count for c in cases) == len(convolutions) and len(cases) == 18


@pytest.mark.parametrize("name", ["res3.slow.0.a", "res3.slow.0.c", "res3.slow.0.shortcut"])
def test_a_deep_convolution_by_everybody(name, dry):
    dry.setting = replace(DRY, batches=(1,))
    case = next(c for c in cases_of("conv_bn_act3d") if c.name == name)
    (found,) = smoke._convolution(dry, case)
    wanted = {"conv2d"} | ({"triton"} if not backends.unavailable("triton") else set())
    if name.endswith(".a") and not backends.unavailable("cuda"):
        wanted.add("cuda")  # as a wide block's first convolution
    assert {r["who"] for r in found["rows"]} == wanted and all(r["green"] for r in found["rows"])
    fused = {"cudnn_fused"} if "shortcut" not in name else set()
    assert set(found["missing"]) - {"triton", "cuda"} == fused  # no cuDNN here; a shortcut has no ReLU


def test_rates_count_work_that_was_done(dry, monkeypatch):
    if reason := backends.unavailable("cuda"):
        pytest.skip(reason)
    found = [*smoke._products(dry), *smoke._read(dry)]
    assert [r["status"] for r in found] == ["ok"] * 4
    monkeypatch.setattr(_selftest, "products", lambda *args: None)
    monkeypatch.setattr(_selftest, "read", lambda *args: None)
    found = [*smoke._products(dry), *smoke._read(dry)]
    assert [r["status"] for r in found] == ["red", "red", "ok", "red"]


# --- workers that fail -------------------------------------------------------------------------------------

STAND_IN = """
import json, os, signal, sys, time
part, setting, events, seconds, *skip = sys.argv[1:]
def tell(event, **more):
    with open(events, "a") as file:
        file.write(json.dumps({"event": event, "part": part, **more}) + "\\n")
for key in ("first", "bad", "last"):
    if key in skip:
        continue
    tell("start", key=key)
    if key == "bad":
        BAD
    tell("record", key=key, record={"name": key, "value": 1.0, "unit": "GB/s"})
    tell("done", key=key, seconds=0.1)
tell("end")
"""


def stand_in(tmp_path, bad):
    file = tmp_path / "worker.py"
    file.write_text(STAND_IN.replace("BAD", bad))
    return [sys.executable, str(file)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died (signal 11"),
        ("sys.exit(3)", "died (exit status 3"),
        ("tell('failed', key=key, reason='the device was lost'); sys.exit(3)", "the device was lost"),
    ],
)
def test_one_bad_item_costs_one_item(bad, reason, tmp_path):
    said: list[str] = []
    part = Supervisor("ceilings", DRY, 3600, tmp_path, said.append, stand_in(tmp_path, bad)).run()
    assert list(part.done) == ["first", "last"] and part.status == "done"
    assert list(part.failed) == ["bad"] and reason in part.failed["bad"]
    assert [r["name"] for r in part.records] == ["first", "last"]
    document, _ = document_of(STAMP, DRY, {"ceilings": part}, "test")
    assert any("bad" in text for text in failures(document))


def test_an_item_without_an_end_is_stopped(tmp_path):
    hanging = stand_in(tmp_path, "time.sleep(600)")
    part = Supervisor("ceilings", DRY, 2, tmp_path, lambda text: None, hanging, grace=1).run()
    assert list(part.done) == ["first"] and "did not end within 3 s" in part.failed["bad"]
    assert [r["name"] for r in part.records] == ["first"]
    document, _ = document_of(STAMP, DRY, {"ceilings": part}, "test")
    assert failures(document) == []  # out of time is not wrong


def test_what_is_made_is_told_before_the_rest(dry):
    """A comparison that may not lose anything tells what it has behind every contender, as soon as there are both
    sides; the last record has all of them."""
    dry.patience = 0.0
    x = torch.ones(3)
    builders = {n: (lambda n=n: Contender(n, [lambda: x], ours=n == "mine")) for n in ("mine", "a", "b", "c")}
    told = list(compare.records(dry, builders, x, x, dtype="fp32", what="w", batch=1, flops=0, bytes=12))
    assert [r.get("partial", False) for r in told] == [True, True, False]
    assert [[row["who"] for row in r["rows"]] for r in told] == [
        ["mine", *"a"],
        ["mine", *"ab"],
        ["mine", *"abc"],
    ]
    document, rows = document_of(STAMP, DRY, {"network": Part(records=[told[0]])}, "test")
    assert "w, b1 fp32 (so far)" in render(document, rows)
    whole = compare.compare(dry, builders, x, x, dtype="fp32", what="w", batch=1, flops=0, bytes=12)
    assert len(whole["rows"]) == 4 and "partial" not in whole


def test_checks_measure_no_tiles(tmp_path, monkeypatch):
    """SLOWFAST_AUTOTUNE is for the parts that measure."""
    monkeypatch.setenv("SLOWFAST_AUTOTUNE", "1")
    seen = stand_in(tmp_path, "tell('record', key=key, record={'name': os.environ['SLOWFAST_AUTOTUNE'], "
                              "'value': 1.0, 'unit': ''})")  # fmt: skip
    for name, value in (("smoke", "0"), ("correctness", "0"), ("network", "1")):
        part = Supervisor(name, DRY, 3600, tmp_path, lambda text: None, seen).run()
        assert part.records[1]["name"] == value


def test_a_killed_item_leaves_what_it_told(tmp_path):
    """A partial record stays where the item is stopped, and goes where the item tells more."""
    record = {"name": "x", "value": 1.0, "unit": "", "partial": True}
    lines = [f"tell('record', key='bad', record={record | {'value': v}!r})" for v in (1.0, 2.0)]
    died = stand_in(tmp_path, f"{'; '.join(lines)}; sys.exit(3)")
    part = Supervisor("ceilings", DRY, 3600, tmp_path, lambda text: None, died).run()
    assert list(part.failed) == ["bad"] and [r["value"] for r in part.records if r["name"] == "x"] == [2.0]
    told = stand_in(tmp_path, lines[0])  # and the whole one behind it
    part = Supervisor("ceilings", DRY, 3600, tmp_path, lambda text: None, told).run()
    assert [r["name"] for r in part.records] == ["first", "bad", "last"]


def test_only_items_of_such_names(tmp_path, monkeypatch):
    def item(key):
        return Item(key, lambda: [{"name": key, "value": 1, "unit": ""}])

    items = [item(key) for key in ("model b1", "model b8", "x")]
    monkeypatch.setitem(worker.PARTS, "ceilings", lambda machine: items)
    setting = replace(DRY, wanted={"ceilings": "*b8,x", "ops": "nothing"})
    assert worker.work("ceilings", setting, tmp_path / "events", [], seconds=1e9) == 0
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [e["key"] for e in events if e["event"] == "done"] == ["model b8", "x"]


def test_an_item_is_stopped_long_behind_its_plan(tmp_path, monkeypatch):
    """The others then have what is left."""
    monkeypatch.setattr(parts_module, "LEAST_SHARE", 0.5)
    hanging = stand_in(tmp_path, "tell('start', key='bad', seconds=0.1); time.sleep(600)")
    part = Supervisor("ceilings", DRY, 3600, tmp_path, lambda text: None, hanging).run()
    assert list(part.done) == ["first", "last"] and "its share" in part.failed["bad"]


def test_a_worker_that_does_not_start_is_a_failure(tmp_path, capsys, monkeypatch):
    for name in ("TRITON_INTERPRET", "SLOWFAST_EMULATE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    arguments = [str(tmp_path), "--dry-run", "--only", "ceilings"]
    assert command.main(arguments, worker=[sys.executable, "-c", "raise SystemExit('no such module')"]) == 1
    assert "no such module" in (tmp_path / "log.txt").read_text()
    assert "FAILED: ceilings: died" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["ceilings"]["records"] == []


def test_work_that_is_late_is_listed(tmp_path):
    assert worker.work("ceilings", DRY, tmp_path / "events", [], seconds=0.0) == 0
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [e["event"] for e in events] == ["late", "end"]
    assert events[0]["keys"] == [item.key for item in ceilings.items(DryMachine(DRY))]


def test_a_failing_item_does_not_stop_the_others(tmp_path, monkeypatch):
    def fail():
        raise ValueError("no good")

    items = [Item("a", fail), Item("b", lambda: [{"name": "b", "value": 1, "unit": ""}])]
    monkeypatch.setitem(worker.PARTS, "ceilings", lambda machine: items)
    assert worker.work("ceilings", DRY, tmp_path / "events", [], seconds=1e9) == 0
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "failed", "start", "record", "done", "end"]
    assert events[1]["reason"] == "ValueError: no good"


def test_a_setting_survives_the_journey():
    assert worker.setting_from(worker.setting_to(DRY)) == DRY


def test_several_processes_share_a_part(tmp_path):
    """Each does its share, a bad item costs one item of one of them, and every line arrives."""
    file = tmp_path / "worker.py"
    file.write_text(
        "import json, os, signal, sys\n"
        "part, setting, events, seconds, *skip = sys.argv[1:]\n"
        "i, n = json.loads(setting)['share']\n"
        "def tell(event, **more):\n"
        "    line = json.dumps({'event': event, 'part': part, 'share': i, **more})\n"
        "    os.write(file, line.encode() + b'\\n')\n"
        "file = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for k in range(i, 12, n):\n"
        "    if str(k) in skip: continue\n"
        "    tell('start', key=str(k))\n"
        "    if k == 4: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    record = {'name': str(k), 'value': 1.0, 'unit': ''}\n"
        "    tell('record', key=str(k), record=record)\n"
        "    tell('done', key=str(k), seconds=0.1)\n"
        "tell('end')\n"
    )
    news = []
    part = Supervisor(
        "correctness", DRY, 3600, tmp_path, lambda text: None, [sys.executable, str(file)], processes=3,
        progress=lambda: news.append(1),
    ).run()  # fmt: skip
    assert sorted(map(int, part.done)) == [k for k in range(12) if k != 4] and part.status == "done"
    assert list(part.failed) == ["4"] and "signal 11" in part.failed["4"]
    assert len(part.records) == 11 and news


def test_long_items_have_a_process_of_their_own():
    names = ["a", "b", "long", "c", "d", "longer", "e"]
    items = [Item(n, list, alone=n.startswith("long")) for n in names]
    shares = [[i.key for i in shared(items, (k, 4))] for k in range(4)]
    assert shares == [["long"], ["longer"], ["a", "c", "e"], ["b", "d"]]
    assert [i.key for i in shared(items, (0, 1))] == ["a", "b", "c", "d", "e", "long", "longer"]
    for n in (1, 2, 3, 9):
        found = [i.key for k in range(n) for i in shared(items, (k, n))]
        assert sorted(found) == sorted(names)


def test_shares_of_a_verdict_are_one(dry):
    whole = {"what": "op triton", "op": "op", "provider": "triton", "missing": None}
    first = whole | {
        "passed": 2,
        "failures": ["x"],
        "refused": {"no": ["a"]},
        "worst": {"bf16": 1.0},
        "not_reached": 1,
    }
    second = whole | {
        "passed": 3,
        "failures": [],
        "refused": {"no": ["b"]},
        "worst": {"fp32": 2.0},
        "not_reached": 0,
    }
    other = {"what": "pytest -m gpu", "passed": 1, "failures": [], "missing": None}
    one, last = merged([other, first, second])
    assert one["passed"] == 5 and one["failures"] == ["x"] and one["refused"] == {"no": ["a", "b"]}
    assert one["worst"] == {"bf16": 1.0, "fp32": 2.0} and one["not_reached"] == 1
    assert last == other and first["failures"] == ["x"] and first["refused"] == {"no": ["a"]}


def test_figures_are_written_while_a_part_runs(tmp_path):
    parts = {"ceilings": Part(status="running")}
    writer = Writer(tmp_path, STAMP, DRY, parts, "test", every=0.0)
    parts["ceilings"].records.append({"name": "copy_gbs", "value": 3.0, "unit": "GB/s"})
    writer.now_and_then()
    assert json.loads((tmp_path / "gpu.json").read_text())["ceilings"] == {"copy_gbs": 3.0}
    assert "running" in (tmp_path / "gpu.md").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"gpu.json", "gpu.md"}


def test_a_run_that_is_told_to_stop_ends_its_workers(tmp_path):
    pids = tmp_path / "pids"
    hang = (
        "import json, os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    program = (
        "import signal, sys\n"
        "from slowfast_kernels.bench.gpu import command\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"command.main([{str(tmp_path / 'out')!r}, '--dry-run', '--only', 'ops'], [sys.executable, '-c', {hang!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert process.poll() is None, "ended before it was told to"
        time.sleep(0.1)
    process.terminate()
    assert process.wait() == 143
    for pid in pids.read_text().split():
        status = Path("/proc", pid, "status")
        assert not status.exists() or "Z (zombie)" in status.read_text()


# --- peers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject():
    return Subject(frames=8, crop=32, overrides={"blocks": (2, 1, 1, 1)})


def spread_weights(module):
    """Batch norms that do something, so that folding them is tested."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm3d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return module


def test_peers_compute_the_network(subject):
    twin = plain.SlowFast(subject.model, False)
    forms = peers.gpu_forms(twin, plain.SlowFast(subject.model, True))
    with torch.inference_mode():
        expected = twin(*subject.inputs)
        for name, make in forms.items():
            assert relative_l2(make()(*subject.inputs), expected) < 1e-5, name


@pytest.mark.parametrize("name", peers.MODES)
def test_compiled_peer_computes_the_network(name, subject):
    stage = plain.plain(subject.model.res2["fast"], True)
    x = torch.randn(1, 8, 8, 7, 6)
    call = peers.MODES[name].compiled(stage, [x], "eager")
    with torch.inference_mode():
        assert relative_l2(call(x), stage(x)) < 1e-5


def test_a_compiled_peer_has_its_settings_while_it_compiles():
    from torch._inductor import config

    seen = []

    def backend(graph, inputs):
        seen.append(config.conv_1x1_as_mm)
        return graph.forward

    conv = nn.Conv3d(4, 4, 1)
    for mode in (peers.Mode(), peers.MODES["compile_views"]):
        mode.compiled(conv, [torch.randn(1, 4, 2, 3, 3)], backend)
    assert seen == [False, True] and not config.conv_1x1_as_mm


def test_a_stage_is_compiled_beside_the_frozen_one(dry):
    reason = backends.unavailable("triton")
    if reason:
        pytest.skip(reason)
    (found,) = network._measure_part(dry, "slow res2", 1, "bf16", ("compile_views",))
    assert [r["who"] for r in found["rows"]] == ["frozen", "compile_views"]
    assert all(r["green"] for r in found["rows"])
    keys = [item.key for item in network.compile_items(types.SimpleNamespace(setting=Setting(), dry=False))]
    assert keys[:4] == [
        "compile b8 bf16",
        "compile_views b8 bf16",
        "compile b1 bf16",
        "compile_views b1 bf16",
    ]
    assert keys[6:10] == [f"compile_views {name} b8 bf16" for name in ("slow res2", *network.DEEP)]
    assert all("autotune" in key for key in keys[10:13]) and len(set(keys)) == len(keys)


def test_two_streams_meet_where_they_have_to(subject, monkeypatch):
    """Stand-ins for streams: the Fast pathway waits for the inputs, each lateral for its map, the head for the last."""
    log: list[str] = []

    class Stream:
        device = torch.device("cpu")

        def __init__(self, name):
            self.name = name

        def record_event(self):
            return f"{self.name} {sum(entry.startswith('layer') for entry in log)}"

        def wait_event(self, mark):
            log.append(f"{self.name} waits for {mark}")

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    current = [Stream("main")]

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    main, side = current[0], Stream("side")
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(cudnn_forms, "_side_stream", lambda device: side)

    def side_of(device):
        found = real(device)
        found.main = main
        return found

    real = cudnn_forms._Side
    monkeypatch.setattr(cudnn_forms, "_Side", side_of)
    twin = plain.SlowFast(subject.model, True)
    for kind, layers in (("fast", (twin.stems[1], *twin.fast_stages)), ("lateral", twin.laterals)):
        for i, layer in enumerate(layers):
            layer.register_forward_hook(
                lambda *_, name=f"layer {kind} {i}": log.append(f"{name} {current[-1].name}")
            )
    with torch.inference_mode():
        found = cudnn_forms.TwoStreams(twin)(*subject.inputs)
        beside = list(log)
        assert torch.equal(found, twin(*subject.inputs))
    assert beside == [
        "side waits for main",
        *(f"layer fast {i} side" for i in range(5)),
        *(text for i in range(4) for text in (f"main waits for side {i + 1}", f"layer lateral {i} main")),
        "main waits for side 5",
    ]


@pytest.mark.parametrize("op", ["conv_bn_act3d", "stem3d", "bottleneck3d", "lateral_fusion"])
def test_peers_compute_every_call(op):
    for case in [c for c in cases_of(op) if c.real]:
        args, kwargs = case.args(shrink=16)
        made = op_module(op, args, kwargs)
        if made is None:
            continue
        module, inputs = made
        with torch.inference_mode():
            expected = module(*inputs)
            for form in (cudnn_forms.views_2d(module), cudnn_forms.fused(module)):
                assert relative_l2(form(*inputs), expected) < 1e-5, case.name


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "kind"),
    [
        ((1, 3, 3), (1, 2, 2), (0, 2, 2), (1, 2, 2), "space"),
        ((1, 1, 1), (1, 2, 2), 0, 1, "space"),
        ((5, 1, 1), (4, 1, 1), (2, 0, 0), 1, "time"),
        ((3, 1, 1), (1, 2, 2), (1, 0, 0), 1, None),
        ((3, 3, 3), 1, 1, 1, None),
    ],
)
def test_views_of_convolutions(kernel, stride, padding, dilation, kind):
    conv = nn.Conv3d(6, 10, kernel, stride, padding, dilation).eval()
    x = torch.randn(2, 6, 8, 9, 7)
    for source in (x, x.contiguous(memory_format=torch.channels_last_3d)):
        for how in (None, cudnn_forms.PARTS, cudnn_forms.VOLUME):
            view = cudnn_forms.ViewConv(conv, relu=False, how=how)
            assert view.view.kind == kind
            with torch.inference_mode():
                assert relative_l2(view(source), conv(source)) < 1e-5


def test_a_layer_is_computed_the_fastest_way(monkeypatch):
    """Of those that run at all; the first call finds out."""
    seconds = {cudnn_forms.PARTS: 2.0, cudnn_forms.VOLUME: 1.0}

    def timed(run, runs):
        (how,) = run.args
        if how == cudnn_forms.WHOLE:
            raise RuntimeError("no engine")
        return seconds[how]

    monkeypatch.setattr(cudnn_forms.autotune, "time_call", timed)
    ways = (cudnn_forms.WHOLE, cudnn_forms.PARTS, cudnn_forms.VOLUME)
    assert cudnn_forms._fastest(lambda how: X, ways) == cudnn_forms.VOLUME
    assert (
        cudnn_forms._fastest(lambda how: X * (torch.nan if how == "volume" else 1), ways) == cudnn_forms.PARTS
    )
    seconds[cudnn_forms.PARTS] = 0.5
    assert cudnn_forms._fastest(lambda how: X, ways) == cudnn_forms.PARTS
    assert cudnn_forms._fastest(lambda how: X, ways[:1]) == cudnn_forms.PARTS


def test_a_view_is_no_copy():
    x = torch.randn(2, 6, 4, 5, 7).contiguous(memory_format=torch.channels_last_3d)
    for kernel, padding in (((1, 3, 3), (0, 1, 1)), ((3, 1, 1), (1, 0, 0))):
        view = cudnn_forms.View(nn.Conv3d(6, 8, kernel, padding=padding))
        flat = view.enter(x)
        assert flat.dim() == 4 and flat.data_ptr() == x.data_ptr()
        assert flat.is_contiguous(memory_format=torch.channels_last)


def test_an_unfolded_module_has_no_fused_form(subject):
    with pytest.raises(TypeError, match="folded Conv3d"):
        cudnn_forms.fused(plain.plain(subject.model.res2["fast"], False))


@pytest.mark.parametrize("name", ["torch_vectorised", "torch_matmul"])
def test_composed_heads_compute_the_op(name, dry):
    case = next(c for c in cases_of("roi_head_pool") if c.real)
    (slow, fast, rois), _ = dry.draw(case, "fp32")
    with backends.use_backend("reference"):
        expected = getattr(torch.ops.slowfast, "roi_head_pool").default(  # noqa: B009
            slow, fast, rois, [7, 7], 1 / 16, 0, True, "mean"
        )[0]
    found = roi_peers.head_pool(roi_peers.GPU_ALIGNS[name](), slow, fast, rois)
    assert relative_l2(found, expected) < 1e-5


AHEAD = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from slowfast_kernels import ops
from slowfast_kernels.bench.gpu import kernels
from slowfast_kernels.ops.conv_bn_act3d import triton as conv

class Driver:  # as much of one as a compiler asks for
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Driver())
compiled = []
compile_, run_ = JITFunction.compile if hasattr(JITFunction, "compile") else None, JITFunction.run
x, weight = torch.randn(1, 16, 2, 4, 4), torch.randn(16, 16, 1, 1, 1)
def call(k):
    spec = ops.ConvSpec((weight,), padding=(k, 0, 0))
    conv.prepare(spec, torch.float32, x.device)(x)

with kernels.compiling_ahead() as ahead:
    assert ahead
    call(0), call(1)
assert JITFunction.run is run_
kept = [k for cache in conv.conv_kernel.device_caches.values() for k in cache[0].values()]
assert len(kept) == 2 and all("ptx" in k.asm for k in kept), kept
print("compiled", len(kept))
"""


def test_kernels_are_compiled_ahead_by_threads(tmp_path):
    """Both kernels of the block are compiled, none is launched: there is no device."""
    if backends.unavailable("triton"):
        pytest.skip("no triton")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", AHEAD], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "compiled 2", done.stdout + done.stderr


def test_an_interpreter_compiles_nothing_ahead():
    if not backends.simulated("triton"):
        pytest.skip("kernels are compiled here")
    with kernels.compiling_ahead() as ahead:
        assert not ahead


def test_an_item_whose_time_is_over_leaves_out_the_last(dry):
    x = torch.ones(3)
    made = []

    def contender(name, ours):
        made.append(name)
        dry.item_deadline = 0.0 if len(made) == 3 else dry.item_deadline
        return Contender(name, [lambda: x], ours=ours)

    names = {"mine": True, "also": True, "peer": False, "last": False}
    builders = {n: functools.partial(contender, n, ours) for n, ours in names.items()}
    record = compare.compare(dry, builders, x, x, dtype="fp32", what="model", batch=8, flops=0, bytes=12)
    assert made == ["mine", "also", "peer"] and record["missing"] == {"last": compare.NO_TIME}
    assert {r["who"] for r in record["rows"]} == {"mine", "also", "peer"}
    document, _ = document_of(STAMP, DRY, {"model": Part(records=[record])}, "test")
    assert failures(document) == []


@pytest.mark.parametrize("name", ["laterals", "slow res2"])
def test_planned_parts_are_among_the_contenders(name, dry):
    """As a frozen model holds its layers, on two sets of inputs; the GPU's deep stages are made the same way."""
    reason = backends.unavailable("triton")
    if reason:
        pytest.skip(reason)
    (found,) = network._measure_part(dry, name, 1, "bf16")
    row = next(r for r in found["rows"] if r["who"] == network.FROZEN)
    assert row["green"] and row["ours"] and " by " in row["note"]
    assert found["flops"] > 0 and len(found["units"]) == {"laterals": 4, "slow res2": 1}[name]


def test_deep_stages_have_inputs_of_their_own(dry):
    for name in network.DEEP:
        (stage,), ((maps,),) = network._part(dry, name, 1, 1)
        assert plain.plain(stage)(maps).isfinite().all() and maps.is_contiguous(
            memory_format=torch.channels_last_3d
        )


def test_what_decides_is_measured_first():
    """The model, the deep stages and the targets' parts at the middle batch: in one process, before all others."""
    keys = [item.key for item in network.items(types.SimpleNamespace(setting=Setting(), dry=False))]
    first = ["model", *network.DEEP, *network.NAMES]
    assert keys[: len(first)] == [f"{name} b8 bf16" for name in first]
    assert keys[len(first) :][:2] == ["model b1 bf16", "model b32 bf16"]
    assert len(keys) == len(set(keys)) == len(first) + 2 * 6 + 2 * 6
    assert all(key.endswith(" bf16") for key in keys[:-12])


def test_eager_as_it_is_called_comes_early(dry, monkeypatch):
    made = []
    real = network.records

    def noted(machine, builders, *args, **more):
        made.extend(builders)
        return real(machine, {k: builders[k] for k in list(builders)[:3]}, *args, **more)

    monkeypatch.setattr(network, "records", noted)
    (found,) = network._measure_model(dry, 1, "bf16", ())
    strongest = peers.STREAMS + network.GRAPH
    assert made[:4] == ["frozen", strongest, peers.EAGER, peers.FUSED + network.GRAPH]
    assert [r["who"] for r in found["rows"]] == made[:3] and all(r["green"] for r in found["rows"])
    assert {r["who"]: r["graph"] for r in found["rows"]}[strongest]


def test_work_counts_every_layer_once(subject):
    clips = [x.contiguous() for x in subject.inputs]
    units = network.work_of([subject.model], [clips], torch.bfloat16)
    head = 2 * subject.model.head.proj.weight.numel() * subject.inputs[0].shape[0]
    assert len(units) == 2 + 4 + 10 + 1  # stems, laterals, blocks, head
    convolutions = sum(flops for flops, _ in units[:-1])
    assert convolutions == 2 * subject.macs - head
    record = {"dtype": "bf16", "rows": [], "flops": 0, "bytes": 0, "units": [[2e9, 0], [0, 3e9]]}
    derived = compare.derive(record, {"bf16_gflops": 1.0, "copy_gbs": 1.0}, GPU_PEAKS)
    assert derived["direct_floor_s"] == pytest.approx(5.0)  # each unit at its own limit


def test_a_pool_on_a_view_is_the_pool():
    x = torch.randn(2, 5, 3, 9, 8)
    for memory in (torch.contiguous_format, torch.channels_last_3d):
        y = x.contiguous(memory_format=memory)
        for window, stride, padding in (((1, 3, 3), (1, 2, 2), (0, 1, 1)), ((1, 3, 3), (2, 2, 2), (0, 1, 1))):
            pool = nn.MaxPool3d(window, stride, padding)
            assert torch.equal(cudnn_forms.views_2d(pool)(y), pool(x))


def test_a_missing_peer_is_reported_with_its_reason(dry):
    def lost():
        raise peers.Unavailable("torchvision: no module")

    x = torch.ones(3)
    builders = {"here": lambda: Contender("here", [lambda: x + 1]), "torchvision": lost}
    record = compare.compare(dry, builders, x + 1, x + 1, dtype="fp32", what="w", batch=1, flops=0, bytes=12)
    assert record["missing"] == {"torchvision": "torchvision: no module"}
    assert [r["who"] for r in record["rows"]] == ["here"]
    assert missing_lines([record]) == ["- torchvision is missing in w b1 fp32: torchvision: no module"]


# --- targets -----------------------------------------------------------------------------------------------


def row(who, seconds, ours=False, green=True, graph=True):
    return {"who": who, "ours": ours, "median_s": seconds, "green": green, "graph": graph, "error": 1e-3,
            "error_limit": 1e-2}  # fmt: skip


def record(what, batch, *rows, **more):
    return {"what": what, "batch": batch, "dtype": "bf16", "rows": rows, "missing": {}, "bytes": 0, **more}


def found(records, ceilings=None):
    return {r.key: r for r in targets.gpu_rows(records, ceilings or {}, dry=False)}


def test_targets_without_records_are_not_measured():
    rows = found([])
    assert len(rows) == 12
    assert all(r.ratio is None and r.verdict == "not yet measured" for r in rows.values())


def test_targets_compare_the_best_green_with_the_best_green():
    rows = found(
        [
            record("model", 8, row("frozen", 1.0, True), row("eager_cl3d", 4.0), row("fused_cudnn", 1.4)),
            record("model", 8, row("frozen", 1.0, True), row("compile", 1.6)),
            record("fast stem", 8, row("cuda", 0.5, True, green=False), row("triton", 1.0, True),
                   row("fast but wrong", 0.1, green=False), row("eager_cl3d", 3.5)),
            record("slow stem", 8, row("cuda", 0.5, True, green=False), row("eager_cl3d", 3.5)),
            record("slow res2", 1, row("cuda", 1.0, True), row("eager_cl3d", 100.0)),
        ]
    )  # fmt: skip
    assert rows["model 8"].ratio == 1.4 and rows["model 8"].verdict == "missed"
    assert rows["model 8"].peer_who == "fused_cudnn"
    # what was not measured may be the best peer: said beside the verdict
    assert rows["model 8"].note == "without compile_views, compile_autotune" and rows["eager"].note == ""
    assert rows["eager"].ratio == 4.0 and rows["eager"].verdict == "met"
    assert rows["fast stem"].ratio == 3.5 and rows["fast stem"].ours_who == "triton"
    assert rows["slow stem"].ratio is None and rows["slow stem"].verdict.startswith("parity red")
    assert rows["slow res2"].ratio is None  # another batch


def test_latency_is_against_graphs_only():
    model = record("model", 1, row("frozen", 1.0, True), row("eager_cl3d", 9.0, graph=False), row("g", 1.8))
    assert found([model])["latency"].ratio == 1.8


def test_boxes_count_by_the_worst(capsys):
    worst = record("roi_head_pool forward, ava, 64 boxes", 1, row("cuda", 1.0, True), row("torchvision", 2.0))
    other = record("roi_head_pool forward, ava, 1 box", 1, row("cuda", 1.0, True), row("torchvision", 9.0))
    assert found([other, worst])["roi forward"].ratio == 2.0
    lone = record("roi_head_pool forward, ava, 1 box", 1, row("cuda", 1.0, True), row("torch_matmul", 9.0))
    lone["missing"] = {"torchvision": "not installed", "triton": "no"}
    assert found([lone])["roi forward"].note == "no peer: torchvision: not installed"


def test_a_prediction_stands_beside_the_median():
    rows = [row("cuda", 1e-3, True) | {"predicted": 9e-4}, row("peer", 2e-3)]
    for one in rows:
        one |= {"p20_s": 1e-3, "p80_s": 1e-3, "note": ""}
    made = compare.derive(record("w", 8, *rows, flops=0), {}, GPU_PEAKS)
    at = HEADER.index("predicted")
    assert [line[at] for line in lines(made)] == ["0.9 ms (x1.11)", ""]


def test_pack_is_a_fraction_of_the_copy():
    pack = record("pack_pathways view", 8, row("cuda", 1e-3, True), row("torch", 1.0), bytes=95e6)
    one = found([pack], {"copy_gbs": 100.0})["pack"]
    assert one.ratio == pytest.approx(0.95) and one.verdict == "met" and one.unit == "%"
    assert "95%" in "\n".join(targets.gpu_table([one]))


# --- odds and ends -----------------------------------------------------------------------------------------


def test_sets_of_inputs_differ(dry):
    case = next(c for c in cases_of("stem3d") if c.real)
    one, two = (dry.draw(case, "bf16", seed=seed)[0][0] for seed in (0, 1))
    assert one.dtype == torch.bfloat16 and one.shape == two.shape and not torch.equal(one, two)
    assert dry.draw(case, "bf16", batch=2)[0][0].shape[0] == 2


def test_arithmetic_is_put_back(dry):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with dry.arithmetic("tf32"):
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    with dry.arithmetic("fp32"):
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_a_replayed_function_takes_new_inputs(dry):
    call = dry.replayed(lambda x: x * 2, torch.ones(3))
    assert torch.equal(call(torch.full((3,), 4.0)), torch.full((3,), 8.0))


def test_the_roofline_takes_the_fastest_of_ours(tmp_path):
    base = {"part": "ops", "op": "stem3d", "case": "stem.fast", "flops": 2e9, "bytes": 1e8}
    records = [
        record("stem3d stem.fast", 8, row("triton", 2e-3, True), row("cuda", 1e-3, True), row("peer", 5e-4))
        | base
    ]
    points = roofline_points(records)
    assert points["stages"] == [
        {"stage": "stem.fast", "op": "stem3d", "seconds": 1e-3, "flops": 2e9, "bytes": 1e8}
    ]
    pytest.importorskip("matplotlib")
    derived = [compare.derive(r, {"bf16_gflops": 1e5, "copy_gbs": 1e3}, GPU_PEAKS) for r in records]
    document = {"dry_run": False, "compared": derived, "ceilings": {"bf16_gflops": 1e5, "copy_gbs": 1e3}}
    made = draw(tmp_path, {**document, "environment": {"gpu": "g"}})
    assert made == ["speedups.png", "roofline.png"]
    assert derived[0]["rows"][1]["direct_floor_fraction"] == pytest.approx(0.1)
    assert store.gpu_slug({"gpu": "NVIDIA H200"}) == "nvidia-h200"


def test_ops_show_by_name_in_a_trace():
    entry = registry.entries("conv_bn_act3d", "res2.slow.0.a")[0]
    args, kwargs = entry.arguments(shrink=16)
    keys = {e.key for e in profile.trace(registry.runner(entry, "auto", args, kwargs), "the range")}
    assert {"slowfast::conv_bn_act3d", "the range"} <= keys


@pytest.mark.parametrize("op", [n for n in OPS if not n.endswith(("_bwd", "_out"))])
def test_every_op_shows_by_name_in_a_trace(op):
    case = next(c for c in cases_of(op) if c.edge and not c.name.startswith(("batch 0", "none")))
    args, kwargs = case.args()
    run = registry.runner(registry.Entry(op, case, "fp32"), "auto", args, kwargs)
    assert f"slowfast::{op}" in {e.key for e in profile.trace(run, "x")}


def test_profile_option(capsys):
    words = ["ops", "--profile", "--op", "lateral_fusion", "--case", "lateral.3"]
    assert bench.main(words) == 0
    out = capsys.readouterr().out
    assert "slowfast::lateral_fusion lateral.3" in out
    line = next(x for x in out.splitlines() if x.startswith("ncu "))
    assert "--nvtx-include 'slowfast::lateral_fusion lateral.3/'" in line and "--clock-control none" in line
    assert line.endswith(" ".join(["slowfast-kernels bench", *words]))


@pytest.mark.parametrize(
    ("status", "kept", "words"),
    [(0, True, "ncu-stem3d-stem-slow-bf16.txt"), (0, False, "ncu kept nothing"), (7, False, "ended with 7: no perm")],
)  # fmt: skip
def test_a_call_under_a_stand_in_for_ncu(status, kept, words, dry, tmp_path, monkeypatch):
    """The tool makes the call in its range and keeps what it is told to; its details come as text."""
    tool = tmp_path / "ncu"
    tool.write_text(
        "#!/bin/bash\n"
        f'echo "$@" >>{tmp_path}/words\n'
        '[ "$1" = --import ] && { echo "details of $2"; exit; }\n'
        'while [ "$1" != -o ]; do shift; done; report=$2; shift 2\n'
        + ('"$@" && touch "$report.ncu-rep"\n' if kept else f"echo no permission; exit {status}\n")
    )
    tool.chmod(0o755)
    monkeypatch.setattr(profile, "tool", lambda name: str(tool))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    dry.setting = replace(DRY, profile=("stem3d/stem.slow",), out=str(tmp_path))
    (item,) = profile.items(dry)
    (found,) = item.run()
    assert found["status"] == ("ok" if kept else "missing") and words in found["text"]
    given = (tmp_path / "words").read_text()
    assert "--nvtx-include slowfast::stem3d stem.slow/ --set full --clock-control none" in given
    if kept:
        assert "details of" in (tmp_path / "ncu-stem3d-stem-slow-bf16.txt").read_text()


def test_profile_runs_all_calls_of_an_op(monkeypatch, capsys):
    """README's line: an op without a case."""
    seen = []

    def noted(entry, words, batch):
        seen.append(entry)
        return entry.name

    monkeypatch.setattr(profile, "profile", noted)
    assert bench.main(["ops", "--op", "stem3d", "--profile"]) == 0
    assert [(e.case.name, e.dtype) for e in seen] == [("stem.slow", "fp32"), ("stem.fast", "fp32")]
    assert capsys.readouterr().out.split() == ["stem3d/stem.slow", "stem3d/stem.fast"]


class StandIn:
    """torch.cuda as far as the machine uses it, on the CPU: a graph records that it was captured and replayed."""

    def __init__(self):
        self.clock, self.captures, self.replays, self.capturing = 0.0, 0, 0, False

    def install(self, monkeypatch):
        outer = self

        class Graph:
            def replay(self):
                outer.replays += 1

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                outer.clock += 0.5  # milliseconds between two records
                self.at = outer.clock

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return end.at - self.at

        @contextlib.contextmanager
        def graph(made, pool, stream, capture_error_mode):
            assert isinstance(made, Graph) and stream == "stream" and capture_error_mode == "thread_local"
            assert pool == "pool"
            outer.capturing = True
            try:
                yield
                outer.captures += 1
            finally:
                outer.capturing = False

        monkeypatch.setattr(torch.cuda, "Stream", lambda: "stream")
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: "stream")
        monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 20, 8 << 20))
        monkeypatch.setattr(machine_module, "SETTLE_SECONDS", 0.0)
        device = types.SimpleNamespace(L2_cache_size=60 << 20)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda which: device)
        machine = CudaMachine(Setting(rounds=3))
        machine.device = torch.device("cpu")
        return machine


def test_the_way_of_a_gpu_with_a_stand_in(monkeypatch):
    """Not the device: that contenders are captured, replayed, timed by events, and fall back with a reason."""
    stand_in = StandIn()
    machine = stand_in.install(monkeypatch)
    calls = []

    def called(which):
        calls.append(which)
        return X

    def waits():
        if stand_in.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    builders = {
        "two": lambda: Contender("two", [lambda: called(0), lambda: called(1)], ours=True),
        "eager": lambda: Contender("eager", [lambda: X], graph=False),
        "waits": lambda: Contender("waits", [lambda: waits() or X]),
    }
    with machine.session():
        record = compare.compare(machine, builders, X, X, dtype="fp32", what="w", batch=8, flops=1, bytes=1)
    rows = {r["who"]: r for r in record["rows"]}
    assert [rows[n]["graph"] for n in ("two", "eager", "waits")] == [True, False, False]
    assert rows["waits"]["note"].startswith("no graph: operation not permitted")
    # the check, three times warm, captured six times over for a graph of twelve: never called while timed
    assert calls == [0, *[0, 1] * (3 + 6)]
    # twelve calls in half a millisecond are too short for a sample: repeated
    assert rows["two"]["repeats"] == 4 * 12 and stand_in.replays == 1 + 1 + 3 * 4
    assert rows["two"]["median_s"] == pytest.approx(0.5e-3 / 48)
    call = machine.replayed(lambda v: v * 3, X)
    call(X)
    assert stand_in.captures == 2 and stand_in.replays == 15
    assert machine.sets(1 << 20, 8) == 12 and machine.sets(100 << 20, 8) == 2 and machine.sets(1, 1) == 1
    machine.poison_everything()
    assert machine.alive() and not machine.late()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits_forever())
    assert not machine.alive()


X = torch.ones(3)


def waits_forever():
    raise RuntimeError("an illegal memory access was encountered")


def test_a_lost_device_is_not_a_missing_contender(monkeypatch):
    machine = StandIn().install(monkeypatch)

    def fault():
        monkeypatch.setattr(torch.cuda, "synchronize", waits_forever)
        raise RuntimeError("an illegal memory access was encountered")

    builders = {"bad": lambda: Contender("bad", [fault])}
    with pytest.raises(compare.DeviceLost, match="bad: an illegal memory access"):
        compare.compare(machine, builders, X, X, dtype="fp32", what="w", batch=1, flops=0, bytes=0)


def test_a_lost_device_ends_the_worker(monkeypatch, tmp_path):
    machine = StandIn().install(monkeypatch)

    def fault():
        raise compare.DeviceLost("bad: an illegal memory access")

    monkeypatch.setattr(worker, "machine_for", lambda setting: machine)
    monkeypatch.setitem(worker.PARTS, "ops", lambda m: [Item("x", fault), Item("y", fault)])
    assert worker.work("ops", Setting(), tmp_path / "events", [], 60.0) == worker.LOST
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "failed"] and "the device was lost" in events[1][
        "reason"
    ]


def test_the_stamp_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    answers = {"nvidia-smi": "580.1, 345 MHz, 3201 MHz, 1980 MHz, 700.00 W, 31"}
    monkeypatch.setattr(stamps, "output", lambda name, *rest: answers.get(name))
    stamp = gpu_environment(dry=False)
    assert stamp["capability"] == "9.0" and stamp["driver"] == "580.1"
    assert stamp["clocks"].startswith("SM 345 MHz, memory 3201 MHz, SM at most 1980 MHz")
    assert "clocks: SM 345 MHz" in "\n".join(gpu_lines(stamp))


def test_a_library_of_other_sources_is_said_so(tmp_path):
    """Hashes are compared, as the build wrote them; when a file was written says nothing."""
    folder, library = ROOT / "csrc" / "cuda", tmp_path / "libslowfast_cuda.so"
    assert stamps._other_sources(library) == ""  # nothing is known of it
    hashes = tmp_path / "cuda_sources.json"
    subprocess.run([sys.executable, folder / "resources.py", "sources", hashes, folder], check=True)
    os.utime(hashes, (0, 0))
    assert stamps._other_sources(library) == ""
    known = json.loads(hashes.read_text())
    assert set(known) == {p.name for p in folder.glob("*.*") if p.suffix in (".cu", ".cuh", ".h")}
    gone = dict(list(known.items())[1:]) | {"stem.cu": "another", "old.cu": "gone"}
    hashes.write_text(json.dumps(gone))
    said = stamps._other_sources(library)
    assert f"built from other sources: {min(known)}, old.cu, stem.cu;" in said and "--rebuild" in said


def test_clocks_are_watched(monkeypatch):
    lines = [
        "1980, 3201, 350.5, 40, 0x0000000000000001",
        "1500, 3201, 699.0, 61, 0x0000000000000004",
        "[N/A], 1, 1, 1, 0x0",
    ]
    monkeypatch.setattr(stamps, "output", lambda *words: lines.pop(0) if lines else None)
    watch = clocks.Clocks(every=0.01)
    watch._thread.join()
    text = watch.since_last()
    assert text == (
        "SM 1500 to 1980, median 1740 MHz, memory 3201 MHz, 699 W, 61 C at most, held down by power cap"
    )
    assert watch.since_last() == ""
    watch.close()


@pytest.mark.gpu
def test_graphs_and_events_on_a_gpu():
    """What a dry run cannot reach: capture, replay, events, rotating inputs, a failed capture."""
    machine = CudaMachine(Setting())
    with machine.session():
        x, y = (torch.randn(1 << 20, device="cuda") for _ in range(2))
        runs = {
            "graph": Contender("graph", [lambda: x * 2, lambda: y * 2]),
            "plain": Contender("plain", [lambda: x * 2], graph=False),
            "waits": Contender("waits", [lambda: x.sum().item()]),
        }
        prepared = {name: machine.prepare(c) for name, c in runs.items()}
        assert prepared["graph"].graph and not prepared["plain"].graph and not prepared["waits"].graph
        assert prepared["waits"].note.startswith("no graph")
        times = machine.compare(prepared, rounds=5).timings
        assert all(0 < t.median < 1 for t in times.values())
        call = machine.replayed(lambda v: v * 3, x)
        assert torch.equal(call(y), y * 3)
        there = moved([torch.randn(2, 3)[:, 1:]], machine.device)[0]
        assert there.stride() == (3, 1) and there.storage_offset() == 1
        machine.poison()
        assert machine.alive()
