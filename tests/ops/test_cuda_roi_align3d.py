"""roi_align3d on the CUDA kernels (emulated where there is no GPU) against the reference in float64."""

import functools
import importlib
import math
import mmap

import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

from ops.parity import bits, case_named, check, reference
from ops.test_roi_align3d import BAD, COORDINATES, autograd_of_reference, by_keyword, calls
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.ops.roi_align3d.cases import ODD, SCALE, boxes, rows, tubes, volumes
from slowfast_kernels.testing import (
    assert_close,
    assert_gradient,
    assert_same_layout,
    assert_same_nonfinite,
    provider_device,
    to_float64,
)

OP = "roi_align3d"
DEVICE = provider_device("cuda")
kernels = importlib.import_module("slowfast_kernels.ops.roi_align3d.cuda")
CASES = cases_of(OP)
on_cuda = pytest.mark.parametrize("provider", ["cuda"], indirect=True)
MODES = pytest.mark.parametrize("mode", ["frame", "tube", "volume"])
#: How the emulator chooses who runs next; a GPU chooses for itself.
ORDERS = ("mixed", "random:1", "reversed", "ahead:3")
NAN, INF = math.nan, math.inf


def to_device(tree):
    return pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), tree)


def align(*args, **kwargs):
    return ops.roi_align3d(*to_device(args), **to_device(kwargs)).cpu()


@functools.lru_cache(maxsize=4)
def expected_of(name, dtype):
    args, kwargs = case_named(OP, name).args(dtype=dtype)
    return reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)


def drawn_boxes(mode, draw, k, frames=3):
    if mode == "frame":
        return boxes(draw, k, 2, 9, 8)
    return (tubes if mode == "tube" else volumes)(draw, k, 2, frames, 9, 8)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.edge], ids=str)
def test_parity(case, dtype, provider):
    args, kwargs = case.args(dtype=dtype)
    got = align(*args, **kwargs)
    assert_same_layout(got, got.clone(memory_format=torch.preserve_format))
    check([got], *expected_of(case.name, dtype), COORDINATES, case.name)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.real], ids=str)
def test_parity_of_real_calls(case, dtype, provider):
    """A few cells and the first box: every channel, two frames."""
    (x, rois), kwargs = case.args(dtype=dtype, shrink=6)
    x, rois = x[:, :, :2], rois[:1, :2] if kwargs["mode"] == "tube" else rois[:1]
    kwargs["output_size"] = (2, 7, 7) if kwargs["mode"] == "volume" else (7, 7)
    exact, peer = reference(OP, *to_float64(((x, rois), kwargs))), reference(OP, (x, rois), kwargs)
    check([align(x, rois, **kwargs)], exact, peer, COORDINATES, case.name)


@on_cuda
@settings(max_examples=20)
@given(call=calls((torch.float32, torch.bfloat16, torch.float16)))
def test_drawn_calls(call, provider):
    call["rois"] = call["rois"].float()
    wide = call | {"features": call["features"].double()}  # float32 boxes: the same samples in float64
    with use_backend("reference"):
        expected = [[by_keyword(**c)] for c in (wide, call)]
    check([by_keyword(**to_device(call)).cpu()], *expected, 64, "drawn")


@on_cuda
@MODES
def test_no_order_of_threads_changes_a_bit(mode, provider, monkeypatch):
    draw = Draw(seed=7)
    x, rois = draw.normal(2, 24, 3, 9, 8).to(DEVICE), drawn_boxes(mode, draw, 12).to(DEVICE)
    size = (2, 3, 5) if mode == "volume" else (3, 5)
    results = []
    for order in (*ORDERS, "mixed"):
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        leaf = x.clone().requires_grad_()
        out = ops.roi_align3d(leaf, rois, size, SCALE, mode=mode)
        out.backward(out.detach())
        results.append((bits(out.detach().cpu()), bits(leaf.grad.cpu())))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])


# --- more than one table, more than one tile -----------------------------------------------------------------


