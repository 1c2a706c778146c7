"""pack_pathways on every provider against the reference in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ops.parity import (
    FLOATS,
    check_threads,
    on_each,
    on_each_computing,
    reference,
)
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops.pack_pathways import cpu
from slowfast_kernels.ops.pack_pathways.spec import PackSpec
from slowfast_kernels.testing import assert_same_layout, relative_l2, unit_roundoff

OP = "pack_pathways"
FAST_INPUTS = ("rgb", "gray", "time_diff")
MEAN, STD = (0.41, 0.45, 0.48), (0.21, 0.225, 0.25)


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def numbered(frames):
    """Frames that show their number: every pixel of frame t is t."""
    return torch.arange(frames, dtype=torch.uint8).view(1, frames, 1, 1, 1).expand(1, frames, 3, 5, 3)


def shown(clip):
    """The numbers of the frames in a clip packed with mean 0 and std 1/255."""
    return clip[0, 0, :, 0, 0].round().int().tolist()


def assert_packed(got, exact, what):
    """Every element within one rounding of the exact one, and float32's error at values of up to 1 / std."""
    for g, e in zip(got, exact, strict=True):
        assert_same_layout(g, e, what)
        allowed = 1.01 * unit_roundoff(g.dtype) * e.abs() + 1e-6
        assert bool(((g.double() - e).abs() <= allowed).all()), what


@st.composite
def calls(draw):
    n, t, h, w = (draw(st.integers(low, high)) for low, high in ((0, 2), (1, 9), (1, 6), (1, 40)))
    layout = draw(
        st.sampled_from(["dense", "crop", "planes", "alpha channel", "other frames", "columns first"])
    )
    seed = draw(st.integers(0, 99))
    frames = {
        "dense": lambda: pixels(n, t, h, w, 3, seed=seed),
        "crop": lambda: pixels(n, t, h + 5, w + 7, 3, seed=seed)[:, :, 2 : 2 + h, 3 : 3 + w],
        "planes": lambda: pixels(n, t, 3, h, w, seed=seed).permute(0, 1, 3, 4, 2),
        "alpha channel": lambda: pixels(n, t, h, w, 4, seed=seed)[..., :3],
        "other frames": lambda: pixels(n, 2 * t, h, w, 3, seed=seed)[:, ::2],
        "columns first": lambda: pixels(n, t, w, h, 3, seed=seed).transpose(2, 3),
    }[layout]()
    explicit = st.lists(st.integers(0, t - 1), max_size=5).map(lambda i: torch.tensor(i, dtype=torch.int64))
    return (frames, draw(st.integers(1, t)), MEAN, STD), {
        "dtype": draw(st.sampled_from(FLOATS)),
        "slow_index": draw(st.one_of(st.sampled_from([None, "linspace", "stride"]), explicit)),
        "fast_input": draw(st.sampled_from(FAST_INPUTS)),
        "reverse_channels": draw(st.booleans()),
    }


@on_each
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    args, kwargs = drawn
    exact = reference(OP, args, kwargs | {"dtype": torch.float64})
    got = ops.pack_pathways(*args, **kwargs)
    assert all(g.dtype == kwargs["dtype"] for g in got)
    assert_packed(got, exact, provider)


@on_each
@pytest.mark.parametrize("fast_input", FAST_INPUTS)
def test_float32_is_within_1e_6(fast_input, provider):
    args = (pixels(1, 16, 64, 65, 3), 4)
    exact = reference(OP, args, {"fast_input": fast_input, "dtype": torch.float64})
    for g, e in zip(ops.pack_pathways(*args, fast_input=fast_input), exact, strict=True):
        assert relative_l2(g, e) < 1e-6


