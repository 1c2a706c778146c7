"""roi_head_pool on the GPU's kernels (without one: interpreted, emulated) against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings

from emulator.accesses import counted
from ops.parity import (
    ORDERS,
    bits,
    check,
    expected_of,
    far_apart,
    on_cuda,
    on_gpu,
    on_triton,
    reference,
    run,
    there,
)
from ops.test_roi_head_pool import calls, composed
from slowfast_kernels import _extension, ops
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.ops._memory import pixel_rows
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.ops.roi_align3d.cases import COORDINATES, ODD, SCALE, boxes, rows
from slowfast_kernels.testing import assert_gradient, to_float64

OP = "roi_head_pool"
CASES = cases_of(OP)
#: The CUDA kernels reduce over time in every box's own blocks, or in a launch of its own.
WAYS = {
    "triton": ("triton", None),
    "cuda, one launch": ("cuda", False),
    "cuda, reduced apart": ("cuda", True),
}
on_gpu_each_way = pytest.mark.parametrize("provider, apart", WAYS.values(), ids=WAYS, indirect=True)
on_cuda_each_way = pytest.mark.parametrize(
    "provider, apart", list(WAYS.values())[1:], ids=list(WAYS)[1:], indirect=True
)
TEMPORAL = pytest.mark.parametrize("temporal", ["mean", "max"])
NAN, INF = math.nan, math.inf

#: Boxes of a call, odd boxes and calls drawn: the interpreter gets few of each.
BOXES = {"triton": 3, "cuda": 9}
SOME_ODD = {"triton": (*ODD[:2], ODD[4]), "cuda": ODD}
DRAWN = {"triton": 10, "cuda": 15}


@pytest.fixture
def kernels(provider):
    """The provider's module of this op."""
    return importlib.import_module(f"slowfast_kernels.ops.roi_head_pool.{provider}")


@pytest.fixture
def apart(request, kernels, monkeypatch):
    """Whether the reduction over time is a launch of its own; None: the provider knows one way."""
    if request.param is not None:
        monkeypatch.setattr(kernels, "reduces_apart", lambda *args: request.param)
    return request.param


def pool(*args, **kwargs):
    (result,) = run(OP, args, kwargs)
    return result


def pooled_and_arg(slow, fast, rois, size=(7, 7), ratio=0, aligned=True, temporal="mean", scale=SCALE):
    return OPS[OP].handle(*there((slow, fast, rois)), list(size), scale, ratio, aligned, temporal)


def both_ways(slow, fast, rois, temporal):
    """Bits of the result, and of both gradients when it comes back as it is."""
    leaves = [x.clone().requires_grad_() for x in there((slow, fast))]
    out = ops.roi_head_pool(leaves[0], leaves[1], there(rois), temporal=temporal)
    out.backward(out.detach())
    return torch.cat([bits(x.cpu()) for x in (out.detach(), *(leaf.grad for leaf in leaves))])


def check_pathway_gradient(slow, rois, size, bound, scale=SCALE):
    """d slow of one pathway in float32, for upstream gradients drawn at random; the op's result."""
    leaf = there(slow).detach().requires_grad_()
    out = ops.roi_head_pool(leaf, None, there(rois), size, scale)
    upstream = torch.randn(out.shape)
    (got,) = torch.autograd.grad(out, leaf, there(upstream))
    wide = slow.double().requires_grad_()
    (exact,) = torch.autograd.grad(composed(wide, None, rois, size, scale), wide, upstream.double())
    assert_gradient(got.cpu(), exact, bound)
    return out.detach().cpu()


@on_cuda_each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.edge], ids=str)
def test_each_way_of_reducing(case, dtype, apart, provider):
    got = run(OP, *case.args(dtype=dtype))
    exact, peer = expected_of(OP, case.name, dtype)
    check(got, exact, peer, COORDINATES, f"{case}, {apart}")


