"""``slowfast-kernels info`` and the command's own manners."""

import json
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

import slowfast_kernels
from slowfast_kernels import backends, known_issues, models, ops
from slowfast_kernels.cli import COMMANDS, info


def test_info_names_versions_providers_and_models(command):
    got = command("info")
    assert got.status == 0 and got.err == ""
    assert torch.__version__ in got.out and slowfast_kernels.__version__ in got.out
    for name in backends.NAMES:
        assert name in got.out
    for name in models.names():
        assert name in got.out


def test_info_says_why_a_provider_is_not_there(command, monkeypatch):
    reason = "no compiler was found when it was built"
    real = backends.unavailable
    monkeypatch.setattr(backends, "unavailable", lambda name: reason if name == "cpu" else real(name))
    got = command("info")
    assert f"not available: {reason}" in got.out
    assert "warning: CPU calls run on the plain PyTorch reference" in got.out


def test_info_as_json(command):
    document = json.loads(command("info", "--json").out)
    assert document["environment"]["threads"] == torch.get_num_threads()
    assert document["providers"]["reference"] == {"available": True, "reason": None}
    for name in backends.NAMES[1:]:
        assert document["providers"][name]["available"] == (backends.unavailable(name) is None)
    assert document["isa"]["used"] == backends.cpu_isa()
    assert document["models"] == models.names()


def test_info_for_a_gpu_user(command, monkeypatch):
    document = json.loads(command("info", "--json").out)["gpu"]
    assert (document["device"] is None) == (not torch.cuda.is_available())
    assert set(document["triton"]) == set(ops.NAMES)
    assert "bottleneck3d" in document["cuda"] and "pool_concat_head" not in document["cuda"]
    monkeypatch.setattr(known_issues, "found", lambda: known_issues.ISSUES[:1])
    out = command("info").out
    assert "\ngpu\n" in out and "silently give wrong results (pytorch#163539)" in out


def test_info_tells_known_issues_of_the_cpu(command, monkeypatch):
    of_the_cpu = [issue for issue in known_issues.ISSUES if issue.cudnn is None]
    monkeypatch.setattr(known_issues, "found", lambda: tuple(of_the_cpu))
    lines = command("info").out.partition("\nknown issues\n")[2].splitlines()
    for issue, line in zip(of_the_cpu, lines, strict=False):
        assert "on the CPU" in line and issue.what in line and issue.see in line
    assert len(json.loads(command("info", "--json").out)["known_issues"]) == len(of_the_cpu) > 0


def test_ceilings_that_cannot_be_measured_are_explained(command, monkeypatch):
    monkeypatch.setattr(info, "measured_ceilings", lambda threads: (None, "the probe is not built"))
    got = command("info", "--ceilings")
    assert got.status == 0 and "not measured: the probe is not built" in got.out


def test_bench_hands_its_words_on(command, monkeypatch):
    seen = []
    bench: Any = ModuleType("slowfast_kernels.bench")

    def main(words):
        seen.append(words)
        return 0

    bench.main = main
    monkeypatch.setitem(sys.modules, "slowfast_kernels.bench", bench)
    monkeypatch.setattr(slowfast_kernels, "bench", bench, raising=False)
    assert command("bench", "ops", "--peers", "eager", "--help").status == 0
    assert seen == [["ops", "--peers", "eager", "--help"]]


@pytest.mark.parametrize("name", ["run", "info", "convert"])
def test_help_teaches_by_example(command, name):
    got = command(name, "--help")
    assert got.status == 0
    assert f"slowfast-kernels {name}" in got.out and "examples:" in got.out


def test_help_lists_the_commands(command):
    got = command("--help")
    assert got.status == 0 and all(name in got.out for name in COMMANDS)


def test_version(command):
    assert command("--version").out.strip() == slowfast_kernels.__version__


@pytest.mark.parametrize("words", [[], ["nonsense"], ["run"], ["convert", "a", "b"], ["info", "--what"]])
def test_wrong_words_are_one_line(command, words):
    got = command(*words)
    assert got.status == 2 and got.out == ""
    assert len(got.err.splitlines()) == 1 and "error:" in got.err


def test_convert_names_a_missing_file(command, tmp_path):
    got = command("convert", tmp_path / "in.pyth", tmp_path / "out.pyth", "--to", "pytorchvideo")
    assert got.status == 2
    (line,) = got.errors
    assert f"{tmp_path / 'in.pyth'}: no such file" in line
