"""``slowfast-kernels run``: a video in; predictions, parity and files out; every kind of unusable input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import footage
from slowfast_kernels import _extension, backends, models, report
from slowfast_kernels.cli import main, measure, run, runner

needs_cpu = pytest.mark.skipif(
    backends.unavailable("cpu") is not None, reason=f"no C++ provider: {backends.unavailable('cpu')}"
)

# A whole two-pathway network, small: one block a stage, 8 + 2 frames, 64 pixels.
SMALL = [
    "--set",
    "blocks=(1,1,1,1)",
    "--set",
    "frames=8",
    "--set",
    "crop=64",
    "--set",
    "classes=12",
    "--short-side",
    "64",
]


@pytest.fixture(autouse=True)
def brief(request, monkeypatch):
    """Two timed runs instead of five: what is tested here is the job, not the time."""
    if "unhurried" not in request.fixturenames:
        monkeypatch.setattr(runner, "MIN_RUNS", 2)
        monkeypatch.setattr(runner, "PROFILE_RUNS", 1)


@pytest.fixture
def unhurried():
    """Asks for as many timed runs as a user gets."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return footage.make_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 60, (96, 64))


def top5_lines(out):
    return re.findall(r"^  \d\. (.+?)  +(\d\.\d+)", out, flags=re.M)


# -- the job --


def test_a_video_gives_five_classes(command, clip):
    got = command("run", clip, *SMALL, "--views", "2x1")
    assert got.status == 0 and not got.errors
    assert "random weights: predictions are meaningless, parity and speed are real" in got.out
    lines = top5_lines(got.out)
    assert len(lines) == 5
    scores = [float(score) for _, score in lines]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1.0001