@on_gpu
def test_drawn_calls(provider):
    @settings(max_examples=DRAWN[provider])
    @given(drawn=calls())
    def parity(drawn):
        args, kwargs = drawn
        exact, peer = reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)
        check([pool(*args, **kwargs)], exact, peer, COORDINATES, "drawn")

    parity()


@on_cuda
@TEMPORAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ratio", [0, 2])
def test_many_boxes(ratio, dtype, temporal, provider):
    """So many that a block takes 128 channels: whole slices and parts, vectors and odd channels, empty boxes."""
    draw = Draw(seed=31, dtype=dtype)
    kwargs = {"output_size": (3, 2), "sampling_ratio": ratio, "temporal": temporal}
    for channels, fast_channels in ((136, 8), (129, 5)):
        slow, fast = draw.normal(2, channels, 2, 6, 7), draw.normal(2, fast_channels, 3, 6, 7)
        odd = rows(draw, (1, 30, 30, 30, 30), (0, 500, 500, 600, 600), (0, 90, 90, 10, 10), (1, NAN, 0, 5, 5))
        rois = torch.cat([boxes(draw, 70, 2, 6, 7), odd])
        got = pool(slow, fast, rois, **kwargs)
        assert got[-1].isnan().all()
        exact = reference(OP, to_float64((slow, fast, rois[:-1])), kwargs)
        peer = reference(OP, (slow, fast, rois[:-1]), kwargs)
        check([got[:-1]], exact, peer, COORDINATES, f"{channels} channels")


@pytest.mark.skipif(not _extension.EMULATE, reason="orders of the emulator's threads")
@on_cuda
def test_no_order_of_threads_changes_a_bit_of_many_boxes(provider, monkeypatch):
    draw = Draw(seed=32, dtype=torch.bfloat16)
    slow, rois = draw.normal(1, 160, 3, 5, 6), boxes(draw, 108, 1, 5, 6)
    (kernel,) = [found for found in counted(lambda: pool(slow, None, rois)) if "max" in found.kernel]
    assert kernel.blocks == 108 * 2, "128 channels a block"
    results = []
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        results.append(bits(pool(slow, None, rois)))
    assert all(torch.equal(results[0], other) for other in results[1:])


@on_cuda
def test_when_the_reduction_is_a_launch_of_its_own(provider, kernels):
    assert not kernels.reduces_apart(1, 4, 16 * 29, 32)
    assert kernels.reduces_apart(1, 5, 16 * 29, 32) and not kernels.reduces_apart(2, 5, 16 * 29, 32)
    assert not kernels.reduces_apart(1, 64, 16 * 29, 1)
    assert kernels.reduces_apart(1, 1, 513, 1)
    draw = Draw(seed=12)
    wide, rois = draw.normal(1, 5, 2, 19, 28), boxes(draw, 2, 1, 19, 28)
    exact, peer = reference(OP, (wide.double(), None, rois), {}), reference(OP, (wide, None, rois), {})
    check([pool(wide, None, rois)], exact, peer, COORDINATES, "532 cells")


@on_gpu_each_way
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


def check_the_first_of_equals():
    """Bins and frames that are exactly equal, -0 and 0 too: the gradient goes to the first."""
    slow = torch.zeros(1, 5, 4, 6, 6)
    slow[:, 1, 1:3, 2:4, 2:4] = 1
    slow[:, 2, :, 1, 1] = -0.0
    rois = rows(Draw(), (0, 16, 16, 80, 80))  # bins of whole cells
    leaf = there(slow).requires_grad_()
    out, arg = pooled_and_arg(leaf, None, rois, (4, 4), temporal="max")
    assert out.tolist() == [[0, 1, 0, 0, 0]]
    assert arg.tolist() == [[0, 5, 0, 0, 0]]  # of bins 5, 6, 9 and 10
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert [tuple(i) for i in grad.nonzero().tolist()] == [
        (0, 0, 0, 1, 1),
        (0, 1, 1, 2, 2),
        *((0, c, 0, 1, 1) for c in (2, 3, 4)),
    ]


