"""roi_align3d: reference against a scalar oracle, providers against the reference, gradients, odd boxes."""

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
from ops.roi_oracle import roi_align3d_oracle
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops.roi_align3d.boxes import boxes_float32, unchecked
from slowfast_kernels.ops.roi_align3d.cases import COORDINATES, ODD, SCALE, boxes, rows, tubes, volumes
from slowfast_kernels.ops.roi_align3d.reference import roi_align3d_reference
from slowfast_kernels.ops.roi_align3d.spec import RoIAlignSpec
from slowfast_kernels.testing import (
    assert_close,
    assert_gradient,
    assert_same_nonfinite,
    provider_missing,
    relative_l2,
    to_float64,
    use_provider,
)

OP = "roi_align3d"
MODES = pytest.mark.parametrize("mode", ["frame", "tube", "volume"])
NAN, INF = math.nan, math.inf


def by_keyword(features, rois, output_size, spatial_scale, sampling_ratio, aligned, mode, temporal_scale=1.0):
    return ops.roi_align3d(
        features,
        rois,
        output_size,
        spatial_scale,
        sampling_ratio,
        aligned,
        mode,
        temporal_scale=temporal_scale,
    )


# --- what RoIAlign is --------------------------------------------------------------------------------------


@st.composite
def calls(draw, dtypes=(torch.float64,)):
    """Arguments by name; coordinates in eighths of a pixel, so that float32 and float64 mean the same box."""
    mode = draw(st.sampled_from(["frame", "tube", "volume"]))
    source = Draw(seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from(dtypes)))
    clips, k = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    shape = [clips, draw(st.sampled_from([1, 3, 17])), draw(st.integers(1, 3)), 1, 1]
    shape[3], shape[4] = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    each = k * shape[2] if mode == "tube" else k
    coordinate = st.integers(-8 * 48, 8 * 160).map(lambda v: v / 8)
    values = [
        [draw(st.integers(0, clips - 1)), *(draw(coordinate) for _ in range(4))]
        + ([draw(st.integers(-16, 40)) / 8 for _ in range(2)] if mode == "volume" else [])
        for _ in range(each)
    ]
    columns = 7 if mode == "volume" else 5
    rois = torch.tensor(values, dtype=torch.float64).reshape(each, columns)
    if mode == "tube":
        rois = rois.reshape(k, shape[2], 5)
    return {
        "features": source.normal(*shape),
        "rois": rois,
        "output_size": tuple(draw(st.integers(1, 4)) for _ in range(3 if mode == "volume" else 2)),
        "spatial_scale": draw(st.sampled_from([1 / 16, 1 / 20, 0.05])),
        "sampling_ratio": draw(st.sampled_from([0, 0, 1, 2])),
        "aligned": draw(st.booleans()),
        "mode": mode,
        "temporal_scale": draw(st.sampled_from([1.0, 0.5])),
    }