def test_real_footage_compared_plotted_and_written(command, tmp_path):
    paths = tmp_path / "out.json", tmp_path / "out.png"
    got = command(
        "run", footage.real("bikes.mp4"), *SMALL, "--views", "2x3", "--json", paths[0], "--plot", paths[1]
    )
    assert got.status == 0
    document = json.loads(paths[0].read_text())
    summary = document["summary"]
    assert summary["logits"]["rel_l2_error"] < 1e-4
    assert summary["top5_same_order"]
    assert summary["frozen"]["runs"] == summary["reference"]["runs"] == 6
    assert summary["speedup"] == pytest.approx(
        summary["reference"]["median_s"] / summary["frozen"]["median_s"], rel=1e-6
    )
    (video,) = document["videos"]
    assert video["info"]["frames"] == 250 and len(video["views"]) == 6
    assert [v["clip"] for v in video["views"]] == [0, 0, 0, 1, 1, 1]
    assert [v["crop"] for v in video["views"]] == [0, 1, 2] * 2
    model = models.create("slowfast_8x8_r50", blocks=(1, 1, 1, 1), frames=8, crop=64, classes=12)
    assert summary["macs_per_view"] == models.macs(model, frames=8, crop=64)
    assert document["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert document["environment"]["torch"] == torch.__version__
    stages = {row["stage"].split(".")[0]: row for row in summary["stages"]}
    assert list(stages) == ["stem", "res2", "res3", "res4", "res5", "lateral", "head"]
    assert all(row["reference_s"] > 0 and row["frozen_s"] > 0 for row in stages.values())
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    for words in (
        "latency per view, median",
        "speed-up",
        "of the measured FMA ceiling",
        "peak memory",
        f"wrote {paths[0]}",
        f"wrote {paths[1]}",
    ):
        assert words in got.out


def test_the_whole_model_agrees_with_the_reference_on_real_footage(command, tmp_path):
    """SlowFast-R50 8x8 as it is, one view."""
    out = tmp_path / "out.json"
    got = command("run", footage.real("bikes.mp4"), "--views", "1x1", "--compare", "--json", out)
    assert got.status == 0
    document = json.loads(out.read_text())
    assert document["settings"]["crop"] == 224
    assert document["summary"]["macs_per_view"] == pytest.approx(50.31e9, rel=2e-4)
    assert document["summary"]["logits"]["rel_l2_error"] < 1e-4
    assert document["summary"]["top5_same_order"]
    for side in ("frozen", "reference"):
        found = document["summary"][side]
        if document["summary"]["ceilings"]:  # measured where the native probe is built
            # How large it is depends on who else uses the machine, and on Winograd's savings.
            assert found["ceiling_fraction"] == pytest.approx(found["gflops"] / found["ceiling_gflops"])
        assert found["peak_memory_bytes"] > 1 << 20


def test_few_views_are_run_often_enough_for_a_median(command, clip, tmp_path, unhurried):
    out = tmp_path / "o.json"
    command("run", clip, *SMALL, "--views", "2x1", "--compare", "--json", out)
    summary = json.loads(out.read_text())["summary"]
    assert summary["frozen"]["runs"] == summary["reference"]["runs"] == 5


def test_random_weights_do_not_hide_errors(clip):
    """Logits of order one that differ from view to view: otherwise parity would be cheap."""
    from slowfast_kernels import video

    model = models.create("slowfast_8x8_r50", frames=8, crop=64)
    run.randomize(model, 0)
    model.eval()
    reader = video.VideoReader(footage.real("bikes.mp4"))
    spec = model.config.input
    with torch.inference_mode():
        logits = [
            measure.logits_of(model(video.pack_view(view, spec)), "softmax")
            for view in video.sample_views(reader, frames=8, tau=2, crop=64, views=(3, 1))
        ]
    assert all(0.3 < x.std() < 10 for x in logits)
    for a, b in ((0, 1), (1, 2)):
        assert (logits[a] - logits[b]).norm() > 0.01 * logits[b].norm()


def test_the_seed_decides_the_weights(command, clip):
    first, same, other = (
        top5_lines(command("run", clip, *SMALL, "--views", "1x1", "--seed", seed).out) for seed in (1, 1, 2)
    )
    assert first == same != other


def test_the_reference_can_be_asked_for_as_backend(command, clip):
    fused = top5_lines(command("run", clip, *SMALL, "--views", "1x1").out)
    reference = top5_lines(command("run", clip, *SMALL, "--views", "1x1", "--backend", "reference").out)
    assert [name for name, _ in fused] == [name for name, _ in reference]


def test_bf16(command, clip, tmp_path):
    got = command(
        "run", clip, *SMALL, "--views", "1x1", "--dtype", "bf16", "--compare", "--json", tmp_path / "o.json"
    )
    assert got.status == 0 and "fused bf16" in got.out
    error = json.loads((tmp_path / "o.json").read_text())["summary"]["logits"]["rel_l2_error"]
    assert 1e-5 < error < 0.1  # eight bits of mantissa show, and no more than that


def test_default_views_are_the_models_own_protocol(command, clip, tmp_path):
    got = command("run", clip, *SMALL, "--set", "views=(2,3)", "--json", tmp_path / "o.json")
    assert got.status == 0
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["settings"]["views"] == [2, 3] and len(document["videos"][0]["views"]) == 6


def test_views_are_averaged_or_maximised(command, clip, tmp_path):
    """The video's scores follow from those of its views, by the model's rule."""
    for rule in ("mean", "max"):
        out = tmp_path / f"{rule}.json"
        command(
            "run",
            clip,
            *SMALL,
            "--set",
            f"ensemble={rule}",
            "--set",
            "classes=5",
            "--views",
            "3x1",
            "--json",
            out,
        )
        (video,) = json.loads(out.read_text())["videos"]
        views = [{e["class"]: e["score"] for e in v["top5"]} for v in video["views"]]
        for entry in video["top5"]:
            scores = [v[entry["class"]] for v in views]
            expected = max(scores) if rule == "max" else sum(scores) / len(scores)
            assert entry["score"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["slow_8x8_r50", "c2d_8x8_r50"])
def test_models_of_one_pathway(command, clip, name):
    got = command("run", clip, "--model", name, *SMALL, "--views", "1x1", "--compare")
    assert got.status == 0 and len(top5_lines(got.out)) == 5


def test_several_videos_share_one_model(command, clip, tmp_path):
    other = footage.make_video(tmp_path / "other.mkv", 30, (63, 97), pixels="yuv444p")
    got = command("run", clip, other, *SMALL, "--views", "1x1", "--json", tmp_path / "o.json")
    assert got.status == 0
    document = json.loads((tmp_path / "o.json").read_text())
    assert [v["file"] for v in document["videos"]] == [str(clip), str(other)]
    assert all(len(v["top5"]) == 5 for v in document["videos"])


def test_progress_counts_views_on_a_terminal_alone(command, clip, monkeypatch):
    piped = command("run", clip, *SMALL, "--views", "2x1")
    assert piped.err == "" and "view/s" not in piped.out
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    loud = command("run", clip, *SMALL, "--views", "2x1", "--compare")
    assert "clip.mp4" in loud.err and "0/2 [" in loud.err and "2/2 [" in loud.err
    for what in ("decoding", "warm-up", "time per stage"):
        assert what in loud.err
    quiet = command("run", clip, *SMALL, "--views", "1x1", "--quiet")
    assert quiet.err == ""


# -- what runs --


def test_the_reference_is_never_called_fused(command, clip, tmp_path, monkeypatch):
    """Without the C++ library, and when asked for: the table, the picture and the JSON say what runs and why."""
    pytest.importorskip("matplotlib", reason="the video extra is not installed")
    titles = []
    monkeypatch.setattr(report, "plot_stages", lambda path, stages, title, ours: titles.append((title, ours)))
    monkeypatch.setattr(backends, "unavailable", lambda name: "the library is not built")
    words = ["run", clip, *SMALL, "--views", "1x1", "--json", tmp_path / "o.json"]
    got = command(*words, "--plot", tmp_path / "o.png")
    settings = json.loads((tmp_path / "o.json").read_text())["settings"]
    assert got.status == 0 and got.err == ""
    assert "fused fp32" not in got.out and "plain PyTorch fp32" in got.out
    line = "runs on plain PyTorch, without the fused kernels: "
    assert line in got.out and "the library is not built" in got.out
    assert settings["kernels"] == "plain PyTorch" and "the library is not built" in settings["reason"]
    ((title, ours),) = titles
    assert ours == "plain PyTorch fp32" and ours in title
    asked = command("run", clip, *SMALL, "--views", "1x1", "--backend", "reference")
    assert f"{line}the reference was asked for" in asked.out and "plain PyTorch fp32" in asked.out


@needs_cpu
def test_fused_kernels_are_called_fused(command, clip, tmp_path):
    got = command("run", clip, *SMALL, "--views", "1x1", "--json", tmp_path / "o.json")
    settings = json.loads((tmp_path / "o.json").read_text())["settings"]
    assert "fused fp32" in got.out and "plain PyTorch" not in got.out
    assert settings["kernels"] == "fused" and settings["reason"] is None


# -- features --


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_features_are_written_for_every_view(command, clip, tmp_path, suffix):
    other = footage.make_video(tmp_path / "other.mp4", 40, (96, 64))
    path = tmp_path / f"features.{suffix}"
    got = command("run", clip, other, *SMALL, "--views", "1x3", "--compare", "--features", path)
    assert got.status == 0 and not got.errors, got.err
    assert f"wrote {path}" in got.out and "features, relative L2 error" in got.out
    assert not top5_lines(got.out) and "top-5" not in got.out
    model = models.create(
        "slowfast_8x8_r50", blocks=(1, 1, 1, 1), frames=8, crop=64, classes=12, output="features"
    )
    run.randomize(model, 0)
    expected = _features(model.eval(), clip)
    if suffix == "npz":
        with np.load(path) as found:
            assert found["videos"].tolist() == [str(clip), str(other)]
            assert found["views"].shape == (6, 2304) and found["mean"].shape == (2, 2304)
            assert found["video"].tolist() == [0, 0, 0, 1, 1, 1] and found["crop"].tolist() == [0, 1, 2] * 2
            views, mean = torch.from_numpy(found["views"][:3]), torch.from_numpy(found["mean"][0])
    else:
        video, _ = json.loads(path.read_text())["videos"]
        assert video["file"] == str(clip) and [v["crop"] for v in video["views"]] == [0, 1, 2]
        views = torch.tensor([v["features"] for v in video["views"]])
        mean = torch.tensor(video["mean"])
    assert (views - expected).norm() < 1e-4 * expected.norm()
    assert torch.allclose(mean, views.mean(0), rtol=1e-5, atol=1e-6)


def _features(model, path):
    """[views, C] of a video's 1x3 views on the plain model."""
    from slowfast_kernels import video

    spec = model.config.input
    views = video.sample_views(
        video.VideoReader(path), frames=8, tau=spec.tau, crop=64, views=(1, 3), short_side=64
    )
    with torch.inference_mode():
        return torch.cat([model(video.pack_view(view, spec)) for view in views])


def test_a_clip_that_is_shorter_than_its_window_is_noted(command, tmp_path):
    short = footage.make_video(tmp_path / "short.mp4", 6, (96, 64))
    got = command("run", short, *SMALL, "--views", "2x1", "--json", tmp_path / "o.json")
    assert got.status == 0
    note = (
        "6 frames, fewer than the 16 that a clip reaches over: frames are repeated; all 2 clips are the same"
    )
    assert f"note: {note}" in got.out
    (video,) = json.loads((tmp_path / "o.json").read_text())["videos"]
    assert video["notes"] == [note] and video["views"][0]["top5"] == video["views"][1]["top5"]


# -- labels --


def names(n):
    return [f"action {i}" for i in range(n)]


@pytest.mark.parametrize("kind", ["text", "list", "name to number", "number to name"])
def test_labels_name_the_classes(command, clip, tmp_path, kind):
    path = tmp_path / "labels"
    forms = {
        "text": "\n".join(names(12)) + "\n\n",
        "list": json.dumps(names(12)),
        "name to number": json.dumps({f'"{name}"': i for i, name in enumerate(names(12))}),
        "number to name": json.dumps({str(i): name for i, name in enumerate(names(12))}),
    }
    path.write_text(forms[kind])
    named = top5_lines(command("run", clip, *SMALL, "--views", "1x1", "--labels", path).out)
    bare = top5_lines(command("run", clip, *SMALL, "--views", "1x1").out)
    assert [n for n, _ in named] == [n.replace("class", "action") for n, _ in bare]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb\nc\n", "expected 12 class names, one for each output of the model, got 3"),
        ('{"a": 0, "b": 0}', "the numbers are not 0 to 1"),
        ("[1, 2", "expected a JSON list of names"),
        (b"\xff\xfe\x00", "cannot be read as class names"),
        (None, "no such file"),
    ],
)
def test_labels_that_do_not_fit(command, clip, tmp_path, content, expected):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    got = command("run", clip, *SMALL, "--views", "1x1", "--labels", path)
    assert got.status == 2
    (line,) = got.errors
    assert str(path) in line and expected in line