@on_gpu_each_way
def test_the_first_of_equals(apart, provider):
    check_the_first_of_equals()


@on_triton
def test_the_first_of_equals_in_small_tiles(provider, kernels, monkeypatch):
    monkeypatch.setattr(kernels, "tiles_of", lambda *args: kernels.Tiles(8, 4, 4, 4, 4))
    check_the_first_of_equals()


@on_gpu_each_way
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


@on_gpu_each_way
def test_infinities(apart, provider):
    slow = torch.full((1, 3, 2, 4, 4), -INF)
    slow[0, 1, 1, 1, 1] = INF
    rois = rows(Draw(), (0, 8, 8, 40, 40))
    out, arg = (x.cpu() for x in pooled_and_arg(slow, None, rois, (2, 2), 1, temporal="max"))
    expected = composed(slow, None, rois, (2, 2), ratio=1, temporal="max")
    torch.testing.assert_close(out, expected, equal_nan=True)
    assert not out.isfinite().any() and (arg >= 0).all()


@on_cuda_each_way
@pytest.mark.parametrize("size, shape", [((70, 3), (5, 9)), ((3, 70), (9, 5)), ((60, 66), (4, 4))])
def test_more_bins_than_a_table_has(size, shape, apart, provider):
    """Forward tables hold 64 bins an axis, the backward's 128 bins and 1024 cells of a box."""
    draw = Draw(seed=13)
    slow, rois = draw.normal(1, 5, 2, *shape), boxes(draw, 2, 1, *shape)
    got = [check_pathway_gradient(slow, rois, size, 1e-5)]
    check(got, reference(OP, (slow.double(), None, rois, size), {}), got, COORDINATES, f"{size}")


@on_cuda
def test_bins_that_no_table_holds(provider):
    """Bins of more cells than a table: their samples are taken one by one, forward and backward."""
    slow = Draw(seed=14).normal(1, 2, 1, 2, 2600)
    rois = rows(Draw(), (0, 10, 0, 2500, 2))
    got = check_pathway_gradient(slow, rois, (1, 1), 1e-5, scale=1.0)
    (exact,) = reference(OP, (slow.double(), None, rois, 1, 1.0), {})
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)


@on_gpu
@TEMPORAL
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 2)])
def test_gradients(temporal, aligned, ratio, provider):
    draw = Draw(seed=4)
    channels = (24, 72) if aligned else (20, 13)
    slow, fast = (draw.normal(3, c, t, 9, 8) for c, t in zip(channels, (3, 5), strict=True))
    rois = boxes(draw, BOXES[provider], 2, 9, 8)  # the last clip has no box
    rois[:, 3:] += 24  # some reach beyond the map
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)):
        leaves = [there(x.to(dtype)).detach().requires_grad_() for x in (slow, fast)]
        out = ops.roi_head_pool(leaves[0], leaves[1], there(rois), (3, 4), SCALE, ratio, aligned, temporal)
        upstream = torch.randn(out.shape).to(dtype)
        got = torch.autograd.grad(out, leaves, there(upstream))
        wide = [x.detach().cpu().double().requires_grad_() for x in leaves]
        exact = torch.autograd.grad(
            composed(wide[0], wide[1], rois, (3, 4), SCALE, ratio, aligned, temporal), wide, upstream.double()
        )
        for g, e in zip(got, exact, strict=True):
            assert g.dtype == dtype and g.is_contiguous(memory_format=torch.channels_last_3d)
            assert_gradient(g.cpu(), e, bound, what=f"{temporal} {dtype}")
            assert not g[2].any()


@on_cuda
@pytest.mark.parametrize("shape", [(3, 250), (30, 9)], ids=str)
def test_gradients_on_more_than_one_tile(shape, provider):
    """A block's tile is 192 cells at most: rows, or parts of a row."""
    draw = Draw(seed=15)
    slow, rois = draw.normal(1, 3, 2, *shape), boxes(draw, 270, 1, *shape)
    check_pathway_gradient(slow, rois, (2, 2), 1e-5)


