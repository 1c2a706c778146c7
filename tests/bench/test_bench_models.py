"""The plain twin and the runtimes that run it, the targets' rows and the command line, on a small network."""

import json
import shlex

import pytest
import torch

from slowfast_kernels import backends, ops
from slowfast_kernels.bench import (
    command,
    cpu_targets,
    harness,
    memory,
    models,
    peers,
    plots,
    roi_peers,
    scaling,
    stamp,
    targets,
    torchvision_ops,
)
from slowfast_kernels.bench.harness import CpuMachine, Setting
from slowfast_kernels.bench.plain import SlowFast, plain
from slowfast_kernels.bench.subject import Subject
from slowfast_kernels.testing import relative_l2

needs_cpu = pytest.mark.skipif(
    backends.unavailable("cpu") is not None, reason=f"no C++ provider: {backends.unavailable('cpu')}"
)
SMALL = {"blocks": (1, 2, 1, 1)}
MACHINE = CpuMachine(Setting(rounds=2))


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
        assert relative_l2(subject.twin(folded)(*subject.inputs), exact) < 1e-5


def test_the_twin_is_torch_alone(subject):
    for module in subject.twin(True).modules():
        ours = type(module).__module__.startswith("slowfast_kernels")
        assert not ours or type(module).__module__ == "slowfast_kernels.bench.plain"
        assert not isinstance(module, torch.nn.BatchNorm3d)


def test_weights_reach_the_outputs(subject, exact):
    """A change inside the last residual branch must show, or a parity check would be blind to it."""
    twin = SlowFast(subject.model)
    branch = twin.slow_stages[3][0].b[0]
    with torch.no_grad():
        branch.weight.mul_(1.05)
        assert relative_l2(twin(*subject.inputs), exact) > harness.FP32_LIMIT


def test_other_networks_are_refused(subject):
    single = Subject("slow_8x8_r50", frames=8, crop=64, overrides=SMALL)
    with pytest.raises(ValueError, match="two pathways"):
        SlowFast(single.model)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_runtimes_agree(subject, name):
    pytest.importorskip(name, reason=f"{name} is not installed (extra bench)")
    if name == "onnxruntime":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra bench)")
    lateral = plain(subject.model.lateral[0], fold=True)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, c, t, 6, 5, generator=generator) for c, t in ((64, 2), (8, 8))]
    run = peers.PEERS[name].build(lateral, inputs, "fp32", 1)
    with torch.no_grad():
        assert relative_l2(run(), lateral(*inputs)) < 1e-5


def test_peers_are_chosen_by_name_and_dtype():
    assert [p.name for p in peers.select("openvino, eager", "bf16")] == ["openvino"]
    assert {p.name for p in peers.select("all", "fp32")} >= {"eager", "compile", "onnxruntime"}
    with pytest.raises(ValueError, match="peers: expected names among"):
        peers.select("tensorflow", "fp32")


@needs_cpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_model_rows(subject, dtype):
    wanted = peers.select("eager_cl3d,autocast_cl3d", dtype)
    result = models.measure(MACHINE, subject, dtype, wanted=wanted)
    rows = {row["who"]: row for row in result["rows"]}
    assert rows["frozen"]["green"] and rows[wanted[0].name]["frozen_faster"] > 0
    assert sum(r["flops"] for r in result["stages"]) == pytest.approx(2 * subject.macs, rel=0.02)
    text, stages = models.table([result]), models.stage_table(result)
    assert "frozen" in text and "res2.fast" in stages
    # What is counted as direct convolution is called so, and Winograd named as what may beat it.
    assert "Winograd" in text and "of direct floor" in stages and "Winograd" in stages