@on_cuda
@pytest.mark.parametrize("mode", ["frame", "volume"])
def test_more_bins_than_a_table_has(mode, provider):
    """Forward tables hold 64 bins an axis and 2048 cells, backward ones 32 bins and some boxes."""
    draw = Draw(seed=8)
    x, rois = draw.normal(1, 3, 2, 5, 40), draw.uniform(11, 5, low=0, high=4)
    rois[:, 0], rois[:, 3:] = 0, rois[:, 3:] + rows(Draw(), (37, 4))
    size = (70, 67)
    if mode == "volume":
        rois = torch.cat([rois[:2], rows(Draw(), (0, 2), (-1, 3))], 1)
        size = (35, 2, 33)
    exact = reference(OP, (x.double(), rois, size, 1.0), {"mode": mode})[0]
    leaf = x.to(DEVICE).requires_grad_()
    got = ops.roi_align3d(leaf, rois.to(DEVICE), size, 1.0, mode=mode)
    assert_close(got.detach().cpu(), exact, COORDINATES)
    upstream = torch.randn(got.shape)
    (grad,) = torch.autograd.grad(got, leaf, upstream.to(DEVICE))
    exact = autograd_of_reference((x, rois, size, 1.0, 1.0, 0, True, mode), upstream)
    assert_gradient(grad.cpu(), exact, 1e-6)


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


@on_cuda
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
    volume = torch.cat([rois[[0, 0, 0]], rows(Draw(), (0, 1), (NAN, 1), (0, INF)).to(DEVICE)], 1)
    got = ops.roi_align3d(x, volume, (2, 3, 2), 1.0, ratio, mode="volume")
    assert got[0].isfinite().all() and got[1:].isnan().all()
    got = ops.roi_align3d(x, rois[:2].reshape(1, 2, 5), (3, 2), 1.0, ratio, mode="tube")
    assert got[:, :, 0].isfinite().all() and got[:, :, 1].isnan().all()


@on_cuda
@pytest.mark.parametrize("size", [1e4, 2.0**24, 2.0**24 + 2, 1e30])
def test_enormous_boxes_cost_what_the_map_has(size, provider):
    """A grid of millions of samples is not walked, forward or backward; those on the map are found."""
    x = Draw(seed=2).normal(1, 16, 1, 5, 6)
    lows = torch.tensor([-size, -size / 2, -3.0, 0.0, -size + 5])
    rois = torch.stack([torch.zeros(5), lows, lows, lows + size, lows + size], 1)
    leaf = x.to(DEVICE).requires_grad_()
    got = ops.roi_align3d(leaf, rois.to(DEVICE), (2, 3), 1.0)
    assert_close(got.detach().cpu(), reference(OP, (x.double(), rois, (2, 3), 1.0), {})[0], COORDINATES)
    assert bool(got.any()) == (size <= 2.0**24)
    (grad,) = torch.autograd.grad(got, leaf, torch.ones_like(got))
    exact = autograd_of_reference((x, rois, (2, 3), 1.0, 1.0, 0, True, "frame"), torch.ones(got.shape))
    assert_gradient(grad.cpu(), exact, 1e-5)


@on_cuda
def test_mirrored_boxes_of_many_samples(provider):
    """An end before the start and more samples than lie on the map: the search runs the other way round."""
    x = Draw(seed=3).normal(1, 5, 1, 6, 7)
    rois = rows(Draw(), (0, 300, 200, -290, -190), (0, -290, -190, 300, 200))
    got = align(x, rois, (2, 3), 1.0, 100)
    assert_close(got, reference(OP, (x.double(), rois, (2, 3), 1.0, 100), {})[0], COORDINATES)
    torch.testing.assert_close(got[0], got[1].flip(-1, -2), rtol=1e-3, atol=1e-4)