@given(call=calls())
def test_reference_is_the_published_definition(call):
    expected = torch.from_numpy(
        roi_align3d_oracle(
            call["features"].numpy(),
            call["rois"].numpy(),
            call["output_size"],
            call["spatial_scale"],
            call["temporal_scale"],
            call["sampling_ratio"],
            call["aligned"],
            call["mode"],
        )
    )
    with use_backend("reference"):
        got = by_keyword(**call)
    assert relative_l2(got, expected.reshape(got.shape)) < 1e-12


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@on_each
def test_hand_made_boxes(provider, ratio, aligned):
    """On a map that is a ramp, a bin is the ramp's value at its centre: no arithmetic of ours needed."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    ramp = (10 * y + x).expand(1, 1, 2, 12, 16)
    got = ops.roi_align3d(ramp, torch.tensor([[0.0, 2, 3, 10, 9]]), (3, 4), 1.0, ratio, aligned)
    offset = 0.5 if aligned else 0.0
    rows_at = torch.tensor([3 + 1.0, 3 + 3, 3 + 5]) - offset
    columns_at = torch.tensor([2 + 1.0, 2 + 3, 2 + 5, 2 + 7]) - offset
    assert got.shape == (1, 1, 2, 3, 4)
    torch.testing.assert_close(got[0, 0, 1], 10 * rows_at[:, None] + columns_at)
    torch.testing.assert_close(got[0, 0, 0], got[0, 0, 1])


# --- providers ---------------------------------------------------------------------------------------------


@on_each_computing
@given(call=calls((torch.float32, torch.bfloat16, torch.float16)))
def test_drawn_calls(call, provider):
    call["rois"] = call["rois"].float()
    wide = call | {"features": call["features"].double()}  # float32 boxes: the same samples in float64
    check([by_keyword(**call)], reference_of(wide), reference_of(call), 64, provider)


def reference_of(call):
    with use_backend("reference"):
        return [by_keyword(**call)]


def test_instruction_sets_give_the_same_bits():
    results = []
    names = [p for p in COMPUTING if provider_missing(p) is None]
    args, kwargs = case_named(OP, "ava slow, 8 boxes").args(shrink=4)
    for name in names:
        with use_provider(name):
            x = args[0].clone().requires_grad_()
            out = ops.roi_align3d(x, args[1], **kwargs)
            out.backward(out.detach())
            results.append((bits(out.detach()), bits(x.grad)))
    for name, (out, grad) in zip(names[1:], results[1:], strict=True):
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1]), (names[0], name)


@on_each_computing
def test_modes_agree(provider):
    """The same box in every frame is the frame mode; volumes whose bins centre on frames are its frames."""
    draw = Draw(seed=3)
    x, rois = draw.normal(2, 20, 4, 9, 8), boxes(draw, 5, 2, 9, 8)
    frame = ops.roi_align3d(x, rois, 5, SCALE)
    tube = ops.roi_align3d(x, rois[:, None].expand(-1, 4, -1), 5, SCALE, mode="tube")
    assert torch.equal(frame, tube)
    times = torch.tensor([[0.0, 4.0]]).expand(5, -1)
    volume = ops.roi_align3d(x, torch.cat([rois, times], 1), (4, 5, 5), SCALE, mode="volume")
    torch.testing.assert_close(volume, frame)
    mean = ops.roi_align3d(x, torch.cat([rois, times], 1), (1, 5, 5), SCALE, mode="volume")
    torch.testing.assert_close(mean, frame.mean(2, keepdim=True))
    halved = torch.cat([rois, times * 8], 1)
    scaled = ops.roi_align3d(x, halved, (4, 5, 5), SCALE, mode="volume", temporal_scale=1 / 8)
    assert torch.equal(scaled, volume)


# --- boxes of every kind -----------------------------------------------------------------------------------


@on_each
def test_what_odd_boxes_give(provider):
    x = Draw(seed=1).normal(2, 19, 3, 7, 9) + 3
    got = ops.roi_align3d(x, rows(Draw(), *ODD), (3, 2), SCALE)
    outside, no_width, reversed_, far, enormous = (got[i] for i in (1, 2, 3, 5, 6))
    for zero in (outside, no_width, reversed_, enormous):
        assert (zero == 0).all()
    assert 0 < far.abs().max() < 1e-3 * x.abs().max()  # a huge box is its zeros outside, and a little map
    assert (got[0] != 0).any() and (got[4] != 0).all() and (got[7] != 0).all()
    stretched = ops.roi_align3d(x, rows(Draw(), *ODD)[2:3], (3, 2), SCALE, aligned=False)
    assert (stretched != 0).all()  # not aligned: at least one cell
    fixed = ops.roi_align3d(x, rows(Draw(), *ODD)[2:4], (3, 2), SCALE, sampling_ratio=2)
    assert (fixed != 0).all()  # a point, and a mirrored box
    back = ops.roi_align3d(x, rows(Draw(), (1, 20, 16, 90, 80)), (3, 2), SCALE, sampling_ratio=2)
    torch.testing.assert_close(fixed[1], back[0].flip(-1, -2))


BAD = [(NAN, 8, 64, 64), (8, 8, INF, 64), (8, -INF, 64, INF), (-3e38, 8, 3e38, 64), (8, 3e38, 16, -3e38)]


@pytest.mark.parametrize("scale", [SCALE, 1.0])
@pytest.mark.parametrize("ratio", [0, 2])
@on_each
def test_boxes_that_are_not_finite(provider, ratio, scale):
    """NaN in their results, nothing in anyone else's, no gradient."""
    x = Draw(seed=1).normal(1, 17, 2, 7, 9).requires_grad_()
    good = (0, *(v / scale for v in (0.25, 0.25, 3.75, 3.75)))
    rois = rows(Draw(), good, *((0, *b) for b in (BAD if scale == 1 else BAD[:3])), good)
    got = ops.roi_align3d(x, rois, (3, 2), scale, ratio)
    assert got[1:-1].isnan().all() and got[0].isfinite().all() and torch.equal(got[0], got[-1])
    alone = ops.roi_align3d(x, rois[[0, -1]], (3, 2), scale, ratio)
    upstream = torch.randn(got.shape)
    grads = [torch.autograd.grad(y, x, g)[0] for y, g in ((got, upstream), (alone, upstream[[0, -1]]))]
    assert torch.equal(*grads) and grads[0].any()
    times = rows(Draw(), (0, 1), (NAN, 1), (0, INF))
    volume = torch.cat([rows(Draw(), good, good, good), times], 1)
    got = ops.roi_align3d(x, volume, (2, 3, 2), scale, ratio, mode="volume")
    assert got[0].isfinite().all() and got[1:].isnan().all()
    tube = rows(Draw(), good, (0, *BAD[0])).reshape(1, 2, 5)
    got = ops.roi_align3d(x, tube, (3, 2), scale, ratio, mode="tube")
    assert got[:, :, 0].isfinite().all() and got[:, :, 1].isnan().all()


