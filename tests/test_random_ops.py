"""Every op on random calls, on the reference and on every instruction set, against formulas of this file in float64.

The formulas use torch.nn.functional on contiguous memory and share nothing with the library. Shapes are drawn down to
one frame, row, column and channel, strides and dilations beyond the size, memory in any layout, NaN, infinities and
-0.0 among the values. ``pytest --hypothesis-profile=explore`` draws new calls.
"""

import functools
import math
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from slowfast_kernels import ops
from slowfast_kernels.testing import (
    assert_same_nonfinite,
    provider_missing,
    tolerance,
    use_provider,
)

PROVIDERS = [p for p in ("reference", "cpu:avx2", "cpu:avx512", "cpu:avx512_bf16") if not provider_missing(p)]
LUMA = (0.299, 0.587, 0.114)


class Calls:
    """Random arguments from a seed. Weights are scaled so that results are of order one."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.dtype = self.one_of(torch.float32, torch.bfloat16)
        self.special = self.chance(0.3)

    def one_of(self, *values):
        return self.random.choice(values)

    def chance(self, p=0.5):
        return self.random.random() < p

    def int(self, low, high):
        return self.random.randint(low, high)

    def extent(self, most):
        """1 and other small numbers often."""
        return self.one_of(1, self.int(1, 4), self.int(1, most))

    def channels(self, most=40):
        return self.one_of(1, self.int(1, 8), 8, 16, self.int(1, most), 64)

    def map_shape(self, channels, frames=6, side=14):
        return self.one_of(1, 1, 2, 3), channels, self.extent(frames), self.extent(side), self.extent(side)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.torch)

    def vector(self, n):
        return self.normal(n) if self.chance(0.8) else None

    def scale(self, n):
        return 1 + 0.3 * self.normal(n) if self.chance(0.8) else None

    def weight(self, *shape):
        return (self.normal(*shape) / math.sqrt(math.prod(shape[1:]))).to(self.dtype)

    def map(self, *shape):
        """[N, C, T, H, W] in any memory layout."""
        n, c, t, h, w = shape
        layout = self.one_of("channels last", "channels first", "slice", "transposed", "expanded", "strided")
        if layout == "slice":  # of the channels of a wider map
            before, after = self.int(0, 9), self.int(0, 9)
            x = self.normal(n, t, h, w, before + c + after).permute(0, 4, 1, 2, 3)[:, before : before + c]
        elif layout == "transposed":
            x = self.normal(w, c, h, n, t).permute(3, 1, 4, 2, 0)
        elif layout == "expanded":
            x = self.normal(n, c, 1, h, w).expand(shape)
        elif layout == "strided":
            x = self.normal(n, t * 2, h + 1, w * 2, c).permute(0, 4, 1, 2, 3)[:, :, ::2, 1:, 1::2]
        else:
            x = self.normal(*shape)
        x = x.to(self.dtype)
        if self.special and layout != "expanded":
            for value in (math.nan, math.inf, -math.inf, -0.0, 0.0):
                for _ in range(self.int(0, 2)):
                    x[tuple(self.int(0, extent - 1) for extent in shape)] = value
        return x.contiguous(memory_format=torch.channels_last_3d) if layout == "channels last" else x


# --- calls and formulas: draw(Calls) -> (args, kwargs); exact(*args, **kwargs) of the same in float64 -------------


def affine(y, scale, shift):
    y = y if scale is None else y * scale.view(-1, 1, 1, 1)
    return y if shift is None else y + shift.view(-1, 1, 1, 1)


def conv_bn_act3d(draw):
    kernel = [draw.one_of(1, 1, 3, draw.int(1, 7)) for _ in range(3)]
    dilation = [draw.one_of(1, 1, draw.int(1, 9)) for _ in range(3)]
    stride = [draw.one_of(1, 2, draw.int(1, 9)) for _ in range(3)]
    half = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    padding = draw.one_of(half, [draw.one_of(0, p, draw.int(0, 9)) for p in half])
    n, cin, *size = draw.map_shape(draw.channels())
    size = [
        max(e, d * (k - 1) + 1 - 2 * p) for e, d, k, p in zip(size, dilation, kernel, padding, strict=True)
    ]
    out = [
        (e + 2 * p - d * (k - 1) - 1) // s + 1
        for e, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    cout = draw.channels()
    residual = draw.map(n, cout, *out) if draw.chance(0.3) else None
    args = (
        draw.map(n, cin, *size),
        draw.weight(cout, cin, *kernel),
        draw.scale(cout),
        draw.vector(cout),
        residual,
    )
    return args, {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "activation": draw.one_of("relu", "none"),
    }


def exact_conv_bn_act3d(x, weight, scale, shift, residual, *, stride, padding, dilation, activation):
    y = affine(F.conv3d(x, weight, None, stride, padding, dilation), scale, shift)
    y = y if residual is None else y + residual
    return F.relu(y) if activation == "relu" else y


def stem3d(draw):
    cin, cout = draw.one_of(1, 2, 3, 3, draw.int(1, 9)), draw.channels()
    kernel = draw.one_of((1, 7, 7), (5, 7, 7), tuple(draw.one_of(1, 3, 5, 7) for _ in range(3)))
    stride = draw.one_of((1, 2, 2), (1, 2, 2), tuple(draw.int(1, 9) for _ in range(3)))
    x = draw.map(*draw.map_shape(cin, side=40))
    args = x, draw.weight(cout, cin, *kernel), draw.scale(cout), draw.vector(cout)
    return args, {"stride": stride, "activation": draw.one_of("relu", "none"), "pool": draw.chance(0.7)}


def exact_stem3d(x, weight, scale, shift, *, stride, activation, pool):
    padding = [k // 2 for k in weight.shape[2:]]
    y = exact_conv_bn_act3d(
        x, weight, scale, shift, None, stride=stride, padding=padding, dilation=1, activation=activation
    )
    return F.max_pool3d(y, (1, 3, 3), (1, 2, 2), (0, 1, 1)) if pool else y


def bottleneck3d(draw):
    cin, mid, kt = draw.channels(), draw.channels(), draw.one_of(1, 3, 5, 7)
    stride, dilation = draw.one_of(1, 1, 2, draw.int(1, 9)), draw.one_of(1, 1, 2, draw.int(1, 9))
    shortcut = stride > 1 or draw.chance()
    cout = draw.channels(80) if shortcut else cin
    args = [draw.map(*draw.map_shape(cin))]
    for shape in ((mid, cin, kt, 1, 1), (mid, mid, 1, 3, 3), (cout, mid, 1, 1, 1), (cout, cin, 1, 1, 1)):
        args.append((draw.weight(*shape), draw.scale(shape[0]), draw.vector(shape[0])))
    return args if shortcut else args[:-1], {"stride": stride, "dilation": dilation}


def exact_bottleneck3d(x, a, b, c, shortcut=(None, None, None), *, stride, dilation):
    (wa, ca, ha), (wb, cb, hb), (wc, cc, hc), (ws, cs, hs) = a, b, c, shortcut
    conv = functools.partial(F.conv3d, bias=None)
    y = F.relu(affine(conv(x, wa, padding=(wa.shape[2] // 2, 0, 0)), ca, ha))
    around, every, spread = (0, dilation, dilation), (1, stride, stride), (1, dilation, dilation)
    y = F.relu(affine(conv(y, wb, padding=around, stride=every, dilation=spread), cb, hb))
    short = x if ws is None else affine(conv(x[..., ::stride, ::stride], ws), cs, hs)
    return F.relu(affine(conv(y, wc), cc, hc) + short)


def lateral_fusion(draw):
    kind = draw.one_of("conv", "conv", "time_to_channel_concat", "time_to_channel_sum", "time_sample")
    alpha, cf = draw.one_of(1, 2, 4, 8, draw.int(1, 9)), draw.channels(20)
    n, cs, t, h, w = draw.map_shape(draw.channels(), side=9)
    cs = alpha * cf if kind == "time_to_channel_sum" else cs
    args = [draw.map(n, cs, t, h, w), draw.map(n, cf, alpha * t, h, w)]
    if kind == "conv":
        cl = draw.one_of(2 * cf, draw.channels())
        args += [draw.weight(cl, cf, draw.one_of(1, 3, 5, 7, 9), 1, 1), draw.scale(cl), draw.vector(cl)]
    return args, {"alpha": alpha, "kind": kind, "activation": draw.one_of("relu", "none")}


def exact_lateral_fusion(slow, fast, weight=None, scale=None, shift=None, *, alpha, kind, activation):
    if kind == "conv":
        y = affine(F.conv3d(fast, weight, None, (alpha, 1, 1), (weight.shape[2] // 2, 0, 0)), scale, shift)
        return torch.cat([slow, F.relu(y) if activation == "relu" else y], 1)
    if kind == "time_sample":
        return torch.cat([slow, fast[:, :, ::alpha]], 1)
    packed = torch.cat([fast[:, :, a::alpha] for a in range(alpha)], 1)
    return slow + packed if kind == "time_to_channel_sum" else torch.cat([slow, packed], 1)


def pool_concat_head(draw):
    semantics = draw.one_of("pyslowfast", "pytorchvideo", "mmaction2")
    n, cs, t, h, w = draw.map_shape(draw.channels(200), side=9)
    pool = None if semantics == "mmaction2" or draw.chance(0.3) else (draw.int(1, h), draw.int(1, w))
    slow, fast = draw.map(n, cs, t, h, w), None
    if draw.chance(0.7):
        fast = draw.map(n, draw.channels(), t * draw.int(1, 8), h, w)
    classes, channels = draw.one_of(1, draw.int(1, 30), 400), cs + (0 if fast is None else fast.shape[1])
    weight = draw.weight(classes, channels).to(draw.one_of(draw.dtype, torch.float32)) * 3
    activation = draw.one_of("softmax", "sigmoid", "none")
    kwargs = {"pool_size": pool, "semantics": semantics, "activation": activation}
    return (slow, fast, weight, draw.vector(classes)), kwargs


def exact_pool_concat_head(slow, fast, weight, bias, *, pool_size, semantics, activation):
    act = {"softmax": lambda x: F.softmax(x, -1), "sigmoid": torch.sigmoid, "none": lambda x: x}[activation]
    pathways = [x.mean(2) for x in (slow, fast) if x is not None]
    pathways = pathways[::-1] if semantics == "mmaction2" else pathways
    pooled = [F.avg_pool2d(x, pool_size or x.shape[2:], stride=1) for x in pathways]
    logits = F.linear(torch.cat(pooled, 1).movedim(1, -1), weight, bias)
    if semantics == "pyslowfast":
        return act(logits).mean((1, 2))
    return act(logits.mean((1, 2)))


def boxes(draw, n, h, w, scale):
    """[0 .. 200, 5] boxes: inside, across the border, outside, empty, inverted, the whole map, not a number."""
    count = 200 if draw.chance(0.05) else 0 if draw.chance(0.1) else draw.int(1, 12)
    rows = []
    for _ in range(count):
        sides = []
        for extent in (w, h):
            a, b = (draw.random.uniform(-0.7 * extent, 1.7 * extent) for _ in range(2))
            low, high = min(a, b), max(a, b)
            sides.append(
                draw.one_of(
                    (low, high), (low, high), (low, high), (high, low), (low, low), (0, extent), (0.5, 1)
                )
            )
        (x1, x2), (y1, y2) = sides
        row = [x1 / scale, y1 / scale, x2 / scale, y2 / scale]
        if draw.special and draw.chance(0.1):
            row[draw.int(0, 3)] = draw.one_of(math.nan, math.inf, -math.inf)
        rows.append([draw.int(0, n - 1), *row])
    return torch.tensor(rows).view(-1, 5)


def of_rois(draw):
    return {
        "spatial_scale": draw.one_of(1.0, 1 / 16, 0.5),
        "sampling_ratio": draw.one_of(0, 0, 1, 2, 3),
        "aligned": draw.chance(),
    }


def roi_align3d(draw):
    mode = draw.one_of("frame", "tube", "volume")
    shape = n, _, t, h, w = draw.map_shape(draw.channels(), side=12)
    settings = of_rois(draw)
    rois = boxes(draw, n, h, w, settings["spatial_scale"])
    size = [draw.int(1, 7) for _ in range(3 if mode == "volume" else 2)]
    if mode == "tube":
        rois = torch.stack(
            [rois + 0.25 * draw.int(0, 5) * torch.tensor([0, 1, 1, 1, 1]) for _ in range(t)], 1
        )
    if mode == "volume":
        settings["temporal_scale"] = draw.one_of(1.0, 0.25)
        times = draw.normal(len(rois), 2) * t / settings["temporal_scale"]
        rois = torch.cat([rois, times.sort(1).values if draw.chance(0.8) else times], 1)
    return (_without_infinity(draw.map(*shape)), rois), {"output_size": size, "mode": mode, **settings}


def _without_infinity(x):
    """Infinity times a weight of 0 is nobody's business; NaN is."""
    return x.where(~x.isinf(), math.nan) if x.isinf().any() else x


