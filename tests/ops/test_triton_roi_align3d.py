"""roi_align3d on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import functools
import importlib
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

from ops.parity import bits, case_named, check, reference
from ops.test_roi_align3d import BAD, COORDINATES, autograd_of_reference, by_keyword, calls
from slowfast_kernels import ops, use_backend
from slowfast_kernels._triton import roi
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.ops.roi_align3d.cases import ODD, SCALE, boxes, rows, tubes, volumes
from slowfast_kernels.testing import (
    assert_close,
    assert_gradient,
    assert_same_layout,
    provider_device,
    to_float64,
)

OP = "roi_align3d"
DEVICE = provider_device("triton")
kernels = importlib.import_module("slowfast_kernels.ops.roi_align3d.triton")
CASES = cases_of(OP)
on_triton = pytest.mark.parametrize("provider", ["triton"], indirect=True)
NAN, INF = math.nan, math.inf


def align(*args, **kwargs):
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), (args, kwargs))
    return ops.roi_align3d(*args, **kwargs).cpu()


@functools.lru_cache(maxsize=4)
def expected_of(name, dtype):
    args, kwargs = case_named(OP, name).args(dtype=dtype)
    return reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)


@on_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.edge], ids=str)
def test_parity(case, dtype, provider):
    args, kwargs = case.args(dtype=dtype)
    got = align(*args, **kwargs)
    assert_same_layout(got, got.clone(memory_format=torch.preserve_format))
    check([got], *expected_of(case.name, dtype), COORDINATES, case.name)


@on_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.real], ids=str)
def test_parity_of_real_calls(case, dtype, provider):
    """A few cells and the first box: every channel, two frames."""
    (x, rois), kwargs = case.args(dtype=dtype, shrink=6)
    x, rois = x[:, :, :2], rois[:1, :2] if kwargs["mode"] == "tube" else rois[:1]
    kwargs["output_size"] = kwargs["output_size"][-2:] if kwargs["mode"] != "volume" else (2, 7, 7)
    exact, peer = reference(OP, *to_float64(((x, rois), kwargs))), reference(OP, (x, rois), kwargs)
    check([align(x, rois, **kwargs)], exact, peer, COORDINATES, case.name)


@on_triton
@settings(max_examples=10)
@given(call=calls((torch.float32, torch.bfloat16, torch.float16)))
def test_drawn_calls(call, provider):
    call["rois"] = call["rois"].float()
    wide = call | {"features": call["features"].double()}  # float32 boxes: the same samples in float64
    with use_backend("reference"):
        expected = [[by_keyword(**c)] for c in (wide, call)]
    moved = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), call)
    check([by_keyword(**moved).cpu()], *expected, 64, "drawn")


FRAMES = 2


def drawn_boxes(mode, draw, k, height=9, width=8):
    if mode == "frame":
        return boxes(draw, k, 2, height, width)
    return (tubes if mode == "tube" else volumes)(draw, k, 2, FRAMES, height, width)


@on_triton
@pytest.mark.parametrize("mode", ["frame", "tube", "volume"])
def test_tiles_and_repetition_change_nothing(mode, provider, monkeypatch):
    """Programs of a few bins (cells), a few channels, in any number: the same bits, forward and backward."""
    draw = Draw(seed=7)
    x, rois = draw.normal(2, 21, FRAMES, 5, 6).to(DEVICE), drawn_boxes(mode, draw, 2, 5, 6).to(DEVICE)
    settings_ = {
        "output_size": (2, 3, 5) if mode == "volume" else (3, 5),
        "spatial_scale": SCALE,
        "mode": mode,
    }
    results = []
    for tile in (None, None, kernels.Tiles(8, 16, 4)):  # of 15 bins and 30 cells, 21 channels
        with monkeypatch.context() as patch:
            if tile is not None:
                patch.setattr(kernels, "tiles_of", lambda *args, tile=tile: tile)
                patch.setattr(roi, "SIMULATED", 4)
            leaf = x.clone().requires_grad_()
            out = ops.roi_align3d(leaf, rois, **settings_)
            out.backward(out.detach())
            results.append((bits(out.detach().cpu()), bits(leaf.grad.cpu())))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])


# --- boxes of every kind -----------------------------------------------------------------------------------


@on_triton
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_that_are_not_finite(ratio, provider):
    """NaN in their results, nothing in anyone else's, no gradient."""
    x = Draw(seed=1).normal(1, 17, 2, 7, 9).to(DEVICE).requires_grad_()
    good = (0, 0.25, 0.25, 3.75, 3.75)
    rois = rows(Draw(), good, *((0, *b) for b in BAD), good).to(DEVICE)
    got = ops.roi_align3d(x, rois, (3, 2), 1.0, ratio)
    assert got[1:-1].isnan().all() and got[0].isfinite().all() and torch.equal(got[0], got[-1])
    alone = ops.roi_align3d(x, rois[[0, -1]], (3, 2), 1.0, ratio)
    upstream = torch.randn(got.shape, device=DEVICE)
    grads = [torch.autograd.grad(y, x, g)[0] for y, g in ((got, upstream), (alone, upstream[[0, -1]]))]
    assert torch.equal(*grads) and grads[0].any()
    times = rows(Draw(), (0, 1), (NAN, 1), (0, INF)).to(DEVICE)
    volume = torch.cat([rois[[0, 0, 0]], times], 1)
    got = ops.roi_align3d(x, volume, (2, 3, 2), 1.0, ratio, mode="volume")
    assert got[0].isfinite().all() and got[1:].isnan().all()
    tube = rois[:2].reshape(1, 2, 5)
    got = ops.roi_align3d(x, tube, (3, 2), 1.0, ratio, mode="tube")
    assert got[:, :, 0].isfinite().all() and got[:, :, 1].isnan().all()