@on_triton
@TEMPORAL
def test_tiles_and_repetition_change_nothing(temporal, provider, kernels, monkeypatch):
    draw = Draw(seed=9)
    args = draw.normal(2, 37, 3, 9, 8), draw.normal(2, 13, 6, 9, 8), boxes(draw, 2, 2, 9, 8)
    results = []
    for tile in (None, None, kernels.Tiles(32, 16, 16, 8, 4)):
        if tile is not None:
            monkeypatch.setattr(kernels, "tiles_of", lambda *args, tile=tile: tile)
        results.append(both_ways(*args, temporal))
    assert all(torch.equal(results[0], r) for r in results[1:])


@on_cuda_each_way
@TEMPORAL
def test_no_order_of_threads_changes_a_bit(temporal, apart, provider, monkeypatch):
    draw = Draw(seed=9)
    args = draw.normal(2, 40, 3, 9, 8), draw.normal(2, 16, 6, 9, 8), boxes(draw, 6, 2, 9, 8)
    results = []
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        results.append(both_ways(*args, temporal))
    assert all(torch.equal(results[0], r) for r in results[1:])


@on_gpu_each_way
@TEMPORAL
def test_boxes_that_are_not_finite(temporal, apart, provider):
    draw = Draw(seed=8)
    slow, fast = (there(draw.normal(2, c, t, 7, 9)).requires_grad_() for c, t in ((19, 3), (35, 2)))
    bad = rows(Draw(), (0, NAN, 8, 64, 64), (1, 8, 8, INF, 64), (1, -3e38, 8, 3e38, 64))
    good = rows(Draw(), *SOME_ODD[provider])
    bad[2, 1::2] *= 16  # overflows when scaled back
    rois = torch.cat([good[:2], bad, good[2:]])
    out, arg = pooled_and_arg(slow, fast, rois, (3, 2), temporal=temporal)
    alone, arg_alone = pooled_and_arg(slow, fast, good, (3, 2), temporal=temporal)
    keep = [0, 1, *range(5, len(rois))]
    assert out[2:5].isnan().all() and (arg[2:5] == -1).all()
    assert torch.equal(out[keep], alone) and torch.equal(arg[keep], arg_alone)
    assert alone[1].eq(0).all() and arg_alone[1].eq(0).all()  # outside the map
    upstream = there(torch.randn(out.shape))
    for x in (slow, fast):
        (a,) = torch.autograd.grad(out, x, upstream, retain_graph=True)
        (b,) = torch.autograd.grad(alone, x, upstream[keep], retain_graph=True)
        assert torch.equal(a, b) and a.any()


@on_gpu_each_way
def test_no_box(apart, provider):
    slow = there(torch.randn(2, 6, 3, 4, 5)).requires_grad_()
    fast = there(torch.randn(2, 3, 6, 4, 5))
    none = there(torch.zeros(0, 5))
    out = ops.roi_head_pool(slow, fast, none)
    assert out.shape == (0, 9)
    out.sum().backward()
    assert not slow.grad.any()
    assert ops.roi_head_pool(slow[:0], fast[:0], none).shape == (0, 9)


@on_gpu
@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN])
def test_batch_index_must_name_a_clip(index, provider):
    rois = torch.zeros(3, 5)
    rois[1, 0] = index
    slow, settings_ = torch.zeros(2, 4, 3, 6, 7), ([2, 2], 1.0, 0, True, "mean")
    with pytest.raises(ValueError, match=r"rois: expected batch indices .*\[0, 2\), got .* at row 1"):
        pool(slow, None, rois)
    grad, arg = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="batch indices"):
        OPS["roi_head_pool_bwd"].handle(*there((grad, arg, rois)), None, list(slow.shape), *settings_)


