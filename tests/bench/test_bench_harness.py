"""The harness: what it calls, in which order, and when it trusts an output. No test looks at a time."""

import itertools
import json
import statistics
from functools import partial

import numpy as np
import pytest
import torch

from slowfast_kernels.bench import compare, harness, stamp
from slowfast_kernels.testing import relative_l2


def test_every_round_runs_everyone_once_in_changing_order(monkeypatch):
    calls = []
    # A call looks slower than a sample, so that each sample is one call.
    clock = itertools.count()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(clock)))
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    compared = harness.interleaved(runs, rounds=20, progress=False)
    measured = calls[6:]  # behind a warm-up and an estimate of each
    rounds = [tuple(measured[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    assert all(len(t.samples) == 20 and t.repeats == 1 for t in compared.timings.values())
    assert list(compared.timings) == ["a", "b", "c"]


def test_a_short_call_is_repeated_inside_a_sample(monkeypatch):
    count, clock = itertools.count(), itertools.count()
    # A tenth of a sample passes between two looks at the clock: three calls, the estimate, take it together.
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock) * harness.SAMPLE_SECONDS / 10)
    compared = harness.interleaved({"x": lambda: next(count)}, rounds=3, progress=False)
    timing = compared.timings["x"]
    assert timing.repeats == 30
    assert next(count) == 1 + 1 + 3 + 3 * timing.repeats  # warm-up, estimates, samples


def test_cold_caches_are_emptied_before_every_call():
    calls = []
    machine = harness.CpuMachine(harness.Setting(rounds=4), cold_bytes=1 << 10)
    contender = harness.Contender("x", [lambda: calls.append(float(machine._ballast[0]))])
    timing = machine.compare({"x": machine.prepare(contender)}).timings["x"]
    assert timing.repeats == 1 and calls == [0.0, 1.0, 2.0, 3.0, 4.0]  # the first is the warm-up


def test_nothing_is_timed_without_contenders():
    assert harness.interleaved({}).timings == {}


def test_medians_and_ratios():
    compared = harness.Comparison(
        {"ours": harness.Timing("ours", (1.0, 2.0, 9.0)), "peer": harness.Timing("peer", (4.0, 6.0, 9.0))}
    )
    assert compared.ratio("ours", "peer") == 3.0
    assert compared.paired("ours", "peer") == (1.0, 4.0)
    samples = tuple(float(i) for i in range(11))
    timing = harness.Timing("x", samples)
    assert timing.median == statistics.median(samples)
    assert timing.spread == (2.0, 8.0)
    assert json.loads(json.dumps(timing.to_dict()))["p80_s"] == 8.0


def test_relative_l2():
    x = torch.tensor([3.0, 4.0])
    assert relative_l2(x, x) == 0.0
    assert relative_l2(x + torch.tensor([0.0, 0.5]), x) == pytest.approx(0.1)
    assert relative_l2(np.array([3.0, 4.0]), x) == 0.0
    assert relative_l2([x, x + 1], [x, x]) > relative_l2([x, x], [x, x])
    assert relative_l2(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_l2(x, torch.zeros(2)) == float("inf")


@pytest.mark.parametrize(
    "ours", [torch.full((2,), float("nan")), torch.ones(3), torch.full((2,), float("inf"))]
)
def test_a_broken_output_is_red(ours):
    gate = harness.Gate(relative_l2(ours, torch.ones(2)), harness.FP32_LIMIT)
    assert not gate.green and "RED" in str(gate)


def test_low_precision_is_measured_against_the_exact_answer():
    exact = torch.ones(4)
    machine = harness.CpuMachine(harness.Setting(rounds=1))
    builders = {str(off): compare.builder(str(off), partial(torch.sub, exact, off)) for off in (0.015, 0.025)}
    record = compare.compare(machine, builders, exact, exact + 0.01, dtype="bf16")
    assert [row["green"] for row in record["rows"]] == [True, False]


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with harness.threads(1) as count:
        assert count == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="at least 1"), harness.threads(0):
        pass


def test_the_stamp_says_what_was_measured():
    found = stamp.environment()
    assert {"revision", "torch", "threads", "processor", "isa", "time"} <= found.keys()
    text = "\n".join(stamp.stamp_lines(found))
    version = found["revision"] or found["slowfast_kernels"]
    assert found["torch"] in text and version in text and found["isa"] in text


def test_outside_of_a_clone_the_version_stands_for_the_revision(monkeypatch):
    """An installed copy may lie in a repository of something else, which has a revision but not these files."""
    monkeypatch.setattr(stamp, "_git", lambda *words: "abc" if words[0] == "rev-parse" else "")
    stamp.revision.cache_clear()
    try:
        found = {**stamp.environment(), "threads": 1, "cores": 1}
    finally:
        stamp.revision.cache_clear()
    text = "\n".join(stamp.stamp_lines(found))
    assert found["revision"] is None and f"version {found['slowfast_kernels']}, " in text
    assert "1 core, 1 thread," in text and "unknown" not in text
