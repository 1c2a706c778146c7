"""The assertions that the other tests rest on notice what they are for."""

import math

import pytest
import torch

from slowfast_kernels.testing import (
    assert_close,
    assert_gradient,
    assert_no_worse,
    assert_same_nonfinite,
    poisoned_memory,
    relative_l2,
    to_float64,
    tolerance,
)


def test_one_wrong_element_of_a_million():
    expected = torch.randn(1_000_000, dtype=torch.float64)
    got = expected.bfloat16()
    assert_close(got, expected)
    got[123_456] += 1
    with pytest.raises(AssertionError, match=r"largest at \[123456\]"):
        assert_close(got, expected)


def test_worse_than_the_peer():
    expected = torch.randn(1000, dtype=torch.float64)
    peer = expected.bfloat16()
    assert_no_worse(peer, peer, expected)
    assert_no_worse((expected + 2**-9 * expected.std()).bfloat16(), peer, expected)
    with pytest.raises(AssertionError, match="times PyTorch's own"):
        assert_no_worse((expected + 0.02).bfloat16(), peer, expected)
    wrong = peer.clone()
    wrong[7] += 0.1
    with pytest.raises(AssertionError):
        assert_no_worse(wrong, peer, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_in_the_wrong_place(value):
    expected = torch.zeros(5)
    got = expected.clone()
    got[3] = value
    with pytest.raises(AssertionError, match=r"first difference at \[3\]"):
        assert_same_nonfinite(got, expected)
    with pytest.raises(AssertionError):
        assert_same_nonfinite(expected, got)
    assert_same_nonfinite(got, got)


def test_zeroed_channel_of_a_gradient():
    expected = torch.randn(64, 16, 3, 3, dtype=torch.float64)
    expected[5] *= 1e-2  # too small for the error of the whole
    got = expected.clone()
    got[5] = 0
    assert relative_l2(got, expected) < 0.02
    with pytest.raises(AssertionError, match="along axis 0, index 5"):
        assert_gradient(got, expected, 0.02)
    assert_gradient(expected.float(), expected, 1e-6)


def test_tolerance_grows_with_the_reduction_up_to_the_limit():
    assert tolerance(torch.float32, 1) < tolerance(torch.float32, 1000) < 1e-5
    assert tolerance(torch.float32, 10**9) == 1e-5
    assert tolerance(torch.float64, 1000) < 1e-13
    assert 1e-3 < tolerance(torch.bfloat16, 1000) < 0.03


def test_relative_l2_of_nothing():
    assert relative_l2(torch.zeros(0), torch.zeros(0)) == 0
    assert relative_l2(torch.ones(3), torch.zeros(3)) == math.inf


def test_float64_copies_keep_their_aliases():
    buffer = torch.randn(2, 8, 3, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    wide = to_float64({"out": buffer, "slow": buffer[:, :5], "n": 3, "dtype": torch.bfloat16})
    wide["out"].zero_()
    assert wide["slow"].abs().sum() == 0 and wide["slow"].shape == (2, 5, 3, 4, 4)
    assert wide["n"] == 3 and wide["dtype"] == torch.float64


def test_uninitialised_memory_is_nan():
    assert torch.empty(3).isnan().all() and torch.empty_like(torch.zeros(2)).isnan().all()
    assert torch.zeros(3).new_empty(4).isnan().all() and torch.empty_strided((2, 2), (1, 2)).isnan().all()
    # what native code allocates
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.ops.aten.empty.memory_format([300, 300], dtype=dtype).isnan().all()
    assert not torch.empty(3, dtype=torch.int64).is_floating_point()


def test_poison_ends_with_its_block():
    poisoned = torch.empty
    with poisoned_memory():
        assert torch.empty is not poisoned
    assert torch.empty is poisoned
