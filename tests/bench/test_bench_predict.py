"""The predicted GPU times: counts agree with the emulator's, floors hold, sums are those of the table."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from emulator.accesses import counted, run_case
from slowfast_kernels import _extension, bench
from slowfast_kernels.bench.gpu.document import document_of
from slowfast_kernels.bench.gpu.page import page
from slowfast_kernels.bench.gpu.parts import Part
from slowfast_kernels.bench.gpu.predict import beside, command
from slowfast_kernels.bench.gpu.predict.cuda import MODELS
from slowfast_kernels.bench.gpu.predict.machine import Count, Machine, Work, measured, norm, time_of
from slowfast_kernels.bench.gpu.predict.model import forms, predict, works
from slowfast_kernels.bench.gpu.predict.trace import Cache, Call, _Noted
from slowfast_kernels.bench.harness import Setting
from slowfast_kernels.bench.stamp import gpu_environment
from slowfast_kernels.bench.targets import FROZEN
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._memory import empty_channels_last
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.ops.bottleneck3d.cases import _call
from slowfast_kernels.ops.bottleneck3d.cuda import CudaBlock
from slowfast_kernels.ops.bottleneck3d.spec import BlockSpec

BATCHES = (1, 8, 32)
SLOWFAST = "slowfast_8x8_r50"
SLOW_STAGES = [f"res{n}.slow" for n in (2, 3, 4, 5)]


# --- counts against the emulator -----------------------------------------------------------------------------

#: op, case, divisor of its maps; every CUDA kernel of SlowFast's plan and the forms of its blocks.
CASES = [
    ("stem3d", "stem.slow", 7),
    ("stem3d", "stem.fast", 7),
    ("bottleneck3d", "res2.slow.0", 4),
    ("bottleneck3d", "res2.slow.1", 4),
    ("bottleneck3d", "res3.slow.0", 4),
    ("bottleneck3d", "res3.slow.1", 4),
    ("bottleneck3d", "res2.fast.0", 4),
    ("bottleneck3d", "res2.fast.1", 4),
    ("bottleneck3d", "res3.fast.0", 4),
    ("bottleneck3d", "res3.fast.1", 4),
    ("bottleneck3d", "res4.fast.0", 2),
    ("bottleneck3d", "res4.fast.1", 2),
    ("bottleneck3d", "res5.fast.0", 1),
    ("lateral_fusion", "lateral.0", 4),
    ("lateral_fusion", "lateral.1", 4),
    ("lateral_fusion", "lateral.2", 2),
]


class Native(_Noted):
    """Notes the native calls of a run on real tensors, and lets them run."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("slowfast::")
        if func.namespace == "slowfast" and name in MODELS:
            self.calls.append((name, args))
        elif func.namespace == "slowfast" and name in OPS and args[0].device.type == "cpu":
            with self:
                return OPS[name].providers["cuda"].run(*OPS[name].split(args))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not _extension.EMULATE, reason="for the emulated library")
@pytest.mark.parametrize("provider", ["cuda"], indirect=True)
@pytest.mark.parametrize("op, name, shrink", CASES, ids=lambda v: str(v))
def test_counts_are_the_emulators(op, name, shrink, provider):
    with Native([]) as noted, torch.no_grad():
        found = run_case(op, name, shrink=shrink)
    assert_counted(noted.calls, found)