@pytest.mark.parametrize("size", [1e4, 1e6, 2.0**24, 2.0**24 + 2, 1e12, 1e30])
@on_each_computing
def test_enormous_boxes_cost_what_the_map_has(provider, size):
    """A grid of millions of samples is not walked; those on the map are found, whichever way the box lies."""
    x = Draw(seed=2).normal(1, 16, 1, 5, 6)
    lows = torch.tensor([-size, -size / 2, -3.0, 0.0, -size + 5])
    rois = torch.stack([torch.zeros(5), lows, lows, lows + size, lows + size], 1)
    got = ops.roi_align3d(x, rois, (2, 3), 1.0)
    with use_backend("reference"):
        expected = ops.roi_align3d(x.double(), rois, (2, 3), 1.0)
    assert_close(got, expected, COORDINATES)
    assert bool(got.any()) == (size <= 2.0**24)


@on_each
def test_not_finite_maps(provider):
    """NaN and infinity reach the bins whose samples have a tap on them, even of weight zero, and no other."""
    x = torch.ones(1, 2, 2, 8, 8)
    x[0, 0, 0, 3, 3], x[0, 1, 1, 4, 2] = NAN, INF
    got = ops.roi_align3d(
        x, rows(Draw(), (0, 0, 0, 8, 8)), 8, 1.0, 1, aligned=True
    )  # a sample on every centre
    with_tap = torch.zeros(8, 8, dtype=torch.bool)
    with_tap[2:4, 2:4] = True  # as low tap, or as the high tap of weight 0
    assert torch.equal(got[0, 0, 0].isnan(), with_tap)
    with_tap = torch.zeros(8, 8, dtype=torch.bool)
    with_tap[3:5, 1:3] = True
    assert torch.equal(got[0, 1, 1].isfinite(), ~with_tap)
    assert got[0, 1, 1, 4, 2] == INF and got[0, 1, 1][with_tap].isnan().sum() == 3  # 0 * inf beside it
    assert got[0, 0, 1].eq(1).all() and got[0, 1, 0].eq(1).all()
    # samples far apart do not read what lies between them
    far = ops.roi_align3d(x, rows(Draw(), (0, 0, 0, 8, 8)), 1, 1.0, 2)
    assert far.isfinite().all() and far.eq(1).all()
    # and where samples miss the map, NaN on its border does not come through
    x[0, 0, :, 0] = NAN
    beyond = ops.roi_align3d(x, rows(Draw(), (0, 0, -40, 8, -10)), 2, 1.0)
    assert beyond.eq(0).all()


# --- gradients ---------------------------------------------------------------------------------------------


def autograd_of_reference(args, upstream):
    """d features through torch's own operations, in float64."""
    x, rois, *settings = args
    x = x.detach().double().requires_grad_()
    return torch.autograd.grad(roi_align3d_reference(x, rois, RoIAlignSpec(*settings)), x, upstream.double())[
        0
    ]


