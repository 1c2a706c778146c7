"""roi_align3d on the GPU's kernels (without one: interpreted, emulated) against the reference in float64."""

import importlib
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

from ops.parity import (
    ORDERS,
    bits,
    check,
    far_apart,
    on_cuda,
    on_gpu,
    on_triton,
    reference,
    run,
    there,
)
from ops.test_roi_align3d import BAD, autograd_of_reference, by_keyword, calls
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._memory import pixel_rows
from slowfast_kernels.ops.roi_align3d.cases import COORDINATES, ODD, SCALE, boxes, rows, tubes, volumes
from slowfast_kernels.testing import (
    assert_close,
    assert_gradient,
    assert_same_nonfinite,
)

OP = "roi_align3d"
MODES = ("frame", "tube", "volume")
on_each_mode = pytest.mark.parametrize("mode", MODES)
NAN, INF = math.nan, math.inf

#: Frames and boxes of a call and calls drawn: the interpreter gets few of each.
FRAMES = {"triton": 2, "cuda": 3}
BOXES = {"triton": 3, "cuda": 10}
DRAWN = {"triton": 10, "cuda": 20}


@pytest.fixture
def kernels(provider):
    """The provider's module of this op."""
    return importlib.import_module(f"slowfast_kernels.ops.roi_align3d.{provider}")


def align(*args, **kwargs):
    (result,) = run(OP, args, kwargs)
    return result


def drawn_boxes(mode, draw, k, frames, height=9, width=8):
    if mode == "frame":
        return boxes(draw, k, 2, height, width)
    return (tubes if mode == "tube" else volumes)(draw, k, 2, frames, height, width)


def both_ways(x, rois, size, mode):
    """Bits of the result, and of its gradient when it comes back as it is."""
    leaf = there(x).clone().requires_grad_()
    out = ops.roi_align3d(leaf, there(rois), size, SCALE, mode=mode)
    out.backward(out.detach())
    return bits(out.detach().cpu()), bits(leaf.grad.cpu())


def check_features_gradient(x, rois, size, scale, ratio, aligned, mode, bound, temporal_scale=1.0):
    """d features in the type of ``x``, for upstream gradients drawn at random; the op's result."""
    leaf = there(x).detach().requires_grad_()
    out = by_keyword(leaf, there(rois), size, scale, ratio, aligned, mode, temporal_scale)
    upstream = torch.randn(out.shape).to(x.dtype)
    (got,) = torch.autograd.grad(out, leaf, there(upstream))
    exact = autograd_of_reference((x, rois, size, scale, temporal_scale, ratio, aligned, mode), upstream)
    assert got.dtype == x.dtype and got.is_contiguous(memory_format=torch.channels_last_3d)
    assert_gradient(got.cpu(), exact, bound, what=f"{mode} {x.dtype}")
    return out.detach().cpu()


@on_gpu
def test_drawn_calls(provider):
    @settings(max_examples=DRAWN[provider])
    @given(call=calls((torch.float32, torch.bfloat16, torch.float16)))
    def parity(call):
        call["rois"] = call["rois"].float()
        wide = call | {"features": call["features"].double()}  # float32 boxes: the same samples in float64
        with use_backend("reference"):
            exact, peer = ([by_keyword(**c)] for c in (wide, call))
        check([by_keyword(**there(call)).cpu()], exact, peer, 64, "drawn")

    parity()


@on_triton
@on_each_mode
def test_tiles_and_repetition_change_nothing(mode, provider, kernels, monkeypatch):
    """Programs of a few bins (cells), a few channels, in any number: the same bits, forward and backward."""
    draw, frames = Draw(seed=7), FRAMES[provider]
    x, rois = draw.normal(2, 21, frames, 5, 6), drawn_boxes(mode, draw, 2, frames, 5, 6)
    size = (2, 3, 5) if mode == "volume" else (3, 5)
    results = []
    for tile in (None, None, kernels.Tiles(8, 16, 4)):  # of 15 bins and 30 cells, 21 channels
        with monkeypatch.context() as patch:
            if tile is not None:
                patch.setattr(kernels, "tiles_of", lambda *args, tile=tile: tile)
                patch.setattr(kernels.roi, "SIMULATED", 4)
            results.append(both_ways(x, rois, size, mode))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])


