"""pack_pathways on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

from ops.parity import SHRINK, bits, reference
from ops.test_pack_pathways import FAST_INPUTS, MEAN, STD, assert_packed, calls, numbered, pixels, shown
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import cases_of
from slowfast_kernels.testing import assert_same_layout, provider_device

OP = "pack_pathways"
DEVICE = provider_device("triton")
kernels = importlib.import_module("slowfast_kernels.ops.pack_pathways.triton")
on_triton = pytest.mark.parametrize("provider", ["triton"], indirect=True)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = on_triton


def pack(*args, **kwargs):
    """Both clips, back on the CPU."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), (args, kwargs))
    return [clip.cpu() for clip in ops.pack_pathways(*args, **kwargs)]


def exact_of(args, kwargs):
    return reference(OP, args, kwargs | {"dtype": torch.float64})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases_of(OP), ids=str)
def test_parity(case, dtype, provider):
    args, kwargs = case.args(dtype=dtype, shrink=SHRINK)
    got = pack(*args, **kwargs)
    assert all(g.dtype == dtype for g in got)
    assert_packed(got, exact_of(args, kwargs), case.name)


@settings(max_examples=20)
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    args, kwargs = drawn
    assert_packed(pack(*args, **kwargs), exact_of(args, kwargs), "drawn")


@pytest.mark.parametrize("fast_input", FAST_INPUTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_tiles_change_nothing(fast_input, reverse, provider, monkeypatch):
    """Blocks that end within rows and frames, and frames walked in parts: the same bits."""
    frames = pixels(2, 5, 6, 11, 3)
    options = {"fast_input": fast_input, "reverse_channels": reverse, "dtype": torch.bfloat16}
    for x in (frames, frames[:, :, 1:, 3:10], frames.transpose(2, 3)):
        whole = pack(x, 3, MEAN, STD, **options)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "tiles_of", lambda *args: kernels.Tiles(64, 2, 4))
            for a, b in zip(pack(x, 3, MEAN, STD, **options), whole, strict=True):
                assert torch.equal(bits(a), bits(b))
                assert_same_layout(a, b)


@pytest.mark.parametrize(
    "rule, expected",
    [
        (None, [0, 10, 20, 31]),
        ("stride", [0, 8, 16, 24]),
        (torch.tensor([5, 0, 5, 31, 2]), [5, 0, 5, 31, 2]),
        (torch.tensor([], dtype=torch.int64), []),
        (torch.tensor([1, 9, 3, 9])[::2], [1, 3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("fast_input", ["rgb", "gray"])
def test_slow_frames(rule, expected, fast_input, provider):
    slow, fast = pack(numbered(32), 8, (0, 0, 0), (1 / 255,) * 3, slow_index=rule, fast_input=fast_input)
    assert shown(slow) == expected
    assert shown(fast) == list(range(32))


@pytest.mark.parametrize("fast_input", FAST_INPUTS)
def test_a_frame_number_that_was_not_checked(fast_input, provider, monkeypatch):
    """As on a stream that is captured: no wild read, a frame of NaN, the other frames as they should be."""
    monkeypatch.setattr(kernels, "slow_frames", lambda *args: None)
    frames = pixels(2, 4, 3, 5, 3)
    index = torch.tensor([3, 4, -1, 0, 2**40])
    slow, fast = pack(frames, 2, slow_index=index, fast_input=fast_input)
    assert slow[:, :, [1, 2, 4]].isnan().all()
    good, expected_fast = pack(frames, 2, slow_index=torch.tensor([3, 0]), fast_input=fast_input)
    assert torch.equal(slow[:, :, [0, 3]], good) and torch.equal(fast, expected_fast)


@pytest.mark.parametrize("index", [[0, 4], [-1, 0]])
def test_slow_index_out_of_range(index, provider):
    with pytest.raises(ValueError, match=rf"expected frame numbers in \[0, 4\), got \[{sum(index)}\]"):
        pack(pixels(1, 4, 3, 3, 3), 2, slow_index=torch.tensor(index))


def test_still_frames_have_no_difference(provider):
    still = pixels(2, 1, 5, 7, 3).expand(-1, 9, -1, -1, -1)
    assert not pack(still, 2, MEAN, STD, fast_input="time_diff")[1].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reverse", [False, True])
def test_nonfinite_mean_stays_in_its_channel(value, reverse, provider):
    frames = pixels(1, 2, 3, 19, 3)
    clips = pack(frames, 1, (0.45, 0.45, value), STD, reverse_channels=reverse)
    bad = 0 if reverse else 2
    good = [c for c in range(3) if c != bad]
    for clip in clips:
        assert clip[:, bad].isnan().all() if math.isnan(value) else (clip[:, bad] == -value).all()
        assert clip[:, good].isfinite().all()
    gray = pack(frames, 1, (0.45, 0.45, value), STD, fast_input="gray")[1]
    assert not gray.isfinite().any()
    diff = pack(frames, 1, (0.45, 0.45, value), STD, fast_input="time_diff")[1]
    assert diff[:, :, 0].eq(0).all() and diff[:, :, 1:].isnan().all()
    nan_std = pack(frames, 1, MEAN, (0.2, math.nan, 0.2))[1]
    assert nan_std[:, 1].isnan().all() and nan_std[:, [0, 2]].isfinite().all()


def test_float64_is_refused(provider):
    with pytest.raises(RuntimeError, match=r"triton: dtype is torch\.float64, the Triton kernels write"):
        pack(pixels(1, 2, 3, 3, 3), 1, dtype=torch.float64)
