"""The plain twin and the runtimes that run it, the targets' rows and the command line, on a small network."""

import json

import pytest
import torch

from slowfast_kernels import backends, ops
from slowfast_kernels.bench import command, harness, memory, models, peers, roi_peers, scaling, targets
from slowfast_kernels.bench.peer_model import PlainSlowFast, plain_lateral
from slowfast_kernels.bench.subject import Subject

needs_cpu = pytest.mark.skipif(
    backends.unavailable("cpu") is not None, reason=f"no C++ provider: {backends.unavailable('cpu')}"
)
SMALL = {"blocks": (1, 2, 1, 1)}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject("slowfast_8x8_r50", frames=8, crop=64, overrides=SMALL)


@pytest.fixture(scope="module")
def exact(subject):
    with torch.inference_mode(), backends.use_backend("reference"):
        return subject.call(subject.model)


@pytest.mark.parametrize("folded", [False, True])
def test_the_twin_computes_the_model(subject, exact, folded):
    with torch.inference_mode():
        assert harness.relative_l2(subject.twin(folded)(*subject.inputs), exact) < 1e-5


def test_the_twin_is_torch_alone(subject):
    for module in subject.twin(True).modules():
        ours = type(module).__module__.startswith("slowfast_kernels")
        assert not ours or type(module).__module__ == "slowfast_kernels.bench.peer_model"
        assert not isinstance(module, torch.nn.BatchNorm3d)


def test_weights_reach_the_outputs(subject, exact):
    """A change inside the last residual branch must show, or a parity check would be blind to it."""
    twin = PlainSlowFast(subject.model)
    branch = twin.slow_stages[3][0].b[0]
    with torch.no_grad():
        branch.weight.mul_(1.05)
        assert harness.relative_l2(twin(*subject.inputs), exact) > harness.FP32_LIMIT


def test_other_networks_are_refused(subject):
    single = Subject("slow_8x8_r50", frames=8, crop=64, overrides=SMALL)
    with pytest.raises(ValueError, match="two pathways"):
        PlainSlowFast(single.model)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_runtimes_agree(subject, name):
    pytest.importorskip(name, reason=f"{name} is not installed (extra bench)")
    if name == "onnxruntime":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra bench)")
    lateral = plain_lateral(subject.model.lateral[0], fold=True)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, c, t, 6, 5, generator=generator) for c, t in ((64, 2), (8, 8))]
    run = peers.PEERS[name].build(lateral, inputs, "fp32", 1)
    with torch.no_grad():
        assert harness.relative_l2(run(), lateral(*inputs)) < 1e-5


def test_peers_are_chosen_by_name_and_dtype():
    assert [p.name for p in peers.select("openvino, eager", "bf16")] == ["openvino"]
    assert {p.name for p in peers.select("all", "fp32")} >= {"eager", "compile", "onnxruntime"}
    with pytest.raises(ValueError, match="peers: expected names among"):
        peers.select("tensorflow", "fp32")


@needs_cpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_model_rows(subject, dtype):
    wanted = peers.select("eager_cl3d,autocast_cl3d", dtype)
    result = models.measure(subject, dtype, wanted=wanted, threads=1, rounds=2, progress=False)
    rows = {row["who"]: row for row in result["rows"]}
    assert rows["frozen"]["green"] and rows[wanted[0].name]["frozen_faster"] > 0
    assert sum(r["flops"] for r in result["stages"]) == pytest.approx(2 * subject.macs, rel=0.02)
    assert "frozen" in models.table([result]) and "res2.fast" in models.stage_table(result)


@needs_cpu
def test_part_rows_are_green(subject):
    setting = targets.Setting(threads=1, rounds=2, progress=False)
    rows = [targets.fast_stages_row(subject, setting), targets.lateral_row(subject, setting)]
    rows += [targets.pack_row(setting, frames=8, side=16)]
    rows += targets.roi_rows(setting, counts=(1, 3), small=True)
    for row in rows:
        assert row.ratio is not None and row.error <= row.error_limit, row
    assert {"eager", "eager_cl3d_folded", targets.OUR_OP} <= rows[0].also.keys()
    text = targets.table(rows)
    assert all(row.what in text for row in rows)


