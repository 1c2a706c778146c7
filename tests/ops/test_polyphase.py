"""The polyphase form of the lateral convolution, which frozen models use, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.parity import COMPUTING, bits
from slowfast_kernels.ops import _shapes
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops.conv_bn_act3d.reference import conv_bn_act3d_reference
from slowfast_kernels.ops.lateral_fusion import polyphase
from slowfast_kernels.testing import assert_close

on_each = pytest.mark.parametrize("provider", COMPUTING, indirect=True)
ONE = [1, 1, 1]


def run(x, weight, scale, shift, alpha, relu, out=None):
    n, _, t, h, w = x.shape
    if out is None:
        out = torch.empty((n, weight.shape[0], t // alpha, h, w), memory_format=torch.channels_last_3d)
    packed = polyphase.pack(weight, scale, alpha)
    torch.ops.slowfast._lateral_run_cpu(x, *packed, shift, alpha, relu, out)
    return out


def exact(x, weight, scale, shift, alpha, relu):
    wide = [None if a is None else a.double() for a in (x, weight, scale, shift)]
    return conv_bn_act3d_reference(*wide, None, [alpha, 1, 1], [alpha - 1, 0, 0], ONE, relu)


def draw_call(seed, alpha, shape, cout):
    draw = Draw(seed=seed)
    weight = draw.weight(cout, shape[1], 2 * alpha - 1, 1, 1)
    return draw.normal(*shape), weight, draw.scale(cout), draw.shift(cout), alpha


@on_each
@given(data=st.data())
def test_drawn_shapes(data, provider):
    alpha = data.draw(st.integers(2, 9))
    n, t, h, w = (data.draw(st.integers(low, high)) for low, high in ((0, 2), (1, 5), (1, 10), (1, 10)))
    cin, cout = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 140))
    call = draw_call(data.draw(st.integers(0, 999)), alpha, (n, cin, alpha * t, h, w), cout)
    relu = data.draw(st.booleans())
    assert_close(run(*call, relu), exact(*call, relu), bound=1e-5)


LATERALS = [layer for layer in _shapes.laterals() if layer.kernel == 2 * layer.alpha - 1]


@on_each
@pytest.mark.parametrize("layer", LATERALS, ids=lambda layer: layer.name)
def test_layers_of_slowfast_into_the_slow_buffer(layer, provider):
    assert polyphase.pays((layer.out, layer.fast, layer.kernel, 1, 1), layer.alpha, torch.float32)
    size = min(layer.size, 14)
    call = draw_call(5, layer.alpha, (2, layer.fast, layer.alpha * layer.frames, size, size), layer.out)
    fused = Draw(seed=9).normal(2, layer.slow + layer.out, layer.frames, size, size)
    before = fused.clone()
    run(*call, True, fused[:, layer.slow :])
    assert_close(fused[:, layer.slow :], exact(*call, True), bound=2e-6)
    assert torch.equal(fused[:, : layer.slow], before[:, : layer.slow])


@on_each
def test_input_that_is_a_channel_slice(provider):
    (_, *rest) = draw_call(1, 4, (1, 12, 8, 5, 6), 20)
    wide = Draw(seed=2).normal(1, 40, 8, 5, 6)
    x = wide[:, 9:21]
    assert_close(run(x, *rest, True), exact(x, *rest, True), bound=1e-5)


@on_each
def test_one_frame_and_no_affine(provider):
    x, weight, _, _, alpha = draw_call(1, 4, (1, 16, 4, 3, 3), 16)
    assert_close(
        run(x, weight, None, None, alpha, False), exact(x, weight, None, None, alpha, False), bound=1e-5
    )


def test_threads_do_not_change_a_bit():
    call = draw_call(4, 4, (1, 40, 16, 20, 20), 70)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(*call, True).clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(bits(results[0]), bits(results[1]))
    assert torch.equal(bits(results[0]), bits(results[2]))


def test_which_laterals_it_takes():
    assert polyphase.pays((64, 32, 7, 1, 1), 4, torch.float32)
    assert not polyphase.pays(
        (64, 32, 7, 1, 1), 4, torch.bfloat16
    )  # differences lose digits that bfloat16 needs
    assert not polyphase.pays((64, 32, 5, 1, 1), 8, torch.float32)  # SlowFast 4x16: no two taps share a phase
    assert not polyphase.pays((64, 32, 5, 1, 1), 4, torch.float32)


def test_wrong_arguments_are_named():
    x, weight, scale, shift, alpha = draw_call(1, 4, (1, 16, 8, 3, 3), 16)
    packed = polyphase.pack(weight, scale, alpha)
    out = torch.empty(1, 16, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    native = torch.ops.slowfast._lateral_run_cpu
    with pytest.raises(RuntimeError, match="packed_first: expected"):
        native(x, packed[0], packed[0], packed[2], shift, alpha, True, out)
    with pytest.raises(RuntimeError, match="alpha"):
        native(x, *packed, shift, 3, True, out)
    with pytest.raises(RuntimeError, match="float32"):
        native(x.bfloat16(), *packed, shift, alpha, True, out)