# -- checkpoints --


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network's files in the formats of two libraries, and the network."""
    from slowfast_kernels.models import checkpoint

    folder = tmp_path_factory.mktemp("weights")
    model = models.create("slowfast_8x8_r50", depth=18, frames=8, crop=64, classes=12)
    run.randomize(model, 3)
    files = {}
    for library in ("pyslowfast", "mmaction2"):
        if library == "mmaction2":
            model = models.create(
                "slowfast_8x8_r50",
                depth=18,
                frames=8,
                crop=64,
                classes=12,
                lateral="conv_plain",
                head=library,
                slow_index="stride",
            )
            run.randomize(model, 3)
        files[library] = folder / f"{library}.pth"
        checkpoint.write(model, files[library], to=library)
    return files


def test_a_checkpoint_brings_its_architecture_and_its_librarys_rules(command, clip, weights, tmp_path):
    out = tmp_path / "o.json"
    got = command(
        "run", clip, "--checkpoint", weights["pyslowfast"], "--views", "1x3", "--compare", "--json", out
    )
    assert got.status == 0, got.err
    assert str(weights["pyslowfast"]) in got.out and "random" not in got.out
    document = json.loads(out.read_text())
    assert document["settings"]["sampling"] == "pyslowfast"
    assert document["model"]["config"]["head"]["classes"] == 12
    assert document["summary"]["logits"]["rel_l2_error"] < 1e-4

    got = command(
        "run", clip, "--checkpoint", weights["mmaction2"], "--views", "1x3", "--compare", "--json", out
    )
    assert got.status == 0, got.err
    document = json.loads(out.read_text())
    assert document["settings"]["sampling"] == "mmaction2"
    assert document["model"]["config"]["input"]["slow_index"] == "stride"
    assert document["summary"]["logits"]["rel_l2_error"] < 1e-4