@on_each
@MODES
@pytest.mark.parametrize("aligned, ratio", [(True, 0), (False, 0), (True, 2)])
def test_gradients(mode, aligned, ratio, provider):
    draw = Draw(seed=4)
    x = draw.normal(2, 21, 4, 9, 8)
    make = {"frame": lambda *a: boxes(draw, *a), "tube": lambda k, n, *a: tubes(draw, k, n, 4, *a)}
    make["volume"] = lambda k, n, *a: volumes(draw, k, n, 4, *a)
    rois = make[mode](7, 2, 9, 8)
    rois[..., 3:5] += 24  # some reach beyond the map
    size = (2, 3, 4) if mode == "volume" else (3, 4)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)):
        leaf = x.to(dtype).requires_grad_()
        out = by_keyword(leaf, rois, size, SCALE, ratio, aligned, mode, 0.75)
        upstream = torch.randn(out.shape).to(dtype)
        (got,) = torch.autograd.grad(out, leaf, upstream)
        exact = autograd_of_reference((x, rois, size, SCALE, 0.75, ratio, aligned, mode), upstream)
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last_3d)
        assert_gradient(got, exact, bound, what=f"{mode} {dtype}")


@MODES
def test_gradcheck_of_the_reference(mode):
    draw = Draw(seed=5, dtype=torch.float64)
    x = draw.normal(2, 1, 2, 3, 3).requires_grad_()
    make = {"frame": boxes, "tube": tubes, "volume": volumes}[mode]
    rois = make(draw, 3, 2, *((3, 3) if mode == "frame" else (2, 3, 3))).double()
    size = 2
    with use_backend("reference"):
        assert torch.autograd.gradcheck(lambda x: ops.roi_align3d(x, rois, size, SCALE, mode=mode), (x,))


@on_each
def test_no_box_gives_no_gradient(provider):
    x = torch.randn(2, 5, 3, 6, 7, requires_grad=True)
    out = ops.roi_align3d(x, torch.zeros(0, 5), 7, SCALE)
    assert out.shape == (0, 5, 3, 7, 7)
    out.sum().backward()
    assert x.grad is not None and not x.grad.any()


@on_each_computing
def test_wide_maps_are_banded(provider):
    """A gradient map beyond one item's scratch memory is computed in bands of rows."""
    draw = Draw(seed=6)
    x, rois = draw.normal(1, 17, 1, 13, 300), boxes(draw, 5, 1, 13, 300)
    upstream = torch.randn(5, 17, 1, 3, 3)
    (got,) = torch.autograd.grad(ops.roi_align3d(x.requires_grad_(), rois, 3, SCALE), x, upstream)
    exact = autograd_of_reference((x, rois, (3, 3), SCALE, 1.0, 0, True, "frame"), upstream)
    assert_gradient(got, exact, 1e-6)


# --- determinism, PyTorch's machinery ----------------------------------------------------------------------


@on_each_computing
def test_threads_and_repetition_change_nothing(provider):
    draw = Draw(seed=7)
    x = draw.normal(2, 130, 2, 9, 8)
    for mode, rois in (
        ("frame", boxes(draw, 30, 2, 9, 8)),
        ("tube", tubes(draw, 30, 2, 2, 9, 8)),
        ("volume", volumes(draw, 30, 2, 2, 9, 8)),
    ):
        settings = {"output_size": 3, "spatial_scale": SCALE, "mode": mode}
        check_threads(OP, (x, rois), settings)
        grads, before = [], torch.get_num_threads()
        try:
            for threads in (1, 2, 5, 5):
                torch.set_num_threads(threads)
                leaf = x.clone().requires_grad_()
                out = ops.roi_align3d(leaf, rois, **settings)
                out.backward(out.detach())
                grads.append(bits(leaf.grad))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(grads[0], g) for g in grads[1:])


def test_compiles_whole():
    draw = Draw(seed=8)
    x, rois = draw.normal(2, 9, 3, 7, 6).requires_grad_(), boxes(draw, 4, 2, 7, 6)

    def f(x, rois):
        return ops.roi_align3d(x, rois, 3, SCALE).mul(2)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for k in (4, 3):  # another number of boxes
        expected, got = f(x, rois[:k]), compiled(x, rois[:k])
        assert torch.equal(got, expected)
        grads = [torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (expected, got)]
        assert torch.equal(*grads)


