"""bottleneck3d's CUDA kernels in chains: a wide block computes the next block's conv_a along with its result."""

import importlib
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ops.parity import (
    ORDERS,
    bits,
    check,
    on_cuda,
    reference,
    there,
)
from slowfast_kernels import _extension
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._memory import empty_channels_last
from slowfast_kernels.ops._spec import ConvAffine
from slowfast_kernels.ops.bottleneck3d.cases import _call
from slowfast_kernels.ops.bottleneck3d.spec import BlockSpec
from slowfast_kernels.testing import assert_same_nonfinite, provider_device, to_float64, unit_roundoff

DEVICE = provider_device("cuda")
kernels = importlib.import_module("slowfast_kernels.ops.bottleneck3d.cuda")
fit = importlib.import_module("slowfast_kernels.ops.bottleneck3d.cuda_tiles")
DTYPES = (torch.bfloat16, torch.float16)
pytestmark = on_cuda

#: First blocks of SlowFast's chains and of others: x, inner and outer width, stride, dilation.
FIRST = {
    "res2": ((1, 80, 2, 5, 7), 64, 256, 1, 1),
    "res3": ((1, 320, 2, 7, 9), 128, 512, 2, 1),
    "136 channels": ((2, 24, 1, 3, 5), 64, 136, 1, 1),
    "200 channels": ((1, 72, 1, 6, 5), 128, 200, 1, 2),
}


def chain_of(name, length, dtype=torch.bfloat16, seed=0):
    """(x, blocks): of every block its parameters and its stride and dilation; the first has a shortcut convolution."""
    shape, inner, cout, stride, dilation = FIRST[name]
    draw = Draw(seed=seed, dtype=dtype)
    (x, *first), kwargs = _call(draw, shape, inner, cout, 1, True, stride=stride, dilation=dilation)
    blocks = [(first, kwargs)]
    for _ in range(length - 1):
        (_, *rest), kwargs = _call(draw, (1, cout, 1, 1, 1), inner, cout, stride=1, dilation=dilation)
        blocks.append((rest, kwargs))
    return x, blocks


def spec_of(parameters):
    """The block with stride and dilation 1: packing does not ask for them."""
    return BlockSpec(*parameters)