def test_a_checkpoint_of_another_architecture_is_one_line(command, clip, weights):
    path = weights["pyslowfast"]
    got = command("run", clip, "--checkpoint", path, "--model", "i3d_8x8_r50")
    assert got.status == 2
    assert len(got.err.splitlines()) == 1 and str(path) in got.err and "expected" in got.err


@pytest.mark.parametrize("kind", ["noise", "text", "truncated", "no network", "not weights"])
def test_a_file_that_is_no_checkpoint_is_one_line(command, clip, weights, tmp_path, kind):
    path = tmp_path / "weights.pyth"
    if kind == "noise":
        path.write_bytes(bytes(range(256)) * 20)
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        path.write_bytes(weights["pyslowfast"].read_bytes()[:100_000])
    else:
        torch.save({"model_state": {"layer.weight": torch.ones(3)}} if kind == "no network" else [1, 2], path)
    got = command("run", clip, "--checkpoint", path)
    assert got.status == 2
    assert len(got.err.splitlines()) == 1 and str(path) in got.err
    assert ("truncated" if kind == "truncated" else "expected") in got.err


def test_convert_writes_what_run_reads(command, clip, weights, tmp_path):
    target = tmp_path / "ours.pth"
    got = command("convert", weights["pyslowfast"], target, "--to", "slowfast")
    assert got.status == 0 and str(target) in got.out, got.err
    got = command("convert", target, tmp_path / "back.pyth", "--to", "pyslowfast")
    assert got.status == 0, got.err
    first, second = (
        top5_lines(command("run", clip, "--checkpoint", path, "--views", "1x1").out)
        for path in (weights["pyslowfast"], tmp_path / "back.pyth")
    )
    assert len(first) == 5 and [n for n, _ in first] == [n for n, _ in second]


