"""lateral_fusion on the CUDA kernels (emulated where there is no GPU) against the reference in float64."""

import importlib
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.parity import (
    FLOATS,
    ORDERS,
    SHRINK,
    bits,
    case_named,
    check,
    far_apart,
    on_cuda,
    reference,
    there,
)
from slowfast_kernels import _extension, ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._memory import pixel_rows
from slowfast_kernels.ops._spec import ConvAffine
from slowfast_kernels.ops.lateral_fusion.cases import _call
from slowfast_kernels.ops.lateral_fusion.spec import KINDS, LateralSpec
from slowfast_kernels.precision import fp32_precision
from slowfast_kernels.testing import assert_close, provider_device, to_float64

OP = "lateral_fusion"
DEVICE = provider_device("cuda")
kernels = importlib.import_module("slowfast_kernels.ops.lateral_fusion.cuda")
pytestmark = on_cuda


@pytest.fixture(autouse=True)
def exact_float32():
    with fp32_precision("ieee"):
        yield


def run(args, kwargs):
    """The result on the CPU; a buffer to write into stays what it was to its Slow channels."""
    if kwargs.get("out") is not None:
        out = kwargs["out"].to(DEVICE)
        args, kwargs = (out[:, : args[0].shape[1]], *args[1:]), kwargs | {"out": out}
    return ops.lateral_fusion(*there(args), **there(kwargs)).cpu()


def products(args):
    return 1 if args[2] is None else math.prod(args[2].shape[1:])


@st.composite
def calls(draw):
    alpha, kind = draw(st.integers(1, 4)), draw(st.sampled_from(KINDS))
    fast = draw(st.one_of(st.integers(1, 20), st.sampled_from([8, 16, 40])))
    slow = alpha * fast if kind == "time_to_channel_sum" else draw(st.integers(1, 40))
    extents = [draw(st.integers(1, n)) for n in (3, 9, 9)]
    source = Draw(seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from(FLOATS)))
    return _call(
        source, (draw(st.integers(0, 2)), slow, *extents), fast, draw(st.integers(1, 70)),
        draw(st.sampled_from([1, 3, 5, 7])), alpha=alpha, kind=kind, affine=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "none"])),
    )  # fmt: skip


@settings(max_examples=40)
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([run(*drawn)], exact, peer, products(drawn[0]), provider)


@pytest.mark.parametrize("name", ["lateral.1", "wide", "odd"])
def test_float32_on_the_matrix_units(name, provider):
    """Operands keep 11 bits: the error is that of tf32, no more and no less."""
    args, kwargs = case_named(OP, name).args(shrink=SHRINK)
    slow = args[0].shape[1]
    exact = reference(OP, *to_float64((args, kwargs)))[0][:, slow:]
    results = {}
    for mode in ("ieee", "tf32", "tf32x3", "bf16x3"):
        with fp32_precision(mode):
            results[mode] = run(args, kwargs)[:, slow:]
    assert_close(results["tf32"], exact, bound=5e-4)
    assert (results["tf32"].double() - exact).norm() > 1e-5 * exact.norm()
    for mode in ("tf32x3", "bf16x3"):  # which the kernels do exactly
        assert torch.equal(results[mode], results["ieee"])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [(12, 4, 9), (16, 8, 24)], ids=str)
def test_into_the_fused_buffer(channels, kind, dtype, provider):
    """Only the lateral's channels are written (all of them, for the sum)."""
    cs, cf, cl = channels
    if kind == "time_to_channel_sum":
        cs = 3 * cf
    draw = Draw(seed=5, dtype=dtype)
    (slow, fast, *rest), kwargs = _call(draw, (2, cs, 2, 5, 4), cf, cl, 5, alpha=3, kind=kind)
    expected = (
        reference(OP, *to_float64(((slow, fast, *rest), kwargs))),
        reference(OP, (slow, fast, *rest), kwargs),
    )
    out = torch.full(expected[1][0].shape, math.nan, dtype=dtype)
    out = out.contiguous(memory_format=torch.channels_last_3d).to(DEVICE)
    out[:, :cs] = slow.to(DEVICE)
    assert ops.lateral_fusion(out[:, :cs], *there((fast, *rest)), **kwargs, out=out) is out
    check([out.cpu()], *expected, cf * 5, kind)
    if kind != "time_to_channel_sum":
        assert torch.equal(out[:, :cs].cpu(), slow)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_copies_are_exact_whatever_they_hold(kind, provider):
    draw = Draw(seed=5)
    (slow, fast, *rest), kwargs = _call(draw, (2, 12, 2, 5, 4), 4, alpha=3, kind=kind)
    for i, value in enumerate((math.nan, math.inf, -math.inf, -0.0)):
        fast[1, i, 3, 2, i], slow[0, i, 1, 3, i] = value, value
    expected = reference(OP, (slow, fast, *rest), kwargs)[0]
    got = run((slow, fast, *rest), kwargs)
    assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(expected))
    assert torch.equal(torch.isnan(got), torch.isnan(expected))
    assert torch.equal(torch.signbit(got), torch.signbit(expected))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fast_channels", [6, 8])