@pytest.mark.skipif(not _extension.EMULATE, reason="for the emulated library")
@pytest.mark.parametrize("provider", ["cuda"], indirect=True)
@pytest.mark.parametrize(
    "inner, cout, shape", [(64, 256, (1, 80, 2, 16, 14)), (128, 512, (1, 512, 1, 14, 14))]
)
def test_counts_of_chained_blocks(inner, cout, shape, provider):
    draw = Draw(seed=0, dtype=torch.bfloat16)
    (x, *parameters), _ = _call(draw, shape, inner, cout, 1, shape[1] != cout)
    (_, following, *_), _ = _call(draw, (1, cout, 1, 1, 1), inner, cout)
    block = CudaBlock(BlockSpec(*parameters), torch.bfloat16, torch.device("cpu"), following)
    out = empty_channels_last(x, block.out_shape(x.shape))
    maps = [
        empty_channels_last(x, s)
        for s in (block.scratch(x.shape)[0][0], [out.shape[0], inner, *out.shape[2:]])
    ]
    with Native([]) as noted, torch.no_grad():
        found = counted(lambda: block.into(out, x, *maps))
    assert noted.calls[-1][1][-1] is maps[1]
    assert_counted(noted.calls, found)


@pytest.mark.skipif(not _extension.EMULATE, reason="for the emulated library")
@pytest.mark.parametrize("provider", ["cuda"], indirect=True)
@pytest.mark.parametrize(
    "inner, cout, kernel_t, shape",
    [(8, 32, 5, (1, 24, 4, 14, 14)), (16, 64, 1, (1, 64, 3, 14, 28)), (32, 128, 5, (1, 128, 6, 9, 14))],
)
def test_counts_of_narrow_blocks_that_do_not_roll(inner, cout, kernel_t, shape, provider):
    draw = Draw(seed=0, dtype=torch.bfloat16)
    (x, *parameters), _ = _call(draw, shape, inner, cout, kernel_t, shape[1] != cout)
    block = CudaBlock(BlockSpec(*parameters), torch.bfloat16, torch.device("cpu"))
    out = empty_channels_last(x, block.out_shape(x.shape))
    with Native([]) as noted, torch.no_grad():
        found = counted(lambda: block.into(out, x))
    assert found[0].kernel.startswith("block_narrow_kernel")
    assert_counted(noted.calls, found)


def assert_counted(calls, found):
    """The models of native calls count what the emulator has counted of their launches."""
    works = [work for name, args in calls for work in MODELS[name](Machine(), *args)]
    assert [w.kernel for w in works] == [launch.kernel.split("<")[0] for launch in found]
    assert found
    for work, launch in zip(works, found, strict=True):
        if work.kernel == "gather_kernel":  # it takes as long as its bytes
            assert sum(b for _, b in work.writes) == sum(
                s.bytes for s in launch.sites if s.direction == "stores"
            )
            continue
        assert work.count.products == launch.products
        assert work.shared == launch.shared_bytes
        copied = sum(s.bytes for s in launch.sites if s.access == "copy" and s.space == "global")
        if work.kernel == "block_wide_one_kernel":
            # and the residual; sectors, for lanes share what they load of shifts, which is no part of the model
            loaded = 32 * sum(s.passes for s in launch.sites if s.access == "load" and s.space == "global")
            assert copied <= work.l2 <= copied + loaded
            assert work.l2 >= 0.9 * (copied + loaded)
        else:
            assert work.l2 == copied
        assert sum(b for _, b in work.writes) == sum(s.bytes for s in launch.sites if s.direction == "stores")
        assert work.count.wavefronts == pytest.approx(launch.passes("shared")[0], rel=0.05)
        requests = sum(s.requests for s in launch.sites if s.space == "shared" or s.access == "store")
        assert work.count.requests == pytest.approx(requests, rel=0.25)
        # whose blocks walk over tiles, unless the lateral's weights come with each
        if work.kernel != "block_wide_one_kernel" and ", true, true>" not in launch.kernel:
            assert work.blocks == launch.blocks