@needs_cpu
def test_part_rows_are_green(subject):
    rows = [cpu_targets.fast_stages_row(MACHINE, subject), cpu_targets.lateral_row(MACHINE, subject)]
    rows += [cpu_targets.pack_row(MACHINE, frames=8, side=16)]
    for row in rows:
        assert row.ratio is not None and row.error <= row.error_limit, row
    assert {"eager", "eager_cl3d_folded", targets.OUR_OP} <= rows[0].also.keys()
    text = targets.table(rows).replace("\n  ", " ")
    assert all(row.what in text for row in rows)
    page = targets.markdown(rows, "a network, 1 thread")
    assert page.startswith("| a network, 1 thread | ours | peer | ratio | parity |")
    for row in rows:
        line = next(x for x in page.splitlines() if x.startswith(f"| {row.what} |"))
        assert row.amount(row.ours) in line and f"**{row.ratio:.2g}x**" in line and row.parity in line


def _roi_align(maps, rois, bins, scale, ratio, aligned):
    with backends.use_backend("reference"):
        return ops.roi_align3d(maps[:, :, None], rois, bins, scale, ratio, aligned)[:, :, 0]


@needs_cpu
@pytest.mark.parametrize("there", [True, False])
def test_the_peer_of_the_box_head_is_torchvisions(there, monkeypatch):
    """With its mean over frames and without; where it is not installed, the row says so."""
    if there:
        monkeypatch.setattr(torchvision_ops, "load", lambda: None)
        monkeypatch.setattr(torchvision_ops, "roi_align", _roi_align)
    else:
        monkeypatch.setattr(torchvision_ops, "load", _not_installed)
    rows = {row.key: row for row in cpu_targets.roi_rows(MACHINE, counts=(1, 3), small=True)}
    assert rows["roi vectorised"].ratio is not None
    row = rows["roi torchvision"]
    if there:
        assert row.ratio is not None and row.error <= row.error_limit
        for count in ("1 box", "3 boxes"):
            forms = (f"{count} without torch's mean", f"{count} channels_last_3d maps")
            assert {count, *forms} <= row.also.keys()
    else:
        assert row.ratio is None and row.verdict == "not yet measured"
        assert "torchvision is not installed" in targets.table([row])


def _not_installed():
    raise peers.Unavailable("torchvision is not installed (pip install ...)")


def test_memory_is_told_both_ways(monkeypatch):
    found = [
        {
            "who": "frozen",
            "peak_bytes": 1 << 20,
            "strict_bytes": 3 << 20,
            "peak_to_ours": 1,
            "strict_to_ours": 1,
        },
        {
            "who": "eager_cl3d",
            "peak_bytes": 4 << 20,
            "strict_bytes": 3 << 20,
            "peak_to_ours": 4,
            "strict_to_ours": 1,
        },
    ]
    monkeypatch.setattr(memory, "measure", lambda *a, **k: {"rows": found, "missing": {}})
    rows = cpu_targets.memory_rows(Setting())
    assert [(r.ratio, r.verdict) for r in rows] == [(4, "met"), (1, "no target")]
    lines = [line.split() for line in targets.table(rows).splitlines() if "MiB" in line]
    assert [line[-8:-2] for line in lines] == [
        ["4.00x", "met", "1", "MiB", "4", "MiB"],
        ["no", "target", "3", "MiB", "3", "MiB"],
    ]


def test_a_red_row_shows_no_ratio():
    calls = {"ours": lambda: torch.ones(2), "peer": lambda: torch.zeros(2)}
    row = cpu_targets.row_of(MACHINE, targets.Target("x", "what", 1.0), calls, "peer")
    assert row.ratio is None and not row.met
    assert "parity red" in targets.table([row])


@needs_cpu
def test_memory_is_measured_in_processes_of_their_own():
    result = memory.measure(Setting(frames=8, crop=64), "fp32", ("frozen", "eager_cl3d"), calls=1)
    assert not result["missing"], result["missing"]
    for row in result["rows"]:
        weights = row["weight_bytes"]
        assert weights > 100e6  # 34.6 million parameters
        assert row["loaded_bytes"] > 0.9 * weights
        assert row["strict_bytes"] == row["loaded_bytes"] + row["peak_bytes"] - weights
        assert 0 < row["peak_bytes"] < weights  # 1/16 of a full clip's activations
    assert "MiB" in memory.table([result])


