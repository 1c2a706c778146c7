"""roi_head_pool on the CUDA kernels (emulated where there is no GPU) against the reference in float64."""

import functools
import importlib
import math
import mmap

import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

from ops.parity import bits, case_named, check, reference
from ops.test_roi_head_pool import COORDINATES, calls, composed
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.ops.roi_align3d.cases import ODD, SCALE, boxes, rows
from slowfast_kernels.testing import assert_gradient, provider_device, to_float64

OP = "roi_head_pool"
DEVICE = provider_device("cuda")
kernels = importlib.import_module("slowfast_kernels.ops.roi_head_pool.cuda")
align_kernels = importlib.import_module("slowfast_kernels.ops.roi_align3d.cuda")
CASES = cases_of(OP)
TEMPORAL = pytest.mark.parametrize("temporal", ["mean", "max"])
#: How the emulator chooses who runs next; a GPU chooses for itself.
ORDERS = ("mixed", "random:1", "reversed", "ahead:3")
NAN, INF = math.nan, math.inf
pytestmark = pytest.mark.parametrize("provider", ["cuda"], indirect=True)


@pytest.fixture(params=[False, True], ids=["one launch", "reduced apart"])
def apart(request, monkeypatch):
    """The reduction over time by every box's own blocks, and in a launch of its own."""
    monkeypatch.setattr(kernels, "reduces_apart", lambda *args: request.param)
    return request.param


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
def test_parity(case, dtype, apart, provider):
    args, kwargs = case.args(dtype=dtype)
    check([pool(*args, **kwargs)], *expected_of(case.name, dtype), COORDINATES, case.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.real], ids=str)
def test_parity_of_real_calls(case, dtype, provider):
    """A quarter of the height and width, a quarter of the frames, some boxes: every channel."""
    (slow, fast, rois), _ = case.args(dtype=dtype, shrink=4)
    args = (slow[:, :, ::2], fast[:, :, ::4], rois[:6:2])
    exact, peer = reference(OP, *to_float64((args, {}))), reference(OP, args, {})
    check([pool(*args)], exact, peer, COORDINATES, case.name)


@settings(max_examples=15)
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)
    check([pool(*args, **kwargs)], exact, peer, COORDINATES, "drawn")


def test_when_the_reduction_is_a_launch_of_its_own(provider):
    assert not kernels.reduces_apart(1, 4, 16 * 29, 32)
    assert kernels.reduces_apart(1, 5, 16 * 29, 32) and not kernels.reduces_apart(2, 5, 16 * 29, 32)
    assert not kernels.reduces_apart(1, 64, 16 * 29, 1)
    assert kernels.reduces_apart(1, 1, 513, 1)
    draw = Draw(seed=12)
    wide, rois = draw.normal(1, 5, 2, 19, 28), boxes(draw, 2, 1, 19, 28)
    exact, peer = reference(OP, (wide.double(), None, rois), {}), reference(OP, (wide, None, rois), {})
    check([pool(wide, None, rois)], exact, peer, COORDINATES, "532 cells")


@TEMPORAL
def test_arg_is_the_bin_of_the_maximum(temporal, apart, provider):
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


def test_the_first_of_equals(apart, provider):
    """Bins and frames that are exactly equal, -0 and 0 too: the gradient goes to the first."""
    slow = torch.zeros(1, 5, 4, 6, 6)
    slow[:, 1, 1:3, 2:4, 2:4] = 1
    slow[:, 2, :, 1, 1] = -0.0
    rois = rows(Draw(), (0, 16, 16, 80, 80))  # bins of whole cells
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


def test_only_cells_under_a_box_count(apart, provider):
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


def test_infinities(apart, provider):
    slow = torch.full((1, 3, 2, 4, 4), -INF)
    slow[0, 1, 1, 1, 1] = INF
    rois = rows(Draw(), (0, 8, 8, 40, 40))
    out, arg = (x.cpu() for x in pooled_and_arg(slow, None, rois, (2, 2), 1, temporal="max"))
    expected = composed(slow, None, rois, (2, 2), ratio=1, temporal="max")
    torch.testing.assert_close(out, expected, equal_nan=True)
    assert not out.isfinite().any() and (arg >= 0).all()


@pytest.mark.parametrize("size, shape", [((70, 3), (5, 9)), ((3, 70), (9, 5)), ((60, 66), (4, 4))])
def test_more_bins_than_a_table_has(size, shape, apart, provider):
    """Forward tables hold 64 bins an axis, the backward's 128 bins and 1024 cells of a box."""
    draw = Draw(seed=13)
    slow, rois = draw.normal(1, 5, 2, *shape), boxes(draw, 2, 1, *shape)
    leaf = slow.to(DEVICE).requires_grad_()
    out = ops.roi_head_pool(leaf, None, rois.to(DEVICE), size)
    exact, peer = reference(OP, (slow.double(), None, rois, size), {}), [out.detach().cpu()]
    check(peer, exact, peer, COORDINATES, f"{size}")
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    wide = slow.double().requires_grad_()
    (expected,) = torch.autograd.grad(composed(wide, None, rois, size).sum(), wide)
    assert_gradient(grad.cpu(), expected, 1e-5)


