"""Tile choice: heuristic, winners on disk, measuring. The device and the clock are played by the test."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from slowfast_kernels import autotune, precision

CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Tiles:
    block: int
    warps: int = 4


SECONDS = {Tiles(64): 3.0, Tiles(128): 1.0, Tiles(256): 2.0}


@pytest.fixture
def played(monkeypatch, tmp_path):
    """A GPU called "Some GPU 3000" on which a config takes SECONDS, and what was run there."""
    runs: list[Tiles] = []
    current = []

    @contextlib.contextmanager
    def device(one):
        current.append(one)
        try:
            yield
        finally:
            current.pop()

    def time_call(run, times=20):
        assert current == [CUDA], "timed on the current device, not on the tensors'"
        run()
        return SECONDS[runs[-1]]

    monkeypatch.setenv("SLOWFAST_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(autotune, "gpu_name", lambda device: "some-gpu-3000")
    monkeypatch.setattr(autotune, "time_call", time_call)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    autotune._tables.cache_clear()
    yield runs
    autotune._tables.cache_clear()


def choose(run, source="v1", key=(1, "bf16"), heuristic=Tiles(64), device=CUDA):
    return autotune.choose("conv_bn_act3d", key, source, device, heuristic, lambda: list(SECONDS), run)


def test_the_cpu_gets_the_heuristic(played):
    with autotune.measuring():
        assert choose(played.append, device=torch.device("cpu")) == Tiles(64)
    assert not played


def test_nothing_is_measured_unasked(played):
    assert choose(played.append) == Tiles(64) and not played


def test_families_are_measured_by_themselves(played):
    tuners = {
        "cuda": autotune.Tuner("stem3d", cuda=("stem",)),
        "triton": autotune.Tuner("stem3d", __file__),
        "plans": autotune.Tuner("plans", __file__, cuda=("stem",), family="plans"),
    }
    assert set(tuners) == set(autotune.FAMILIES)

    for asked in autotune.FAMILIES:
        with autotune.measuring([asked]):
            tiles = {
                name: tuner.pick((asked, name), CUDA, lambda: Tiles(64), lambda: list(SECONDS), played.append)
                for name, tuner in tuners.items()
            }
        assert [name for name, found in tiles.items() if found == Tiles(128)] == [asked]
    with pytest.raises(ValueError, match="families: expected .* got 'gpu'"), autotune.measuring(["gpu"]):
        pass


@pytest.mark.parametrize(
    "text, families",
    [("", ""), ("0", ""), ("1", "cuda triton plans"), ("cuda, plans", "cuda plans"), ("triton", "triton")],
)
def test_families_by_the_environment(text, families):
    assert autotune._asked(text) == frozenset(families.split())


def test_an_unknown_family_is_named():
    with pytest.warns(UserWarning, match="got 'cuda,tiles': 'tiles' left out"):
        assert autotune._asked("cuda,tiles") == {"cuda"}


def test_the_fastest_is_kept_on_disk(played, tmp_path):
    with autotune.measuring():
        assert choose(played.append) == Tiles(128)
    assert set(played) == set(SECONDS)
    document = json.loads((tmp_path / "conv_bn_act3d" / "some-gpu-3000.json").read_text())
    ((source, winners),) = document["winners"].items()
    (winner,) = winners.values()
    assert source == "v1"
    assert winner == {"config": {"block": 128, "warps": 4}, "seconds": 1.0, "heuristic_seconds": 3.0}

    autotune._tables.cache_clear()  # as a new process would
    played.clear()
    assert choose(played.append) == Tiles(128) and not played
    assert choose(played.append, key=(2, "bf16")) == Tiles(64)  # another shape was not measured
    assert choose(played.append, source="v2") == Tiles(64)  # an edited kernel forgets its winners
    with autotune.measuring():
        assert choose(played.append, source="v2") == Tiles(128)  # and another kernel has its own beside them
    autotune._tables.cache_clear()
    assert choose(played.append) == choose(played.append, source="v2") == Tiles(128)


def test_candidates_that_do_not_run_are_left_out(played):
    def run(config):
        if config == Tiles(128):
            raise RuntimeError("out of shared memory")
        played.append(config)

    with autotune.measuring():
        assert choose(run) == Tiles(256)


def test_a_heuristic_that_does_not_run_is_an_error(played):
    def run(config):
        raise ValueError("no such instruction")

    with autotune.measuring(), pytest.raises(RuntimeError, match="heuristic's tiles .* do not run"):
        choose(run)


def test_a_damaged_table_is_as_good_as_none(played, tmp_path):
    path = tmp_path / "conv_bn_act3d" / "some-gpu-3000.json"
    path.parent.mkdir()
    path.write_text("{ not json")
    assert choose(played.append) == Tiles(64)


def test_a_winner_that_cannot_be_written_is_used_all_the_same(played, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SLOWFAST_CACHE_DIR", str(tmp_path / "file"))
    with autotune.measuring(), pytest.warns(UserWarning, match="cannot be kept"):
        assert choose(played.append) == Tiles(128)
    assert choose(played.append) == Tiles(128) and len(played) == len(SECONDS)


def test_the_cache_has_a_place_without_a_home(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    for name in ("SLOWFAST_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert autotune.cache_dir().name == "slowfast-kernels"


class Clock:
    """A device that works off a queue, and the host that fills it: both in seconds."""

    def __init__(self):
        self.host = self.device = 0.0

    def queue(self, seconds, to_start):
        self.host += to_start
        self.device = max(self.device, self.host) + seconds

    def synchronize(self):
        self.host = max(self.host, self.device)


@pytest.mark.parametrize("device_time, to_start", [(5e-6, 60e-6), (5e-6, 3e-3), (4e-3, 60e-6)])
def test_the_devices_time_is_measured(monkeypatch, device_time, to_start):
    """Not the host's: in a graph, where the calls are bound for, a launch costs the host nothing."""
    clock = Clock()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            clock.queue(0.0, 1e-6)
            self.at = clock.device

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", clock.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: clock.queue(cycles / 2e9, 5e-6))
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock.host)
    seconds = autotune.time_call(lambda: clock.queue(device_time, to_start))
    assert seconds == pytest.approx(device_time, rel=1e-3)