def test_what_is_not_finite_stays_where_it_belongs(fast_channels, dtype, provider):
    for value in (math.nan, math.inf, -math.inf):
        draw = Draw(seed=5, dtype=dtype)
        slow, fast = draw.normal(1, 16, 3, 4, 5), draw.normal(1, fast_channels, 6, 4, 5)
        weight = draw.weight(19, fast_channels, 3, 1, 1)
        fast[0, 4, 2, 1, 3] = value
        for mode in ("ieee", "tf32") if dtype == torch.float32 else ("ieee",):
            with fp32_precision(mode):
                got = run((slow, fast, weight), {"alpha": 2})
            expected = reference(OP, *to_float64(((slow, fast, weight), {"alpha": 2})))[0]
            assert_close(got, expected, bound=1e-3 if dtype == torch.float32 else 0.02)


def test_a_clip_s_first_and_last_frames_meet_zeros(provider):
    """Taps before and after the clip: zeros, not the neighbouring clip."""
    fast = torch.ones(3, 8, 4, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    slow, weight = torch.zeros(3, 8, 2, 3, 3), torch.ones(8, 8, 7, 1, 1)
    got = run((slow, fast, weight), {"alpha": 2})[:, 8:]
    assert got[:, :, 0].eq(8 * 4).all() and got[:, :, 1].eq(8 * 4).all()
    weight[:, :, :3] = 0
    got = run((slow, fast, weight), {"alpha": 2})[:, 8:]
    assert got[:, :, 0].eq(8 * 4).all() and got[:, :, 1].eq(8 * 2).all()


MODES = ["ieee", "tf32", torch.bfloat16, torch.float16]
#: (slow, Fast channels, outputs, taps, alpha): frames smaller and larger than a tile, blocks' columns that are not all
#: outputs', one step and many.
SHAPES = {
    "small frames": ((3, 4, 5, 3, 5), 8, 16, 3, 2),
    "one pixel": ((2, 4, 90, 1, 1), 16, 72, 5, 2),
    "tiles within a frame": ((2, 4, 2, 13, 23), 24, 136, 3, 2),
    "few outputs": ((1, 4, 3, 9, 17), 40, 5, 7, 4),
}


def with_tiles(drawn, tiles, processors, monkeypatch):
    """The lateral's channels with given tiles on so many multiprocessors; None of what has no vectors."""
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "limits", lambda device: (processors, 227 * 1024))
        patch.setattr(kernels.TUNER, "pick", lambda *args: tiles)
        return run(*drawn)[:, drawn[0][0].shape[1] :]