def test_autocast_leaves_coordinates_alone():
    draw = Draw(seed=9)
    x, rois = draw.normal(1, 9, 3, 40, 40), boxes(draw, 4, 1, 40, 40) + 1 / 3  # not exact in bfloat16
    rois[:, 0] = 0
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.roi_align3d(x, rois, 3, SCALE)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, ops.roi_align3d(x.bfloat16(), rois, 3, SCALE))
    assert not torch.equal(got, ops.roi_align3d(x.bfloat16(), rois.bfloat16().float(), 3, SCALE))


@on_each_computing
def test_box_types(provider):
    """Boxes of any type are read as float32."""
    draw = Draw(seed=10)
    x, rois = draw.normal(2, 9, 3, 7, 6), boxes(draw, 4, 2, 7, 6).half()
    expected = ops.roi_align3d(x, rois.float(), 3, SCALE)
    for same in (rois, rois.double(), rois.float().t().contiguous().t()):
        assert torch.equal(ops.roi_align3d(x, same, 3, SCALE), expected)


# --- errors ------------------------------------------------------------------------------------------------

X = torch.zeros(2, 4, 3, 6, 7)


@pytest.mark.parametrize("index", [-1.0, 2.0, 0.5, NAN, INF, -INF, 1e30, -0.25])
@MODES
@on_each
def test_batch_index_must_name_a_clip(provider, mode, index):
    shape = {"frame": (3, 5), "tube": (3, 3, 5), "volume": (3, 7)}[mode]
    rois = torch.zeros(shape)
    rois[(1, 2, 0) if mode == "tube" else (1, 0)] = index
    bins = [2, 2, 2] if mode == "volume" else [2, 2]
    with pytest.raises(ValueError, match=r"rois: expected batch indices .*\[0, 2\), got"):
        ops.roi_align3d(X, rois, bins, mode=mode)
    with pytest.raises(ValueError, match="batch indices"):
        torch.ops.slowfast.roi_align3d(X, rois, bins, 1.0, 1.0, 0, True, mode)
    out_frames = 2 if mode == "volume" else 3
    with pytest.raises(ValueError, match="batch indices"):
        grad = torch.zeros(3, 4, out_frames, 2, 2)
        torch.ops.slowfast.roi_align3d_bwd(grad, rois, [2, 4, 3, 6, 7], bins, 1.0, 1.0, 0, True, mode)


@on_each_computing
def test_native_kernels_check_for_themselves(provider):
    x = X.contiguous(memory_format=torch.channels_last_3d)
    out = torch.zeros(1, 4, 3, 2, 2).contiguous(memory_format=torch.channels_last_3d)

    def run(rois, x=x, out=out, ratio=0, mode=0, op=torch.ops.slowfast._roi_align_cpu):
        op(x, rois, 1.0, 1.0, ratio, True, mode, out)

    run(torch.zeros(1, 5))
    bwd = torch.ops.slowfast._roi_align_bwd_cpu
    for index in (-1.0, 2.0, 0.5, NAN, INF, 1e30):
        with pytest.raises(RuntimeError, match="batch index"):
            run(torch.tensor([[index, 0, 0, 1, 1]]))
        with pytest.raises(RuntimeError, match="batch index"):
            run(torch.tensor([[index, 0, 0, 1, 1]]), x=out, out=x, op=bwd)
    for wrong in (
        {"rois": torch.zeros(1, 7)},
        {"rois": torch.zeros(2, 5)},
        {"rois": torch.zeros(1, 5).double()},
        {"rois": torch.zeros(5, 1).t()[:, :3]},
        {"rois": torch.zeros(1, 5), "mode": 1},
        {"rois": torch.zeros(1, 5), "mode": 3},
        {"rois": torch.zeros(1, 5), "ratio": 5000},
        {"rois": torch.zeros(1, 5), "x": x.double()},
        {"rois": torch.zeros(1, 5), "x": x.bfloat16()},
        {"rois": torch.zeros(1, 5), "x": X.clone()},
        {"rois": torch.zeros(1, 5), "x": X[0]},
        {"rois": torch.zeros(1, 5), "out": torch.zeros(1, 5, 3, 2, 2)},
        {"rois": torch.zeros(1, 5), "out": torch.zeros(1, 4, 2, 2, 2)},
    ):
        with pytest.raises(RuntimeError):
            run(**wrong)


