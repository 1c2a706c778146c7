"""roi_head_pool: its parts, every provider against float64, the arg-max and its gradient, odd boxes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.parity import (
    COMPUTING,
    bits,
    case_named,
    check,
    check_threads,
    on_each,
    on_each_computing,
    reference,
)
from ops.roi_oracle import align
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._registration import OPS
from slowfast_kernels.ops.roi_align3d.cases import ODD, SCALE, boxes, rows
from slowfast_kernels.ops.roi_align3d.reference import roi_align3d_reference
from slowfast_kernels.ops.roi_align3d.spec import RoIAlignSpec
from slowfast_kernels.testing import (
    assert_gradient,
    provider_missing,
    relative_l2,
    use_provider,
)

OP = "roi_head_pool"
TEMPORAL = pytest.mark.parametrize("temporal", ["mean", "max"])
NAN, INF = math.nan, math.inf


def composed(slow, fast, rois, size=(7, 7), scale=SCALE, ratio=0, aligned=True, temporal="mean"):
    """The head as its parts, on torch's own operations: differentiable by autograd."""
    pooled = []
    for x in (slow,) if fast is None else (slow, fast):
        x = x.mean(2, keepdim=True) if temporal == "mean" else x.max(2, keepdim=True).values
        maps = roi_align3d_reference(x, rois, RoIAlignSpec(size, scale, 1.0, ratio, aligned))
        pooled.append(maps.flatten(2).max(2).values)
    return torch.cat(pooled, 1)


@on_each
@TEMPORAL
def test_against_the_published_definition(provider, temporal):
    draw = Draw(seed=0)
    slow, rois = draw.normal(2, 3, 2, 5, 6), boxes(draw, 3, 2, 5, 6)
    got = ops.roi_head_pool(slow, None, rois, (2, 3), temporal=temporal)
    flat = slow.double().mean(2) if temporal == "mean" else slow.double().amax(2)
    expected = [
        [
            align(flat[int(n), c].numpy(), ((y1, y2), (x1, x2)), (2, 3), (SCALE, SCALE), 0, True).max()
            for c in range(3)
        ]
        for n, x1, y1, x2, y2 in rois.double().tolist()
    ]
    assert relative_l2(got, torch.tensor(expected)) < 1e-6


@pytest.mark.parametrize("kwargs", [{}, {"ratio": 2}, {"aligned": False}, {"size": (3, 8)}], ids=str)
@TEMPORAL
def test_reference_is_the_composition(temporal, kwargs):
    draw = Draw(seed=1, dtype=torch.float64)
    slow, fast = draw.normal(2, 11, 3, 9, 8), draw.normal(2, 5, 6, 9, 8)
    rois = boxes(draw, 5, 2, 9, 8).double()
    named = {"ratio": "sampling_ratio", "size": "output_size", "aligned": "aligned"}
    with use_backend("reference"):
        got = ops.roi_head_pool(
            slow, fast, rois, temporal=temporal, **{named[k]: v for k, v in kwargs.items()}
        )
    torch.testing.assert_close(got, composed(slow, fast, rois, temporal=temporal, **kwargs))


# --- providers ---------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    source = Draw(
        seed=draw(st.integers(0, 999)),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
    )
    clips, cells = draw(st.integers(1, 3)), (draw(st.integers(1, 12)), draw(st.integers(1, 12)))

    def pathway():
        channels = draw(st.one_of(st.integers(1, 20), st.integers(60, 70)))
        x = source.normal(clips, channels, draw(st.integers(1, 9)), *cells)
        return x.contiguous() if draw(st.booleans()) else x

    fast = pathway() if draw(st.booleans()) else None
    rois = boxes(source, draw(st.integers(0, 6)), clips, *cells)
    rois[:, 1:] += draw(st.integers(-16, 16))
    return (pathway(), fast, rois), {
        "output_size": (draw(st.integers(1, 8)), draw(st.integers(1, 8))),
        "sampling_ratio": draw(st.integers(0, 3)),
        "aligned": draw(st.booleans()),
        "temporal": draw(st.sampled_from(["mean", "max"])),
    }


@on_each_computing
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    (slow, fast, rois), kwargs = drawn
    wide = (slow.double(), None if fast is None else fast.double(), rois)  # the same samples in float64
    exact, peer = reference(OP, wide, kwargs), reference(OP, *drawn)
    check([ops.roi_head_pool(slow, fast, rois, **kwargs)], exact, peer, 600, provider)


