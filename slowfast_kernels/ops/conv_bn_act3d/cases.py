"""Calls of ``conv_bn_act3d``: every distinct convolution of the blocks and laterals, and edge cases."""

from __future__ import annotations

from typing import Any

import torch

from .. import _layers
from .._cases import Args, Case, Contract, Draw, Errors, Refused, refused_activations, refused_types
from .spec import output_shape

ONE, NONE = (1, 1, 1), (0, 0, 0)


def _call(
    draw: Draw,
    x: tuple[int, ...],
    cout: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = ONE,
    padding: tuple[int, int, int] = NONE,
    dilation: tuple[int, int, int] = ONE,
    activation: str = "relu",
    residual: bool = False,
    affine: bool = True,
) -> Args:
    weight = draw.weight(cout, x[1], *kernel)
    shape = output_shape(x, weight.shape, stride, padding, dilation)
    args = (
        draw.normal(*x),
        weight,
        draw.scale(cout) if affine else None,
        draw.shift(cout) if affine else None,
        draw.normal(*shape) if residual else None,
    )
    return args, {"stride": stride, "padding": padding, "dilation": dilation, "activation": activation}


def _layer(layer: _layers.Layer) -> Case:
    spec = layer.spec
    cout, *_ = spec.conv.weight.shape
    settings = spec.conv.kernel, spec.stride, spec.padding, spec.dilation, spec.activation, layer.residual

    def build(draw: Draw) -> Args:
        return _call(draw, draw.map(layer.inputs[0]), cout, *settings)

    return Case(layer.name, build, real=True, count=layer.count)


def _edge(name: str, *args: object, **kwargs: object) -> Case:
    return Case(name, lambda draw: _call(draw, *args, **kwargs), edge=True)  # type: ignore[arg-type]


def _slices(draw: Draw) -> Args:
    # x and the residual are channels of wider buffers, as the fused Slow tensor's are
    (x, *rest, residual), kwargs = _call(draw, (2, 24, 3, 5, 4), 20, ONE, residual=True)
    assert residual is not None
    wide_x, wide_r = draw.normal(2, 40, 3, 5, 4), draw.normal(2, 33, 3, 5, 4)
    wide_x[:, 8:32] = x
    wide_r[:, 13:] = residual
    return (wide_x[:, 8:32], *rest, wide_r[:, 13:]), kwargs


def _channels_first(draw: Draw) -> Args:
    (x, *rest), kwargs = _call(draw, (2, 6, 4, 7, 5), 10, (3, 3, 3), padding=ONE)
    return (x.contiguous(), *rest), kwargs


def _transposed(draw: Draw) -> Args:
    # every axis of x and of the weight has a stride of its own
    (x, weight, *rest), kwargs = _call(draw, (2, 7, 3, 6, 5), 9, (1, 3, 3), padding=(0, 1, 1))
    x = x.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0)
    weight = weight.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    return (x, weight, *rest), kwargs


_DILATED = [c for block in _layers.dilated() for c in _layers.convolutions(block) if c.spec.dilation != ONE]

CASES = (
    *map(_layer, _layers.distinct(_layers.every_convolution())),
    *map(_layer, _layers.distinct(_DILATED)),
    _edge("1x1x1", (2, 5, 2, 3, 3), 13, ONE, residual=True),
    _edge("3x3x3", (1, 9, 5, 7, 6), 17, (3, 3, 3), (2, 1, 2), ONE, residual=True),
    _edge("one frame", (1, 16, 1, 9, 11), 24, (3, 1, 1), padding=(1, 0, 0)),
    _edge("one pixel", (3, 8, 1, 1, 1), 8, (1, 3, 3), padding=(0, 1, 1)),
    _edge("one channel", (1, 1, 4, 5, 5), 1, (3, 3, 3), padding=ONE),
    _edge("dilation 2", (1, 12, 3, 9, 8), 20, (1, 3, 3), (1, 2, 2), (0, 2, 2), (1, 2, 2)),
    _edge("dilation in time", (1, 8, 9, 4, 4), 16, (3, 1, 1), (2, 1, 1), (2, 0, 0), (2, 1, 1)),
    _edge("even kernel", (1, 6, 4, 6, 5), 8, (2, 2, 4), (1, 2, 1), (1, 0, 2)),
    _edge("padding beyond the kernel", (1, 8, 2, 3, 3), 8, (1, 3, 3), padding=(2, 4, 4)),
    _edge("stride beyond the kernel", (1, 8, 7, 9, 9), 70, ONE, (3, 4, 2)),
    _edge("bare", (2, 10, 2, 5, 5), 65, (1, 3, 3), padding=(0, 1, 1), affine=False, activation="none"),
    _edge("batch 0", (0, 8, 2, 4, 4), 12, (1, 3, 3), padding=(0, 1, 1), residual=True),
    Case("channel slices", _slices, edge=True),
    Case("channels first", _channels_first, edge=True),
    Case("transposed", _transposed, edge=True),
)