# -- what cannot be used --


def unusable(tmp_path, kind):
    if kind == "missing":
        return tmp_path / "missing.mp4"
    if kind == "text":
        (tmp_path / "text.mp4").write_text("not a video\n" * 99)
        return tmp_path / "text.mp4"
    if kind == "truncated":
        source = footage.make_video(tmp_path / "whole.mp4", 60)
        (tmp_path / "cut.mp4").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        return tmp_path / "cut.mp4"
    if kind == "without index":
        source = footage.make_video(tmp_path / "whole.mp4", 60)
        data = source.read_bytes()
        (tmp_path / "cut.mp4").write_bytes(data[: data.index(b"moov") - 100])
        return tmp_path / "cut.mp4"
    if kind == "zero frames":
        return footage.make_empty(tmp_path / "zero.avi")
    if kind == "audio only":
        return footage.make_audio(tmp_path / "sound.mp4")
    assert kind == "one frame"
    return footage.make_video(tmp_path / "one.mp4", 1)


KINDS = ("missing", "text", "truncated", "without index", "zero frames", "audio only", "one frame")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_video_is_one_line_and_the_others_still_run(command, clip, tmp_path, kind):
    bad = unusable(tmp_path, kind)
    got = command("run", bad, clip, *SMALL, "--views", "1x1", "--json", tmp_path / "o.json")
    assert got.status == 2
    (line,) = got.errors
    assert line.startswith(f"slowfast-kernels: error: {bad}: ") and "expected" in line
    assert len(top5_lines(got.out)) == 5
    first, second = json.loads((tmp_path / "o.json").read_text())["videos"]
    assert first["file"] == str(bad) and first["error"] in line and len(second["top5"]) == 5


def test_an_mp4_without_its_index_says_what_could_help(command, tmp_path):
    (line,) = command("run", unusable(tmp_path, "without index"), *SMALL, "--partial").errors
    assert "an mp4 without its index" in line and "--partial needs the index too" in line and "repair" in line
    (line,) = command("run", unusable(tmp_path, "text"), *SMALL).errors
    assert "not a video" in line and "an mp4 without" not in line