@on_cuda
@on_each_mode
def test_no_order_of_threads_changes_a_bit(mode, provider, monkeypatch):
    draw = Draw(seed=7)
    x, rois = draw.normal(2, 24, 3, 9, 8), drawn_boxes(mode, draw, 12, 3)
    size = (2, 3, 5) if mode == "volume" else (3, 5)
    results = []
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        results.append(both_ways(x, rois, size, mode))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])


# --- more than one table of the CUDA kernels -----------------------------------------------------------------


@on_cuda
@pytest.mark.parametrize("mode", ["frame", "volume"])
def test_more_bins_than_a_table_has(mode, provider):
    """Forward tables hold 64 bins an axis and 2048 cells, backward ones 32 bins and some boxes."""
    draw = Draw(seed=8)
    x, rois = draw.normal(1, 3, 2, 5, 40), draw.uniform(11, 5, low=0, high=4)
    rois[:, 0], rois[:, 3:] = 0, rois[:, 3:] + rows(Draw(), (37, 4))
    size: tuple[int, ...] = (70, 67)
    if mode == "volume":
        rois = torch.cat([rois[:2], rows(Draw(), (0, 2), (-1, 3))], 1)
        size = (35, 2, 33)
    exact = reference(OP, (x.double(), rois, size, 1.0), {"mode": mode})[0]
    assert_close(check_features_gradient(x, rois, size, 1.0, 0, True, mode, 1e-6), exact, COORDINATES)


@on_cuda
@pytest.mark.parametrize("mode", ["frame", "volume"])
def test_bins_that_no_table_holds(mode, provider):
    """Bins of more cells than a table: their samples are taken one by one."""
    shape = (1, 3, 2, 3, 2600) if mode == "frame" else (1, 3, 600, 2, 2)
    x = Draw(seed=9).normal(*shape)
    rois = rows(Draw(), (0, 10, 0, 2400, 3)) if mode == "frame" else rows(Draw(), (0, 0, 0, 2, 2, 5, 590))
    size = (2, 1) if mode == "frame" else (1, 1, 1)
    exact = reference(OP, (x.double(), rois, size, 1.0), {"mode": mode})[0]
    assert_close(align(x, rois, size, 1.0, mode=mode), exact, COORDINATES)


# --- boxes of every kind -----------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_that_are_not_finite(ratio, provider):
    """NaN in their results, nothing in anyone else's, no gradient."""
    x = there(Draw(seed=1).normal(1, 17, 2, 7, 9)).requires_grad_()
    good = (0, 0.25, 0.25, 3.75, 3.75)
    rois = there(rows(Draw(), good, *((0, *b) for b in BAD), good))
    got = ops.roi_align3d(x, rois, (3, 2), 1.0, ratio)
    assert got[1:-1].isnan().all() and got[0].isfinite().all() and torch.equal(got[0], got[-1])
    alone = ops.roi_align3d(x, rois[[0, -1]], (3, 2), 1.0, ratio)
    upstream = there(torch.randn(got.shape))
    grads = [torch.autograd.grad(y, x, g)[0] for y, g in ((got, upstream), (alone, upstream[[0, -1]]))]
    assert torch.equal(*grads) and grads[0].any()
    volume = torch.cat([rois[[0, 0, 0]], there(rows(Draw(), (0, 1), (NAN, 1), (0, INF)))], 1)
    got = ops.roi_align3d(x, volume, (2, 3, 2), 1.0, ratio, mode="volume")
    assert got[0].isfinite().all() and got[1:].isnan().all()
    got = ops.roi_align3d(x, rois[:2].reshape(1, 2, 5), (3, 2), 1.0, ratio, mode="tube")
    assert got[:, :, 0].isfinite().all() and got[:, :, 1].isnan().all()


