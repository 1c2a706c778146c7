"""An optional package that is not installed: one line that names the extra, from the library and from the command."""

import sys
import tomllib
from pathlib import Path

import pytest

import slowfast_kernels
from slowfast_kernels._optional import MissingExtra, needs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without(monkeypatch):
    """``without("av", "video")``: as if av were not installed, and slowfast_kernels.video not yet imported."""

    def forget(package, *modules):
        monkeypatch.setitem(sys.modules, package, None)
        for module in modules:
            monkeypatch.delitem(sys.modules, f"slowfast_kernels.{module}", raising=False)
            monkeypatch.delattr(slowfast_kernels, module, raising=False)

    return forget


def test_run_without_pyav(command, without):
    without("av", "video")
    got = command("run", "clip.mp4")
    assert got.status == 2 and got.out == ""
    assert got.err == "slowfast-kernels: error: run needs PyAV: pip install 'slowfast-kernels[video]'\n"


def test_a_library_user_without_pyav(without):
    without("av", "video")
    with pytest.raises(
        MissingExtra, match=r"^slowfast_kernels\.video needs PyAV: pip install '.*\[video\]'$"
    ):
        from slowfast_kernels import video  # noqa: F401


def test_plot_without_matplotlib(command, without, tmp_path):
    without("matplotlib")
    got = command("run", "clip.mp4", "--plot", tmp_path / "a.png")
    assert got.status == 2
    assert got.errors == [
        "slowfast-kernels: error: --plot needs matplotlib: pip install 'slowfast-kernels[video]'"
    ]


def test_a_peer_that_is_missing(without):
    from slowfast_kernels.bench import peers

    without("openvino")
    with pytest.raises(peers.Unavailable, match=r"needs openvino: pip install 'slowfast-kernels\[bench\]'$"):
        peers.PEERS["openvino"].build(None, [], "fp32", 1)


def test_an_installed_package_that_does_not_load():
    does_not_load = pytest.raises(
        MissingExtra, match=r"needs PyAV, which does not load \(libav is gone\): pip"
    )
    with does_not_load as error, needs("run", extra="video"):
        raise ImportError("libav\nis gone", name="av._core")
    assert error.value.name == "av._core" and "\n" not in str(error.value)


def test_other_errors_pass():
    with pytest.raises(ValueError, match="^mine$"), needs("run", extra="video"):
        raise ValueError("mine")


def test_every_extra_that_is_named_brings_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, package in (("video", "av"), ("video", "matplotlib"), ("bench", "matplotlib"), ("bench", "openvino"),
                           ("bench", "onnxruntime")):  # fmt: skip
        assert any(wanted.startswith(package) for wanted in extras[extra]), (extra, package)
