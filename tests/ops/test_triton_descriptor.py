"""The Triton convolution through tensor descriptors (interpreted, where there is no GPU) against float64."""

import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from ops.parity import bits, check, on_triton, reference, there
from slowfast_kernels import backends, ops
from slowfast_kernels._triton.launch import recording
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.testing import provider_device, to_float64

OP = "conv_bn_act3d"
DEVICE = provider_device("triton")
kernels = importlib.import_module("slowfast_kernels.ops.conv_bn_act3d.triton")
ahead = importlib.import_module("slowfast_kernels._triton.ahead")
block = importlib.import_module("slowfast_kernels.ops.bottleneck3d.triton")
descriptor, choices = kernels.descriptor, kernels.triton_tiles
Tiles, Work = choices.Tiles, choices.Work
HALVES = [torch.bfloat16, torch.float16]
pytestmark = [
    on_triton,
    pytest.mark.filterwarnings(
        "ignore:invalid value encountered:RuntimeWarning"
    ),  # the interpreter's infinities
]

#: x, output channels, kernel, dilation: odd numbers of frames, frames that no tile divides, clips within one tile.
SHAPES = {
    "1x1x1": ((2, 80, 3, 5, 7), 96, (1, 1, 1), (1, 1, 1)),
    "1x1x1 of one pixel": ((1, 64, 1, 1, 1), 64, (1, 1, 1), (1, 1, 1)),
    "3x1x1": ((3, 64, 3, 5, 7), 72, (3, 1, 1), (1, 1, 1)),
    "3x1x1 of one clip": ((1, 128, 4, 3, 5), 256, (3, 1, 1), (1, 1, 1)),
    "3x1x1 of one frame": ((2, 64, 1, 7, 3), 64, (3, 1, 1), (1, 1, 1)),
    "7x1x1, dilated": ((2, 64, 7, 2, 3), 64, (7, 1, 1), (2, 1, 1)),
    "1x3x3": ((2, 64, 3, 7, 9), 64, (1, 3, 3), (1, 1, 1)),
    "1x3x3, dilated": ((1, 64, 2, 6, 5), 88, (1, 3, 3), (1, 2, 2)),
    "3x3x3": ((2, 64, 3, 4, 5), 64, (3, 3, 3), (1, 1, 1)),
}

#: Small ones, so that there are several along every axis; also of more pixels than the output has.
TILES = {
    "plain": Tiles(32, 64, 32, descriptors=True),
    "wide": Tiles(256, 128, 64, 8, descriptors=True),
    "overlap": Tiles(64, 32, 64, descriptors=True, overlap=True),
    "2 splits": Tiles(32, 64, 64, descriptors=True, splits=2),
    "3 splits": Tiles(64, 128, 32, descriptors=True, splits=3),
}


def slice_of(x, dtype):
    """``x`` as channels of a wider map that is NaN elsewhere, and the whole map."""
    n, c, *extents = x.shape
    wide = torch.full((n, c + 24, *extents), math.nan, dtype=dtype, device=DEVICE)
    wide = wide.contiguous(memory_format=torch.channels_last_3d)
    wide[:, 8 : 8 + c] = x
    return wide[:, 8 : 8 + c], wide


def packed_of(*args, **kwargs):
    return kernels.Packed(**there(kernels.pack(*args, **kwargs).__dict__))