#: Compiles the Triton kernels of Slow stages in every form, one start of each of their tiles, without the interpreter.
COMPILE = """
import json
from slowfast_kernels._triton.aot import resources
from slowfast_kernels._triton.launch import compile_launch
from slowfast_kernels.bench.gpu.predict import others
from slowfast_kernels.bench.gpu.predict.machine import Machine
from slowfast_kernels.bench.gpu.predict.model import traced

found = {}
for stage, batch in (("res2.slow", 8), ("res4.slow", 8), ("res4.slow", 1)):
    for one in traced("slowfast_8x8_r50", batch, ("triton",))[0]:
        for call in one.calls if one.step.stage == stage else ():
            v, (work,) = call.launch.values, others.triton(Machine(), call.launch)
            key = (work.kernel, v.get("BLOCK_K"), v.get("FORM"), v.get("SPLITS"), v.get("OVERLAP"))
            if key not in found:
                kernel = compile_launch(call.launch, 90)
                used = resources(kernel.asm["cubin"])["reg"] * 32 * call.launch.warps
                found[key] = [work.kernel, work.shared, work.resident, kernel.metadata.shared, 65536 // used]
                assert "wgmma" in kernel.asm["ptx"] or call.launch.name == "split_sum_kernel"
print(json.dumps(list(found.values())))
"""