def test_instruction_sets_give_the_same_bits():
    results = []
    names = [p for p in COMPUTING if provider_missing(p) is None]
    for name in names:
        with use_provider(name):
            (slow, fast, rois), kwargs = case_named(OP, "frames not a multiple of anything").args()
            slow, fast = slow.requires_grad_(), fast.requires_grad_()
            out = ops.roi_head_pool(slow, fast, rois, **kwargs)
            out.backward(out.detach())
            results.append([bits(x) for x in (out.detach(), slow.grad, fast.grad)])
    for name, other in zip(names[1:], results[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), (names[0], name)


# --- maxima ------------------------------------------------------------------------------------------------


def pooled_and_arg(slow, fast, rois, size=(7, 7), ratio=0, aligned=True, temporal="mean", scale=SCALE):
    return OPS[OP].handle(slow, fast, rois, list(size), scale, ratio, aligned, temporal)


@on_each
@TEMPORAL
def test_arg_is_the_bin_of_the_maximum(provider, temporal):
    draw = Draw(seed=2)
    slow, fast, rois = draw.normal(2, 70, 3, 9, 8), draw.normal(2, 13, 5, 9, 8), boxes(draw, 9, 2, 9, 8)
    out, arg = pooled_and_arg(slow, fast, rois, (4, 5), temporal=temporal)
    assert arg.dtype == torch.int32 and arg.shape == out.shape == (9, 83)
    for x, channels in ((slow, slice(0, 70)), (fast, slice(70, 83))):
        flat = x.mean(2, keepdim=True) if temporal == "mean" else x.amax(2, keepdim=True)
        maps = ops.roi_align3d(flat, rois, (4, 5), SCALE).flatten(2)
        torch.testing.assert_close(maps.gather(2, arg[:, channels, None].long())[..., 0], out[:, channels])
        assert (maps.amax(2) - out[:, channels]).abs().max() < 1e-6
    assert len(arg.unique()) > 10


@on_each
def test_the_first_of_equals(provider):
    """Bins and frames that are exactly equal: the gradient goes to the first."""
    slow = torch.zeros(1, 5, 4, 6, 6)
    slow[:, 1, 1:3, 2:4, 2:4] = 1
    slow.requires_grad_()
    rois = rows(Draw(), (0, 16, 16, 80, 80))  # bins of whole cells
    out, arg = pooled_and_arg(slow, None, rois, (4, 4), temporal="max")
    assert out.tolist() == [[0, 1, 0, 0, 0]]
    assert arg.tolist() == [[0, 5, 0, 0, 0]]  # of bins 5, 6, 9 and 10
    out.sum().backward()
    assert [tuple(i) for i in slow.grad.nonzero().tolist()] == [
        (0, 0, 0, 1, 1),
        (0, 1, 1, 2, 2),
        *((0, c, 0, 1, 1) for c in (2, 3, 4)),
    ]


@on_each
def test_only_cells_under_a_box_are_read(provider):
    draw = Draw(seed=3)
    slow, fast = draw.normal(2, 20, 3, 12, 12), draw.normal(2, 70, 4, 12, 12)
    rois = rows(Draw(), (0, 33, 49, 79, 80), (0, 129, 97, 150, 140))
    expected = ops.roi_head_pool(slow, fast, rois)
    read = torch.zeros(12, 12, dtype=torch.bool)
    for _, x1, y1, x2, y2 in rois.div(16).tolist():
        read[int(y1 - 0.5) : int(y2 - 0.5) + 2, int(x1 - 0.5) : int(x2 - 0.5) + 2] = True
    for x in (slow, fast):
        x[0, :, :, ~read] = NAN
        x[1] = NAN
    assert torch.equal(ops.roi_head_pool(slow, fast, rois), expected)
    slow[0, 7, 1, 4, 3] = NAN
    got, arg = pooled_and_arg(slow, fast, rois)
    assert got[0, 7].isnan() and got.isnan().sum() == 1
    maps = ops.roi_align3d(slow.mean(2, keepdim=True), rois, 7, SCALE)[0, 7].flatten()
    assert arg[0, 7] == maps.isnan().nonzero()[0]  # the first NaN is the maximum
    assert ops.roi_head_pool(slow, fast, rois, temporal="max").isnan().sum() == 1


@on_each
def test_infinities(provider):
    slow = torch.full((1, 3, 2, 4, 4), -INF)
    slow[0, 1, 1, 1, 1] = INF
    out, arg = pooled_and_arg(slow, None, rows(Draw(), (0, 8, 8, 40, 40)), (2, 2), 1, temporal="max")
    expected = composed(slow, None, rows(Draw(), (0, 8, 8, 40, 40)), (2, 2), ratio=1, temporal="max")
    torch.testing.assert_close(out, expected, equal_nan=True)
    assert not out.isfinite().any() and (arg >= 0).all()


# --- gradients ---------------------------------------------------------------------------------------------


@on_each
@TEMPORAL
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 0), (True, 2)])
def test_gradients(temporal, aligned, ratio, provider):
    draw = Draw(seed=4)
    slow, fast = draw.normal(3, 70, 3, 9, 8), draw.normal(3, 13, 9, 9, 8)
    rois = boxes(draw, 9, 2, 9, 8)  # the last clip has no box
    rois[:, 3:] += 24  # some reach beyond the map
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)):
        leaves = [x.to(dtype).requires_grad_() for x in (slow, fast)]
        out = ops.roi_head_pool(leaves[0], leaves[1], rois, (3, 4), SCALE, ratio, aligned, temporal)
        upstream = torch.randn(out.shape).to(dtype)
        got = torch.autograd.grad(out, leaves, upstream)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        exact = torch.autograd.grad(
            composed(wide[0], wide[1], rois, (3, 4), SCALE, ratio, aligned, temporal), wide, upstream.double()
        )
        for g, e in zip(got, exact, strict=True):
            assert g.dtype == dtype and g.is_contiguous(memory_format=torch.channels_last_3d)
            assert_gradient(g, e, bound, what=f"{temporal} {dtype}")
            assert not g[2].any()