def every_tiles(product):
    return product.candidates(227 * 1024)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_tiles_do_not_change_the_result(name, mode, provider, monkeypatch):
    """Weights that come along or stay, blocks that walk over many tiles, few or one: the same bits."""
    dtype = torch.float32 if isinstance(mode, str) else mode
    slow, fast, outputs, taps, alpha = SHAPES[name]
    drawn = _call(Draw(seed=8, dtype=dtype), slow, fast, outputs, taps, alpha=alpha)
    kind = mode if isinstance(mode, str) else "half"
    product = kernels.Product(math.prod(slow) // slow[1], taps * fast, outputs, dtype.itemsize, kind)
    with fp32_precision(mode if isinstance(mode, str) else "ieee"):
        first = run(*drawn)[:, slow[1] :]
        exact = reference(OP, *to_float64(drawn))[0][:, slow[1] :]
        assert_close(first, exact, bound={"ieee": 1e-5, "tf32": 2e-3}.get(kind, 0.02))
        offered = every_tiles(product)
        assert {tiles.resident for tiles in offered} == {False, True}
        for tiles in offered:
            for processors in (1, 2, 132):
                got = with_tiles(drawn, tiles, processors, monkeypatch)
                assert torch.equal(bits(got), bits(first)), f"{tiles}, {processors} multiprocessors"


@pytest.mark.skipif(not _extension.EMULATE, reason="orders of the emulator's threads")
@pytest.mark.parametrize("columns", [16, 64, 128])
def test_no_order_of_threads_changes_a_bit_of_a_walk(columns, provider, monkeypatch):
    drawn = _call(
        Draw(seed=9, dtype=torch.bfloat16), (2, 8, 3, 9, 11), 16, 12 if columns == 16 else 136, 5, alpha=2
    )
    results = []
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        results.append(bits(with_tiles(drawn, kernels.Tiles(columns, True), 1, monkeypatch)))
    assert all(torch.equal(results[0], r) for r in results[1:])


@pytest.mark.skipif(not _extension.EMULATE, reason="the emulator says how much was asked for")
@pytest.mark.parametrize("columns", [16, 64, 128])
def test_shared_memory_is_what_the_choice_of_tiles_reckons(columns, provider):
    """Asking for more than a block of threads can have is refused with the number of bytes."""
    fast = torch.zeros(1, 8, 2, 1, 1, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.zeros(128, 1001, 8, dtype=torch.bfloat16)
    out = torch.zeros(1, 128, 1, 1, 1, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="at most 232448 bytes of shared memory") as caught:
        torch.ops.slowfast._lateral_cuda(fast, weight, None, None, 2, True, False, columns, 1, out)
    product = kernels.Product(1, 1001 * 8, 128, 2, "half")
    asked = int(re.findall(r"\d+", str(caught.value))[-1])
    assert asked == product.shared_bytes(kernels.Tiles(columns, True))
    assert not any(tiles.resident for tiles in product.candidates(232448))
    assert not product.heuristic(132, 232448).resident


def test_unmeasured_choices(provider):
    """SlowFast's four at batch 8: weights stay where they fit beside the pixels' ring, wide tiles for many outputs."""
    chosen = [
        kernels.Product(8 * 8 * extent**2, 7 * channels, 2 * channels, 2, "half").heuristic(132, 227 * 1024)
        for extent, channels in ((56, 8), (56, 32), (28, 64), (14, 128))
    ]
    assert chosen == [kernels.Tiles(*c) for c in ((16, True), (64, True), (128, True), (64, True))]
    assert kernels.Product(64 * 14**2, 7 * 256, 512, 2, "half").heuristic(132, 227 * 1024) == kernels.Tiles(
        128, False
    )


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_no_order_of_threads_changes_a_bit(mode, provider, monkeypatch):
    dtype = torch.float32 if isinstance(mode, str) else mode
    results = []
    for name in ("lateral.1", "wide"):
        args, kwargs = case_named(OP, name).args(dtype=dtype, shrink=SHRINK)
        for order in ORDERS:
            monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
            with fp32_precision(mode if isinstance(mode, str) else "ieee"):
                results.append(bits(run(args, kwargs)))
        assert all(torch.equal(results[0], r) for r in results[1:])
        results.clear()


def test_launchers_check_for_themselves(provider):
    def last(*shape):
        return torch.zeros(*shape, device=DEVICE).contiguous(memory_format=torch.channels_last_3d)

    weight = torch.zeros(10, 5, 3, device=DEVICE)
    good = {
        "fast": last(2, 3, 8, 5, 4),
        "weight": weight,
        "scale": None,
        "alpha": 4,
        "out": last(2, 10, 2, 5, 4),
    }

    def conv(fast, weight, scale, alpha, out, columns=64, walkers=1):
        run = torch.ops.slowfast._lateral_cuda
        run(fast, weight, scale, None, alpha, True, False, columns, walkers, out)

    conv(**good)
    vectors = {"fast": last(2, 4, 8, 5, 4), "weight": torch.zeros(10, 5, 4, device=DEVICE)}
    conv(**(good | vectors))
    for change in (
        {"fast": last(2, 3, 6, 5, 4)},
        {"fast": last(1, 3, 8, 5, 4)},
        {"fast": good["fast"].bfloat16()},
        {"fast": good["fast"].contiguous()},
        {"weight": weight[:9]},
        {"weight": weight.transpose(1, 2)},
        {"weight": weight.double()},
        {"scale": torch.zeros(9, device=DEVICE)},
        {"scale": torch.zeros(10, device=DEVICE).double()},
        {"alpha": 0},
        {"out": last(2, 10, 2, 5, 5)},
        {"out": torch.zeros(2, 10, 2, 5, 4, device=DEVICE)},
        {"walkers": -1},
        vectors | {"columns": 32},
        vectors | {"columns": 16, "walkers": 0},
    ):
        with pytest.raises(RuntimeError):
            conv(**(good | change))
    gather = torch.ops.slowfast._lateral_gather_cuda
    gather(good["fast"], None, 4, 2, last(2, 6, 2, 5, 4))
    for wrong in (
        (good["fast"], None, 4, 5, last(2, 15, 2, 5, 4)),
        (good["fast"], None, 4, 2, last(2, 5, 2, 5, 4)),
        (good["fast"], last(2, 5, 2, 5, 4), 4, 2, last(2, 6, 2, 5, 4)),
        (good["fast"], None, 2, 2, last(2, 6, 2, 5, 4)),
    ):
        with pytest.raises(RuntimeError):
            gather(*wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_beyond_2_31(kind, provider):
    draw = Draw(seed=6, dtype=torch.bfloat16)
    (slow, fast, *rest), kwargs = _call(draw, (2, 16, 2, 1, 3), 8, 9, 3, alpha=2, kind=kind)
    far = far_apart(fast, 2**27 + 8)
    assert far.stride(0) * 2 > 2**31 and pixel_rows(far)[0].data_ptr() == far.data_ptr()
    expected = run((slow, fast, *rest), kwargs)
    assert torch.equal(run((slow, far, *rest), kwargs), expected)
    out = far_apart(torch.zeros(2, expected.shape[1], 2, 1, 3).bfloat16(), 2**28 + 8)
    out[:, : slow.shape[1]] = slow
    conv = None if rest[0] is None else ConvAffine(*rest)
    spec = LateralSpec(conv, kwargs["alpha"], kind)
    kernels.prepare(spec, fast.dtype, fast.device, once=True).in_place(out, fast)
    assert torch.equal(out, expected)