def test_bins_that_no_table_holds(provider):
    """Bins of more cells than a table: their samples are taken one by one, forward and backward."""
    slow = Draw(seed=14).normal(1, 2, 1, 2, 2600)
    rois = rows(Draw(), (0, 10, 0, 2500, 2))
    leaf = slow.to(DEVICE).requires_grad_()
    out = ops.roi_head_pool(leaf, None, rois.to(DEVICE), 1, 1.0)
    (exact,) = reference(OP, (slow.double(), None, rois, 1, 1.0), {})
    torch.testing.assert_close(out.detach().cpu().double(), exact, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    wide = slow.double().requires_grad_()
    (expected,) = torch.autograd.grad(composed(wide, None, rois, (1, 1), 1.0).sum(), wide)
    assert_gradient(grad.cpu(), expected, 1e-5)


@TEMPORAL
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 2)])
def test_gradients(temporal, aligned, ratio, provider):
    draw = Draw(seed=4)
    channels = (24, 72) if aligned else (20, 13)
    slow, fast = (draw.normal(3, c, t, 9, 8) for c, t in zip(channels, (3, 5), strict=True))
    rois = boxes(draw, 9, 2, 9, 8)  # the last clip has no box
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


@pytest.mark.parametrize("shape", [(3, 250), (30, 9)], ids=str)
def test_gradients_on_more_than_one_tile(shape, provider):
    """A block's tile is 192 cells at most: rows, or parts of a row."""
    draw = Draw(seed=15)
    slow, rois = draw.normal(1, 3, 2, *shape), boxes(draw, 270, 1, *shape)
    leaf = slow.to(DEVICE).requires_grad_()
    out = ops.roi_head_pool(leaf, None, rois.to(DEVICE), 2)
    upstream = torch.randn(out.shape)
    (got,) = torch.autograd.grad(out, leaf, upstream.to(DEVICE))
    wide = slow.double().requires_grad_()
    (exact,) = torch.autograd.grad(composed(wide, None, rois, (2, 2)), wide, upstream.double())
    assert_gradient(got.cpu(), exact, 1e-5)


@TEMPORAL
def test_no_order_of_threads_changes_a_bit(temporal, apart, provider, monkeypatch):
    draw = Draw(seed=9)
    args = moved((draw.normal(2, 40, 3, 9, 8), draw.normal(2, 16, 6, 9, 8), boxes(draw, 6, 2, 9, 8)))
    results = []
    for order in (*ORDERS, "mixed"):
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        leaves = [x.clone().requires_grad_() for x in args[:2]]
        out = ops.roi_head_pool(*leaves, args[2], temporal=temporal)
        out.backward(out.detach())
        results.append(torch.cat([bits(x.cpu()) for x in (out.detach(), *(leaf.grad for leaf in leaves))]))
    assert all(torch.equal(results[0], r) for r in results[1:])


@TEMPORAL
def test_boxes_that_are_not_finite(temporal, apart, provider):
    draw = Draw(seed=8)
    slow, fast = (draw.normal(2, c, t, 7, 9).to(DEVICE).requires_grad_() for c, t in ((19, 3), (35, 2)))
    bad = rows(Draw(), (0, NAN, 8, 64, 64), (1, 8, 8, INF, 64), (1, -3e38, 8, 3e38, 64))
    good = rows(Draw(), *ODD)
    bad[2, 1::2] *= 16  # overflows when scaled back
    rois = torch.cat([good[:2], bad, good[2:]])
    out, arg = pooled_and_arg(slow, fast, rois, (3, 2), temporal=temporal)
    alone, arg_alone = pooled_and_arg(slow, fast, good, (3, 2), temporal=temporal)
    keep = [0, 1, *range(5, len(rois))]
    assert out[2:5].isnan().all() and (arg[2:5] == -1).all()
    assert torch.equal(out[keep], alone) and torch.equal(arg[keep], arg_alone)
    assert alone[1].eq(0).all() and arg_alone[1].eq(0).all()  # outside the map
    upstream = torch.randn(out.shape, device=DEVICE)
    for x in (slow, fast):
        (a,) = torch.autograd.grad(out, x, upstream, retain_graph=True)
        (b,) = torch.autograd.grad(alone, x, upstream[keep], retain_graph=True)
        assert torch.equal(a, b) and a.any()


def test_no_box(apart, provider):
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