def test_a_red_row_shows_no_ratio():
    setting = targets.Setting(threads=1, rounds=2, progress=False)
    runs = {"ours": lambda: torch.ones(2), "peer": lambda: torch.zeros(2)}
    row = targets.row_of(targets.Row("x", "what", 1.0), runs, "peer", setting)
    assert row.ratio is None and not row.met
    assert "parity red" in targets.table([row])


@needs_cpu
def test_memory_is_measured_in_processes_of_their_own():
    result = memory.measure(
        "slowfast_8x8_r50", "fp32", who=("frozen", "eager_cl3d"), threads=1, calls=1, frames=8, crop=64
    )
    assert not result["missing"], result["missing"]
    for row in result["rows"]:
        weights = row["weight_bytes"]
        assert weights > 100e6  # 34.6 million parameters
        assert row["loaded_bytes"] > 0.9 * weights
        assert row["strict_bytes"] == row["loaded_bytes"] + row["peak_bytes"] - weights
        assert 0 < row["peak_bytes"] < weights  # 1/16 of a full clip's activations
    assert "MiB" in memory.table([result])


def test_memory_says_why_a_contender_is_missing():
    result = memory.measure("slowfast_8x8_r50", "fp32", who=("nobody",), threads=1)
    assert result["rows"] == [] and "nobody" in result["missing"]["nobody"]


def test_scaling_table():
    result = scaling.measure(
        "slowfast_8x8_r50", "fp32", batches=(1, 2), frames=(8,), crop=64, rounds=2, progress=False
    )
    first, second = result["rows"]
    assert second["macs"] == 2 * first["macs"] and first["to_first"] == 1.0
    assert "per clip" in scaling.table([result])


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_compositions_agree(aligned):
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 5, 9, 11, generator=generator, dtype=torch.float64)
    rois = torch.tensor(
        [[0, 3.0, 5.0, 100.0, 90.0], [1, -30.0, -20.0, 40.0, 400.0], [1, 50.0, 50.0, 51.0, 52.0]],
        dtype=torch.float64,
    )
    with backends.use_backend("reference"):
        expected = ops.roi_align3d(maps[:, :, None], rois, 3, 1 / 16, aligned=aligned)[:, :, 0]
    for align in (roi_peers.align_vectorised, roi_peers.align_matmul):
        assert harness.relative_l2(align(maps, rois, 3, 1 / 16, aligned), expected) < 1e-12


@needs_cpu
def test_command_writes_what_it_prints(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra bench)")
    words = ["ops", "--op", "lateral_fusion", "--case", "lateral.3", "--peers", "none", "--runs", "2"]
    files = [tmp_path / "r.json", tmp_path / "r.png"]
    assert command.main([*words, "--json", str(files[0]), "--plot", str(files[1])]) == 0
    document = json.loads(files[0].read_text())
    assert document["what"] == "ops" and document["environment"]["torch"] == torch.__version__
    assert document["results"][0]["case"] == "lateral.3"
    assert files[1].stat().st_size > 1000
    assert "lateral.3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ops", "--op", "nothing"], "op: expected"),
        (["ops", "--peers", "nobody"], "peers: expected"),
        (["models", "--dtype", "fp7"], "--dtype: expected fp32 or bf16"),
        (["targets", "--only", "nothing"], "--only: expected"),
        (["models", "--model", "resnet"], "resnet"),
    ],
)
def test_bad_options_are_one_line(words, message, capsys):
    assert command.main([*words, "--quiet"]) == 2
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in text


def test_bad_numbers_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["ops", "--runs", "0"])
    assert stop.value.code == 2 and "at least 1" in capsys.readouterr().err