def poisoned(x, channels, stride=1):
    """NaN of a map of x's pixels, every stride-th of a row and column."""
    n, _, t, h, w = x.shape
    shape = (n, channels, t, (h - 1) // stride + 1, (w - 1) // stride + 1)
    return empty_channels_last(x, shape).fill_(math.nan)


def run_chain(x, blocks, config=None):
    """(out, following) of every block, of the last (out, None)."""
    x, blocks = there((x, blocks))
    inner, results = None, []
    for i, (parameters, kwargs) in enumerate(blocks):
        after = blocks[i + 1][0][0] if i + 1 < len(blocks) else None
        packed = kernels.pack(BlockSpec(*parameters, **kwargs), x.dtype, after)
        out = poisoned(x, packed.cout, kwargs["stride"])
        following = None if after is None else poisoned(out, packed.inner)
        more = {"inner": inner, "following": following, "ready": i > 0, "config": config}
        kernels.run_packed(x, packed, out, **kwargs, **more)
        results.append((out, following))
        x, inner = out, following
    return results


def run_link(x, parameters, after, out=None, following=None, **more):
    """(out, following) of one block."""
    x, parameters, after = there((x, parameters, after))
    packed = kernels.pack(spec_of(parameters), x.dtype, after)
    out = poisoned(x, packed.cout, more.get("stride", 1)) if out is None else out
    following = poisoned(out, packed.inner) if following is None else following
    kernels.run_packed(x, packed, out, following=following, **more)
    return out.cpu(), following.cpu()


def results_of(x, blocks, tile=None):
    """Every result of a chain."""
    config = None if tile is None else fit.TailTiles(*tile)
    return [r for pair in run_chain(x, blocks, config) for r in pair if r is not None]


def links(x, blocks):
    """Reference results of every block, and what each makes of the one before."""
    results = []
    for parameters, kwargs in blocks:
        x = reference("bottleneck3d", (x, *parameters), kwargs)[0]
        results.append(x)
    return results


def check_following(got, out, weight, scale, shift):
    """The conv_a of the values stored: one rounding, and the errors of float32 sums."""
    folded = weight.flatten(1).float() if scale is None else weight.flatten(1).float() * scale.view(-1, 1)
    folded = folded.to(weight.dtype).double()
    bias = torch.zeros(weight.shape[0]) if shift is None else shift
    wide, bias = out.cpu().double(), bias.double().view(1, -1, 1, 1, 1)

    def product(w, x):
        return torch.einsum("oc,ncthw->nothw", w, x)

    exact = (product(folded, wide) + bias).relu()
    sums = product(folded.abs(), wide) + bias.abs()
    allowed = unit_roundoff(got.dtype) * exact + 1e-5 * sums
    over = (got.cpu().double() - exact).abs() - allowed
    assert (over <= 0).all(), (
        f"an element of the next conv_a is off by {over.max():.3g} more than its rounding"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("name", FIRST)
def test_parity(name, length, dtype, provider):
    """Blocks in a chain against the same blocks composed in float64, and every link by itself."""
    x, blocks = chain_of(name, length, dtype)
    got = run_chain(x, blocks)
    exact, peer = links(*to_float64((x, blocks))), links(x, blocks)
    check([out.cpu() for out, _ in got], exact, peer, 1, name)
    for (out, following), (parameters, _) in zip(got, blocks[1:], strict=False):
        check_following(following, out, *parameters[0])


@pytest.mark.parametrize("name", FIRST)
def test_against_the_kernels_unchained(name, provider):
    """The block's own result to the bit; the next conv_a but for the order of its sums."""
    x, blocks = chain_of(name, 3)
    tiles = fit.TailTiles(4, 4)
    (x, blocks), inner = there((x, blocks)), None
    for i, (out, following) in enumerate(run_chain(x, blocks, config=tiles)):
        parameters, kwargs = blocks[i]
        alone = kernels.pack(spec_of(parameters), x.dtype)
        other = poisoned(x, alone.cout, kwargs["stride"])
        kernels.run_packed(x, alone, other, **kwargs, inner=inner, ready=i > 0, config=tiles)
        assert torch.equal(bits(other), bits(out)), f"block {i}"
        if following is not None:
            after = kernels.pack(spec_of(blocks[i + 1][0]), x.dtype)
            conv_a = torch.full_like(following, math.nan)
            torch.ops.slowfast._block_wide_a_run_cuda(out, after.weights_a, after.shift_a, 1, conv_a)
            torch.testing.assert_close(following, conv_a, rtol=2 * unit_roundoff(x.dtype), atol=1e-5)
        x, inner = out, following


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FIRST)
def test_the_next_conv_a_reads_the_values_stored(name, dtype, provider):
    """A weight that picks one channel brings it over to the bit, every channel at a column of its own."""
    x, ((parameters, kwargs), _) = chain_of(name, 2, dtype)
    x = x[:, :, :1]
    inner, cout = (len(conv.weight) for conv in (parameters[0], parameters[2]))
    for first in range(0, cout, inner):
        picked = torch.randperm(cout)[:inner] if first == 0 else (torch.arange(inner) + first) % cout
        weight = torch.eye(cout, dtype=dtype)[picked].view(inner, cout, 1, 1, 1)
        out, following = run_link(x, parameters, ConvAffine(weight), **kwargs)
        assert torch.equal(bits(following), bits(out[:, picked]))


@pytest.mark.parametrize("name", FIRST)
def test_tiles_do_not_change_the_result(name, provider):
    x, blocks = chain_of(name, 2)
    first = results_of(x, blocks)
    # one pixel, less than a warp's rows, 64 rows, more rows of 128 than the halo has pixels, larger than the frame
    for tile in ((1, 1), (3, 3), (8, 8), (5, 13), (9, 14)):
        for one, other in zip(first, results_of(x, blocks, tile), strict=True):
            assert torch.equal(bits(one), bits(other)), tile


def test_every_form_of_a_block_gets_tiles_of_its_own(provider):
    """The same shapes by themselves, where one kernel may do it all, and in a chain, where it may not."""
    x, (_, (parameters, kwargs), (after, _)) = chain_of("res2", 3)
    draw = Draw(seed=3, dtype=x.dtype)
    x, inner = draw.normal(1, 256, 1, 4, 3), draw.normal(1, 64, 1, 4, 3)
    alone = kernels.pack(spec_of(there(parameters)), x.dtype)

    def run(**more):
        return kernels.run_packed(there(x), alone, poisoned(there(x), 256), **kwargs, **more).cpu()

    first = run()
    check(
        [first], links(*to_float64((x, [(parameters, kwargs)]))), links(x, [(parameters, kwargs)]), 1, "alone"
    )
    chained, following = run_link(x, parameters, after[0], **kwargs)
    check_following(following, chained, *after[0])
    tiles = fit.TailTiles(4, 3)
    assert torch.equal(bits(chained), bits(run(config=tiles)))
    ready = {"inner": there(inner), "ready": True}
    assert torch.equal(bits(run(**ready)), bits(run(**ready, config=tiles)))
    assert torch.equal(bits(run()), bits(first))


@st.composite
def drawn_links(draw):
    shortcut = draw(st.booleans())
    cin = 8 * draw(st.integers(1, 12))
    cout = 8 * draw(st.integers(1, 20)) if shortcut else cin
    inner = draw(st.sampled_from(kernels.WIDE))
    source = Draw(seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from(DTYPES)))
    shape = (draw(st.integers(0, 2)), cin, *(draw(st.integers(1, n)) for n in (2, 9, 11)))
    stride, affine = draw(st.integers(1, 3)) if shortcut else 1, draw(st.booleans())
    kernel_t, dilation = draw(st.sampled_from([1, 3])), draw(st.integers(1, 3))
    args, kwargs = _call(
        source, shape, inner, cout, kernel_t, shortcut, affine, stride=stride, dilation=dilation
    )
    after = ConvAffine(source.weight(inner, cout, 1, 1, 1), source.scale(inner), source.shift(inner))
    config = fit.TailTiles(draw(st.integers(1, 9)), draw(st.integers(1, 14)))
    return args, kwargs, after if affine else ConvAffine(after.weight), config


