"""The polyphase form of the lateral convolution, which frozen models use, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.parity import bits, on_each_computing
from slowfast_kernels.ops import _layers
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._spec import ConvAffine
from slowfast_kernels.ops.conv_bn_act3d.reference import conv_bn_act3d_reference
from slowfast_kernels.ops.lateral_fusion import polyphase
from slowfast_kernels.ops.lateral_fusion.spec import LateralSpec
from slowfast_kernels.testing import assert_close


def run(x, weight, scale, shift, alpha, relu, out=None):
    n, _, t, h, w = x.shape
    if out is None:
        out = torch.empty((n, weight.shape[0], t // alpha, h, w), memory_format=torch.channels_last_3d)
    packed = polyphase.pack(ConvAffine(weight, scale), alpha)
    torch.ops.slowfast._lateral_run_cpu(x, *packed, shift, alpha, relu, out)
    return out


def exact(x, weight, scale, shift, alpha, relu):
    wide = [None if a is None else a.double() for a in (x, weight, scale, shift)]
    x, *conv = wide
    return conv_bn_act3d_reference(x, None, spec_of(*conv, alpha=alpha, relu=relu).full)


def spec_of(*conv, alpha, relu=True):
    return LateralSpec(ConvAffine(*conv), alpha, activation="relu" if relu else "none")


def pays(weight, alpha, dtype):
    return polyphase.pays(spec_of(torch.empty(weight, device="meta"), alpha=alpha), dtype)


def draw_call(seed, alpha, shape, cout) -> tuple[Any, Any, Any, Any, Any]:
    draw = Draw(seed=seed)
    weight = draw.weight(cout, shape[1], 2 * alpha - 1, 1, 1)
    return draw.normal(*shape), weight, draw.scale(cout), draw.shift(cout), alpha


@on_each_computing
@given(data=st.data())
def test_drawn_shapes(data, provider):
    alpha = data.draw(st.integers(2, 9))
    n, t, h, w = (data.draw(st.integers(low, high)) for low, high in ((0, 2), (1, 5), (1, 10), (1, 10)))
    cin, cout = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 140))
    call = draw_call(data.draw(st.integers(0, 999)), alpha, (n, cin, alpha * t, h, w), cout)
    relu = data.draw(st.booleans())
    assert_close(run(*call, relu), exact(*call, relu), bound=1e-5)


LATERALS = [c for c in _layers.of("lateral_fusion") if c.spec.conv.kernel[0] == 2 * c.spec.alpha - 1]


@on_each_computing
@pytest.mark.parametrize("layer", LATERALS, ids=lambda layer: layer.name)
def test_layers_of_slowfast_into_the_slow_buffer(layer, provider):
    spec, (slow, fast) = layer.spec, layer.inputs
    assert pays(tuple(spec.conv.weight.shape), spec.alpha, torch.float32)
    size = min(fast[-1], 14)
    out = spec.conv.weight.shape[0]
    call = draw_call(5, spec.alpha, (2, *fast[1:3], size, size), out)
    fused = Draw(seed=9).normal(2, slow[1] + out, slow[2], size, size)
    before = fused.clone()
    run(*call, True, fused[:, slow[1] :])
    assert_close(fused[:, slow[1] :], exact(*call, True), bound=2e-6)
    assert torch.equal(fused[:, : slow[1]], before[:, : slow[1]])


@on_each_computing
def test_input_that_is_a_channel_slice(provider):
    _, weight, scale, shift, alpha = draw_call(1, 4, (1, 12, 8, 5, 6), 20)
    wide = Draw(seed=2).normal(1, 40, 8, 5, 6)
    call = wide[:, 9:21], weight, scale, shift, alpha, True
    assert_close(run(*call), exact(*call), bound=1e-5)


@on_each_computing
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
    assert pays((64, 32, 7, 1, 1), 4, torch.float32)
    assert not pays((64, 32, 7, 1, 1), 4, torch.bfloat16)  # differences lose digits that bfloat16 needs
    assert not pays((64, 32, 5, 1, 1), 8, torch.float32)  # SlowFast 4x16: no two taps share a phase
    assert not pays((64, 32, 5, 1, 1), 4, torch.float32)


def test_wrong_arguments_are_named():
    x, weight, scale, shift, alpha = draw_call(1, 4, (1, 16, 8, 3, 3), 16)
    packed = polyphase.pack(ConvAffine(weight, scale), alpha)
    out = torch.empty(1, 16, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    native = torch.ops.slowfast._lateral_run_cpu
    with pytest.raises(RuntimeError, match="packed_first: expected"):
        native(x, packed[0], packed[0], packed[2], shift, alpha, True, out)
    with pytest.raises(RuntimeError, match="alpha"):
        native(x, *packed, shift, 3, True, out)
    with pytest.raises(RuntimeError, match="float32"):
        native(x.bfloat16(), *packed, shift, alpha, True, out)
