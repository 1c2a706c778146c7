"""Tables, JSON documents and pictures."""

import json
import os

import pytest
import torch

from slowfast_kernels import report


def test_table_aligns_columns():
    text = report.table([["short", "1"], ["a longer name", "12.5"]], ["name", "value"])
    assert text.splitlines() == [
        "name           value",
        "--------------------",
        "short              1",
        "a longer name   12.5",
    ]
    assert report.table([]) == ""
    assert report.table([["a"], ["b", "c"]]) == "a\nb  c"


def test_json_has_no_infinities_and_only_plain_values(tmp_path):
    path = tmp_path / "out.json"
    report.write_json(
        path,
        {
            "nan": float("nan"),
            "inf": [float("inf")],
            "pair": (1, True),
            "t": torch.ones(2),
            "d": torch.float32,
        },
    )
    assert json.loads(path.read_text()) == {
        "nan": None,
        "inf": [None],
        "pair": [1, True],
        "t": [1.0, 1.0],
        "d": "torch.float32",
    }


def test_environment_stamp():
    stamp = report.environment()
    assert stamp["torch"] == torch.__version__ and stamp["threads"] == torch.get_num_threads()
    assert 1 <= stamp["cores"] <= os.cpu_count()
    assert stamp["processor"] and stamp["isa"]


STAGES = [
    {"stage": "stem.slow", "reference_s": 0.04, "frozen_s": 0.01, "direct_floor_s": 0.005},
    {"stage": "stem.fast", "reference_s": 0.06, "frozen_s": 0.02, "direct_floor_s": 0.010},
    {"stage": "res2.slow", "reference_s": 0.20, "frozen_s": 0.08, "direct_floor_s": 0.050},
    {"stage": "lateral.0", "reference_s": 0.02, "frozen_s": 0.01, "direct_floor_s": 0.002},
    {"stage": "head", "reference_s": 0.01, "frozen_s": 0.01, "direct_floor_s": None},
]


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Draw and keep the figure, whose closing would lose it."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="the video extra is not installed")
    monkeypatch.setattr(plt, "close", lambda figure: None)

    def draw(stages, name="out.png"):
        report.plot_stages(tmp_path / name, stages, "title")
        return tmp_path / name, plt.gcf().axes[0]

    yield draw
    monkeypatch.undo()
    plt.close("all")


def test_plot_shows_both_sides_pathways_and_floor(figure):
    path, axes = figure(STAGES)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["stem", "res2", "lateral", "head"]
    heights = [bar.get_height() for bar in axes.patches]
    # Four stages on two sides, and the stem's Fast pathway stacked on either.
    assert heights == pytest.approx([40, 60, 200, 20, 10, 10, 20, 80, 10, 10])
    floors = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata())]
    assert floors == pytest.approx([15, 50, 2])
    legend = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    assert (
        "reference (330 ms)" in legend
        and "fused (130 ms)" in legend
        and "direct-convolution floor; Winograd may run below it (67 ms)" in legend
    )


def test_plot_without_floor_or_reference(figure):
    stages = [{"stage": "head", "reference_s": None, "frozen_s": 0.01}]
    path, axes = figure(stages, "no suffix")
    assert path.exists() and [bar.get_height() for bar in axes.patches] == pytest.approx([10])
    assert not [line for line in axes.lines if len(line.get_ydata())]