@settings(max_examples=15)
@given(drawn=drawn_links())
def test_drawn_links(drawn, provider):
    (x, *parameters), kwargs, after, config = drawn
    assume(x.numel() < 15000)  # each pixel costs tens of thousands of products
    out, following = run_link(x, parameters, after, **kwargs, config=config)
    exact = links(*to_float64((x, [(parameters, kwargs)])))
    check([out], exact, links(x, [(parameters, kwargs)]), 1, str(config))
    check_following(following, out, *after)


@pytest.mark.skipif(not _extension.EMULATE, reason="orders of the emulator's threads")
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("tile", [(4, 6), (13, 5)], ids=str)
def test_the_order_of_the_threads_does_not_matter(tile, name, provider, monkeypatch):
    x, blocks = chain_of(name, 3)
    x = x[:, :, :1]
    first = results_of(x, blocks, tile)
    assert all(result.isfinite().all() for result in first)
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        again = results_of(x, blocks, tile)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(again, first, strict=True)), order


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FIRST)
def test_nonfinite_input_stays_where_it_belongs(name, value, dtype, provider):
    """A bad pixel spreads over the windows of a chain's blocks, and no further."""
    x, blocks = chain_of(name, 2, dtype)
    x[0, 2, -1, -1, -1] = value
    exact = links(*to_float64((x, blocks)))
    for (out, _), expected in zip(run_chain(x, blocks), exact, strict=True):
        assert_same_nonfinite(out.cpu(), expected, f"{name}, {value}")
        assert not expected.isfinite().all() and (name == "136 channels" or expected.isfinite().any())


@pytest.mark.parametrize("name", ["136 channels", "200 channels"])
def test_infinity_meets_no_channels_behind_the_last(name, provider):
    """Positive weights keep an infinity one; a product of it with a zero of the padding would not be."""
    x, ((parameters, kwargs), (after, _)) = chain_of(name, 2)
    parameters, after = pytree.tree_map_only(torch.Tensor, torch.abs, (parameters, after[0]))
    x[0, 2, 0, 0, 0] = math.inf
    out, following = run_link(x, parameters, after, **kwargs)
    assert not out.isnan().any() and not following.isnan().any()
    assert torch.equal(following.isinf().all(1), out.isinf().all(1)) and following.isinf().any()
    assert not following.isinf().all()


@pytest.mark.parametrize("name", FIRST)
def test_results_in_channel_slices(name, provider):
    x, ((parameters, kwargs), (after, _)) = chain_of(name, 2)
    expected = run_link(x, parameters, after[0], **kwargs)
    places = []
    for result, before, behind in zip(expected, (8, 24), (16, 8), strict=True):
        n, c, *thw = result.shape
        wide = empty_channels_last(x, (n, before + c + behind, *thw)).fill_(7).to(DEVICE)
        places.append((wide, wide[:, before : before + c]))
    run_link(x, parameters, after[0], out=places[0][1], following=places[1][1], **kwargs)
    for result, (wide, place) in zip(expected, places, strict=True):
        assert torch.equal(place.cpu(), result)
        place.fill_(7)
        assert (wide == 7).all(), "the channels around the slice"