class Drawn:
    """A convolution with everything that may be added to it: arguments, and the result in float64 and in the type.

    second: channels of a second map, and the stride that its 1x1x1 convolution has in space.
    """

    def __init__(self, name, dtype=torch.bfloat16, residual=False, second=None, fold=True, relu=True):
        shape, cout, self.kernel, self.dilation = SHAPES[name]
        draw = Draw(seed=7, dtype=dtype)
        n, _, t, h, w = shape
        self.dtype, self.cout, self.relu, self.stride2 = dtype, cout, relu, (1, 1, 1)
        self.padding = tuple(d * (k // 2) for k, d in zip(self.kernel, self.dilation, strict=True))
        self.x, self.weight = draw.normal(*shape), draw.weight(cout, shape[1], *self.kernel)
        self.scale, self.shift = draw.scale(cout), draw.shift(cout)
        self.residual = draw.normal(n, cout, t, h, w) if residual else None
        self.x2 = self.weight2 = self.scale2 = None
        if second is not None:
            channels, s = second
            self.stride2 = (1, s, s)
            self.x2 = draw.normal(n, channels, t, s * h - s + 1, s * w)
            self.weight2, self.scale2 = draw.weight(cout, channels, 1, 1, 1), draw.scale(cout)
        self.packed = packed_of(self.weight, self.scale, self.weight2, self.scale2, dtype=dtype, fold=fold)
        tensors = (
            self.x,
            self.weight,
            self.scale,
            self.shift,
            self.residual,
            self.x2,
            self.weight2,
            self.scale2,
        )
        self.exact, self.peer = self.plain(*to_float64(tensors)), self.plain(*tensors)

    def plain(self, x, weight, scale, shift, residual, x2, weight2, scale2):
        if x2 is not None:
            second = reference(OP, (x2, weight2, scale2), {"stride": self.stride2, "activation": "none"})[0]
            residual = second if residual is None else second + residual
        settings = {"padding": self.padding, "dilation": self.dilation}
        return reference(
            OP, (x, weight, scale, shift, residual),
            {**settings, "activation": "relu" if self.relu else "none"},
        )  # fmt: skip

    @property
    def products(self):
        return self.weight[0].numel() + (0 if self.weight2 is None else len(self.weight2[0]))

    def run(self, config, x=None, out=None, partial=None, residual=None):
        x = slice_of(self.x, self.dtype)[0] if x is None else x
        if residual is None and self.residual is not None:
            residual = slice_of(self.residual, self.dtype)[0]
        if out is None:
            out = slice_of(torch.full_like(self.exact[0], math.nan), self.dtype)[0]
        if config is not None and config.descriptors and config.splits > 1 and partial is None:
            partial = torch.full((choices.PARTIAL_VALUES,), math.nan, device=DEVICE)
        kernels.run_packed(
            x, self.packed, there(self.shift), out, padding=self.padding, dilation=self.dilation, relu=self.relu,
            residual=residual, x2=None if self.x2 is None else slice_of(self.x2, self.dtype)[0],
            stride2=self.stride2, partial=partial, config=config,
        )  # fmt: skip
        return out

    def holds(self, out, what):
        check([out.cpu()], self.exact, self.peer, self.products, what)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("name", SHAPES)
def test_tiles_and_shapes(name, tiles, provider):
    """Maps that are channel slices of others full of NaN; the scratch memory is full of it as well."""
    drawn = Drawn(name, residual=tiles != "plain", relu=tiles != "wide")
    out, wide = slice_of(torch.full_like(drawn.exact[0], math.nan), drawn.dtype)
    drawn.run(TILES[tiles], out=out)
    drawn.holds(out, f"{name}, {tiles}")
    assert wide[:, :8].isnan().all() and wide[:, 8 + drawn.cout :].isnan().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "name, second", [("1x1x1", (72, 1)), ("1x1x1", (136, 2)), ("3x1x1", (64, 2))], ids=str
)
@pytest.mark.parametrize("tiles", ["plain", "3 splits"])
def test_second_source(tiles, name, second, residual, dtype, provider):
    drawn = Drawn(name, dtype, residual=residual, second=second)
    drawn.holds(drawn.run(TILES[tiles]), f"{name} and a second map")


@pytest.mark.parametrize("tiles", ["plain", "2 splits"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scale_behind_the_sums(dtype, tiles, provider):
    drawn = Drawn("3x1x1", dtype, residual=True, fold=False)
    assert drawn.packed.scale is not None
    drawn.holds(drawn.run(TILES[tiles]), "scale")


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("name", ["3x1x1", "1x3x3"])
def test_clips_know_nothing_of_each_other(name, tiles, provider):
    """The bits of every clip are those it has alone, also where a tile holds several and the others are NaN."""
    drawn = Drawn(name)
    n = len(drawn.x)
    together = drawn.run(TILES[tiles])
    for i in range(n):
        x = torch.full_like(drawn.x, math.nan)
        x[i] = drawn.x[i]
        out = drawn.run(TILES[tiles], x=slice_of(x, drawn.dtype)[0])
        assert torch.equal(bits(out[i]), bits(together[i]))
        assert out[[j for j in range(n) if j != i]].isnan().any()


@pytest.mark.parametrize("name", ["3x1x1", "3x3x3"])
def test_boxes_change_no_bits(name, provider):
    drawn = Drawn(name, residual=True)
    first = drawn.run(Tiles(32, 32, 64, descriptors=True))
    for m, n, overlap in ((64, 32, True), (128, 16, False), (256, 64, True)):
        out = drawn.run(Tiles(m, n, 64, descriptors=True, overlap=overlap))
        assert torch.equal(bits(out), bits(first)), (m, n, overlap)


def test_split_sums_do_not_depend_on_the_scratch_memory(provider):
    drawn, config = Drawn("3x1x1", residual=True), TILES["2 splits"]
    results = [
        drawn.run(config, partial=torch.full((choices.PARTIAL_VALUES,), value, device=DEVICE))
        for value in (0.0, math.nan, 3.0)
    ]
    for other in results[1:]:
        assert torch.equal(bits(other), bits(results[0]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_eight_warps_have_the_bits_of_four(name, provider):
    """Each sum has its products in the same order; the form with pointers has been wrong with eight warps."""
    drawn = Drawn(name, residual=True)
    for m, n in ((128, 128), (256, 128), (128, 256)):
        four, eight = (drawn.run(Tiles(m, n, 64, w, 2, descriptors=True)) for w in (4, 8))
        assert torch.equal(bits(four), bits(eight)), (m, n)


@pytest.mark.parametrize("tiles", ["plain", "2 splits"])
def test_out_may_be_the_residual(tiles, provider):
    drawn = Drawn("3x1x1", residual=True)
    expected = drawn.run(TILES[tiles])
    out = slice_of(drawn.residual, drawn.dtype)[0]
    drawn.run(TILES[tiles], out=out, residual=out)
    assert torch.equal(bits(out), bits(expected))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, provider):
    drawn = Drawn("3x1x1", relu=False)
    drawn.x[1, 9, 1, 3, 4] = value
    tensors = (drawn.x, drawn.weight, drawn.scale, drawn.shift, None, None, None, None)
    expected = drawn.plain(*to_float64(tensors))[0]
    for tiles in TILES.values():
        got = drawn.run(tiles).cpu().double()
        assert torch.equal(got.isfinite(), expected.isfinite())
        assert torch.equal(got.isnan(), expected.isnan())


# --- who takes it ------------------------------------------------------------------------------------------


def form(args, kwargs, capability=90):
    """Kernels that a call starts."""
    with recording(capability) as launches:
        ops.conv_bn_act3d(*args, **kwargs)
    return {item.name for item in launches}


def test_descriptors_are_the_default_where_they_can_be(provider):
    draw = Draw(seed=1, dtype=torch.bfloat16)
    x, point, taps = draw.normal(2, 64, 3, 5, 6), draw.weight(64, 64, 1, 1, 1), draw.weight(64, 64, 3, 1, 1)
    along = {"padding": (1, 0, 0)}
    by_pointers = [
        ("float32", (x.float(), point.float()), {}),
        ("a window with a stride", (x, taps), {**along, "stride": (2, 1, 1)}),
        ("a slice at 8 bytes", (draw.normal(2, 72, 3, 5, 6)[:, 4:68], point), {}),
        ("pixels of 8 bytes more", (draw.normal(2, 68, 3, 5, 6)[:, :64], point), {}),
        ("few channels", (x[:, :32], point[:, :32]), {}),
        ("few output channels", (x, point[:32]), {}),
        ("channels that a step does not divide", (draw.normal(2, 72, 3, 5, 6), draw.weight(64, 72, 3, 1, 1)), along),
    ]  # fmt: skip
    with backends.use_backend("triton"):
        for kwargs in ({}, {"stride": (1, 2, 2)}, {"stride": (2, 1, 1)}):
            assert form(there((x, point)), kwargs) == {"descriptor_kernel"}
        assert form(there((x, taps)), along) == {"descriptor_kernel"}
        assert form(there((x, taps)), along, capability=80) == {"conv_kernel"}
        for why, args, kwargs in by_pointers:
            assert form(there(args), kwargs) == {"conv_kernel"}, why


def test_what_descriptors_cannot_read_is_right_all_the_same(provider):
    draw = Draw(seed=2, dtype=torch.bfloat16)
    x, weight = draw.normal(2, 72, 3, 5, 6)[:, 4:68], draw.weight(64, 64, 3, 1, 1)
    kwargs = {"padding": (1, 0, 0)}
    exact, peer = reference(OP, *to_float64(((x, weight), kwargs))), reference(OP, (x, weight), kwargs)
    with backends.use_backend("triton"):
        got = ops.conv_bn_act3d(*there((x, weight)), **kwargs).cpu()
    check([got], exact, peer, weight[0].numel(), "a slice at 8 bytes")


def works(batch):
    """Of the network's convolutions that descriptors can read: what their tiles depend on, and the prepared op."""
    for case in cases_of(OP):
        (x, weight, *_, residual), kwargs = case.args(dtype=torch.bfloat16, device="meta", batch=batch)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("out", "channel_offset")}
        spec = ops.ConvSpec((weight,), **kwargs)
        if not case.real or kernels.cannot(spec, torch.bfloat16):
            continue
        prepared = kernels.prepare(spec, torch.bfloat16, x.device)
        shape = spec.out_shape(x.shape)
        out = torch.empty(shape, dtype=x.dtype, device="meta", memory_format=torch.channels_last_3d)
        if residual is not None:
            residual = out
        call = descriptor.call_of(
            x, prepared.packed, out, spec.stride, spec.padding, spec.dilation, residual, None, (1, 1, 1)
        )
        if call is not None:
            yield case.name, call.work, prepared.scratch(x.shape)


@pytest.mark.parametrize("batch", [1, 2, 8, 32])
def test_tiles_fit_the_machine(batch, provider, monkeypatch):
    """Every choice and candidate over the network's shapes; the scratch memory that is declared holds what is split."""
    monkeypatch.setattr(backends, "simulated", lambda name: False)
    split = met = 0
    for name, plain, scratch in works(batch):
        for work in (plain, replace(plain, channels2=320), replace(plain, residual=True)):
            first, several = choices.descriptor_heuristic(work), choices.descriptor_candidates(work)
            assert first == several[0] and len(set(several)) == len(several) <= choices.MOST_CANDIDATES
            for tiles in several:
                met += 1
                split += tiles.splits > 1
                assert tiles.descriptors and tiles.block_k == choices.STEP
                assert choices.resident(tiles, work) >= 1, (name, tiles)
                box = choices.box_of(tiles.block_m, work.extents)
                assert math.prod(box) == tiles.block_m and max(box) <= 256
                assert not (tiles.overlap and work.channels2)
                if tiles.splits > 1:
                    values = choices.tiles_of(tiles, work) * tiles.splits * tiles.block_m * tiles.block_n
                    assert scratch and values <= math.prod(scratch[0][0]) and scratch[0][1] == torch.float32
                    assert work.steps(tiles.block_k) >= tiles.splits
    assert met > 50 and bool(split) == (batch <= 2)


@pytest.mark.parametrize(
    "pixels, extents, least",
    [
        (256, (8, 8, 1, 196), 12544),  # res4's 3x1x1: a frame's 196 pixels are 4 times 49
        (128, (8, 8, 1, 49), 3200),  # res5's
        (256, (1, 64, 14, 14), 12544),
        (64, (1, 64, 7, 7), 3136),
        (128, (1, 1, 1, 1), 128),
    ],
)
def test_boxes_cover_few_pixels_too_many(pixels, extents, least, provider):
    box = choices.box_of(pixels, extents)
    assert math.prod(box) == pixels
    assert math.prod(-(-e // b) * b for e, b in zip(extents, box, strict=True)) == least


def test_tiles_are_kept_as_text(provider):
    for tiles in TILES.values():
        assert Tiles(**json.loads(json.dumps(asdict(tiles)))) == tiles


# --- in blocks and prepared ops ----------------------------------------------------------------------------


@pytest.fixture
def splitting(monkeypatch):
    """Every convolution that descriptors can read is split; says how many sums were added up."""
    met = []

    def heuristic(work):
        met.append(work)
        return TILES["2 splits"]

    monkeypatch.setattr(choices, "descriptor_heuristic", heuristic)
    monkeypatch.setattr(kernels.TUNER, "found", {})
    return met


def test_a_prepared_convolution_declares_what_it_needs(splitting, provider):
    draw = Draw(seed=3, dtype=torch.bfloat16)
    x, weight = draw.normal(2, 64, 3, 5, 6), draw.weight(64, 64, 3, 1, 1)
    spec = ops.ConvSpec((weight,), padding=(1, 0, 0))
    exact, peer = reference(OP, *to_float64(((x, weight), {"padding": (1, 0, 0)}))), None
    peer = reference(OP, (x, weight), {"padding": (1, 0, 0)})
    prepared = kernels.prepare(there(spec), torch.bfloat16, there(x).device)
    ((shape, dtype),) = prepared.scratch(x.shape)
    out = torch.full(exact[0].shape, math.nan, dtype=x.dtype, device=DEVICE)
    out = out.contiguous(memory_format=torch.channels_last_3d)
    scratch = torch.full(tuple(shape), math.nan, dtype=dtype, device=DEVICE)
    prepared.into(out, there(x), None, None, scratch)
    check([out.cpu()], exact, peer, weight[0].numel(), "into")
    assert not scratch.isnan().all() and splitting
    assert torch.equal(bits(prepared(there(x))), bits(out))


@pytest.mark.parametrize("projection", [False, True])
def test_a_block_shares_its_scratch_memory(projection, splitting, provider):
    draw = Draw(seed=4, dtype=torch.bfloat16)
    cin, inner = (128, 72) if projection else (128, 72)
    convs = [
        draw.weight(inner, cin, 3, 1, 1),
        draw.weight(inner, inner, 1, 3, 3),
        draw.weight(128, inner, 1, 1, 1),
    ]
    affine = [(w, draw.scale(len(w)), draw.shift(len(w))) for w in convs]
    shortcut = (draw.weight(128, cin, 1, 1, 1), draw.scale(128), draw.shift(128)) if projection else None
    x = draw.normal(1, cin, 3, 5, 6)
    args, kwargs = (x, *affine, shortcut), {"stride": 2 if projection else 1}
    exact, peer = (
        reference("bottleneck3d", *to_float64((args, kwargs))),
        reference("bottleneck3d", args, kwargs),
    )
    spec = ops.BlockSpec(*there(args[1:]), **kwargs)
    prepared = block.prepare(spec, x.dtype, there(x).device)
    assert [s[1] for s in prepared.scratch(x.shape)] == [x.dtype, x.dtype, torch.float32]
    got = prepared(there(x)).cpu()
    assert splitting
    check([got], exact, peer, inner * 9, "block")


AHEAD = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from slowfast_kernels import autotune
from slowfast_kernels._triton.ahead import compiled_ahead
from slowfast_kernels.ops.conv_bn_act3d import triton as conv

class Driver:  # as much of one as a compiler asks for
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Driver())
x = torch.randn(2, 64, 3, 5, 7, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
out = torch.empty_like(x)
packed = conv.pack(torch.randn(64, 64, 3, 1, 1), dtype=x.dtype)
seen = []

def run(tiles):
    seen.append((tiles, autotune.is_measuring("triton")))
    if tiles.warps == 3:
        raise ValueError("no such number of warps")
    conv.run_packed(x, packed, None, out, padding=(1, 0, 0), config=tiles)

several = [
    conv.Tiles(64, 64, 64, 4, 2), conv.Tiles(64, 64, 64, 3), conv.Tiles(64, 64, 64, 4, 2, descriptors=True),
    conv.Tiles(64, 64, 64, 4, 2, descriptors=True, splits=2),
]
with autotune.measuring():
    assert compiled_ahead(several, run) == several
    assert autotune.is_measuring("triton")
assert seen == [(tiles, False) for tiles in several]
kernels = (conv.conv_kernel, conv.descriptor.descriptor_kernel, conv.descriptor.split_sum_kernel)
print(*(sum("ptx" in k.asm for c in kernel.device_caches.values() for k in c[0].values()) for kernel in kernels))
"""


def test_candidates_are_compiled_ahead(provider, tmp_path):
    """By threads and without a launch, for there is no device; what they would measure themselves is not measured."""
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", AHEAD], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "1 2 1", done.stdout + done.stderr


def test_an_interpreter_compiles_nothing_ahead(provider):
    if not backends.simulated("triton"):
        pytest.skip("kernels are compiled here")
    assert list(ahead.compiled_ahead([1, 2], pytest.fail)) == [1, 2]
