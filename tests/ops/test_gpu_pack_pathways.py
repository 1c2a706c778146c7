"""pack_pathways on the GPU's kernels (without one: interpreted, emulated) against the reference in float64."""

import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings

from ops.parity import (
    ORDERS,
    bits,
    on_cuda,
    on_gpu,
    on_triton,
    reference,
    run,
    there,
    untouched,
)
from ops.test_pack_pathways import FAST_INPUTS, MEAN, STD, assert_packed, calls, numbered, pixels, shown
from slowfast_kernels.ops.pack_pathways.spec import PackSpec
from slowfast_kernels.testing import assert_same_layout

OP = "pack_pathways"
on_each_fast_input = pytest.mark.parametrize("fast_input", FAST_INPUTS)
#: Calls drawn: the interpreter gets few.
DRAWN = {"triton": 20, "cuda": 40}


@pytest.fixture
def kernels(provider):
    """The provider's module of this op."""
    return importlib.import_module(f"slowfast_kernels.ops.pack_pathways.{provider}")


def pack(*args, **kwargs):
    """Both clips, back on the CPU."""
    return run(OP, args, kwargs)


def exact_of(args, kwargs):
    return reference(OP, args, kwargs | {"dtype": torch.float64})


@on_gpu
def test_drawn_calls(provider):
    @settings(max_examples=DRAWN[provider])
    @given(drawn=calls())
    def parity(drawn):
        args, kwargs = drawn
        assert_packed(pack(*args, **kwargs), exact_of(args, kwargs), "drawn")

    parity()


def _crop(top, left, height, width):
    return lambda: pixels(2, 5, 20, 48, 3)[:, :, top : top + height, left : left + width]


#: Frames whose runs are or are not aligned, in and out, with and without rows that follow each other.
LAYOUTS = {
    "dense": lambda: pixels(2, 5, 16, 32, 3),
    "dense, a tail": lambda: pixels(2, 5, 7, 9, 3),
    "aligned crop": _crop(2, 16, 9, 16),
    "aligned crop, a tail": _crop(2, 16, 9, 19),
    "crop": _crop(1, 3, 9, 16),
    "every other frame": lambda: pixels(2, 10, 16, 8, 3)[:, ::2],
    "columns first": lambda: pixels(2, 5, 8, 16, 3).transpose(2, 3),
    "planes": lambda: pixels(2, 5, 3, 8, 16).permute(0, 1, 3, 4, 2),
    "an alpha channel": lambda: pixels(2, 5, 8, 16, 4)[..., :3],
    "channels reversed": lambda: pixels(2, 5, 8, 16, 3)[..., [2, 1, 0]],
    "off by a byte": lambda: pixels(2 * 5 * 16 * 16 * 3 + 1)[1:].view(2, 5, 16, 16, 3),
}


@pytest.mark.parametrize(
    "provider, fast_input",
    [("triton", "time_diff"), *itertools.product(["cuda"], FAST_INPUTS)],
    indirect=["provider"],
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, fast_input, provider):
    frames = LAYOUTS[name]()
    every = itertools.product((False, True), (torch.float32, torch.bfloat16))
    for reverse, dtype in every if provider == "cuda" else [(True, torch.bfloat16)]:
        options = {"fast_input": fast_input, "reverse_channels": reverse, "dtype": dtype}
        got = pack(frames, 2, MEAN, STD, **options)
        assert_packed(got, exact_of((frames, 2, MEAN, STD), options), name)
        # the same bits whatever the layout
        whole = pack(frames.contiguous(), 2, MEAN, STD, **options)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(got, whole, strict=True))


@on_triton
@on_each_fast_input
@pytest.mark.parametrize("reverse", [False, True])
def test_tiles_change_nothing(fast_input, reverse, provider, kernels, monkeypatch):
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