@TEMPORAL
def test_gradcheck_of_the_reference(temporal):
    draw = Draw(seed=5, dtype=torch.float64)
    slow, fast = draw.normal(1, 1, 2, 3, 3).requires_grad_(), draw.normal(1, 1, 3, 3, 3).requires_grad_()
    rois = boxes(draw, 2, 1, 3, 3).double()
    with use_backend("reference"):
        assert torch.autograd.gradcheck(
            lambda s, f: ops.roi_head_pool(s, f, rois, 3, temporal=temporal), (slow, fast)
        )


@on_each_computing
def test_one_pathway_at_a_time(provider):
    """A pathway that wants no gradient costs none, and changes nothing for the other."""
    draw = Draw(seed=6)
    slow, fast, rois = draw.normal(1, 20, 2, 6, 6), draw.normal(1, 9, 4, 6, 6), boxes(draw, 4, 1, 6, 6)
    upstream = torch.randn(4, 29)
    both = [x.clone().requires_grad_() for x in (slow, fast)]
    expected = torch.autograd.grad(ops.roi_head_pool(both[0], both[1], rois), both, upstream)
    only_slow, only_fast = slow.clone().requires_grad_(), fast.clone().requires_grad_()
    (g,) = torch.autograd.grad(ops.roi_head_pool(only_slow, fast, rois), only_slow, upstream)
    assert torch.equal(g, expected[0])
    (g,) = torch.autograd.grad(ops.roi_head_pool(slow, only_fast, rois), only_fast, upstream)
    assert torch.equal(g, expected[1])
    (g,) = torch.autograd.grad(ops.roi_head_pool(only_slow, None, rois), only_slow, upstream[:, :20])
    assert torch.equal(g, expected[0])


@TEMPORAL
def test_what_is_kept_for_the_gradient(temporal):
    """Bins of the maxima and boxes; the maps only for the maximum over time."""
    draw = Draw(seed=7)
    slow = draw.normal(1, 20, 2, 6, 6).requires_grad_()
    kept = []

    def keep(x):
        kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        ops.roi_head_pool(slow, None, boxes(draw, 4, 1, 6, 6), temporal=temporal)
    assert sorted(kept) == sorted([(4, 20), (4, 5)] + ([tuple(slow.shape)] if temporal == "max" else []))


# --- boxes of every kind -----------------------------------------------------------------------------------