@pytest.mark.parametrize("inner", kernels.WIDE)
def test_every_argument_is_obeyed(inner, provider):
    draw = Draw(seed=11, dtype=torch.bfloat16)
    frames, kernel_t = (2, 3) if inner == 64 else (1, 1)
    shape = (1, 24, frames, 4, 5)
    args, kwargs = _call(draw, shape, inner, 40, kernel_t, True, stride=1, dilation=1)
    after = ConvAffine(draw.weight(inner, 40, 1, 1, 1), draw.scale(inner), draw.shift(inner))
    flat, tree = pytree.tree_flatten((*args, after))

    def run(args, kwargs):
        x, *parameters, after = pytree.tree_unflatten(args, tree)
        return run_link(x, parameters, after, **kwargs)

    base_out, base = run(flat, kwargs)
    changes: list[tuple[int, Any]] = [
        (i, draw.normal(*a.shape, std=0.3).to(a.dtype)) for i, a in enumerate(flat)
    ]
    changes += [(i, None) for i in (2, 3, 5, 6, 8, 9, 11, 12, 14, 15)]
    changed = [(i, [*flat[:i], value, *flat[i + 1 :]], kwargs) for i, value in changes]
    changed += [(0, flat, {"stride": 2, "dilation": 1}), (0, flat, {"stride": 1, "dilation": 2})]
    for i, some, options in changed:
        out, got = run(some, options)
        assert got.shape != base.shape or not torch.equal(got, base), i
        assert torch.equal(out, base_out) == (i >= 13), i
        x, *parameters, after = pytree.tree_unflatten(some, tree)
        exact = links(*to_float64((x, [(parameters, options)])))
        check([out], exact, links(x, [(parameters, options)]), 1, f"argument {i}")
        check_following(got, out, *after)


@pytest.mark.parametrize("shortcut", [False, True])
def test_a_ready_conv_a_is_read_and_nothing_else_is(shortcut, provider):
    """Of `ready` blocks: conv_a's parameters do not matter, what lies in inner does, and the residual is x."""
    draw = Draw(seed=5, dtype=torch.bfloat16)
    (x, *parameters), kwargs = _call(draw, (1, 40, 1, 4, 5), 64, 40, 1, shortcut, stride=1, dilation=1)
    after = ConvAffine(draw.weight(64, 40, 1, 1, 1), draw.scale(64), draw.shift(64))
    inner = draw.normal(1, 64, 1, 4, 5)
    given = {**kwargs, "inner": there(inner), "ready": True}
    out, following = run_link(x, parameters, after, **given)
    assert torch.equal(given["inner"].cpu(), inner)
    weight = draw.weight(*parameters[0].weight.shape)
    other = [ConvAffine(weight, draw.scale(64), draw.shift(64)), *parameters[1:]]
    for one, two in zip(run_link(x, other, after, **given), (out, following), strict=True):
        assert torch.equal(bits(one), bits(two))
    for change in ({"x": x.neg()}, {"inner": there(inner.roll(1, 1))}, {"ready": False}):
        more = {**given, **change}
        got, got_following = run_link(more.pop("x", x), parameters, after, **more)
        assert not torch.equal(got, out) and not torch.equal(got_following, following), list(change)


def test_what_cannot_be_chained(provider):
    draw = Draw(dtype=torch.bfloat16)
    (_, *wide), _ = _call(draw, (1, 24, 1, 3, 3), 64, 40, 1, True)
    (_, *narrow), _ = _call(draw, (1, 24, 1, 3, 3), 32, 40, 1, True)
    for shape in ((64, 24, 1, 1, 1), (128, 40, 1, 1, 1), (64, 40, 3, 1, 1)):
        message = f"following: expected a weight of shape (64, 40, 1, 1, 1), got {shape}"
        with pytest.raises(ValueError, match=re.escape(message)):
            kernels.pack(spec_of(wide), torch.bfloat16, ConvAffine(draw.weight(*shape)))
    with pytest.raises(ValueError, match="following: expected a block of inner width 64 or 128, got 32"):
        kernels.pack(spec_of(narrow), torch.bfloat16, ConvAffine(draw.weight(32, 40, 1, 1, 1)))