@on_cuda
def test_not_finite_maps(provider):
    """NaN and infinity reach the bins whose samples have a tap on them, even of weight zero, and no other."""
    x = torch.ones(1, 2, 2, 8, 8)
    x[0, 0, 0, 3, 3], x[0, 1, 1, 4, 2] = NAN, INF
    whole = rows(Draw(), (0, 0, 0, 8, 8))
    for bins, ratio in ((8, 1), (1, 2), (3, 0)):
        expected = reference(OP, (x.double(), whole, bins, 1.0, ratio), {})[0]
        assert_same_nonfinite(align(x, whole, bins, 1.0, ratio), expected)
    assert align(x, whole, 8, 1.0, 1).isnan().sum() == 7  # four taps of the NaN, 0 * inf beside the infinity
    assert align(x, whole, 1, 1.0, 2).eq(1).all()  # samples far apart do not read what lies between them
    x[0, 0, :, 0] = NAN  # and where samples miss the map, NaN on its border does not come through
    assert align(x, rows(Draw(), (0, 0, -40, 8, -10)), 2, 1.0).eq(0).all()


# --- gradients ---------------------------------------------------------------------------------------------


@on_cuda
@MODES
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 2)])
def test_gradients(mode, aligned, ratio, provider):
    draw = Draw(seed=4)
    channels = 24 if aligned else 21
    x, rois = draw.normal(2, channels, 3, 9, 8), drawn_boxes(mode, draw, 10)
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


@on_cuda
def test_gradients_of_odd_boxes(provider):
    x, rois = Draw(seed=6).normal(2, 5, 1, 7, 9), rows(Draw(), *ODD)
    for aligned, ratio in ((True, 0), (True, 2), (False, 0)):
        upstream = torch.randn(len(ODD), 5, 1, 3, 2)
        leaf = x.to(DEVICE).requires_grad_()
        out = ops.roi_align3d(leaf, rois.to(DEVICE), (3, 2), SCALE, ratio, aligned)
        (got,) = torch.autograd.grad(out, leaf, upstream.to(DEVICE))
        exact = autograd_of_reference((x, rois, (3, 2), SCALE, 1.0, ratio, aligned, "frame"), upstream)
        assert_gradient(got.cpu(), exact, 1e-6)


@on_cuda
def test_gradients_of_more_boxes_than_a_block_has_threads(provider):
    draw = Draw(seed=10)
    x, rois = draw.normal(2, 4, 1, 5, 9), boxes(draw, 300, 2, 5, 9)
    leaf = x.to(DEVICE).requires_grad_()
    out = ops.roi_align3d(leaf, rois.to(DEVICE), 2, SCALE)
    upstream = torch.randn(out.shape)
    (got,) = torch.autograd.grad(out, leaf, upstream.to(DEVICE))
    exact = autograd_of_reference((x, rois, (2, 2), SCALE, 1.0, 0, True, "frame"), upstream)
    assert_gradient(got.cpu(), exact, 1e-6)


@on_cuda
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


@on_cuda
def test_nothing_to_do(provider):
    x = torch.randn(2, 5, 3, 6, 7, device=DEVICE, requires_grad=True)
    out = ops.roi_align3d(x, torch.zeros(0, 5, device=DEVICE), 7, SCALE)
    assert out.shape == (0, 5, 3, 7, 7)
    out.sum().backward()
    assert x.grad is not None and not x.grad.any()
    for shape in ((0, 3, 2, 4, 4), (2, 0, 2, 4, 4), (2, 3, 0, 4, 4)):
        k = 0 if shape[0] == 0 else 2
        out = ops.roi_align3d(
            torch.zeros(shape, device=DEVICE, requires_grad=True), torch.zeros(k, 5, device=DEVICE), 2
        )
        assert out.shape == (k, *shape[1:3], 2, 2)
        out.sum().backward()
    assert not align(torch.zeros(1, 3, 2, 0, 4), torch.tensor([[0.0, 0, 0, 4, 4]]), 2).any()


# --- errors ------------------------------------------------------------------------------------------------


@on_cuda
@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN, 1e30])
def test_batch_index_must_name_a_clip(index, provider):
    rois = torch.zeros(3, 5)
    rois[1, 0] = index
    with pytest.raises(ValueError, match=r"rois: expected batch indices .*\[0, 2\), got .* at row 1"):
        align(torch.zeros(2, 4, 3, 6, 7), rois)


