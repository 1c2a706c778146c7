"""Clips that a network takes and refuses: the model and its frozen form say the same."""

import functools

import numpy
import pytest
import torch

import slowfast_kernels as sf
from slowfast_kernels import backends

FORMS = ["model", "frozen", "reference"]
SMALL = {"blocks": (1, 1, 1, 1), "classes": 5, "crop": 32}
on_each_form = pytest.mark.parametrize("form", FORMS)


@functools.cache
def called(form, name, **overrides):
    model = sf.models.create(
        name, **{**SMALL, **{k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}}
    )
    model.eval()
    if form == "model":
        return model
    with sf.use_backend("reference" if form == "reference" else "auto"):
        return sf.freeze(model)


def two(frames=8, alpha=4, side=32):
    return [torch.randn(1, 3, t, side, side) for t in (frames // alpha, frames)]


@on_each_form
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_integers_are_refused(form, dtype):
    model = called(form, "slowfast_8x8_r50")
    clips = [(x > 0).to(dtype) for x in two()]
    with pytest.raises(
        ValueError, match=rf"slow clip normalised, in floating point \(ops.pack_.*got {dtype}"
    ):
        model(clips)


@on_each_form
@pytest.mark.parametrize(
    "clips, kind",
    [
        (numpy.zeros((1, 3, 8, 32, 32), numpy.float32), "numpy.ndarray"),
        ([numpy.zeros((1, 3, 8, 32, 32), numpy.float32)] * 2, "numpy.ndarray"),
        ([[[0.0]], [[0.0]]], "list"),
        ("clip.mp4", "str"),
        (None, "NoneType"),
        ({"slow": torch.zeros(1, 3, 2, 32, 32)}, "dict"),
    ],
    ids=["array", "arrays", "lists", "path", "none", "dict"],
)
def test_what_is_no_tensor_is_refused(form, clips, kind):
    model = called(form, "slowfast_8x8_r50")
    with pytest.raises(TypeError, match=rf"expected tensors \[N, C, T, H, W\] \(slow, fast\), got {kind}$"):
        model(clips)


@on_each_form
def test_a_clip_without_pixels_is_refused(form):
    model = called(form, "slow_4x16_r50")
    for shape in ((1, 3, 0, 32, 32), (1, 3, 4, 0, 32), (1, 3, 4, 32, 0)):
        with pytest.raises(ValueError, match="at least one frame, row and column in the slow clip"):
            model(torch.zeros(shape))
    assert model(torch.zeros(0, 3, 4, 32, 32)).shape == (0, 5)


@on_each_form
def test_too_few_frames_for_the_pool_after_res2(form):
    model = called(form, "i3d_8x8_r50")
    assert model(torch.randn(1, 3, 2, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match="frames of the slow clip: expected at least 2, got 1"):
        model(torch.randn(1, 3, 1, 32, 32))


@on_each_form
@pytest.mark.parametrize("lateral", ["conv", "time_to_channel_concat", "time_sample"])
@pytest.mark.parametrize("kernel", [5, 7])
def test_frames_that_the_stems_stride_does_not_divide(form, lateral, kernel):
    model = called(form, "slowfast_8x8_r50", stem_stride=2, lateral=lateral, fusion_kernel=kernel)
    assert model(two(16)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"of 5 and 20 frames 3 and 10 are left behind the stem, .* alpha=4"):
        model(two(20))


@on_each_form
def test_without_laterals_the_pathways_may_differ(form):
    model = called(form, "slowfast_8x8_r50", stem_stride=2, lateral="none")
    assert model(two(20)).shape == (1, 5)


@on_each_form
def test_a_fixed_window_refuses_other_clips(form):
    model = called(form, "slow_4x16_r50", frames=4, fixed_frames=True)
    assert model(torch.randn(2, 3, 4, 32, 32)).shape == (2, 5)
    for frames in (1, 3, 5, 8):
        with pytest.raises(
            ValueError, match=rf"expected clips of 4 frames \(the window of the head\), got {frames};"
        ):
            model(torch.randn(1, 3, frames, 32, 32))
    model = called(form, "slowfast_8x8_r50", frames=8, fixed_frames=True)
    assert model(two(8)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"expected clips of 2 and 8 frames .*, got 4 and 16;"):
        model(two(16))


@on_each_form
def test_a_fixed_window_is_counted_where_the_head_sees_it(form):
    """I3D's max-pool makes two frames of four and of five."""
    model = called(form, "i3d_8x8_r50", frames=5, fixed_frames=True)
    for frames in (4, 5):
        assert model(torch.randn(1, 3, frames, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match="expected clips of 5 frames .* got 6"):
        model(torch.randn(1, 3, 6, 32, 32))


def test_a_window_is_free_unless_it_is_fixed():
    for name in sf.models.names():
        assert not sf.models.configure(name).input.fixed_frames
    config = sf.models.configure("slow_8x8_r50", fixed_frames=True)
    assert config.input.fixed_frames and type(config).from_dict(config.to_dict()) == config
    old = config.to_dict()
    del old["input"]["fixed_frames"], old["head"]["output"]  # a file of an earlier version
    assert type(config).from_dict(old) == sf.models.configure("slow_8x8_r50")
    assert backends.current() == "auto"