def test_source_hash_follows_the_files(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("a")
    two.write_text("b")
    assert autotune.source_hash(str(one)) != autotune.source_hash(str(two))
    assert autotune.source_hash(str(one), str(two)) != autotune.source_hash(str(one))


class TestFloat32Modes:
    def test_follows_pytorch_by_default(self, monkeypatch):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        assert precision.fp32_mode() == "tf32"
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert precision.fp32_mode() == "ieee"

    @pytest.mark.parametrize("mode", ["ieee", "tf32"])
    def test_follows_a_precision_chosen_by_operator(self, mode):
        """After which reading allow_tf32 is an error of PyTorch's."""
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before, conv.fp32_precision = conv.fp32_precision, mode
        try:
            assert precision.fp32_mode() == mode
        finally:
            conv.fp32_precision = before

    def test_one_asked_for_holds_in_the_block(self):
        before = precision.fp32_mode()
        with precision.fp32_precision("bf16x3"):
            assert precision.fp32_mode() == "bf16x3"
        assert precision.fp32_mode() == before

    def test_an_unknown_one_is_named(self):
        with pytest.raises(ValueError, match="got 'fp8'"), precision.fp32_precision("fp8"):
            pass


def pick(tuner, run, key=(1, "bf16"), heuristic=Tiles(64), device=CUDA):
    return tuner.pick(key, device, lambda: heuristic, lambda: list(SECONDS), run)


def test_a_tuner_asks_once(played):
    tuner = autotune.Tuner("conv_bn_act3d", __file__)
    with autotune.measuring():
        assert [pick(tuner, played.append) for _ in range(3)] == [Tiles(128)] * 3
    measured = len(played)
    assert set(played) == set(SECONDS)
    with autotune.measuring():
        assert pick(tuner, played.append, key=(2, "bf16")) == Tiles(128)
    assert len(played) == 2 * measured


def test_what_is_chosen_in_a_capture_is_not_kept(played, monkeypatch):
    """Nothing can be measured there: the next call outside may."""
    tuner = autotune.Tuner("conv_bn_act3d", __file__)
    with autotune.measuring():
        with monkeypatch.context() as capture:
            capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            assert pick(tuner, played.append) == Tiles(64) and not played
        assert pick(tuner, played.append) == Tiles(128)


def test_a_tuner_of_another_source_measures_again(played, tmp_path):
    for text in ("one", "two"):
        (tmp_path / f"{text}.py").write_text(text)
        with autotune.measuring():
            pick(autotune.Tuner("conv_bn_act3d", str(tmp_path / f"{text}.py")), played.append)
    assert len(played) == 2 * len(SECONDS)


def test_nothing_that_fits_is_remembered(played):
    tuner, asked = autotune.Tuner("bottleneck3d"), []

    def heuristic():
        asked.append(1)

    for _ in range(2):
        assert tuner.pick((1,), CUDA, heuristic, list, played.append) is None
    assert len(asked) == 1 and not played


def test_choices_of_a_plan_know_every_source_that_decides():
    pytest.importorskip("triton")
    from slowfast_kernels.plans import choose

    names = {"/".join(Path(file).parts[-2:]) for file in choose.SOURCES}
    ops = {f"{op}/triton.py" for op in ("bottleneck3d", "conv_bn_act3d", "lateral_fusion", "stem3d")}
    forms = {f"conv_bn_act3d/{name}.py" for name in ("triton_tiles", "triton_descriptor", "cudnn")}
    assert names == ops | forms | {"_triton/tiles.py"}