@on_cuda
@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN, 1e30, -INF])
def test_a_batch_index_that_was_not_checked(index, provider, monkeypatch):
    """As on a stream that is captured: no wild read, NaN for that box, no gradient from it."""
    monkeypatch.setattr(kernels, "check_batch_index", lambda *args: None)
    x = torch.randn(2, 4, 2, 6, 7, device=DEVICE, requires_grad=True)
    rois = rows(Draw(), (1, 0, 0, 5, 5), (0, 0, 0, 5, 5)).to(DEVICE)
    good = ops.roi_align3d(x, rois, 2)
    bad = rois.clone()
    bad[1, 0] = index
    got = ops.roi_align3d(x, bad, 2)
    assert torch.equal(got[0], good[0]) and got[1].isnan().all()
    (grad,) = torch.autograd.grad(got.sum(), x)
    assert not grad[0].any() and grad[1].any()


@on_cuda
def test_float64_is_refused(provider):
    with pytest.raises(RuntimeError, match=r"cuda: the maps are torch\.float64, the CUDA kernels take"):
        align(torch.zeros(1, 2, 1, 3, 3).double(), torch.zeros(1, 5))


@on_cuda
def test_channel_slices_are_read_in_place(provider):
    wide = torch.randn(2, 40, 3, 7, 5).contiguous(memory_format=torch.channels_last_3d)
    x = kernels.pixels_in_row(wide[:, 8:29])
    assert x.data_ptr() == wide[:, 8:29].data_ptr() and x.stride() == wide.stride()
    assert kernels.pixels_in_row(wide.contiguous()).is_contiguous(memory_format=torch.channels_last_3d)


@on_cuda
def test_launchers_check_for_themselves(provider):
    x = torch.zeros(2, 4, 3, 6, 7, device=DEVICE).contiguous(memory_format=torch.channels_last_3d)
    out = torch.zeros(1, 4, 3, 2, 2, device=DEVICE).contiguous(memory_format=torch.channels_last_3d)
    rois = torch.zeros(1, 5, device=DEVICE)

    def run(x=x, rois=rois, ratio=0, mode=0, out=out):
        torch.ops.slowfast._roi_align_cuda(x, rois, 1.0, 1.0, ratio, True, mode, out)

    run()
    for wrong in (
        {"rois": rois.double()},
        {"rois": torch.zeros(1, 7, device=DEVICE)},
        {"rois": torch.zeros(2, 5, device=DEVICE)},
        {"rois": torch.zeros(5, 1, device=DEVICE).t()[:, :3]},
        {"mode": 1},
        {"mode": 3},
        {"ratio": 5000},
        {"x": x.double()},
        {"x": x.bfloat16()},
        {"x": x.contiguous()},
        {"x": x[0]},
        {"out": out[:, :3]},
        {"out": torch.zeros(1, 4, 2, 2, 2, device=DEVICE)},
    ):
        with pytest.raises(RuntimeError):
            run(**wrong)


def far_apart(x, pitch):
    """``x`` [N, C, T, H, W] with its pixels `pitch` elements apart, in memory that nobody touches."""
    n, c, t, h, w = x.shape
    size = n * t * h * w * pitch * x.element_size()
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=x.dtype)
    return memory.as_strided(x.shape, (t * h * w * pitch, 1, h * w * pitch, w * pitch, pitch)).copy_(x)


@on_cuda
@pytest.mark.skipif(DEVICE != "cpu", reason="the memory is the host's: pages that are never touched")
def test_offsets_beyond_2_31(provider):
    x = Draw(seed=16).normal(1, 8, 2, 4, 5).bfloat16()
    far = far_apart(x, 2**26 + 8)
    assert far.stride(0) > 2**31 and kernels.pixels_in_row(far).data_ptr() == far.data_ptr()
    rois = rows(Draw(), (0, 0, 0, 5, 4), (0, 2, 1, 5, 4))
    assert torch.equal(align(far, rois, 3, 1.0), align(x, rois, 3, 1.0))