@on_gpu
@pytest.mark.parametrize("size", [1e4, 2.0**24, 2.0**24 + 2, 1e30])
def test_enormous_boxes_cost_what_the_map_has(size, provider):
    """A grid of millions of samples is not walked, forward or backward; those on the map are found."""
    x = Draw(seed=2).normal(1, 16, 1, 5, 6)
    lows = torch.tensor([-size, -size / 2, -3.0, 0.0, -size + 5])
    rois = torch.stack([torch.zeros(5), lows, lows, lows + size, lows + size], 1)
    got = check_features_gradient(x, rois, (2, 3), 1.0, 0, True, "frame", 1e-5)
    assert_close(got, reference(OP, (x.double(), rois, (2, 3), 1.0), {})[0], COORDINATES)
    assert bool(got.any()) == (size <= 2.0**24)


@on_gpu
def test_mirrored_boxes_of_many_samples(provider):
    """An end before the start and more samples than lie on the map: the search runs the other way round."""
    x = Draw(seed=3).normal(1, 5, 1, 6, 7)
    rois = rows(Draw(), (0, 300, 200, -290, -190), (0, -290, -190, 300, 200))
    got = align(x, rois, (2, 3), 1.0, 100)
    assert_close(got, reference(OP, (x.double(), rois, (2, 3), 1.0, 100), {})[0], COORDINATES)
    torch.testing.assert_close(got[0], got[1].flip(-1, -2), rtol=1e-3, atol=1e-4)


@on_gpu
def test_not_finite_maps(provider):
    """NaN and infinity reach the bins whose samples have a tap on them, even of weight zero, and no other."""
    x = torch.ones(1, 2, 2, 8, 8)
    x[0, 0, 0, 3, 3], x[0, 1, 1, 4, 2] = NAN, INF
    whole = rows(Draw(), (0, 0, 0, 8, 8))
    got = align(x, whole, 8, 1.0, 1, aligned=True)  # a sample on every centre
    with_tap = torch.zeros(8, 8, dtype=torch.bool)
    with_tap[2:4, 2:4] = True  # as low tap, or as the high tap of weight 0
    assert torch.equal(got[0, 0, 0].isnan(), with_tap)
    with_tap = torch.zeros(8, 8, dtype=torch.bool)
    with_tap[3:5, 1:3] = True
    assert torch.equal(got[0, 1, 1].isfinite(), ~with_tap)
    assert got[0, 1, 1, 4, 2] == INF and got[0, 1, 1][with_tap].isnan().sum() == 3  # 0 * inf beside it
    assert got[0, 0, 1].eq(1).all() and got[0, 1, 0].eq(1).all()
    expected = reference(OP, (x.double(), whole, 3, 1.0), {})[0]
    assert_same_nonfinite(align(x, whole, 3, 1.0), expected)
    far = align(x, whole, 1, 1.0, 2)  # samples far apart do not read what lies between them
    assert far.isfinite().all() and far.eq(1).all()
    x[0, 0, :, 0] = NAN  # and where samples miss the map, NaN on its border does not come through
    assert align(x, rows(Draw(), (0, 0, -40, 8, -10)), 2, 1.0).eq(0).all()


# --- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "provider, mode, aligned, ratio",
    [
        ("triton", "frame", True, 0),
        ("triton", "frame", False, 2),
        ("triton", "tube", False, 0),
        ("triton", "volume", True, 2),
        *itertools.product(["cuda"], MODES, [True, False], [0, 2]),
    ],
    indirect=["provider"],
)
def test_gradients(mode, aligned, ratio, provider):
    draw, frames = Draw(seed=4), FRAMES[provider]
    x = draw.normal(2, 24 if ratio == 0 else 21, frames, 9, 8)
    rois = drawn_boxes(mode, draw, BOXES[provider], frames)
    rois[..., 3:5] += 24  # some reach beyond the map
    size = (2, 3, 4) if mode == "volume" else (3, 4)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)):
        check_features_gradient(x.to(dtype), rois, size, SCALE, ratio, aligned, mode, bound, 0.75)


@pytest.mark.parametrize(
    "provider, aligned, ratio",
    [("triton", True, 0), *itertools.product(["cuda"], [True, False], [0, 2])],
    indirect=["provider"],
)
def test_gradients_of_odd_boxes(aligned, ratio, provider):
    x, rois = Draw(seed=6).normal(2, 5, 1, 7, 9), rows(Draw(), *ODD)
    check_features_gradient(x, rois, (3, 2), SCALE, ratio, aligned, "frame", 1e-6)