@on_triton
@pytest.mark.parametrize("size", [1e4, 2.0**24, 2.0**24 + 2, 1e30])
def test_enormous_boxes_cost_what_the_map_has(size, provider):
    """A grid of millions of samples is not walked; those on the map are found, whichever way the box lies."""
    x = Draw(seed=2).normal(1, 16, 1, 5, 6)
    lows = torch.tensor([-size, -size / 2, -3.0, 0.0, -size + 5])
    rois = torch.stack([torch.zeros(5), lows, lows, lows + size, lows + size], 1)
    got = align(x, rois, (2, 3), 1.0)
    assert_close(got, reference(OP, (x.double(), rois, (2, 3), 1.0), {})[0], COORDINATES)
    assert bool(got.any()) == (size <= 2.0**24)


@on_triton
def test_mirrored_boxes_of_many_samples(provider):
    """An end before the start and more samples than are walked: the search runs the other way round."""
    x = Draw(seed=3).normal(1, 5, 1, 6, 7)
    rois = rows(Draw(), (0, 300, 200, -290, -190), (0, -290, -190, 300, 200))
    got = align(x, rois, (2, 3), 1.0, 100)
    assert_close(got, reference(OP, (x.double(), rois, (2, 3), 1.0, 100), {})[0], COORDINATES)
    torch.testing.assert_close(got[0], got[1].flip(-1, -2), rtol=1e-3, atol=1e-4)


@on_triton
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
    far = align(x, whole, 1, 1.0, 2)  # samples far apart do not read what lies between them
    assert far.isfinite().all() and far.eq(1).all()
    x[0, 0, :, 0] = NAN  # and where samples miss the map, NaN on its border does not come through
    assert align(x, rows(Draw(), (0, 0, -40, 8, -10)), 2, 1.0).eq(0).all()


# --- gradients ---------------------------------------------------------------------------------------------


@on_triton
@pytest.mark.parametrize(
    "mode, aligned, ratio", [("frame", True, 0), ("frame", False, 2), ("tube", False, 0), ("volume", True, 2)]
)
def test_gradients(mode, aligned, ratio, provider):
    draw = Draw(seed=4)
    x, rois = draw.normal(2, 21, FRAMES, 9, 8), drawn_boxes(mode, draw, 3)
    rois[..., 3:5] += 24  # some reach beyond the map
    size = (2, 3, 4) if mode == "volume" else (3, 4)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)):
        leaf = x.to(DEVICE, dtype).requires_grad_()
        out = by_keyword(leaf, rois.to(DEVICE), size, SCALE, ratio, aligned, mode, 0.75)
        upstream = torch.randn(out.shape).to(dtype)
        (got,) = torch.autograd.grad(out, leaf, upstream.to(DEVICE))
        exact = autograd_of_reference((x, rois, size, SCALE, 0.75, ratio, aligned, mode), upstream)
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last_3d)
        assert_gradient(got.cpu(), exact, bound, what=f"{mode} {dtype}")


@on_triton
def test_gradients_of_odd_boxes(provider):
    x, rois = Draw(seed=6).normal(2, 5, 1, 7, 9), rows(Draw(), *ODD)
    upstream = torch.randn(len(ODD), 5, 1, 3, 2)
    leaf = x.to(DEVICE).requires_grad_()
    out = ops.roi_align3d(leaf, rois.to(DEVICE), (3, 2), SCALE)
    (got,) = torch.autograd.grad(out, leaf, upstream.to(DEVICE))
    exact = autograd_of_reference((x, rois, (3, 2), SCALE, 1.0, 0, True, "frame"), upstream)
    assert_gradient(got.cpu(), exact, 1e-6)