def test_what_a_call_has_to_say(provider):
    draw = Draw(dtype=torch.bfloat16)
    (x, *parameters), _ = there(_call(draw, (1, 40, 1, 3, 3), 64, 40))
    after = there(ConvAffine(draw.weight(64, 40, 1, 1, 1)))
    alone, chained = (kernels.pack(spec_of(parameters), x.dtype, f) for f in (None, after))
    out, inner = poisoned(x, 40), poisoned(x, 64)
    with pytest.raises(ValueError, match=r"packed with the next block's conv_a, got no place for its result"):
        kernels.run_packed(x, chained, out)
    with pytest.raises(ValueError, match=r"packed without the next block's conv_a, got a place for its"):
        kernels.run_packed(x, alone, out, following=inner)
    with pytest.raises(ValueError, match="ready: expected a wide block, and inner with its conv_a"):
        kernels.run_packed(x, alone, out, ready=True)
    (_, *parameters), _ = there(_call(draw, (1, 40, 1, 3, 3), 16, 40))
    narrow = kernels.pack(spec_of(parameters), x.dtype)
    with pytest.raises(ValueError, match="ready: expected a wide block, and inner with its conv_a"):
        kernels.run_packed(x, narrow, out, inner=inner, ready=True)
    for more in ({"packed": chained, "following": poisoned(x, 64)}, {"packed": alone, "ready": True}):
        with pytest.raises(ValueError, match="config: expected tiles of a block in two kernels, which alone"):
            kernels.run_packed(x, out=out, inner=inner, config=fit.TailTiles(3, 3, True), **more)


def test_what_the_launcher_refuses(provider):
    draw = Draw(dtype=torch.bfloat16)
    (x, *parameters), _ = there(_call(draw, (1, 40, 1, 3, 4), 64, 40))
    after = there(ConvAffine(draw.weight(64, 40, 1, 1, 1)))
    alone, chained = (kernels.pack(spec_of(parameters), x.dtype, f) for f in (None, after))
    inner = draw.normal(1, 64, 1, 3, 4).to(DEVICE)
    place = poisoned(x, 64)

    def refused(message, weights=chained.weights, shifts=chained.shifts, following=place):
        out = poisoned(x, 40)
        with pytest.raises(RuntimeError, match=message):
            torch.ops.slowfast._block_wide_rest_run_cuda(
                inner, x, weights, shifts, 1, 1, False, [3, 4], out, following
            )
        assert out.isnan().all() and place.isnan().all()

    refused("weights: expected packed weights of these channels", weights=alone.weights)
    refused("weights: expected packed weights of these channels", following=None, shifts=alone.shifts)
    refused("shifts: expected 192 contiguous float32 values, got 128", shifts=alone.shifts)
    refused("shifts: expected 128 contiguous", following=None, weights=alone.weights)
    pixels = "following: expected out's pixels and 64 channels"
    for shape in ((2, 64, 1, 3, 4), (1, 128, 1, 3, 4), (1, 64, 2, 3, 4), (1, 64, 1, 2, 4), (1, 64, 1, 3, 3)):
        refused(pixels, following=empty_channels_last(x, shape))
    refused("following: expected other memory than inner's", following=inner)
    refused("following: expected another element type", following=place.half())
    refused("following: expected channels_last_3d memory", following=place.contiguous())
    refused("following: expected a multiple of 8 channels", following=poisoned(x, 72)[:, 4:68])


@pytest.mark.skipif(not _extension.EMULATE, reason="the emulator says how much was asked for")
@pytest.mark.parametrize("shape, inner, cout, tile", [
    ((1, 80, 1, 3, 3), 64, 72, (8, 13)),
    ((1, 24, 1, 3, 3), 128, 72, (8, 8)),
    ((1, 24, 1, 3, 3), 128, 72, (8, 13)),
    ((1, 888, 1, 1, 1), 128, 8, (8, 8)),
    ((1, 888, 1, 1, 1), 128, 8, (8, 13)),
], ids=str)  # fmt: skip
def test_shared_memory_is_what_the_choice_of_tiles_reckons(shape, inner, cout, tile, provider):
    """Of maps, and of operands: asking for more than there is is refused with the number of bytes."""
    draw, dilation = Draw(dtype=torch.bfloat16), 1 if shape[1] == 888 else 17
    (x, *parameters), kwargs = _call(draw, shape, inner, cout, 1, True, stride=7, dilation=dilation)
    after, config = ConvAffine(draw.weight(inner, cout, 1, 1, 1)), fit.TailTiles(*tile)
    packed = kernels.pack(spec_of(parameters), x.dtype, after)
    expected = fit.tail_shared_bytes(packed, config, 7, dilation)
    with pytest.raises(RuntimeError, match="at most 232448 bytes of shared memory") as caught:
        run_link(x, parameters, after, **kwargs, config=config)
    assert int(re.findall(r"\d+", str(caught.value))[-1]) == expected, str(caught.value)