@on_cuda
@on_each_fast_input
@pytest.mark.parametrize("frames", [1, 3, 4, 6, 9])
def test_groups_of_frames(frames, fast_input, provider):
    """A thread's frames end before, with and behind the clip; Slow frames come from any of them, some from none."""
    for shape in ((2, frames, 5, 16, 3), (3, frames, 4, 7, 3)):
        for index in ([frames - 1, 0, frames // 2, 0], list(range(frames)) * 9):
            x, chosen = pixels(*shape), torch.tensor(index)
            options = {"slow_index": chosen, "fast_input": fast_input, "dtype": torch.bfloat16}
            assert_packed(pack(x, 1, MEAN, STD, **options), exact_of((x, 1, MEAN, STD), options), str(index))


@on_cuda
def test_more_clips_and_frames_than_a_grid_has(provider):
    """2^16 and more clips, or groups of frames: blocks walk on; the fast input reads the frame before as well."""
    for shape in ((65537, 1, 1, 1, 3), (1, 4 * 65535 + 5, 1, 1, 3)):
        x = pixels(*shape)
        index = torch.tensor([0, shape[1] - 1])
        options = {"slow_index": index, "fast_input": "time_diff"}
        assert_packed(pack(x, 1, MEAN, STD, **options), exact_of((x, 1, MEAN, STD), options), str(shape))


@on_cuda
@pytest.mark.parametrize("width", [1, 2, 3, 7, 85, 128, 129, 1000])
def test_rows_of_crops(width, provider):
    """Runs of rows apart are numbered across rows: quotients by every number of runs."""
    x = pixels(1, 2, 37, width + 1, 3)[:, :, :, :width]
    for fast_input in FAST_INPUTS:
        options = {"fast_input": fast_input, "dtype": torch.bfloat16}
        assert_packed(pack(x, 2, MEAN, STD, **options), exact_of((x, 2, MEAN, STD), options), str(width))


@on_cuda
@on_each_fast_input
def test_no_order_of_threads_changes_a_bit(fast_input, provider, monkeypatch):
    frames = pixels(1, 5, 20, 33, 3)
    results = []
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        results.append([bits(x) for x in pack(frames, 2, MEAN, STD, fast_input=fast_input)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@on_gpu
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


@on_gpu
@on_each_fast_input
def test_a_frame_number_that_was_not_checked(fast_input, provider, kernels, monkeypatch):
    """As on a stream that is captured: no wild read, a frame of NaN, the other frames as they should be."""
    frames_of = importlib.import_module("slowfast_kernels.ops.pack_pathways.slow_frames")
    monkeypatch.setattr(frames_of, "slow_frames", lambda *args: None)
    for shape in ((2, 4, 3, 5, 3), (2, 4, 8, 16, 3)):
        frames = pixels(*shape)
        index = torch.tensor([3, 4, -1, 0, 2**40])
        slow, fast = pack(frames, 2, slow_index=index, fast_input=fast_input)
        assert slow[:, :, [1, 2, 4]].isnan().all()
        good, expected_fast = pack(frames, 2, slow_index=torch.tensor([3, 0]), fast_input=fast_input)
        assert torch.equal(slow[:, :, [0, 3]], good) and torch.equal(fast, expected_fast)


@on_gpu
@pytest.mark.parametrize("index", [[0, 4], [-1, 0]])
def test_slow_index_out_of_range(index, provider):
    with pytest.raises(ValueError, match=rf"expected frame numbers in \[0, 4\), got \[{sum(index)}\]"):
        pack(pixels(1, 4, 3, 3, 3), 2, slow_index=torch.tensor(index))


@on_gpu
def test_still_frames_have_no_difference(provider):
    still = pixels(2, 1, 5, 7, 3).expand(-1, 9, -1, -1, -1)
    assert not pack(still, 2, MEAN, STD, fast_input="time_diff")[1].any()


@on_gpu
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


@on_gpu
def test_what_is_refused(provider, kernels):
    message = rf"(?i){provider}: the maps are float64, the {provider} kernels take"
    with pytest.raises(RuntimeError, match=message):
        pack(pixels(1, 2, 3, 3, 3), 1, dtype=torch.float64)
    most = {"triton": "2^31", "cuda": "2^30"}[provider]
    huge = pixels(1, 1, 1, 1, 3).expand(1, 1, 2**15, 2**15, 3)
    assert f"fewer than {most}" in kernels.refuses(
        huge, PackSpec(1, "stride", None, MEAN, STD, torch.float32, "rgb", False)
    )


@on_cuda
def test_the_cuda_launcher_checks_for_itself(provider):
    def last(*shape, dtype=torch.float32):
        return there(torch.zeros(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last_3d))

    good = {
        "frames": there(pixels(1, 4, 3, 5, 3)),
        "slow_index": there(torch.tensor([0, 3])),
        "mean": list(MEAN),
        "std": list(STD),
        "fast_input": 0,
        "reverse_channels": False,
        "slow": last(1, 3, 2, 3, 5),
        "fast": last(1, 3, 4, 3, 5),
    }
    torch.ops.slowfast._pack_cuda(**good)
    for change, message in (
        ({"frames": good["frames"].float()}, "frames: expected another element type"),
        ({"frames": good["frames"][..., :2]}, "frames: expected uint8"),
        ({"slow_index": there(torch.tensor([0, 1, 2]))}, "slow: expected shape"),
        (
            {"slow_index": there(torch.zeros(4, dtype=torch.int64))[::2]},
            "slow_index: expected contiguous",
        ),
        ({"fast_input": 1}, "fast: expected shape"),
        ({"fast_input": 3}, "fast_input: expected 0"),
        ({"fast": there(torch.zeros(1, 3, 4, 3, 5))}, "fast: expected channels_last_3d"),
        ({"slow": last(1, 3, 2, 3, 5, dtype=torch.bfloat16)}, "slow: expected another element type"),
        ({"mean": [0.5]}, "mean, std: expected three values each"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.slowfast._pack_cuda(**(good | change))


@on_cuda
@on_each_fast_input
def test_offsets_beyond_2_31(fast_input, provider):
    frames = pixels(1, 3, 4, 16, 3)
    memory = untouched(2 * (2**31 + 16) + 192)
    far = memory.as_strided(frames.shape, (0, 2**31 + 16, 48, 3, 1)).copy_(frames)
    for a, b in zip(pack(far, 2, fast_input=fast_input), pack(frames, 2, fast_input=fast_input), strict=True):
        assert torch.equal(a, b)