@on_triton
def test_a_bin_s_nan_gradient_stays_under_the_bin(provider):
    x = torch.zeros(1, 2, 1, 6, 6, device=DEVICE, requires_grad=True)
    out = ops.roi_align3d(x, rows(Draw(), (0, 0, 0, 6, 6)).to(DEVICE), 3, 1.0)
    upstream = torch.ones_like(out)
    upstream[0, 0, 0, 0, 2] = NAN
    (got,) = torch.autograd.grad(out, x, upstream)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:3, 3:] = True  # two samples a bin: cells 3.5 .. 5.5 across, the first below by a high tap
    under = got[0, 0, 0].isnan().cpu()
    assert under.any() and not (under & ~expected).any() and not got[0, 1].isnan().any()


@on_triton
def test_no_box_gives_no_gradient(provider):
    x = torch.randn(2, 5, 3, 6, 7, device=DEVICE, requires_grad=True)
    out = ops.roi_align3d(x, torch.zeros(0, 5, device=DEVICE), 7, SCALE)
    assert out.shape == (0, 5, 3, 7, 7)
    out.sum().backward()
    assert x.grad is not None and not x.grad.any()


# --- errors ------------------------------------------------------------------------------------------------


@on_triton
@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN, 1e30])
def test_batch_index_must_name_a_clip(index, provider):
    rois = torch.zeros(3, 5)
    rois[1, 0] = index
    with pytest.raises(ValueError, match=r"rois: expected batch indices .*\[0, 2\), got .* at row 1"):
        align(torch.zeros(2, 4, 3, 6, 7), rois)


@on_triton
@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN, 1e30, -INF])
def test_a_batch_index_that_was_not_checked(index, provider, monkeypatch):
    """As on a stream that is captured: no wild read, NaN for that box, no gradient from it."""
    monkeypatch.setattr(roi, "check_batch_index", lambda *args: None)
    x = torch.randn(2, 4, 2, 6, 7, device=DEVICE, requires_grad=True)
    rois = rows(Draw(), (1, 0, 0, 5, 5), (0, 0, 0, 5, 5)).to(DEVICE)
    good = ops.roi_align3d(x, rois, 2)
    bad = rois.clone()
    bad[1, 0] = index
    got = ops.roi_align3d(x, bad, 2)
    assert torch.equal(got[0], good[0]) and got[1].isnan().all()
    (grad,) = torch.autograd.grad(got.sum(), x)
    assert not grad[0].any() and grad[1].any()


@on_triton
def test_float64_is_refused(provider):
    with pytest.raises(RuntimeError, match=r"triton: the maps are torch\.float64, the Triton kernels take"):
        align(torch.zeros(1, 2, 1, 3, 3).double(), torch.zeros(1, 5))


@on_triton
def test_channel_slices_are_read_in_place(provider):
    wide = torch.randn(2, 40, 3, 7, 5).contiguous(memory_format=torch.channels_last_3d)
    x, pitch = roi.pixel_rows(wide[:, 8:29])
    assert x.data_ptr() == wide[:, 8:29].data_ptr() and pitch == 40
    copied, pitch = roi.pixel_rows(wide.contiguous())
    assert pitch == 40 and copied.is_contiguous(memory_format=torch.channels_last_3d)


@on_triton
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 0), (True, 2), (False, 1)])
def test_bounds_hold_every_tap(aligned, ratio, provider):
    """Cells beyond a box's bounds are neither read nor given a gradient: its bins' taps all lie within."""
    draw = Draw(seed=5)
    corners = draw.uniform(150, 4, low=-6, high=16)
    corners[::3] = (corners[::3] * 2).round() / 2  # on cells and between them
    corners[100:] *= (10 ** draw.uniform(50, 1, low=0, high=3)).round()  # far larger than the map
    rois = torch.cat([torch.zeros(150, 1), corners], 1).to(DEVICE)
    bins, extent = (0, 3, 4), (1, 9, 7)
    taps = roi.taps_of(rois, 1, extent, bins, 1.0, 1.0, ratio, aligned)
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


def test_positions_are_rounded_one_by_one():
    """A fused multiply-add would move samples: the compiled kernel has none, and divisions that round."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", COUNT_FMA], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    fused, products, divisions = (int(n) for n in ran.stdout.split())
    assert fused == 0 and products > 0 and divisions > 0
