"""pack_pathways on the CUDA kernels (emulated where there is no GPU) against the reference in float64."""

import importlib
import math
import mmap

import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

from ops.parity import SHRINK, bits, reference
from ops.test_pack_pathways import FAST_INPUTS, MEAN, STD, assert_packed, calls, numbered, pixels, shown
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import cases_of
from slowfast_kernels.testing import provider_device

OP = "pack_pathways"
DEVICE = provider_device("cuda")
kernels = importlib.import_module("slowfast_kernels.ops.pack_pathways.cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.parametrize("provider", ["cuda"], indirect=True)


def there(tree):
    """Every tensor on the device that the kernels run on; views stay views."""

    def move(x):
        if x.device.type == DEVICE:
            return x
        base = x if x._base is None else x._base
        return base.to(DEVICE).as_strided(x.shape, x.stride(), x.storage_offset())

    return pytree.tree_map_only(torch.Tensor, move, tree)


def pack(*args, **kwargs):
    """Both clips, back on the CPU."""
    args, kwargs = there((args, kwargs))
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


@settings(max_examples=40)
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    args, kwargs = drawn
    assert_packed(pack(*args, **kwargs), exact_of(args, kwargs), "drawn")


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


@pytest.mark.parametrize("fast_input", FAST_INPUTS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, fast_input, provider):
    frames = LAYOUTS[name]()
    for reverse in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            options = {"fast_input": fast_input, "reverse_channels": reverse, "dtype": dtype}
            got = pack(frames, 2, MEAN, STD, **options)
            assert_packed(got, exact_of((frames, 2, MEAN, STD), options), name)
            # the same bits whatever the layout
            whole = pack(frames.contiguous(), 2, MEAN, STD, **options)
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(got, whole, strict=True))


@pytest.mark.parametrize("fast_input", FAST_INPUTS)
def test_no_order_of_threads_changes_a_bit(fast_input, provider, monkeypatch):
    frames = pixels(1, 5, 20, 33, 3)
    results = []
    for order in ("mixed", "random:1", "reversed", "ahead:3"):
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        results.append([bits(x) for x in pack(frames, 2, MEAN, STD, fast_input=fast_input)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


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
    for shape in ((2, 4, 3, 5, 3), (2, 4, 8, 16, 3)):
        frames = pixels(*shape)
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


def test_what_is_refused(provider):
    with pytest.raises(RuntimeError, match=r"cuda: dtype is torch\.float64, the CUDA kernels write"):
        pack(pixels(1, 2, 3, 3, 3), 1, dtype=torch.float64)
    huge = pixels(1, 1, 1, 1, 3).expand(1, 1, 2**15, 2**15, 3)
    assert "fewer than 2^30" in kernels.refuses(huge, 1, None, None, [], [], torch.float32)


def test_the_launcher_checks_for_itself(provider):
    def last(*shape, dtype=torch.float32):
        x = torch.zeros(*shape, device=DEVICE, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last_3d)

    good = {
        "frames": pixels(1, 4, 3, 5, 3).to(DEVICE),
        "slow_index": torch.tensor([0, 3], device=DEVICE),
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
        ({"slow_index": torch.tensor([0, 1, 2], device=DEVICE)}, "slow: expected shape"),
        (
            {"slow_index": torch.zeros(4, dtype=torch.int64, device=DEVICE)[::2]},
            "slow_index: expected contiguous",
        ),
        ({"fast_input": 1}, "fast: expected shape"),
        ({"fast_input": 3}, "fast_input: expected 0"),
        ({"fast": torch.zeros(1, 3, 4, 3, 5, device=DEVICE)}, "fast: expected channels_last_3d"),
        ({"slow": last(1, 3, 2, 3, 5, dtype=torch.bfloat16)}, "slow: expected another element type"),
        ({"mean": [0.5]}, "mean, std: expected three values each"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.slowfast._pack_cuda(**(good | change))


@pytest.mark.skipif(DEVICE != "cpu", reason="the memory is the host's: pages that are never touched")
@pytest.mark.parametrize("fast_input", FAST_INPUTS)
def test_offsets_beyond_2_31(fast_input, provider):
    frames = pixels(1, 3, 4, 16, 3)
    pages = mmap.mmap(-1, 2 * (2**31 + 16) + 192, flags=mmap.MAP_PRIVATE)  # never touched but for the frames
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    far = memory.as_strided(frames.shape, (0, 2**31 + 16, 48, 3, 1)).copy_(frames)
    for a, b in zip(pack(far, 2, fast_input=fast_input), pack(frames, 2, fast_input=fast_input), strict=True):
        assert torch.equal(a, b)