@on_each
def test_the_expression_of_the_paper_s_code(provider):
    frames = pixels(2, 8, 6, 7, 3)
    clip = ((frames.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)
    slow, fast = ops.pack_pathways(frames, 4, MEAN, STD)
    torch.testing.assert_close(fast, clip, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slow, clip[:, :, [0, 7]], rtol=1e-5, atol=1e-6)
    # channels are reversed after they were normalised
    torch.testing.assert_close(
        ops.pack_pathways(frames, 4, MEAN, STD, reverse_channels=True)[1], fast.flip(1)
    )


@on_each
@pytest.mark.parametrize(
    ("frames", "alpha", "rule", "expected"),
    [
        (32, 8, None, [0, 10, 20, 31]),
        (32, 4, "linspace", [0, 4, 8, 13, 17, 22, 26, 31]),
        (32, 8, "stride", [0, 8, 16, 24]),
        (33, 8, "stride", [0, 8, 16, 24]),
        (7, 3, "stride", [0, 3]),
        (5, 5, None, [0]),
        (4, 1, None, [0, 1, 2, 3]),
        (6, 2, torch.tensor([5, 0, 5, 5, 2]), [5, 0, 5, 5, 2]),
        (6, 2, torch.tensor([], dtype=torch.int64), []),
        (6, 2, torch.tensor([1, 9, 3, 9])[::2], [1, 3]),
    ],
)
def test_slow_frames(frames, alpha, rule, expected, provider):
    slow, fast = ops.pack_pathways(numbered(frames), alpha, (0, 0, 0), (1 / 255,) * 3, slow_index=rule)
    assert shown(slow) == expected
    assert shown(fast) == list(range(frames))


@on_each_computing
def test_linspace_rounds_as_torch_does(provider):
    """Some of torch's points fall just below a whole number: a rule in exact arithmetic would differ."""
    differ = 0
    for frames in range(2, 100):
        for alpha in range(1, frames // 2 + 1):
            count = frames // alpha
            expected = torch.linspace(0, frames - 1, count).long()
            differ += not torch.equal(expected, torch.arange(count) * (frames - 1) // (count - 1))
            slow, _ = ops.pack_pathways(numbered(frames)[:, :, :1, :1], alpha, (0, 0, 0), (1 / 255,) * 3)
            assert shown(slow) == expected.tolist()
    assert differ > 0


@on_each
def test_four_dimensions_are_one_clip(provider):
    frames = pixels(4, 5, 6, 3)
    for one, many in zip(ops.pack_pathways(frames, 2), ops.pack_pathways(frames[None], 2), strict=True):
        assert torch.equal(one, many)


@on_each
def test_gray_is_normalised_luma(provider):
    frames = pixels(1, 3, 4, 21, 3)
    luma = (frames.double() / 255 * torch.tensor([0.299, 0.587, 0.114])).sum(-1)
    expected = (luma - sum(MEAN) / 3) / (sum(STD) / 3)
    for reverse in (False, True):
        _, fast = ops.pack_pathways(frames, 3, MEAN, STD, fast_input="gray", reverse_channels=reverse)
        torch.testing.assert_close(fast[:, 0].double(), expected, rtol=0, atol=1e-6)


@on_each
def test_time_diff_is_the_change_of_gray(provider):
    frames = pixels(2, 4, 4, 21, 3)
    _, gray = ops.pack_pathways(frames, 2, MEAN, STD, fast_input="gray")
    slow, diff = ops.pack_pathways(frames, 2, MEAN, STD, fast_input="time_diff")
    assert not diff[:, :, 0].any()
    torch.testing.assert_close(diff[:, :, 1:], gray.diff(dim=2), rtol=0, atol=2e-6)
    assert torch.equal(slow, ops.pack_pathways(frames, 2, MEAN, STD)[0])
    still = frames[:, :1].expand(-1, 4, -1, -1, -1)
    assert not ops.pack_pathways(still, 2, fast_input="time_diff")[1].any()


@on_each_computing
@pytest.mark.parametrize("fast_input", FAST_INPUTS)
def test_a_crop_is_read_in_place(fast_input, provider):
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.slowfast._pack_run_cpu.default:
                pointers.append(args[0].data_ptr())
            return func(*args, **(kwargs or {}))

    pointers: list[int] = []
    crop = pixels(1, 4, 20, 30, 3)[:, 1:, 3:11, 5:27]
    with Seen():
        cpu.run(crop, PackSpec(1, "linspace", None, MEAN, STD, torch.float32, fast_input, False))
    assert pointers == [crop.data_ptr()]


@on_each_computing
@pytest.mark.parametrize("fast_input", FAST_INPUTS)
def test_threads_do_not_change_the_result(fast_input, provider):
    check_threads(OP, (pixels(1, 5, 33, 35, 3), 2), {"fast_input": fast_input, "dtype": torch.bfloat16})


@on_each
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reverse", [False, True])
def test_nonfinite_mean_stays_in_its_channel(value, reverse, provider):
    """Pixels are always finite; mean and std are the only way in for anything else."""
    frames = pixels(1, 2, 3, 19, 3)
    clips = ops.pack_pathways(frames, 1, (0.45, 0.45, value), STD, reverse_channels=reverse)
    exact = reference(OP, (frames, 1, (0.45, 0.45, value), STD), {"reverse_channels": reverse})
    bad = 0 if reverse else 2
    for clip, expected in zip(clips, exact, strict=True):
        assert torch.equal(clip[:, bad], expected[:, bad]) or clip[:, bad].isnan().all()
        assert math.isnan(value) == bool(clip[:, bad].isnan().all())
        good = [c for c in range(3) if c != bad]
        assert bool(clip[:, good].isfinite().all())
    nan_std = ops.pack_pathways(frames, 1, MEAN, (0.2, math.nan, 0.2))[1]
    assert bool(nan_std[:, 1].isnan().all()) and bool(nan_std[:, [0, 2]].isfinite().all())
    gray = ops.pack_pathways(frames, 1, (0.45, 0.45, value), STD, fast_input="gray")[1]
    assert not gray.isfinite().any()


def test_autocast_does_not_change_the_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        clips = ops.pack_pathways(pixels(1, 2, 3, 3, 3), 1)
    assert [clip.dtype for clip in clips] == [torch.float32, torch.float32]


def op_calls():
    """The op's own arguments: every rule, input and dtype once."""
    frames = pixels(2, 4, 3, 19, 3)
    crop = pixels(1, 5, 9, 30, 3)[:, :, 2:5, 4:23]
    one = torch.tensor([3, 0, 3])
    return {
        "linspace": (frames, 2, "linspace", None, MEAN, STD, torch.float32, "rgb", False),
        "stride, gray": (frames, 2, "stride", None, MEAN, STD, torch.bfloat16, "gray", True),
        "explicit, time_diff": (crop, 1, "linspace", one, MEAN, STD, torch.float32, "time_diff", False),
        "one frame": (frames[:, :1], 1, "linspace", None, MEAN, STD, torch.float64, "rgb", False),
        "no slow clip": (frames, 2, "linspace", one[:0], MEAN, STD, torch.float32, "rgb", False),
        "batch 0": (frames[:0], 2, "linspace", None, MEAN, STD, torch.float32, "rgb", False),
    }


@pytest.mark.parametrize("name", op_calls())
def test_opcheck(name):
    torch.library.opcheck(torch.ops.slowfast.pack_pathways.default, op_calls()[name])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "slow_index", [None, "stride", torch.tensor([2, 0])], ids=["linspace", "stride", "tensor"]
)
def test_compile(slow_index, dynamic):
    torch._dynamo.reset()

    def pack(frames):
        slow, fast = ops.pack_pathways(frames, 2, MEAN, STD, slow_index=slow_index, fast_input="gray")
        return slow * 2, fast + 1

    compiled = torch.compile(pack, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((1, 4, 5, 6, 3), (2, 8, 7, 6, 3)):
        for got, expected in zip(compiled(pixels(*shape)), pack(pixels(*shape)), strict=True):
            assert torch.equal(got, expected)
            assert_same_layout(got, expected)


@on_each_computing
def test_float64_runs_on_the_reference_or_says_why(provider):
    frames = pixels(1, 2, 3, 3, 3)
    with pytest.raises(RuntimeError, match=r"cpu: the maps are float64, the C\+\+ kernels take float32"):
        ops.pack_pathways(frames, 1, dtype=torch.float64)
    with use_backend("auto"):
        clips = ops.pack_pathways(frames, 1, dtype=torch.float64)
    assert [clip.dtype for clip in clips] == [torch.float64, torch.float64]


@on_each
@pytest.mark.parametrize("index", [[0, 4], [-1, 0]])
def test_slow_index_out_of_range(index, provider):
    with pytest.raises(
        ValueError, match=rf"slow_index: expected frame numbers in \[0, 4\), got \[{sum(index)}\]"
    ):
        ops.pack_pathways(pixels(1, 4, 3, 3, 3), 2, slow_index=torch.tensor(index))


def native(**changes):
    """The C++ op itself, whose callers are our own Python: it checks what would be a wild read or write."""
    call = {
        "frames": pixels(1, 4, 3, 5, 3),
        "slow_index": torch.tensor([0, 3]),
        "mean": list(MEAN),
        "std": list(STD),
        "fast_input": 0,
        "reverse_channels": False,
        "slow": torch.zeros(1, 3, 2, 3, 5).contiguous(memory_format=torch.channels_last_3d),
        "fast": torch.zeros(1, 3, 4, 3, 5).contiguous(memory_format=torch.channels_last_3d),
    } | changes
    torch.ops.slowfast._pack_run_cpu(**call)
    return call


@on_each_computing
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slow_index": torch.tensor([0, 4])}, r"slow_index: expected frames in \[0, 4\), got 4"),
        ({"slow_index": torch.tensor([-1, 0])}, r"slow_index: expected frames in \[0, 4\), got -1"),
        ({"slow_index": torch.tensor([0, 1, 2])}, r"slow: expected shape \[1, 3, 3, 3, 5\]"),
        ({"fast_input": 1}, r"fast: expected shape \[1, 1, 4, 3, 5\]"),
        ({"fast": torch.zeros(1, 3, 4, 3, 5)}, r"fast: expected channels_last_3d memory"),
        ({"fast": torch.zeros(1, 4, 3, 5, 6)[..., :3].permute(0, 4, 1, 2, 3)}, r"fast: expected dense"),
        ({"slow": torch.zeros(1, 3, 2, 3, 5).bfloat16()}, r"slow: expected the dtype of fast"),
        ({"mean": [0.5]}, r"mean, std: expected three values each"),
    ],
)
def test_the_native_op_checks_its_arguments(changes, message, provider):
    native()
    with pytest.raises(RuntimeError, match=message):
        native(**changes)


@pytest.mark.slow
@on_each_computing
def test_more_than_2_to_the_31_elements(provider):
    """Frames beyond 2^31 bytes apart and clips of more than 2^31 elements: 5 GiB."""
    count, h, w = 2734, 512, 512
    frames = pixels(1, 1, h, w, 3).expand(1, count, h, w, 3)
    assert frames.numel() > 2**31
    _, fast = ops.pack_pathways(frames, 1, dtype=torch.bfloat16, slow_index=torch.tensor([count - 1]))
    assert torch.equal(fast[:, :, -1], fast[:, :, 0])
    far = torch.empty(1, 2, 2**31 // 3, 1, 3, dtype=torch.uint8)
    far[:, 1, -2:] = pixels(1, 2, 1, 3)
    got = ops.pack_pathways(far[:, :, -2:], 1)[1]
    assert torch.equal(got[:, :, 1], ops.pack_pathways(pixels(1, 1, 2, 1, 3), 1)[1][:, :, 0])