@on_cuda
def test_gradients_of_more_boxes_than_a_block_has_threads(provider):
    draw = Draw(seed=10)
    x, rois = draw.normal(2, 4, 1, 5, 9), boxes(draw, 300, 2, 5, 9)
    check_features_gradient(x, rois, (2, 2), SCALE, 0, True, "frame", 1e-6)


@on_gpu
def test_a_bin_s_nan_gradient_stays_under_the_bin(provider):
    x = there(torch.zeros(1, 2, 1, 6, 6)).requires_grad_()
    out = ops.roi_align3d(x, there(rows(Draw(), (0, 0, 0, 6, 6))), 3, 1.0)
    upstream = torch.ones_like(out)
    upstream[0, 0, 0, 0, 2] = NAN
    (got,) = torch.autograd.grad(out, x, upstream)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:3, 3:] = True  # two samples a bin: cells 3.5 .. 5.5 across, the first below by a high tap
    under = got[0, 0, 0].isnan().cpu()
    assert under.any() and not (under & ~expected).any() and not got[0, 1].isnan().any()


@on_gpu
def test_nothing_to_do(provider):
    x = there(torch.randn(2, 5, 3, 6, 7)).requires_grad_()
    out = ops.roi_align3d(x, there(torch.zeros(0, 5)), 7, SCALE)
    assert out.shape == (0, 5, 3, 7, 7)
    out.sum().backward()
    assert x.grad is not None and not x.grad.any()
    for shape in ((0, 3, 2, 4, 4), (2, 0, 2, 4, 4), (2, 3, 0, 4, 4)):
        k = 0 if shape[0] == 0 else 2
        out = ops.roi_align3d(there(torch.zeros(shape)).requires_grad_(), there(torch.zeros(k, 5)), 2)
        assert out.shape == (k, *shape[1:3], 2, 2)
        out.sum().backward()
    assert not align(torch.zeros(1, 3, 2, 0, 4), torch.tensor([[0.0, 0, 0, 4, 4]]), 2).any()


# --- errors ------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN, 1e30])
def test_batch_index_must_name_a_clip(index, provider):
    rois = torch.zeros(3, 5)
    rois[1, 0] = index
    with pytest.raises(ValueError, match=r"rois: expected batch indices .*\[0, 2\), got .* at row 1"):
        align(torch.zeros(2, 4, 3, 6, 7), rois)


@on_gpu
def test_batch_indices_that_were_not_checked(provider, monkeypatch):
    """As on a stream that is captured: no wild read, NaN for such a box, no gradient from it."""
    monkeypatch.setattr(
        importlib.import_module("slowfast_kernels.ops.roi_align3d.boxes"),
        "check_batch_index",
        lambda *args: None,
    )
    x = there(torch.randn(2, 4, 2, 6, 7)).requires_grad_()
    bad = (-1.0, 2.0, 0.5, NAN, 1e30, -INF)
    rois = there(rows(Draw(), *((index, 0, 0, 5, 5) for index in (1, *bad))))
    got = ops.roi_align3d(x, rois, 2)
    assert torch.equal(got[0], ops.roi_align3d(x, rois[:1], 2)[0]) and got[0].isfinite().all()
    assert got[1:].flatten(1).isnan().all(1).tolist() == [True] * len(bad)
    (grad,) = torch.autograd.grad(got.sum(), x)
    assert not grad[0].any() and grad[1].any() and grad.isfinite().all()


def test_channel_slices_are_read_in_place():
    wide = torch.randn(2, 40, 3, 7, 5).contiguous(memory_format=torch.channels_last_3d)
    x, pitch = pixel_rows(wide[:, 8:29])
    assert x.data_ptr() == wide[:, 8:29].data_ptr() and x.stride() == wide.stride() and pitch == 40
    copied, pitch = pixel_rows(wide.contiguous())
    assert pitch == 40 and copied.is_contiguous(memory_format=torch.channels_last_3d)