def samples(low, high, scale, extent, bins, ratio, aligned):
    """Along one axis: the share that every cell has in every bin [bins, extent], and which cells it touches."""
    start = low * scale - (0.5 if aligned else 0)
    size = (high - low) * scale
    size = size if aligned else max(size, 1.0)
    n = ratio or max(math.ceil(size / bins), 0)
    at = (start + (torch.arange(bins * n).double() + 0.5) * size / (bins * max(n, 1))).view(bins, n)
    inside = (at >= -1) & (at <= extent)
    at = at.clamp(0, extent - 1)[..., None]
    cell = torch.arange(extent).double()
    share = (1 - (at - cell).abs()).clamp(min=0) * inside[..., None]
    touched = ((at.floor() == cell) | (at.floor() + 1 == cell)) & inside[..., None]
    return share.sum(1) / max(n, 1), touched.any(1).double()


def exact_roi_align3d(
    features, rois, *, output_size, spatial_scale, sampling_ratio, aligned, mode, temporal_scale=1.0
):
    frames, (h, w) = features.shape[2], features.shape[3:]
    result = []

    def align(x, box):  # [C, T, H, W], a box of x1, y1, x2, y2 (, t1, t2)
        spans = [(box[1], box[3], spatial_scale, h), (box[0], box[2], spatial_scale, w)]
        if mode == "volume":
            spans.insert(0, (box[4], box[5], temporal_scale, x.shape[1]))
        bins = [*output_size] if mode == "volume" else [x.shape[1], *output_size]
        if not all(map(math.isfinite, box)):
            return x.new_full((x.shape[0], *bins), math.nan)
        axes = [
            samples(low, high, s, extent, b, sampling_ratio, aligned)
            for (low, high, s, extent), b in zip(spans, output_size, strict=True)
        ]
        if mode != "volume":
            axes.insert(0, (torch.eye(x.shape[1]).double(),) * 2)
        value = torch.einsum("ctyx,at,by,dx->cabd", x.nan_to_num(0.0), *(a[0] for a in axes))
        touched = torch.einsum("ctyx,at,by,dx->cabd", x.isnan().double(), *(a[1] for a in axes))
        return value.where(touched == 0, math.nan)

    for roi in rois.tolist():
        if mode == "tube":
            parts = [align(features[int(r[0])][:, t : t + 1], r[1:]) for t, r in enumerate(roi)]
            result.append(torch.cat(parts, 1))
        else:
            result.append(align(features[int(roi[0])], roi[1:]))
    out = output_size if mode == "volume" else [frames, *output_size]
    return torch.stack(result) if result else features.new_empty(0, features.shape[1], *out)