@on_each
@TEMPORAL
def test_boxes_that_are_not_finite(provider, temporal):
    draw = Draw(seed=8)
    slow, fast = draw.normal(2, 19, 3, 7, 9).requires_grad_(), draw.normal(2, 35, 5, 7, 9).requires_grad_()
    bad = rows(
        Draw(), (0, NAN, 8, 64, 64), (1, 8, 8, INF, 64), (0, 8, -INF, 64, INF), (1, -3e38, 8, 3e38, 64)
    )
    good = rows(Draw(), *ODD)
    bad[3, 1::2] *= 16  # overflows when scaled back
    rois = torch.cat([good[:5], bad, good[5:]])
    out, arg = pooled_and_arg(slow, fast, rois, (3, 2), temporal=temporal)
    alone, arg_alone = pooled_and_arg(slow, fast, good, (3, 2), temporal=temporal)
    keep = [*range(5), *range(9, len(rois))]
    assert out[5:9].isnan().all() and (arg[5:9] == -1).all()
    assert torch.equal(out[keep], alone) and torch.equal(arg[keep], arg_alone)
    assert alone[1].eq(0).all() and arg_alone[1].eq(0).all()  # outside the map
    upstream = torch.randn(out.shape)
    for x in (slow, fast):
        (a,) = torch.autograd.grad(out, x, upstream, retain_graph=True)
        (b,) = torch.autograd.grad(alone, x, upstream[keep], retain_graph=True)
        assert torch.equal(a, b) and a.any()


@on_each
def test_no_box(provider):
    slow, fast = torch.randn(2, 6, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 6, 4, 5)
    out = ops.roi_head_pool(slow, fast, torch.zeros(0, 5))
    assert out.shape == (0, 9)
    out.sum().backward()
    assert not slow.grad.any()
    assert ops.roi_head_pool(slow[:0], fast[:0], torch.zeros(0, 5)).shape == (0, 9)


# --- determinism, PyTorch's machinery ----------------------------------------------------------------------


@on_each_computing
@TEMPORAL
def test_threads_and_repetition_change_nothing(provider, temporal):
    draw = Draw(seed=9)
    slow, fast, rois = draw.normal(2, 130, 3, 9, 8), draw.normal(2, 33, 6, 9, 8), boxes(draw, 30, 2, 9, 8)
    check_threads(OP, (slow, fast, rois), {"temporal": temporal})
    grads, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5, 5):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_() for x in (slow, fast)]
            out = ops.roi_head_pool(leaves[0], leaves[1], rois, temporal=temporal)
            out.backward(out.detach())
            grads.append(torch.cat([bits(x.grad) for x in leaves]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(grads[0], g) for g in grads[1:])


@TEMPORAL
def test_compiles_whole(temporal):
    draw = Draw(seed=10)
    slow, fast = draw.normal(2, 9, 2, 7, 6).requires_grad_(), draw.normal(2, 5, 4, 7, 6).requires_grad_()
    rois = boxes(draw, 4, 2, 7, 6)

    def f(slow, fast, rois):
        return ops.roi_head_pool(slow, fast, rois, temporal=temporal).mul(2)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for k in (4, 3):  # another number of boxes
        expected, got = f(slow, fast, rois[:k]), compiled(slow, fast, rois[:k])
        assert torch.equal(got, expected)
        upstream = torch.randn(got.shape)
        for a, b in zip(
            *(torch.autograd.grad(y, (slow, fast), upstream) for y in (expected, got)), strict=True
        ):
            assert torch.equal(a, b)


def test_autocast_leaves_coordinates_alone():
    draw = Draw(seed=11)
    slow, fast = draw.normal(1, 9, 2, 40, 40), draw.normal(1, 5, 4, 40, 40).bfloat16()
    rois = boxes(draw, 4, 1, 40, 40) + 1 / 3  # not exact in bfloat16
    rois[:, 0] = 0
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.roi_head_pool(slow, fast, rois)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, ops.roi_head_pool(slow.bfloat16(), fast, rois))
    assert not torch.equal(got, ops.roi_head_pool(slow.bfloat16(), fast, rois.bfloat16().float()))


# --- errors ------------------------------------------------------------------------------------------------

SLOW, FAST, ROIS = torch.zeros(2, 4, 3, 6, 7), torch.zeros(2, 3, 6, 6, 7), torch.zeros(3, 5)