@on_cuda
def test_cuda_launchers_check_for_themselves(provider):
    x = there(torch.zeros(2, 4, 3, 6, 7).contiguous(memory_format=torch.channels_last_3d))
    out = there(torch.zeros(1, 4, 3, 2, 2).contiguous(memory_format=torch.channels_last_3d))
    rois = there(torch.zeros(1, 5))

    def launch(x=x, rois=rois, ratio=0, mode=0, out=out):
        torch.ops.slowfast._roi_align_cuda(x, rois, 1.0, 1.0, ratio, True, mode, out)

    launch()
    for wrong in (
        {"rois": rois.double()},
        {"rois": there(torch.zeros(1, 7))},
        {"rois": there(torch.zeros(2, 5))},
        {"rois": there(torch.zeros(5, 1)).t()[:, :3]},
        {"mode": 1},
        {"mode": 3},
        {"ratio": 5000},
        {"x": x.double()},
        {"x": x.bfloat16()},
        {"x": x.contiguous()},
        {"x": x[0]},
        {"out": out[:, :3]},
        {"out": there(torch.zeros(1, 4, 2, 2, 2))},
    ):
        with pytest.raises(RuntimeError):
            launch(**wrong)


@on_cuda
def test_offsets_beyond_2_31(provider, kernels):
    x = Draw(seed=16).normal(1, 8, 2, 4, 5).bfloat16()
    far = far_apart(x, 2**26 + 8)
    assert far.stride(0) > 2**31 and pixel_rows(far)[0].data_ptr() == far.data_ptr()
    rois = rows(Draw(), (0, 0, 0, 5, 4), (0, 2, 1, 5, 4))
    assert torch.equal(align(far, rois, 3, 1.0), align(x, rois, 3, 1.0))


# --- the taps of the Triton kernels ------------------------------------------------------------------------


@on_triton
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 0), (True, 2), (False, 1)])
def test_triton_bounds_hold_every_tap(aligned, ratio, provider, kernels):
    """Cells beyond a box's bounds are neither read nor given a gradient: its bins' taps all lie within."""
    draw = Draw(seed=5)
    corners = draw.uniform(150, 4, low=-6, high=16)
    corners[::3] = (corners[::3] * 2).round() / 2  # on cells and between them
    corners[100:] *= (10 ** draw.uniform(50, 1, low=0, high=3)).round()  # far larger than the map
    rois = there(torch.cat([torch.zeros(150, 1), corners], 1))
    bins, extent = (0, 3, 4), (1, 9, 7)
    taps = kernels.roi.taps_of(rois, 1, extent, bins, 1.0, 1.0, ratio, aligned)
    ranges = taps.ranges.cpu()
    seen = 0
    for axis, start in ((0, taps.y_bins), (1, taps.x_bins)):
        n = bins[1 + axis]
        low, high = ranges[start : start + 300 * n].view(150, n, 2).unbind(2)
        bounds = ranges[taps.bounds + 300 * axis :][:300].view(150, 2)
        some = high > low
        seen += int(some.sum())
        assert (low.where(some, 99) >= bounds[:, :1]).all() and (high.where(some, 0) <= bounds[:, 1:]).all()
        assert ((bounds >= 0) & (bounds <= extent[1 + axis])).all()
        if ratio == 0:  # no box of whose cells many are read in vain
            least = high.where(some, 0).amax(1) - low.where(some, 99).amin(1)
            assert ((bounds[:, 1] - bounds[:, 0] - least)[:100][some[:100].any(1)] <= 3).all()
    assert seen > 200


COUNT_FMA = """
import torch
from slowfast_kernels._triton import roi
from slowfast_kernels._triton.launch import compile_launch, recording
with recording() as launches:
    rois = torch.empty(3, 7, device="meta")
    roi.taps_of(rois, 2, (8, 16, 29), (4, 7, 7), 1 / 16, 1.0, 0, True)
(taps,) = launches
ptx = compile_launch(taps, 90).asm["ptx"]
print(ptx.count("fma."), ptx.count("mul.rn.f32") + ptx.count("mul.f32"), ptx.count("div.rn.f32"))
"""


def test_triton_rounds_positions_one_by_one():
    """A fused multiply-add would move samples: the compiled kernel has none, and divisions that round."""
    pytest.importorskip("triton", reason="the triton package is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", COUNT_FMA], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    fused, products, divisions = (int(n) for n in ran.stdout.split())
    assert fused == 0 and products > 0 and divisions > 0
