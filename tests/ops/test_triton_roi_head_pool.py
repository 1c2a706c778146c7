"""roi_head_pool on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import functools
import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

from ops.parity import bits, case_named, check, reference
from ops.test_roi_head_pool import COORDINATES, calls, composed
from slowfast_kernels import ops
from slowfast_kernels._triton import roi
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.ops.roi_align3d.cases import ODD, SCALE, boxes, rows
from slowfast_kernels.testing import assert_gradient, provider_device, to_float64

OP = "roi_head_pool"
DEVICE = provider_device("triton")
kernels = importlib.import_module("slowfast_kernels.ops.roi_head_pool.triton")
CASES = cases_of(OP)
TEMPORAL = pytest.mark.parametrize("temporal", ["mean", "max"])
NAN, INF = math.nan, math.inf
pytestmark = pytest.mark.parametrize("provider", ["triton"], indirect=True)


def moved(tree):
    return pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), tree)


def pool(*args, **kwargs):
    args, kwargs = moved((args, kwargs))
    return ops.roi_head_pool(*args, **kwargs).cpu()


def pooled_and_arg(slow, fast, rois, size=(7, 7), ratio=0, aligned=True, temporal="mean", scale=SCALE):
    return OPS[OP].handle(*moved((slow, fast, rois)), list(size), scale, ratio, aligned, temporal)


@functools.lru_cache(maxsize=4)
def expected_of(name, dtype):
    args, kwargs = case_named(OP, name).args(dtype=dtype)
    return reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.edge], ids=str)
def test_parity(case, dtype, provider):
    args, kwargs = case.args(dtype=dtype)
    check([pool(*args, **kwargs)], *expected_of(case.name, dtype), COORDINATES, case.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.real], ids=str)
def test_parity_of_real_calls(case, dtype, provider):
    """A quarter of the height and width, a quarter of the frames, two boxes: every channel."""
    (slow, fast, rois), _ = case.args(dtype=dtype, shrink=4)
    args = (slow[:, :, ::4], fast[:, :, ::4], rois[:2])
    exact, peer = reference(OP, *to_float64((args, {}))), reference(OP, args, {})
    check([pool(*args)], exact, peer, COORDINATES, case.name)


@settings(max_examples=10)
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)
    check([pool(*args, **kwargs)], exact, peer, COORDINATES, "drawn")


@TEMPORAL
def test_arg_is_the_bin_of_the_maximum(temporal, provider):
    draw = Draw(seed=2)
    slow, fast, rois = draw.normal(2, 33, 3, 9, 8), draw.normal(2, 13, 5, 9, 8), boxes(draw, 4, 2, 9, 8)
    out, arg = (x.cpu() for x in pooled_and_arg(slow, fast, rois, (4, 5), temporal=temporal))
    assert arg.dtype == torch.int32 and arg.shape == out.shape == (4, 46)
    for x, channels in ((slow, slice(0, 33)), (fast, slice(33, 46))):
        flat = x.mean(2, keepdim=True) if temporal == "mean" else x.amax(2, keepdim=True)
        (maps,) = reference("roi_align3d", (flat, rois, (4, 5), SCALE), {})
        maps = maps.flatten(2)
        torch.testing.assert_close(maps.gather(2, arg[:, channels, None].long())[..., 0], out[:, channels])
        assert (maps.amax(2) - out[:, channels]).abs().max() < 1e-6
    assert len(arg.unique()) > 10


def test_the_first_of_equals(provider, monkeypatch):
    """Bins and frames that are exactly equal, -0 and 0 too: the gradient goes to the first."""
    slow = torch.zeros(1, 5, 4, 6, 6)
    slow[:, 1, 1:3, 2:4, 2:4] = 1
    slow[:, 2, :, 1, 1] = -0.0
    rois = rows(Draw(), (0, 16, 16, 80, 80))  # bins of whole cells
    for tile in (None, kernels.Tiles(8, 4, 4, 4, 4)):
        if tile is not None:
            monkeypatch.setattr(kernels, "tiles_of", lambda *args, tile=tile: tile)
        leaf = slow.to(DEVICE).requires_grad_()
        out, arg = pooled_and_arg(leaf, None, rois, (4, 4), temporal="max")
        assert out.tolist() == [[0, 1, 0, 0, 0]]
        assert arg.tolist() == [[0, 5, 0, 0, 0]]  # of bins 5, 6, 9 and 10
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert [tuple(i) for i in grad.nonzero().tolist()] == [
            (0, 0, 0, 1, 1),
            (0, 1, 1, 2, 2),
            *((0, c, 0, 1, 1) for c in (2, 3, 4)),
        ]


def test_only_cells_under_a_box_count(provider):
    draw = Draw(seed=3)
    slow, fast = draw.normal(2, 20, 3, 12, 12), draw.normal(2, 70, 4, 12, 12)
    rois = rows(Draw(), (0, 33, 49, 79, 80), (0, 129, 97, 150, 140))
    expected = pool(slow, fast, rois)
    read = torch.zeros(12, 12, dtype=torch.bool)
    for _, x1, y1, x2, y2 in rois.div(16).tolist():
        read[int(y1 - 0.5) : int(y2 - 0.5) + 2, int(x1 - 0.5) : int(x2 - 0.5) + 2] = True
    for x in (slow, fast):
        x[0, :, :, ~read] = NAN
        x[1] = NAN
    assert torch.equal(pool(slow, fast, rois), expected)
    slow[0, 7, 1, 4, 3] = NAN
    got, arg = (x.cpu() for x in pooled_and_arg(slow, fast, rois))
    assert got[0, 7].isnan() and got.isnan().sum() == 1
    (maps,) = reference("roi_align3d", (slow.mean(2, keepdim=True), rois, 7, SCALE), {})
    assert arg[0, 7] == maps[0, 7].flatten().isnan().nonzero()[0]  # the first NaN is the maximum
    assert pool(slow, fast, rois, temporal="max").isnan().sum() == 1


def test_infinities(provider):
    slow = torch.full((1, 3, 2, 4, 4), -INF)
    slow[0, 1, 1, 1, 1] = INF
    rois = rows(Draw(), (0, 8, 8, 40, 40))
    out, arg = (x.cpu() for x in pooled_and_arg(slow, None, rois, (2, 2), 1, temporal="max"))
    expected = composed(slow, None, rois, (2, 2), ratio=1, temporal="max")
    torch.testing.assert_close(out, expected, equal_nan=True)
    assert not out.isfinite().any() and (arg >= 0).all()


@TEMPORAL
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 2)])
def test_gradients(temporal, aligned, ratio, provider):
    draw = Draw(seed=4)
    slow, fast = draw.normal(3, 20, 3, 9, 8), draw.normal(3, 13, 5, 9, 8)
    rois = boxes(draw, 3, 2, 9, 8)  # the last clip has no box
    rois[:, 3:] += 24  # some reach beyond the map
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)):
        leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (slow, fast)]
        out = ops.roi_head_pool(*leaves, rois.to(DEVICE), (3, 4), SCALE, ratio, aligned, temporal)
        upstream = torch.randn(out.shape).to(dtype)
        got = torch.autograd.grad(out, leaves, upstream.to(DEVICE))
        wide = [x.detach().cpu().double().requires_grad_() for x in leaves]
        exact = torch.autograd.grad(
            composed(*wide, rois, (3, 4), SCALE, ratio, aligned, temporal), wide, upstream.double()
        )
        for g, e in zip(got, exact, strict=True):
            assert g.dtype == dtype and g.is_contiguous(memory_format=torch.channels_last_3d)
            assert_gradient(g.cpu(), e, bound, what=f"{temporal} {dtype}")
            assert not g[2].any()


@TEMPORAL
def test_tiles_and_repetition_change_nothing(temporal, provider, monkeypatch):
    draw = Draw(seed=9)
    args = moved((draw.normal(2, 37, 3, 9, 8), draw.normal(2, 13, 6, 9, 8), boxes(draw, 2, 2, 9, 8)))
    results = []
    for tile in (None, None, kernels.Tiles(32, 16, 16, 8, 4)):
        if tile is not None:
            monkeypatch.setattr(kernels, "tiles_of", lambda *args, tile=tile: tile)
        leaves = [x.clone().requires_grad_() for x in args[:2]]
        out = ops.roi_head_pool(*leaves, args[2], temporal=temporal)
        out.backward(out.detach())
        results.append(torch.cat([bits(x.cpu()) for x in (out.detach(), *(leaf.grad for leaf in leaves))]))
    assert all(torch.equal(results[0], r) for r in results[1:])


@TEMPORAL
def test_boxes_that_are_not_finite(temporal, provider):
    draw = Draw(seed=8)
    slow, fast = (draw.normal(2, c, t, 7, 9).to(DEVICE).requires_grad_() for c, t in ((19, 3), (35, 2)))
    bad = rows(Draw(), (0, NAN, 8, 64, 64), (1, 8, 8, INF, 64), (1, -3e38, 8, 3e38, 64))
    good = rows(Draw(), ODD[0], ODD[1], ODD[4])
    bad[2, 1::2] *= 16  # overflows when scaled back
    rois = torch.cat([good[:2], bad, good[2:]])
    out, arg = pooled_and_arg(slow, fast, rois, (3, 2), temporal=temporal)
    alone, arg_alone = pooled_and_arg(slow, fast, good, (3, 2), temporal=temporal)
    keep = [0, 1, 5]
    assert out[2:5].isnan().all() and (arg[2:5] == -1).all()
    assert torch.equal(out[keep], alone) and torch.equal(arg[keep], arg_alone)
    assert alone[1].eq(0).all() and arg_alone[1].eq(0).all()  # outside the map
    upstream = torch.randn(out.shape, device=DEVICE)
    for x in (slow, fast):
        (a,) = torch.autograd.grad(out, x, upstream, retain_graph=True)
        (b,) = torch.autograd.grad(alone, x, upstream[keep], retain_graph=True)
        assert torch.equal(a, b) and a.any()


def test_no_box(provider):
    slow = torch.randn(2, 6, 3, 4, 5, device=DEVICE, requires_grad=True)
    fast = torch.randn(2, 3, 6, 4, 5, device=DEVICE)
    none = torch.zeros(0, 5, device=DEVICE)
    out = ops.roi_head_pool(slow, fast, none)
    assert out.shape == (0, 9)
    out.sum().backward()
    assert not slow.grad.any()
    assert ops.roi_head_pool(slow[:0], fast[:0], none).shape == (0, 9)


@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN])
def test_batch_index_must_name_a_clip(index, provider):
    rois = torch.zeros(3, 5)
    rois[1, 0] = index
    slow, settings_ = torch.zeros(2, 4, 3, 6, 7), ([2, 2], 1.0, 0, True, "mean")
    with pytest.raises(ValueError, match=r"rois: expected batch indices .*\[0, 2\), got .* at row 1"):
        pool(slow, None, rois)
    grad, arg = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="batch indices"):
        OPS["roi_head_pool_bwd"].handle(*moved((grad, arg, rois)), None, list(slow.shape), *settings_)


def test_a_batch_index_that_was_not_checked(provider, monkeypatch):
    """As on a stream that is captured: no wild read, NaN for that box, no gradient from it."""
    monkeypatch.setattr(roi, "check_batch_index", lambda *args: None)
    slow = torch.randn(2, 4, 2, 6, 7, device=DEVICE, requires_grad=True)
    rois = rows(Draw(), (1, 0, 0, 50, 50), (1e9, 0, 0, 50, 50))
    out, arg = pooled_and_arg(slow, None, rois, (2, 2))
    assert out[0].isfinite().all() and out[1].isnan().all() and (arg[1] == -1).all()
    (grad,) = torch.autograd.grad(out.sum(), slow)
    assert grad.isfinite().all() and not grad[0].any() and grad[1].any()


def test_a_forged_arg_is_not_a_wild_read(provider):
    arg = torch.tensor([[-1, 4, 2**31 - 1, -(2**31)]] * 3, dtype=torch.int32)
    dx = OPS["roi_head_pool_bwd"].handle(
        *moved((torch.ones(3, 4), arg, torch.zeros(3, 5))),
        None,
        [2, 4, 3, 6, 7],
        [2, 2],
        1.0,
        1,
        True,
        "mean",
    )
    assert not dx.any()


def test_what_is_refused(provider):
    x, rois = torch.zeros(1, 2, 1, 3, 3), torch.zeros(1, 5)
    with pytest.raises(
        RuntimeError, match=r"triton: slow is torch\.float64, the Triton kernels take float32"
    ):
        pool(x.double(), None, rois)