def roi_head_pool(draw):
    n, cs, t, h, w = draw.map_shape(draw.channels(), side=12)
    slow, fast = draw.map(n, cs, t, h, w), None
    if draw.chance(0.7):
        fast = _without_infinity(draw.map(n, draw.channels(), t * draw.int(1, 4), h, w))
    settings = of_rois(draw)
    rois = boxes(draw, n, h, w, settings["spatial_scale"])
    kwargs = {"output_size": draw.int(1, 7), "temporal": draw.one_of("mean", "max"), **settings}
    return (_without_infinity(slow), fast, rois), kwargs


def exact_roi_head_pool(slow, fast, rois, *, output_size, temporal, **settings):
    size, pooled = (output_size, output_size), []
    for x in (slow, fast):
        if x is not None:
            x = x.mean(2, keepdim=True) if temporal == "mean" else x.amax(2, keepdim=True)
            bins = exact_roi_align3d(x, rois, output_size=size, mode="frame", **settings)
            pooled.append(bins.flatten(2).amax(2) if len(rois) else bins.new_empty(0, x.shape[1]))
    return torch.cat(pooled, 1)


def pack_pathways(draw):
    n, t, h, w = draw.one_of(1, 1, 2), draw.extent(20), draw.extent(20), draw.extent(40)
    frames = torch.randint(0, 256, (n, t, h + 3, w + 2, 3), generator=draw.torch, dtype=torch.uint8)
    frames = frames[:, :, 3:, 1:-1] if draw.chance() else frames[:, :, 3:, 1:-1].contiguous()
    mean, std = ([draw.random.uniform(0.2, 0.6) for _ in range(3)] for _ in range(2))
    index = torch.tensor([draw.int(0, t - 1) for _ in range(draw.int(0, 5))], dtype=torch.int64)
    kwargs = {
        "slow_index": draw.one_of(None, "linspace", "stride", index),
        "fast_input": draw.one_of("rgb", "gray", "time_diff"),
        "reverse_channels": draw.chance(),
        "dtype": draw.dtype,
    }
    return (frames, draw.int(1, t), mean, std), kwargs