def test_a_batch_index_that_was_not_checked(apart, provider, monkeypatch):
    """As on a stream that is captured: no wild read, NaN for that box, no gradient from it."""
    monkeypatch.setattr(align_kernels, "check_batch_index", lambda *args: None)
    slow = torch.randn(2, 4, 2, 6, 7, device=DEVICE, requires_grad=True)
    rois = rows(Draw(), (1, 0, 0, 50, 50), (1e9, 0, 0, 50, 50))
    out, arg = pooled_and_arg(slow, None, rois, (2, 2))
    assert out[0].isfinite().all() and out[1].isnan().all() and (arg[1] == -1).all()
    (grad,) = torch.autograd.grad(out.sum(), slow)
    assert grad.isfinite().all() and not grad[0].any() and grad[1].any()


def test_a_forged_arg_is_not_a_wild_write(provider):
    arg = torch.tensor([[-1, 4, 2**31 - 1, -(2**31)]] * 3, dtype=torch.int32)
    settings_ = (None, [2, 4, 3, 6, 7], [2, 2], 1.0, 1, True, "mean")
    dx = OPS["roi_head_pool_bwd"].handle(*moved((torch.ones(3, 4), arg, torch.zeros(3, 5))), *settings_)
    assert not dx.any()


def test_what_is_refused(provider):
    x, rois = torch.zeros(1, 2, 1, 3, 3), torch.zeros(1, 5)
    with pytest.raises(RuntimeError, match=r"cuda: slow is torch\.float64, the CUDA kernels take float32"):
        pool(x.double(), None, rois)
    with pytest.raises(RuntimeError, match=r"cuda: fast is torch\.float32 but slow is torch\.bfloat16"):
        OPS[OP].handle(*moved((x.bfloat16(), x, rois)), [2, 2], 1.0, 0, True, "mean")


def test_launchers_check_for_themselves(provider):
    def last(*shape):
        return torch.zeros(*shape, device=DEVICE).contiguous(memory_format=torch.channels_last_3d)

    slow, fast, rois = last(2, 4, 3, 6, 7), last(2, 3, 6, 6, 7), torch.zeros(3, 5, device=DEVICE)
    out, arg = torch.zeros(3, 7, device=DEVICE), torch.zeros(3, 7, dtype=torch.int32, device=DEVICE)
    maps = torch.zeros(2, 42, 64, device=DEVICE)
    good = {"slow": slow, "fast": fast, "rois": rois, "size": [2, 2], "maps": maps, "out": out, "arg": arg}

    def run(slow, fast, rois, size, maps, out, arg, ratio=0):
        torch.ops.slowfast._roi_head_cuda(slow, fast, rois, size, 1.0, ratio, True, False, maps, out, arg)

    run(**good)
    for change in (
        {"rois": rois[:2]},
        {"rois": torch.zeros(3, 7, device=DEVICE)},
        {"rois": rois.double()},
        {"size": [2]},
        {"size": [0, 2]},
        {"ratio": -1},
        {"slow": slow[0]},
        {"slow": slow.bfloat16()},
        {"slow": slow.contiguous()},
        {"fast": fast[:1]},
        {"fast": fast[..., :5]},
        {"fast": fast[:, :, :0]},
        {"maps": maps[..., :32].contiguous()},
        {"slow": last(2, 4, 3, 30, 30), "fast": last(2, 3, 3, 30, 30), "maps": None},
        {"out": out[:, :6]},
        {"out": torch.zeros(7, 3, device=DEVICE).t()},
        {"arg": arg.float()},
    ):
        with pytest.raises(RuntimeError):
            run(**(good | change))


def far_apart(x, pitch):
    """``x`` [N, C, T, H, W] with its pixels `pitch` elements apart, in memory that nobody touches."""
    n, c, t, h, w = x.shape
    size = n * t * h * w * pitch * x.element_size()
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=x.dtype)
    return memory.as_strided(x.shape, (t * h * w * pitch, 1, h * w * pitch, w * pitch, pitch)).copy_(x)


@pytest.mark.skipif(DEVICE != "cpu", reason="the memory is the host's: pages that are never touched")
@TEMPORAL
def test_offsets_beyond_2_31(temporal, apart, provider):
    x = Draw(seed=16).normal(1, 8, 2, 4, 5).bfloat16()
    far, rois = far_apart(x, 2**26 + 8), rows(Draw(), (0, 0, 0, 5, 4), (0, 2, 1, 5, 4))
    assert far.stride(0) > 2**31 and align_kernels.pixels_in_row(far).data_ptr() == far.data_ptr()
    results = []
    for slow in (far, x):
        slow = slow.requires_grad_()
        out, arg = pooled_and_arg(slow, None, rois, (3, 3), scale=1.0, temporal=temporal)
        (grad,) = torch.autograd.grad(out.sum(), slow)
        results.append((out.detach(), arg, grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