@on_gpu_each_way
def test_batch_indices_that_were_not_checked(apart, provider, monkeypatch):
    """As on a stream that is captured: no wild read, NaN for such a box, no gradient from it."""
    monkeypatch.setattr(
        importlib.import_module("slowfast_kernels.ops.roi_align3d.boxes"),
        "check_batch_index",
        lambda *args: None,
    )
    slow = there(torch.randn(2, 4, 2, 6, 7)).requires_grad_()
    rois = rows(Draw(), *((index, 0, 0, 50, 50) for index in (1, 1e9, -1, 2, 0.5, NAN)))
    out, arg = pooled_and_arg(slow, None, rois, (2, 2))
    assert out[0].isfinite().all() and out[1:].isnan().all() and (arg[1:] == -1).all()
    (grad,) = torch.autograd.grad(out.sum(), slow)
    assert grad.isfinite().all() and not grad[0].any() and grad[1].any()


@on_gpu
def test_a_forged_arg_is_not_a_wild_write(provider):
    arg = torch.tensor([[-1, 4, 2**31 - 1, -(2**31)]] * 3, dtype=torch.int32)
    settings_ = (None, [2, 4, 3, 6, 7], [2, 2], 1.0, 1, True, "mean")
    dx = OPS["roi_head_pool_bwd"].handle(*there((torch.ones(3, 4), arg, torch.zeros(3, 5))), *settings_)
    assert not dx.any()


@on_gpu
def test_mixed_types_are_refused(provider):
    x, rois = torch.zeros(1, 2, 1, 3, 3), torch.zeros(1, 5)
    message = rf"{provider}: a map is torch\.float32, the first map torch\.bfloat16"
    with pytest.raises(RuntimeError, match=message):
        OPS[OP].handle(*there((x.bfloat16(), x, rois)), [2, 2], 1.0, 0, True, "mean")


@on_cuda
def test_cuda_launchers_check_for_themselves(provider):
    def last(*shape):
        return there(torch.zeros(*shape).contiguous(memory_format=torch.channels_last_3d))

    slow, fast, rois = last(2, 4, 3, 6, 7), last(2, 3, 6, 6, 7), there(torch.zeros(3, 5))
    out, arg = there(torch.zeros(3, 7)), there(torch.zeros(3, 7, dtype=torch.int32))
    maps = there(torch.zeros(2, 42, 256))
    good = {"slow": slow, "fast": fast, "rois": rois, "size": [2, 2], "maps": maps, "out": out, "arg": arg}

    def launch(slow, fast, rois, size, maps, out, arg, ratio=0):
        torch.ops.slowfast._roi_head_cuda(slow, fast, rois, size, 1.0, ratio, True, False, maps, out, arg)

    launch(**good)
    for change in (
        {"rois": rois[:2]},
        {"rois": there(torch.zeros(3, 7))},
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
        {"maps": maps[..., :128].contiguous()},
        {"slow": last(2, 4, 3, 30, 30), "fast": last(2, 3, 3, 30, 30), "maps": None},
        {"out": out[:, :6]},
        {"out": there(torch.zeros(7, 3)).t()},
        {"arg": arg.float()},
    ):
        with pytest.raises(RuntimeError):
            launch(**(good | change))


@on_cuda_each_way
@TEMPORAL
def test_offsets_beyond_2_31(temporal, apart, provider):
    x = Draw(seed=16).normal(1, 8, 2, 4, 5).bfloat16()
    far, rois = far_apart(x, 2**26 + 8), rows(Draw(), (0, 0, 0, 5, 4), (0, 2, 1, 5, 4))
    assert far.stride(0) > 2**31 and pixel_rows(far)[0].data_ptr() == far.data_ptr()
    results = []
    for slow in (far, x):
        slow = slow.requires_grad_()
        out, arg = pooled_and_arg(slow, None, rois, (3, 3), scale=1.0, temporal=temporal)
        (grad,) = torch.autograd.grad(out.sum(), slow)
        results.append((out.detach(), arg, grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