def exact_pack_pathways(frames, alpha, mean, std, *, slow_index, fast_input, reverse_channels, dtype):
    image = frames.double().div(255).movedim(-1, 1)
    t = image.shape[2]
    of = [(image[:, i : i + 1] - m) / s for i, (m, s) in enumerate(zip(mean, std, strict=True))]
    clip = torch.cat(of[::-1] if reverse_channels else of, 1)
    if slow_index == "stride":
        slow_index = torch.arange(t // alpha) * alpha
    elif not isinstance(slow_index, torch.Tensor):
        slow_index = torch.linspace(0, t - 1, t // alpha).long()
    luma = sum(c * image[:, i : i + 1] for i, c in enumerate(LUMA))
    fast = clip if fast_input == "rgb" else (luma - sum(mean) / 3) / (sum(std) / 3)
    if fast_input == "time_diff":
        fast = fast - fast[:, :, [0, *range(t - 1)]]
    return clip[:, :, slow_index], fast


# --- the tests ----------------------------------------------------------------------------------------------------

OPS = {
    draw.__name__: (draw, exact)
    for draw, exact in (
        (conv_bn_act3d, exact_conv_bn_act3d),
        (stem3d, exact_stem3d),
        (bottleneck3d, exact_bottleneck3d),
        (lateral_fusion, exact_lateral_fusion),
        (pool_concat_head, exact_pool_concat_head),
        (roi_align3d, exact_roi_align3d),
        (roi_head_pool, exact_roi_head_pool),
        (pack_pathways, exact_pack_pathways),
    )
}


def wide(x):
    """Float64 in contiguous memory."""
    floating = isinstance(x, torch.Tensor) and x.is_floating_point()
    return torch.empty(x.shape, dtype=torch.float64).copy_(x) if floating else x


def described(x):
    return f"{x.dtype} {list(x.shape)} strides {list(x.stride())}" if isinstance(x, torch.Tensor) else repr(x)


def listed(result):
    return result if isinstance(result, tuple) else (result,)


def assert_right(got, exact, what, cancels):
    """Relative L2 error. Where results may cancel, a few numbers near zero are held to what others are like."""
    assert got.shape == exact.shape, f"{what}: expected shape {tuple(exact.shape)}, got {tuple(got.shape)}"
    assert_same_nonfinite(got, exact, what)
    got, exact = got[exact.isfinite()], exact[exact.isfinite()]
    bound, usual = (1e-5, 0.1) if got.dtype == torch.float32 else (2 * tolerance(got.dtype), 0.5)
    size = max(exact.norm().item(), usual * math.sqrt(exact.numel()) if cancels else 0.0)
    error = (got.double() - exact).norm().item()
    assert error <= bound * size, f"{what}: error {error:.3g} of {size:.3g}, at most {bound:.3g} of it"


@pytest.mark.parametrize("op", OPS)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_random_call(op, seed):
    draw, exact = OPS[op]
    calls = Calls(seed)
    args, kwargs = draw(calls)
    named = [f"{name}={described(value)}" for name, value in kwargs.items()]
    note(f"ops.{op}({', '.join([*map(described, pytree.tree_leaves(args)), *named])})")
    expected = exact(*pytree.tree_map(wide, tuple(args)), **kwargs)
    cancels = kwargs.get("activation") not in ("softmax", "sigmoid")
    # PyTorch's own bfloat16 convolutions make NaN of infinity
    skipped = ("reference",) if calls.special and calls.dtype == torch.bfloat16 else ()
    for provider in (p for p in PROVIDERS if p not in skipped):
        with use_provider(provider):
            got = getattr(ops, op)(*args, **kwargs)
        for y, e in zip(listed(got), listed(expected), strict=True):
            assert_right(y, e, f"{op} on {provider}", cancels)
