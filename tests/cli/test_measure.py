"""Measurements: spreads, errors, stage times, floors, memory."""

import math
import sys
from functools import partial

import pytest
import torch
from torch import nn

from slowfast_kernels.cli import measure

CPU = torch.device("cpu")


def test_spread():
    assert measure.spread([3.0, 1.0, 2.0]) == {"runs": 3, "median_s": 2.0, "p20_s": 1.0, "p80_s": 3.0}
    assert measure.spread([])["median_s"] is None


@pytest.fixture
def clock(monkeypatch):
    """``clock.pass_(seconds)``: time that passes only when told to."""

    class Clock:
        now = 0.0

        def pass_(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)
    return clock


def test_timed_returns_the_result_and_its_time(clock):
    assert measure.timed(lambda: clock.pass_(0.02) or "done", CPU) == ("done", 0.02)


def test_errors():
    largest, relative = measure.errors(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    assert largest == 0.5 and relative == pytest.approx(0.1)
    assert math.isnan(measure.errors(torch.tensor([float("nan")]), torch.tensor([1.0]))[0])


def test_worse_keeps_nan():
    assert measure.worse(1.0, 2.0) == 2.0
    assert math.isnan(measure.worse(float("nan"), 1.0)) and math.isnan(measure.worse(1.0, float("nan")))


def test_logits_come_back_from_probabilities():
    logits = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)) * 4
    centred = logits[0] - logits.mean()
    assert torch.allclose(measure.logits_of(logits.softmax(1), "softmax"), centred, atol=1e-4)
    assert torch.allclose(measure.logits_of(logits.sigmoid(), "sigmoid"), logits[0], atol=1e-3)
    assert torch.equal(measure.logits_of(logits, "none"), logits[0])
    assert measure.logits_of(torch.tensor([[1.0, 0.0]]), "softmax").isfinite().all()


def test_scores():
    logits = torch.tensor([[1.0, 3.0]])
    assert torch.allclose(measure.scores_of(logits, "none", False), logits[0].softmax(0))
    assert torch.allclose(measure.scores_of(logits, "none", True), logits[0].sigmoid())
    assert torch.equal(measure.scores_of(logits, "softmax", False), logits[0])


class Net(nn.Module):
    """Stages of the kinds a network has: a module, a ModuleDict of modules, a ModuleList."""

    def __init__(self, clock):
        super().__init__()
        wait = partial(Wait, clock)
        self.stem = nn.ModuleDict({"slow": wait(0.01), "fast": wait(0.02)})
        self.lateral = nn.ModuleList([wait(0.01), wait(0.01)])
        self.res2 = nn.ModuleDict({"slow": nn.Sequential(wait(0.01), wait(0.01))})
        self.head = wait(0.03)

    def forward(self, x):
        parts = (*self.stem.values(), *self.lateral, *self.res2.values(), self.head)
        for part in parts:
            x = part(x)
        return x


class Wait(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock.pass_(self.seconds)
        return x


def test_stage_clock_times_what_is_called_and_leaves_no_hook(clock):
    net = Net(clock)
    with measure.stage_clock(net, CPU) as found:
        net(torch.zeros(1))
    expected = {"stem.slow": 0.01, "stem.fast": 0.02, "lateral.0": 0.01, "lateral.1": 0.01, "res2.slow": 0.02}
    assert dict(found) == pytest.approx({**expected, "head": 0.03})
    before = dict(found)
    net(torch.zeros(1))
    assert dict(found) == before


def test_floors_take_the_slower_limit_of_each_op():
    rows = [
        {"stage": "res2.slow", "flops": 2e9, "bytes": 1e6},  # 20 ms of arithmetic
        {"stage": "res2.slow", "flops": 1e6, "bytes": 1e8},  # 10 ms of traffic
        {"stage": "stem.fast", "flops": 1e9, "bytes": 0},
    ]
    floors = measure.direct_floor_seconds(rows, gflops=100.0, gigabytes=10.0)
    assert floors == {"res2.slow": pytest.approx(0.03), "stem.fast": pytest.approx(0.01)}
    assert measure.direct_floor_seconds(rows, None, None) == {"res2.slow": None, "stem.fast": None}


def test_stages_are_merged_in_the_networks_order():
    reference = [
        {"head": 0.3, "stem.slow": 0.1, "res2.fast": 0.2},
        {"head": 0.5, "stem.slow": 0.1, "res2.fast": 0.2},
    ]
    frozen = [
        [{"stage": "stem.slow", "seconds": 0.02}, {"stage": "stem.slow", "seconds": 0.03}],
        [{"stage": "stem.slow", "seconds": 0.07}],
    ]
    rows = measure.merge_stages(reference, frozen)
    assert [row["stage"] for row in rows] == ["stem.slow", "res2.fast", "head"]
    assert rows[0]["frozen_s"] == pytest.approx(0.06) and rows[0]["reference_s"] == pytest.approx(0.1)
    assert rows[1]["frozen_s"] is None and rows[2]["reference_s"] == pytest.approx(0.4)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_memory_sees_what_was_freed_again():
    def run():
        block = torch.ones(64 << 20, dtype=torch.uint8)
        return int(block[-1])

    result, peak = measure.peak_memory(run, CPU)
    assert result == 1
    assert peak is not None and 60 << 20 < peak < 120 << 20
    small, rest = measure.peak_memory(lambda: None, CPU)
    assert small is None and rest is not None and rest < 30 << 20
