"""Every script of examples/ runs, on small inputs, and does what it says."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))


def load(name):
    """A script as a module, with its command line left alone."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS)
def test_says_what_it_shows_and_how_it_is_run(script):
    doc = ast.get_docstring(ast.parse((FOLDER / script).read_text()))
    assert f"python examples/{script}" in doc


def test_every_script_is_tried_below():
    tried = {
        "accelerate_a_model.py",
        "train_a_block.py",
        "video_to_scores.py",
        "profile_an_op.py",
        "freeze_your_own.py",
    }
    assert set(SCRIPTS) - tried == {"render_clip.py"}  # whose clip the demo and the next tests decode


@pytest.mark.parametrize("installed", [True, False], ids=["pytorchvideo", "without pytorchvideo"])
def test_accelerated_model_gives_the_same_answers(installed, monkeypatch, capsys):
    if installed:
        sys.path.insert(0, str(Path(__file__).parent / "models"))
        pytest.importorskip("pytorchvideo")
        __import__("live").pytorchvideo()
    else:
        monkeypatch.setitem(sys.modules, "pytorchvideo.models.slowfast", None)
    error = load("accelerate_a_model").main(["--depth", "18", "--crop", "32", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert error < 1e-5
    assert ("Net -> " if installed else "SlowFast -> ") in printed and "x on" in printed


def test_block_learns(capsys):
    losses = load("train_a_block").main([])
    assert losses[0] > 0.5 and max(losses[-5:]) < 0.1
    assert "% of 200 new clips are right" in capsys.readouterr().out


def test_video_gives_scores(capsys):
    pytest.importorskip("av")
    scores = load("video_to_scores").main(
        [str(FOLDER / "demo.mp4"), "--model", "slow_8x8_r18", "--crop", "64", "--views", "2x1"]
    )
    assert scores.shape == (400,) and abs(scores.sum().item() - 1) < 1e-4
    assert capsys.readouterr().out.count("class") == 5


def test_video_gives_the_scores_of_the_command(tmp_path, command_line):
    """The lines in the example are the command's own recipe: the same views, the same average."""
    pytest.importorskip("av")
    from slowfast_kernels import models

    path = tmp_path / "model.pth"
    config = {"crop": 64, "test_crop": 64, "blocks": (1, 1, 1, 1)}
    models.save_checkpoint(models.create("slow_8x8_r18", **config).eval(), path)
    scores = load("video_to_scores").main([str(FOLDER / "demo.mp4"), "--checkpoint", str(path)])
    found = command_line(["run", str(FOLDER / "demo.mp4"), "--checkpoint", str(path), "--views", "1x1"])
    best = found["videos"][0]["top5"]
    assert [row["class"] for row in best] == scores.topk(5).indices.tolist()
    assert [row["score"] for row in best] == pytest.approx(scores.topk(5).values.tolist(), rel=1e-5)


@pytest.fixture
def command_line(tmp_path):
    """Runs a command with --json and returns the document."""
    import json

    from slowfast_kernels.cli import main

    def call(words):
        file = tmp_path / "out.json"
        assert main([*words, "--json", str(file), "--quiet"]) == 0
        return json.loads(file.read_text())

    return call


def test_profile_names_every_call_with_its_work(capsys):
    rows = load("profile_an_op").main(
        ["--model", "slow_8x8_r18", "--crop", "64", "--op", "stem3d", "--case", "stem.fast", "--shrink", "4"]
    )
    printed = capsys.readouterr().out
    assert {row["stage"].split(".")[0] for row in rows} >= {"stem", "res2", "res5", "head"}
    assert "stem3d/stem.fast" in printed and "GFLOP/s" in printed