def test_memory_says_why_a_contender_is_missing():
    result = memory.measure(Setting(), "fp32", ("nobody",))
    assert result["rows"] == [] and "nobody" in result["missing"]["nobody"]


def test_scaling_table():
    result = scaling.measure(Setting(crop=64, rounds=2), "fp32", batches=(1, 2), frames=(8,))
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
        assert relative_l2(align(maps, rois, 3, 1 / 16, aligned), expected) < 1e-12


@needs_cpu
def test_command_writes_what_it_prints(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra bench)")
    words = ["ops", "--op", "lateral_fusion", "--case", "lateral.3", "--peers", "eager", "--runs", "2"]
    files = [tmp_path / "r.json", tmp_path / "r.png"]
    assert command.main([*words, "--json", str(files[0]), "--plot", str(files[1])]) == 0
    document = json.loads(files[0].read_text())
    assert document["what"] == "ops" and document["environment"]["torch"] == torch.__version__
    assert document["results"][0]["case"] == "lateral.3"
    assert files[1].stat().st_size > 1000
    out = capsys.readouterr().out
    assert "lateral.3" in out and [x for x in out.splitlines() if x.startswith("wrote")] == [
        f"wrote {file}" for file in files
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ops", "--op", "nothing"], "op: expected"),
        (["ops", "--peers", "nobody"], "peers: expected"),
        (["models", "--peers", "torchvision"], "peers: expected"),
        (["models", "--dtype", "fp7"], "--dtype: expected fp32 or bf16"),
        (["targets", "--only", "nothing"], "--only: expected"),
        (["models", "--model", "resnet"], "resnet"),
        (["models", "--plot", "x.foo"], "--plot x.foo: expected a picture's suffix, one of"),
        (
            ["scaling", "--plot", "/no/such/folder/x.png"],
            "--plot /no/such/folder/x.png: expected a file in a folder",
        ),
        (["ops", "--json", "-"], "--json -: expected the name of a file"),
        (["ops", "--profile", "--json", "x.json"], "--json: expected no --profile beside it"),
        (["ops", "--profile", "--runs", "3"], "--runs: expected no --profile beside it"),
        (["ops", "--batch", "2"], "--batch: expected --profile beside it"),
        (["scaling", "--op", "stem3d"], "unrecognized arguments: --op stem3d"),
        (["models", "--profile"], "unrecognized arguments: --profile"),
        (["memory", "--runs", "3"], "unrecognized arguments: --runs 3"),
        (["nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_bad_options_are_one_line_before_any_work(words, message, capsys, monkeypatch):
    monkeypatch.setattr(stamp, "environment", lambda: pytest.fail("measured before it was refused"))
    try:
        status: str | int | None = command.main([*words, "--quiet"])
    except SystemExit as stop:
        status = stop.code
    got = capsys.readouterr()
    assert status == 2 and got.out == ""
    (line,) = got.err.strip().splitlines()
    assert message in line and "..." not in line


def test_bad_numbers_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["ops", "--runs", "0"])
    assert stop.value.code == 2 and "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", list(command.KINDS))
def test_every_kind_explains_itself_alone(kind, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([kind, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"slowfast-kernels bench {kind}" in text.split("examples:")[1]
    for option in command.OPTIONS:
        means = option in (*command.KINDS[kind].options, *command.SHARED)
        if option != "profiled-batch" and not (option == "batch" and kind == "ops"):
            assert (f"--{option} " in text.split("examples:")[0]) == means, option


def test_the_examples_of_the_help_are_accepted():
    for kind in command.KINDS.values():
        for line in kind.examples.strip().splitlines():
            words = shlex.split(line.split("     ")[0])[2:]
            assert command.parser().parse_args(words).kind in command.KINDS


# --- pictures ----------------------------------------------------------------------------------------------

STAMP = {"processor": "a processor", "cores": 1, "isa": "avx2", "torch": "2.13"}
NETWORK = {"model": "net", "frames": 8, "crop": 64, "batch": 1, "threads": 1, "dtype": "fp32"}
TIMING = {"p20_s": 0.9e-3, "p80_s": 1.2e-3, "median_s": 1e-3}


def _stage(stage, op, seconds):
    return {"stage": stage, "op": op, "seconds": seconds, "flops": 2e8, "bytes": 1e7}


def _drawings():
    """Every picture with what must be readable in it."""
    timed = [
        {"who": "cpu", "speedup": 2.5, **TIMING},
        {"who": "eager", "speedup": None, **TIMING, "median_s": 2.5e-3},
    ]
    op = {**NETWORK, "op": "stem3d", "case": "stem.slow", "best_peer": "eager", "rows": timed}
    grown = [{"batch": b, "frames": 8, "to_first": 1 / b, **TIMING} for b in (1, 2)]
    kept = [{"who": who, "peak_bytes": 3 << 20, "strict_bytes": 5 << 20} for who in ("frozen", "eager")]
    met = targets.Row("a", "a thing against another", 2.0, 2.2, 0.1, 0.22, error=1e-6, error_limit=1e-4)
    missed = targets.Row("b", "a second thing", 3.0, 0.5, 0.1, 0.05)
    net = {**NETWORK, "rows": [{"who": "frozen", **TIMING}, {"who": "eager", **TIMING}],
           "stages": [_stage("stem.fast", "stem3d", 1e-3), _stage("res2.slow", "conv_a", 2e-3)]}  # fmt: skip
    ceilings = {"fp32_gflops": 100.0, "copy_gbs": 10.0, "l2_copy_gbs": 50.0}
    where = plots.machine(STAMP)
    size = "net, 8 frames of 64x64, batch 1, 1 thread"
    return {
        "ops": (lambda f: plots.ops(f, [op], where), ["2.50x  (cpu 1 ms, eager 2.5 ms)", "batch 1, 1 thread"]),
        "scaling": (lambda f: plots.scaling(f, [{**NETWORK, "rows": grown}], where),
                    ["0.50\n1 ms", "64x64", "1 thread"]),
        "memory": (lambda f: plots.memory(f, [{**NETWORK, "rows": kept}], where), ["3 MiB", "5 MiB", "strict", size]),
        "targets": (lambda f: plots.targets(f, [met, missed], f"{size}\n{where}"),
                    ["2.20x  (100 ms, peer 220 ms, parity 1.0e-06)", "0.50x", size]),
        "models": (lambda f: plots.models(f, [net], where), ["1 ms", size]),
        "roofline": (lambda f: plots.roofline(f, [net, net], ceilings, where),
                     [size, "FLOPs are those of direct convolution", "memory 10 GB/s", "share of the time (area)",
                      "op (form)", "stage (colour)"]),
    }  # fmt: skip


@pytest.mark.parametrize("name", _drawings())
def test_pictures_can_be_read(name, tmp_path, monkeypatch):
    """Values, what was measured and the machine are in the picture; texts beside the bars do not lie on each other and
    are not cut off."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed (extra bench)")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw, expected = _drawings()[name]
    file = tmp_path / f"{name}.png"
    assert draw(file) == [file] and file.read_bytes().startswith(b"\x89PNG")
    figure = plt.gcf()
    texts = [t for t in figure.findobj(plt.Text) if t.get_text().strip()]
    everything = "\n".join(t.get_text() for t in texts)
    for words in [*expected, "a processor, 1 core, avx2, torch 2.13"]:
        assert words in everything, (words, everything)
    renderer = figure.canvas.get_renderer()
    whole = figure.get_tightbbox(renderer)
    for axes in figure.axes:
        boxes = [t.get_window_extent(renderer) for t in axes.texts if t.get_text()]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        for box in boxes:
            inches = box.transformed(figure.dpi_scale_trans.inverted())
            assert whole.x0 <= inches.x0 and inches.x1 <= whole.x1
    monkeypatch.undo()
    plt.close("all")