def test_triton_kernels_take_what_they_are_said_to():
    """Shared memory as compiled, and places on a multiprocessor within one, for sm_90."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SLOWFAST_EMULATE")}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    kernels = {"conv_kernel", "tail_kernel", "descriptor_kernel", "split_sum_kernel"}
    assert {row[0].split()[0] for row in rows} == kernels and len(rows) >= 10
    m = Machine()
    for kernel, shared, resident, compiled, by_registers in rows:
        if (
            "tail" not in kernel
        ):  # whose second product has operands of another size; barriers of descriptors' copies
            assert shared <= compiled <= shared + (1024 if "descriptor" in kernel else 0), kernel
        if kernel == "split_sum_kernel":
            assert resident <= by_registers
            continue
        assert abs(resident - min(by_registers, m.shared_bytes // (compiled + m.shared_reserved))) <= 1, (
            kernel
        )


# --- sanity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
def test_no_step_is_below_its_floors(batch):
    p = predict(SLOWFAST, batch)
    m, launches = p.machine, [one for row in p.rows for one in row.launches]
    assert len(launches) > len(p.rows)
    for one in launches:
        assert one.time.seconds >= one.dram_bytes / m.dram + m.launch
        assert one.time.seconds >= 2 * one.work.products / m.wgmma
        assert one.time.seconds >= max(one.time.terms.values()) > 0
        assert one.dram_bytes <= one.work.traffic * (1 + 1e-9)
        assert (
            one.work.l2 * (1 + 1e-9) >= sum(b for _, b in one.work.reads)
            or one.work.kernel == "lateral_kernel"
        )
    # what a step computes is no less than what it is said to: padding, halos
    for row in p.rows:
        if row.provider in ("cuda", "cudnn"):
            assert 2 * sum(one.work.products for one in row.launches) >= row.flops
    assert p.seconds() >= p.floor if batch > 1 else True  # a small map never leaves the cache


def test_twice_the_batch_is_not_faster():
    before = None
    for batch in (1, 2, 4, 8, 16, 32):
        p = predict(SLOWFAST, batch)
        if before is not None:
            assert p.seconds() > before.seconds()
            for old, new in zip(before.stages().values(), p.stages().values(), strict=True):
                # of narrow blocks the tiles change with the batch, and not always for the better
                if ".fast" not in old[0].stage or batch in (8, 32):
                    assert sum(r.seconds for r in new) >= 0.999 * sum(r.seconds for r in old), old[0].stage
        before = p


def test_a_better_machine_is_not_slower():
    base = predict(SLOWFAST, 8).seconds()
    for name, factor in (
        ("dram", 2),
        ("l2", 2),
        ("wgmma", 2),
        ("clock", 2),
        ("mma_per_clk", 2),
        ("launch", 0.5),
    ):
        better = dataclasses.replace(Machine(), **{name: getattr(Machine(), name) * factor})
        assert predict(SLOWFAST, 8, better).seconds() < base, name


def test_every_step_starts_something_with_a_model():
    for p in (predict(SLOWFAST, 8), predict("slow_8x8_r50", 8), predict("slowfast_8x8_r18", 8)):
        assert all(row.launches and row.known for row in p.rows)
        assert {row.op for row in p.rows} >= {"stem3d", "pool_concat_head"}
        assert "input" not in {row.op for row in p.rows}  # stems read the clips as they lie
    detector = predict("slowfast_8x8_r50_ava", 1)
    assert [row.op for row in detector.rows if not row.known] == ["roi_head_pool"]


def test_a_kernel_without_a_model_is_not_free():
    with pytest.raises(LookupError, match="_other_run_cuda: expected a model"):
        list(works([Call("_other_run_cuda", (), {})], Machine()))


def test_time_of_one_launch():
    m = Machine()
    work = Work("k", blocks=m.processors, resident=1, count=Count(mma=m.processors * 1e5))
    tensor = 1e5 * 4096 / m.mma_per_clk / m.clock
    assert time_of(work, 0, m).seconds == pytest.approx(tensor + m.launch, rel=1e-2)
    assert time_of(work, 0, m).limiter == "tensor" and time_of(work, 1e9, m).limiter == "DRAM"
    ragged = dataclasses.replace(work, blocks=m.processors + 1)
    assert time_of(ragged, 0, m).terms["tensor"] == pytest.approx(
        2 * tensor * m.processors / (m.processors + 1)
    )
    # a block's own chain: as often as blocks find a place
    for resident, rounds in ((1, 2), (2, 1)):
        chained = Work("k", 2 * m.processors, resident, chain=1000)
        assert time_of(chained, 0, m).terms["latency"] == pytest.approx(rounds * 1000 / m.clock)
    assert norm(2, [3.0, 4.0]) == pytest.approx(5) and norm(3, [0.0, 0.0]) == 0


def test_the_cache_keeps_what_was_touched_last():
    cache = Cache(100)
    assert cache.touch("a", 60) == 60 and cache.touch("a", 60) == 0
    assert cache.touch("b", 60) == 60
    assert cache.touch("a", 60) == 20  # 40 are left of it
    assert cache.touch("c", 200) == 200 and cache.touch("a", 60) == 60


# --- defaults ------------------------------------------------------------------------------------------------


def test_defaults_are_what_the_model_takes():
    """Who computes the Slow stages unmeasured is at most a tenth slower than the fastest form, by this model."""
    p, every = predict(SLOWFAST, 8), forms(SLOWFAST, 8)
    assert set(every) >= set(SLOW_STAGES)
    for stage in SLOW_STAGES:
        taken = sum(row.seconds for row in p.rows if row.stage == stage)
        assert taken <= 1.1 * min(every[stage].values()), stage


# --- command, document, page -----------------------------------------------------------------------------------


def test_the_command_adds_up(capsys, tmp_path):
    file = tmp_path / "predicted.json"
    assert bench.main(["gpu-predict", "--batch", "8", "--forms", "--json", str(file)]) == 0
    out, document = capsys.readouterr().out, json.loads(file.read_text())
    assert out.startswith(command.TITLE.upper()) and document["note"].startswith(command.TITLE)
    (found,) = document["predictions"]
    lanes = [sum(s["seconds"] for s in found["steps"] if s["lane"] == lane) for lane in (0, 1)]
    assert lanes == pytest.approx([found["chains"]["slow"], found["chains"]["fast"]])
    whole = max(*lanes, (1 - document["machine"]["overlap"]) * sum(lanes))
    assert found["seconds"] == pytest.approx(whole)
    for step in found["steps"]:
        assert step["seconds"] == pytest.approx(sum(one["seconds"] for one in step["launches"]))
    # the table: its steps add up to the printed sums
    steps = [line.split() for line in out.splitlines() if line.startswith(("stem", "res", "lateral", "head"))]
    assert len(steps) == len(found["steps"])
    assert sum(float(line[-1]) for line in steps) == pytest.approx(1e6 * sum(lanes), abs=0.05 * len(steps))
    (sums,) = (line.split() for line in out.splitlines() if " plan " in line)
    assert [float(x) for x in sums[-3:]] == pytest.approx([1e6 * x for x in (*lanes, whole)], abs=0.5)


def test_constants_of_a_run_replace_the_assumed_ones(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    ceilings = {"copy_gbs": 4000.0, "bf16_gflops": 700e3, "launch_us": 3.0, "fp32_gflops": 50e3}
    file.write_text(json.dumps({"ceilings": ceilings}))
    machine = measured(file)
    assert (machine.dram, machine.wgmma, machine.launch) == pytest.approx((4e12, 700e12, 3e-6))
    file.write_text(json.dumps({"l2": 7e12, "barrier": 40}))
    assert measured(file) == dataclasses.replace(Machine(), l2=7e12, barrier=40)
    for text, reason in (
        ("[]", "object"),
        ('{"l2": -1}', "positive"),
        ('{"no": 1}', "no constant"),
        ("", "Expecting"),
    ):
        file.write_text(text)
        assert bench.main(["gpu-predict", "--machine", str(file)]) == 2
        assert reason in capsys.readouterr().err
    for words in (["--batch", "0"], ["--batch", "x"], ["--model", "slowfost"]):
        assert bench.main(["gpu-predict", *words]) == 2


def row_of(who, seconds):
    times = {"median_s": seconds, "p20_s": seconds, "p80_s": seconds}
    return {"who": who, "ours": who == FROZEN, "graph": True, "note": "", "error": 0.0, "error_limit": 1.0,
            "green": True, **times}  # fmt: skip


def test_a_run_shows_what_was_predicted():
    def record(what, batch=8, dtype="bf16"):
        rows = [row_of(FROZEN, 2e-3), row_of("eager", 8e-3)]
        return {
            "what": what,
            "batch": batch,
            "dtype": dtype,
            "flops": 1,
            "bytes": 1,
            "rows": rows,
            "missing": {},
        }

    parts = {"network": Part(records=[record("model"), record("model", dtype="fp32"), record("slow res3"),
                                      record("laterals", batch=1)]),
             "ops": Part(records=[{**record("stem3d"), "op": "stem3d", "case": "stem.slow"}])}  # fmt: skip
    environment = gpu_environment(True)

    def predicted(setting):
        document, rows = document_of(environment, setting, parts, "")
        found = {
            (r["part"], r["what"], r["dtype"]): [row.get("predicted") for row in r["rows"]]
            for r in document["compared"]
        }
        return document, rows, found

    document, rows, found = predicted(Setting())
    p = predict(SLOWFAST, 8)
    res3 = sum(row.seconds for row in p.rows if row.stage == "res3.slow")
    laterals = sum(row.seconds for row in predict(SLOWFAST, 1).rows if row.stage.startswith("lateral"))
    assert found == {
        ("network", "model", "bf16"): [p.seconds(), None],
        ("network", "model", "fp32"): [None, None],
        ("network", "slow res3", "bf16"): [res3, None],
        ("network", "laterals", "bf16"): [laterals, None],
        ("ops", "stem3d", "bf16"): [None, None],
    }
    text = page(document, rows)
    assert f"{1e3 * p.seconds():.3g} ms (x{2e-3 / p.seconds():.2f})" in text
    # nothing beside a dry run, or beside another network than the preset
    for row in (row for part in parts.values() for r in part.records for row in r["rows"]):
        row.pop("predicted", None)
    for setting in (Setting(dry=True), Setting(overrides={"blocks": [1, 1, 1, 1]}), Setting(crop=64)):
        assert all(value is None for values in predicted(setting)[2].values() for value in values)
    assert beside.seconds_of("pack_pathways", p) is None