_BEYOND: dict[str, tuple[str, ...]] = {
    "silu": ("odd, activation #1", "odd, out #19"),
    "hardswish": ("odd, activation #2", "odd, out #20"),
    "sigmoid": ("odd, activation #3", "odd, out #21"),
}
_GROUPS = ("odd, groups #0", "odd, out #17")

REFUSED = (
    refused_types("cpu", "C++", torch.float32, torch.bfloat16),
    *refused_activations("cpu", "C++", **_BEYOND),
    Refused("cpu", "the convolution has 2 groups, the C++ kernels take 1", _GROUPS),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
    *refused_activations("triton", "Triton", **_BEYOND),
    Refused("triton", "the convolution has 2 groups, the Triton kernels take 1", _GROUPS),
)


def contract(draw: Draw) -> Contract:
    (x, weight, scale, shift, _), kwargs = _call(
        draw, (2, 6, 5, 6, 7), 10, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)
    )
    base = {"x": x, "weight": weight, "scale": scale, "shift": shift, "residual": None, **kwargs, "groups": 1}
    base |= {"out": None, "channel_offset": 0}
    each_axis = [(2, 1, 1), (1, 2, 1), (1, 1, 2)]
    changes: dict[str, list[dict[str, Any]]] = {
        "x": [{"x": draw.normal(2, 6, 5, 6, 7)}],
        "weight": [{"weight": draw.weight(10, 6, 3, 3, 3)}],
        "scale": [{"scale": None}, {"scale": draw.scale(10)}],
        "shift": [{"shift": None}, {"shift": draw.shift(10)}],
        "residual": [{"residual": draw.normal(2, 10, 5, 6, 7)}],
        "stride": [{"stride": s} for s in each_axis],
        "padding": [{"padding": p} for p in [(0, 1, 1), (1, 0, 1), (1, 1, 0)]],
        "dilation": [{"dilation": d} for d in each_axis],
        "groups": [{"groups": 2, "weight": draw.weight(10, 3, 3, 3, 3)}],
        "activation": [{"activation": a} for a in ("none", "silu", "hardswish", "sigmoid")],
    }

    def buffer(change: dict[str, Any]) -> torch.Tensor:
        stride, padding, dilation = ((base | change)[k] for k in ("stride", "padding", "dilation"))
        n, _, *extents = output_shape(x.shape, weight.shape, stride, padding, dilation)
        return draw.normal(n, 14, *extents)

    # every change again with the result going into a buffer, which is another entry of the library
    into = [{}, *(change for several in changes.values() for change in several)]
    changes["out"] = [{**change, "out": buffer(change)} for change in into]
    changes["channel_offset"] = [{"out": buffer({}), "channel_offset": offset} for offset in (1, 4)]
    return Contract(base, changes)


def errors() -> Errors:
    zeros = torch.zeros
    x, w = (2, 4, 3, 5, 5), (6, 4, 1, 3, 3)
    return Errors(
        {"x": zeros(x), "weight": zeros(w)},
        {
            "x is not a clip": (
                {"x": zeros(x[1:])},
                r"x: expected \[N, C, T, H, W\], got shape \(4, 3, 5, 5\)",
            ),
            "weight is 4-D": (
                {"weight": zeros(w[1:])},
                r"weight: expected \[Cout, Cin, kt, kh, kw\], got shape \(4, 1, 3, 3\)",
            ),
            "channels differ": (
                {"x": zeros((2, 5, 3, 5, 5))},
                r"x: expected 4 channels, as weight has, got shape \(2, 5, 3, 5, 5\)",
            ),
            "scale": ({"scale": zeros((5,))}, r"scale: expected shape \(6,\), got \(5,\)"),
            "shift": ({"shift": zeros((1, 6))}, r"shift: expected shape \(6,\), got \(1, 6\)"),
            "residual": (
                {"residual": zeros((2, 6, 3, 5, 5))},
                r"residual: expected shape \(2, 6, 3, 3, 3\), got \(2, 6, 3, 5, 5\)",
            ),
            "stride 0": (
                {"stride": 0},
                r"expected stride and dilation >= 1 and padding >= 0, got \(0, 0, 0\)",
            ),
            "negative padding": ({"padding": (0, -1, 0)}, r"padding >= 0, got .*\(0, -1, 0\)"),
            "two strides": ({"stride": (1, 2)}, r"stride: expected an int or three ints .*, got \(1, 2\)"),
            "too small": (
                {"dilation": 3},
                r"x of shape \(2, 4, 3, 5, 5\) is smaller than the kernel \(1, 3, 3\)",
            ),
            "out's extents": (
                {"out": zeros((2, 6, 3, 5, 5))},
                r"out: expected N, T, H, W = \(2, 3, 3, 3\), got shape",
            ),
            "out's channels": (
                {"out": zeros((2, 8, 3, 3, 3)), "channel_offset": 3},
                r"out has 8 channels, cannot take 6 from channel 3 on",
            ),
            "negative offset": (
                {"out": zeros((2, 8, 3, 3, 3)), "channel_offset": -1},
                r"cannot take 6 from channel -1 on",
            ),
        },
    )
