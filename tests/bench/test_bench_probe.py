"""The probe: what it offers and what it refuses; figures only have to be possible."""

import pytest

from slowfast_kernels import _extension
from slowfast_kernels.bench import probe, roofline

built = pytest.mark.skipif(not probe.available(), reason="the probe is not built")


def test_a_missing_probe_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr(_extension, "LIB_DIR", tmp_path)
    probe.library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="probe is not built.*libslowfast_probe") as error:
            probe.ceilings(1)
        assert "\n" not in str(error.value)
        assert not probe.available()
    finally:
        probe.library.cache_clear()


@built
def test_ceilings_have_the_keys_that_floors_are_made_of():
    found = probe.ceilings(1)
    assert found["threads"] == 1
    for key in ("fp32_gflops", "bf16_gflops", "read_gbs", "copy_gbs", "triad_gbs"):
        assert found[key] > 0
    assert found["int8_gops"] is None or found["int8_gops"] > 0
    assert found["fp32_isa"] in probe.library().features()


@built
def test_loops_match_what_the_kernels_found():
    """The probe and the kernels ask the processor separately; they must agree on what it has."""
    features = set(probe.library().features())
    if _extension.cpu_missing:
        pytest.skip(f"nothing to compare with: {_extension.cpu_missing}")
    assert ("avx512" in features) == (_extension.cpu_isa_found() in ("avx512", "avx512_bf16"))
    for row in [*probe.library().arithmetic(), *probe.library().memory()]:
        assert row["isa"] in features


@built
def test_every_loop_runs_on_two_threads():
    native = probe.library()
    for row in native.arithmetic():
        assert native.operations(row["kind"], row["isa"], 2, 0.001) > 0
    for row in native.memory():
        assert native.bandwidth(row["kind"], row["isa"], 1 << 16, 2, 0.001) > 0


@built
@pytest.mark.parametrize(
    "call",
    [
        lambda native: native.operations("fp32", "no such set", 1, 0.001),
        lambda native: native.operations("fp32", "sse2", 0, 0.001),
        lambda native: native.operations("fp32", "sse2", 1, -1.0),
        lambda native: native.bandwidth("copy", "sse2", 0, 1, 0.001),
        lambda native: native.bandwidth("copy", "sse2", -5, 1, 0.001),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call(probe.library())


def test_floor_is_the_slower_of_arithmetic_and_traffic():
    ceilings = {"fp32_gflops": 100.0, "bf16_gflops": 200.0, "copy_gbs": 10.0}
    assert roofline.direct_floor(1e9, 1e6, "fp32", ceilings) == pytest.approx(0.01)
    assert roofline.direct_floor(1e9, 1e6, "bf16", ceilings) == pytest.approx(0.005)
    assert roofline.direct_floor(1e6, 1e9, "fp32", ceilings) == pytest.approx(0.1)
    assert roofline.direct_floor(1e9, 1e6, "fp32", None) is None
    assert roofline.fraction(0.01, 0.02) == 0.5


def test_profile_rows_are_added_up_by_stage_and_op():
    step = {"stage": "res2.slow", "op": "conv_a", "seconds": 0.1, "flops": 10, "bytes": 4}
    rows = roofline.stages([step, {**step, "op": "conv_b"}, step], "fp32", None)
    assert [(r["op"], r["calls"], r["flops"]) for r in rows] == [("conv_a", 2, 20), ("conv_b", 1, 10)]
    assert rows[0]["seconds"] == pytest.approx(0.2) and rows[0]["direct_floor_s"] is None
