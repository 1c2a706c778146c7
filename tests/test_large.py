"""Tensors beyond 2^31 elements: every offset is 64 bits wide. About 10 GiB of memory each."""

import pytest
import torch

from slowfast_kernels import ops, use_backend
from slowfast_kernels.testing import provider_missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(provider_missing("cpu")), reason=f"provider cpu: {provider_missing('cpu')}"),
]

FRAMES, SIZE = 17, 4096  # 8 channels of them: 2.28e9 elements
LAST = 4  # frames that hold anything


def clip(channels):
    """A clip of zeros but for its last frames, and those frames as a clip of their own."""
    x = torch.zeros(1, FRAMES, SIZE, SIZE, channels, dtype=torch.bfloat16).permute(0, 4, 1, 2, 3)
    assert x.numel() > 2**31
    # a few lines at the far end are enough to tell, and quick to draw
    end = torch.randn(1, channels, LAST, 8, SIZE).bfloat16()
    x[:, :, -LAST:, -8:] = end
    return x, x[:, :, -LAST:].clone(memory_format=torch.channels_last_3d)


def compare(whole, part):
    """The last frame, which the frames before the last ones do not reach."""
    got, expected = whole[:, :, -1, -8:], part[:, :, -1, -8:]
    assert expected.abs().sum() > 0
    assert torch.equal(got, expected)


def test_convolution():
    x, part = clip(8)
    weight, shift = torch.randn(8, 8, 3, 1, 1).bfloat16(), torch.randn(8)
    with use_backend("cpu"):
        whole = ops.conv_bn_act3d(x, weight, None, shift, padding=(1, 0, 0))
        assert whole.numel() > 2**31
        compare(whole, ops.conv_bn_act3d(part, weight, None, shift, padding=(1, 0, 0)))


def test_bottleneck():
    x, part = clip(8)
    weights = [torch.randn(shape).bfloat16() for shape in ((4, 8, 3, 1, 1), (4, 4, 1, 3, 3), (8, 4, 1, 1, 1))]
    args = [a for weight in weights for a in (weight, None, None)]
    with use_backend("cpu"):
        compare(ops.bottleneck3d(x, *args), ops.bottleneck3d(part, *args))


def test_stem():
    x, part = clip(8)
    weight = torch.randn(4, 8, 1, 3, 3).bfloat16()
    with use_backend("cpu"):
        whole, part = ops.stem3d(x, weight), ops.stem3d(part, weight)
    assert torch.equal(whole[:, :, -1, -2:], part[:, :, -1, -2:]) and part[:, :, -1, -2:].abs().sum() > 0


def test_lateral():
    x, part = clip(8)
    weight = torch.randn(2, 8, 1, 1, 1).bfloat16()
    with use_backend("cpu"):
        results = [ops.lateral_fusion(torch.zeros_like(c[:, :2]), c, weight, alpha=1) for c in (x, part)]
    compare(*results)