def test_only_bad_videos(command, tmp_path):
    got = command(
        "run", tmp_path / "a.mp4", tmp_path / "b.mp4", *SMALL, "--compare", "--json", tmp_path / "o.json"
    )
    assert got.status == 2 and len(got.errors) == 2
    assert json.loads((tmp_path / "o.json").read_text())["summary"] == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--views", "10"], "--views: expected CLIPSxCROPS such as 10x3 or 1x1, got '10'"),
        (["--views", "2x2"], "1 or 3 crops"),
        (["--model", "slowfst_8x8_r50"], "did you mean"),
        (["--views", "2x1", "--sampling", "segments"], "expected --views 1x1 or 1x3"),
        (["--set", "classes"], "expected KEY=VALUE"),
        (["--set", "colour=red"], "colour"),
        (["--set", "frames=7"], "multiple of 4"),
        (["--crop", "160"], "expected at least 193 pixels"),
        (["--crop", "224", "--short-side", "100"], "expected 1 <= crop <= short side"),
        (["--threads", "0"], "expected at least 1"),
        (["--json", "/no/such/folder/out.json"], "/no/such/folder/out.json"),
        (["--plot", "/no/such/folder/out.png"], "/no/such/folder/out.png"),
        (["--plot", "out.foo"], "--plot out.foo: expected a picture's suffix, one of"),
        (["--json", "-"], "--json -: expected the name of a file"),
        (["--features", "out.npy"], "--features out.npy: expected a name that ends in .npz or .json"),
        (["--set", "output=maps"], "--set output: expected --features FILE"),
        (["--checkpoint", "/no/such/file.pyth"], "/no/such/file.pyth: no such file"),
        (["--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["--backend", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_options_are_one_line(command, clip, words, expected):
    got = command("run", clip, *words)
    assert got.status == 2
    assert len(got.err.splitlines()) == 1 and expected in got.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what a machine without CUDA lacks")
@pytest.mark.parametrize("words", [["--device", "cuda"], ["--backend", "cuda"], ["--backend", "triton"]])
def test_a_device_or_backend_that_is_not_there_is_not_replaced(command, clip, words, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_extension, "EMULATE", False)
    got = command("run", clip, *SMALL, "--views", "1x1", *words)
    assert got.status == 2
    (line,) = got.errors
    assert words[1] in line or "CUDA" in line
    assert not top5_lines(got.out)


def test_outputs_that_are_not_finite_are_reported(command, clip, monkeypatch):
    def broken(model, seed):
        run_randomize(model, seed)
        with torch.no_grad():
            model.head.proj.weight.fill_(float("nan"))

    run_randomize = run.randomize
    monkeypatch.setattr(run, "randomize", broken)
    got = command("run", clip, *SMALL, "--views", "1x1", "--compare")
    assert got.status == 2
    assert any("not finite" in line for line in got.errors)


def test_no_traceback_in_a_process_of_its_own(tmp_path):
    """As a user runs it: nothing on the standard error but the line."""
    done = subprocess.run(
        [sys.executable, "-m", "slowfast_kernels", "run", str(tmp_path / "missing.mp4"), *SMALL],
        capture_output=True,
        text=True,
        env={**os.environ, "SLOWFAST_DEBUG": ""},
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "missing.mp4: no such file" in done.stderr


# -- the clip of the demo --


def test_the_demo_clip_is_what_its_script_renders(tmp_path):
    root = Path(__file__).parents[2]
    clip = root / "examples" / "demo.mp4"
    assert clip.stat().st_size < 300_000
    subprocess.run(
        [sys.executable, str(root / "examples" / "render_clip.py"), str(tmp_path / "again.mp4")],
        check=True,
        capture_output=True,
    )
    from slowfast_kernels.video import VideoReader

    ours, again = VideoReader(clip), VideoReader(tmp_path / "again.mp4")
    assert (ours.info.codec, ours.info.frames, ours.info.fps) == ("h264", 300, 30.0)
    assert (again.info.frames, again.info.width) == (300, ours.info.width)
    for (_, a), (_, b) in zip(ours.read([0, 150, 299]), again.read([0, 150, 299]), strict=True):
        # Another version of the encoder may round differently, but must draw the same picture.
        assert (a.int() - b.int()).abs().float().mean() < 2.0


def test_main_returns_its_status(capsys):
    assert main(["info"]) == 0
    assert "providers" in capsys.readouterr().out
