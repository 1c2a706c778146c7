"""The Winograd forms of stride-1 3x1x1 and 1x3x3 convolutions, which frozen models use, against float64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.parity import bits, on_each_computing
from slowfast_kernels.ops import _layers
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._spec import ConvAffine
from slowfast_kernels.ops.conv_bn_act3d import winograd
from slowfast_kernels.ops.conv_bn_act3d.reference import conv_bn_act3d_reference
from slowfast_kernels.ops.conv_bn_act3d.spec import ConvSpec
from slowfast_kernels.testing import assert_close

TEMPORAL, SPATIAL = (3, 1, 1), (1, 3, 3)
KERNELS = pytest.mark.parametrize("kernel", [TEMPORAL, SPATIAL], ids=["3x1x1", "1x3x3"])


def run(x, weight, scale, shift, residual, relu, out=None):
    n, _, t, h, w = x.shape
    spatial = weight.shape[2] == 1
    if out is None:
        out = torch.empty((n, weight.shape[0], t, h, w), memory_format=torch.channels_last_3d)
    workspace = torch.empty(winograd.workspace_numel(x.shape, spatial))
    torch.ops.slowfast._winograd_run_cpu(
        x, winograd.pack(ConvAffine(weight, scale)), shift, residual, spatial, relu, workspace, out
    )
    return out


def exact(x, weight, scale, shift, residual, relu):
    wide = [None if a is None else a.double() for a in (x, weight, scale, shift, residual)]
    return conv_bn_act3d_reference(wide[0], wide[4], spec_of(wide[1], wide[2], wide[3], relu=relu))


def spec_of(weight, scale=None, shift=None, relu=True, **settings):
    """Padded by half its kernel."""
    settings = {"padding": [k // 2 for k in weight.shape[2:]]} | settings
    return ConvSpec(ConvAffine(weight, scale, shift), **settings, activation="relu" if relu else "none")


def draw_call(seed, shape, cout, kernel, residual=True) -> tuple[Any, Any, Any, Any, Any]:
    draw = Draw(seed=seed)
    weight = draw.weight(cout, shape[1], *kernel)
    more = draw.normal(shape[0], cout, *shape[2:]) if residual else None
    return draw.normal(*shape), weight, draw.scale(cout), draw.shift(cout), more


@on_each_computing
@KERNELS
@given(data=st.data())
def test_drawn_shapes(data, kernel, provider):
    n, t, h, w = (data.draw(st.integers(low, high)) for low, high in ((0, 2), (1, 9), (1, 10), (1, 10)))
    cin, cout = data.draw(st.integers(1, 70)), 16 * data.draw(st.integers(1, 9))
    call = draw_call(
        data.draw(st.integers(0, 999)), (n, cin, t, h, w), cout, kernel, data.draw(st.booleans())
    )
    relu = data.draw(st.booleans())
    assert_close(run(*call, relu), exact(*call, relu), bound=1e-5)


LAYERS = [c for c in _layers.distinct(_layers.every_convolution()) if winograd.pays(c.spec, torch.float32)]


@on_each_computing
@pytest.mark.parametrize("conv", LAYERS, ids=lambda c: c.name)
def test_real_layers(conv, provider):
    n, cin, frames, size, _ = conv.inputs[0]
    shape = (n, cin, frames, min(size, 7), min(size, 7))
    call = draw_call(5, shape, conv.spec.conv.weight.shape[0], conv.spec.conv.kernel, False)
    assert_close(run(*call, True), exact(*call, True), bound=1e-5)


@on_each_computing
@KERNELS
def test_channel_slices(kernel, provider):
    x, weight, scale, shift, residual = draw_call(6, (2, 20, 5, 6, 7), 48, kernel)
    wide_x, wide_r, out = (Draw(seed=s).normal(2, c, 5, 6, 7) for s, c in ((1, 31), (2, 50), (3, 64)))
    wide_x[:, 5:25], wide_r[:, 2:] = x, residual
    untouched = out.clone()
    run(wide_x[:, 5:25], weight, scale, shift, wide_r[:, 2:], True, out[:, 7:55])
    assert_close(out[:, 7:55], exact(x, weight, scale, shift, residual, True), bound=1e-5)
    assert torch.equal(out[:, :7], untouched[:, :7]) and torch.equal(out[:, 55:], untouched[:, 55:])


@on_each_computing
@KERNELS
def test_threads_do_not_change_the_result(kernel, provider):
    call = draw_call(7, (1, 64, 6, 9, 11), 128, kernel)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(bits(run(*call, True)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@on_each_computing
@KERNELS
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_input(kernel, value, provider):
    """A bad pixel spoils every output that depends on it, and at most all of the tiles that read it."""
    x, weight, *_ = draw_call(8, (1, 16, 13, 14, 15), 16, kernel)
    x[0, 3, 6, 6, 6] = value
    bad = ~torch.isfinite(run(x, weight, None, None, None, False))
    needed = ~torch.isfinite(exact(x, weight, None, None, None, False))
    assert (bad | ~needed).all()
    clean = torch.ones_like(bad)
    clean[:, :, slice(4, 8) if kernel == TEMPORAL else 6, slice(4, 8) if kernel == SPATIAL else 6,
          slice(4, 8) if kernel == SPATIAL else 6] = False  # fmt: skip
    assert not (bad & clean).any()


def test_where_it_pays():
    def pays(weight, dtype=torch.float32, **settings):
        return winograd.pays(spec_of(torch.empty(weight, device="meta"), **settings), dtype)

    assert pays((64, 64, *SPATIAL)) and pays((256, 1024, *TEMPORAL))
    assert not pays((64, 64, *SPATIAL), torch.bfloat16)
    assert not pays((64, 64, *SPATIAL), stride=(1, 2, 2))
    assert not pays((64, 64, *SPATIAL), padding=0)
    assert not pays((64, 64, *SPATIAL), padding=(0, 2, 2), dilation=(1, 2, 2))
    assert not pays((64, 8, *SPATIAL)) and not pays((72, 64, *SPATIAL)) and not pays((64, 64, 3, 3, 3))