@on_each
def test_empty_extents(provider):
    for shape in ((0, 3, 2, 4, 4), (2, 0, 2, 4, 4), (2, 3, 0, 4, 4)):
        k = 0 if shape[0] == 0 else 2
        out = ops.roi_align3d(torch.zeros(shape, requires_grad=True), torch.zeros(k, 5), 2)
        assert out.shape == (k, *shape[1:3], 2, 2) and out.numel() == 0
        out.sum().backward()
    x = torch.zeros(1, 3, 2, 0, 4, requires_grad=True)
    out = ops.roi_align3d(x, torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
    assert out.shape == (1, 3, 2, 2, 2) and not out.any()  # every sample is off such a map
    out.sum().backward()
    with pytest.raises(ValueError, match=r"\[0, 0\)"):
        ops.roi_align3d(torch.zeros(0, 3, 2, 4, 4), torch.zeros(1, 5))


@pytest.mark.slow
def test_beyond_2_31_elements():
    """Boxes on the last clip of a tensor of more than 2^31 elements, forward and backward."""
    n, c, t, h, w = 3, 4096, 2, 200, 450
    x = torch.zeros(n * t * h * w, c, dtype=torch.bfloat16).view(n, t, h, w, c).permute(0, 4, 1, 2, 3)
    assert x.numel() > 2**31
    corner = torch.randn(c, t, 9, 9).bfloat16()
    x[2, :, :, -9:, -9:] = corner
    rois = torch.tensor([[2, w - 9.0, h - 9.0, w - 1.0, h - 1.0]])  # bins of 2 x 2 cells: exact anywhere
    out = ops.roi_align3d(x, rois, 4)
    shifted = rois - torch.tensor([2, w - 9.0, h - 9.0, w - 9.0, h - 9.0])
    assert torch.equal(out, ops.roi_align3d(corner[None], shifted, 4))
    dx = torch.ops.slowfast.roi_align3d_bwd(out, rois, list(x.shape), [4, 4], 1.0, 1.0, 0, True, "frame")
    small = torch.ops.slowfast.roi_align3d_bwd(
        out, shifted, [1, *corner.shape], [4, 4], 1.0, 1.0, 0, True, "frame"
    )
    assert torch.equal(dx[2, :, :, -9:, -9:], small[0])
    assert not dx[:2].any() and dx[2].count_nonzero() == small.count_nonzero()


def test_reference_and_kernels_agree_on_what_is_not_finite():
    """The same NaN and infinities at the same places, with boxes that fall between cells."""
    draw = Draw(seed=12)
    x, rois = draw.normal(2, 17, 2, 9, 8), boxes(draw, 6, 2, 9, 8)
    x[0, 3, 0, 4, 4], x[1, 5, 1, 2, 2], x[1, 16, 0, 7, 1] = NAN, INF, -INF
    expected = reference(OP, *to_float64(((x, rois, 4, SCALE), {})))[0]
    for name in COMPUTING:
        if provider_missing(name) is None:
            with use_provider(name):
                assert_same_nonfinite(ops.roi_align3d(x, rois, 4, SCALE), expected, name)
    assert not expected.isfinite().all()


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU, and what it was asked for."""

    device = torch.device("cuda", 0)
    asked = 0

    def cpu(self, memory_format=torch.preserve_format):
        type(self).asked += 1
        return self.as_subclass(torch.Tensor)


def test_a_frozen_model_does_not_wait_for_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    wrong = torch.tensor([[7.0, 0, 0, 8, 8]]).as_subclass(OnGpu)
    with pytest.raises(ValueError, match=r"batch indices .* got 7"):
        boxes_float32(wrong, 2)
    before = OnGpu.asked
    with unchecked():
        assert torch.equal(
            boxes_float32(wrong, 2).as_subclass(torch.Tensor), torch.tensor([[7.0, 0, 0, 8, 8]])
        )
    assert OnGpu.asked == before == 1