@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN, INF, 1e30])
@on_each
def test_batch_index_must_name_a_clip(provider, index):
    rois = ROIS.clone()
    rois[1, 0] = index
    with pytest.raises(ValueError, match=r"rois: expected batch indices .*\[0, 2\), got .* at row 1"):
        ops.roi_head_pool(SLOW, FAST, rois)
    with pytest.raises(ValueError, match="batch indices"):
        torch.ops.slowfast.roi_head_pool(SLOW, FAST, rois, [2, 2], 1.0, 0, True, "mean")
    with pytest.raises(ValueError, match="batch indices"):
        torch.ops.slowfast.roi_head_pool_bwd(
            torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int32), rois, None, [2, 4, 3, 6, 7],
            [2, 2], 1.0, 0, True, "mean",
        )  # fmt: skip


@on_each_computing
def test_native_kernels_check_for_themselves(provider):
    def last(x):
        return x.contiguous(memory_format=torch.channels_last_3d)

    arg = torch.zeros(3, 7, dtype=torch.int32)
    good = {"slow": last(SLOW), "fast": last(FAST), "rois": ROIS, "size": [2, 2], "out": torch.zeros(3, 7)}

    def run(slow, fast, rois, size, out, arg=arg, ratio=0):
        torch.ops.slowfast._roi_head_cpu(slow, fast, rois, size, 1.0, ratio, True, False, out, arg)

    run(**good)
    for change in (
        {"rois": torch.tensor([[0.0, 0, 0, 1, 1]] * 2 + [[2.0, 0, 0, 1, 1]])},
        {"rois": torch.full((3, 5), NAN)},
        {"rois": torch.zeros(2, 5)},
        {"rois": torch.zeros(3, 7)},
        {"rois": ROIS.double()},
        {"size": [2]},
        {"size": [0, 2]},
        {"ratio": -1},
        {"slow": last(SLOW)[0]},
        {"slow": last(SLOW.bfloat16())},
        {"slow": SLOW.clone()},
        {"fast": last(FAST[:1])},
        {"fast": last(FAST[..., :5])},
        {"fast": last(FAST[:, :, :0])},
        {"out": torch.zeros(3, 6)},
        {"out": torch.zeros(7, 3).t()},
        {"arg": torch.zeros(3, 7)},
    ):
        with pytest.raises(RuntimeError):
            run(**(good | change))


@on_each_computing
def test_a_forged_arg_is_not_a_wild_write(provider):
    arg = torch.tensor([[-1, 4, 2**31 - 1, -(2**31)]] * 3, dtype=torch.int32)
    dx = torch.ops.slowfast.roi_head_pool_bwd(
        torch.ones(3, 4), arg, ROIS, None, [2, 4, 3, 6, 7], [2, 2], 1.0, 1, True, "mean"
    )
    assert not dx.any()


@pytest.mark.slow
def test_beyond_2_31_elements():
    """Boxes on the last clip of a tensor of more than 2^31 elements, forward and backward."""
    n, c, t, h, w = 3, 4096, 2, 200, 450
    x = torch.zeros(n * t * h * w, c, dtype=torch.bfloat16).view(n, t, h, w, c).permute(0, 4, 1, 2, 3)
    assert x.numel() > 2**31
    corner = torch.randn(c, t, 9, 9).bfloat16()
    x[2, :, :, -9:, -9:] = corner
    rois = torch.tensor([[2, w - 9.0, h - 9.0, w - 1.0, h - 1.0]])  # bins of 2 x 2 cells: exact anywhere
    shifted = rois - torch.tensor([2, w - 9.0, h - 9.0, w - 9.0, h - 9.0])
    out, arg = pooled_and_arg(x, None, rois, (4, 4), scale=1.0)
    expected, its_arg = pooled_and_arg(corner[None], None, shifted, (4, 4), scale=1.0)
    assert torch.equal(out, expected) and torch.equal(arg, its_arg)
    settings = (None, list(x.shape), [4, 4], 1.0, 0, True, "mean")
    dx = torch.ops.slowfast.roi_head_pool_bwd(out, arg, rois, *settings)
    small = torch.ops.slowfast.roi_head_pool_bwd(out, arg, shifted, None, [1, *corner.shape], *settings[2:])
    assert torch.equal(dx[2, :, :, -9:, -9:], small[0])
    assert not dx[:2].any() and dx[2].count_nonzero() == small.count_nonzero()
