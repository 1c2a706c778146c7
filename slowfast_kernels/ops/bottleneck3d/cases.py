"""Calls of ``bottleneck3d``: every distinct block of SlowFast and of its detector, and edge cases."""

from __future__ import annotations

from typing import Any

import torch

from .. import _layers
from .._cases import Args, Case, Contract, Draw, Errors, Refused, refused_types
from .._spec import ConvAffine


def _call(
    draw: Draw,
    x: tuple[int, ...],
    inner: int,
    cout: int,
    temporal_kernel: int = 1,
    shortcut: bool = False,
    affine: bool = True,
    **kwargs: int,
) -> Args:
    def conv(cout: int, cin: int, *kernel: int) -> ConvAffine:
        weight = draw.weight(cout, cin, *kernel)
        return ConvAffine(weight, draw.scale(cout), draw.shift(cout)) if affine else ConvAffine(weight)

    args = (
        draw.normal(*x),
        conv(inner, x[1], temporal_kernel, 1, 1),
        conv(inner, inner, 1, 3, 3),
        conv(cout, inner, 1, 1, 1),
        conv(cout, x[1], 1, 1, 1) if shortcut else None,
    )
    return args, kwargs


def _layer(layer: _layers.Layer) -> Case:
    spec = layer.spec
    inner, cout = spec.b.weight.shape[0], spec.c.weight.shape[0]

    def build(draw: Draw) -> Args:
        n, channels, frames, *size = draw.map(layer.inputs[0])
        x = (n, channels, draw.few(frames) if inner >= 64 else frames, *size)
        settings = {"stride": spec.stride, "dilation": spec.dilation}
        return _call(draw, x, inner, cout, spec.a.kernel[0], spec.shortcut is not None, **settings)

    return Case(layer.name, build, real=True, count=layer.count)


def _edge(name: str, *args: object, **kwargs: object) -> Case:
    return Case(name, lambda draw: _call(draw, *args, **kwargs), edge=True)  # type: ignore[arg-type]


def _slice(draw: Draw) -> Args:
    # the block's input is the first channels of a wider buffer
    (x, *rest), kwargs = _call(draw, (1, 32, 2, 6, 7), 8, 32, 3)
    wide = draw.normal(1, 48, 2, 6, 7)
    wide[:, :32] = x
    return (wide[:, :32], *rest), kwargs


def _channels_first(draw: Draw) -> Args:
    (x, *rest), kwargs = _call(draw, (2, 12, 4, 7, 5), 6, 24, 3, True, stride=2)
    return (x.contiguous(), *rest), kwargs


CASES = (
    *map(_layer, _layers.distinct(_layers.of("bottleneck3d"))),
    *map(_layer, _layers.dilated()),
    _edge("identity", (1, 20, 3, 5, 6), 5, 20, 3),
    _edge("wide identity", (1, 70, 2, 5, 6), 36, 70),
    _edge("projection", (2, 13, 3, 7, 8), 9, 30, 3, True, stride=2),
    _edge("wide projection", (1, 40, 3, 7, 5), 44, 66, 3, True, stride=2),
    _edge("one frame", (1, 32, 1, 9, 9), 8, 32, 3),
    _edge("one pixel", (3, 16, 2, 1, 1), 8, 16, 3),
    _edge("one column", (1, 16, 2, 9, 1), 8, 32, 1, True, stride=2),
    _edge("one channel", (1, 1, 3, 4, 5), 1, 1, 3),
    _edge("five frames", (1, 16, 4, 5, 5), 8, 16, 5),
    _edge("dilated", (1, 24, 2, 9, 8), 8, 32, 3, True, dilation=2),
    _edge("wide dilated", (1, 48, 2, 5, 5), 40, 48, 1, dilation=2),
    _edge("dilated and strided", (1, 24, 2, 9, 8), 8, 32, 3, True, stride=2, dilation=2),
    _edge("dilation beyond the map", (1, 16, 2, 3, 3), 8, 16, 3, dilation=4),
    _edge("stride 3", (1, 16, 2, 10, 11), 8, 24, 1, True, stride=3),
    _edge("bare", (1, 16, 2, 6, 6), 8, 16, 3, affine=False),
    _edge("wide bare projection", (1, 16, 2, 6, 6), 48, 32, 3, True, False),
    _edge("batch 0", (0, 16, 2, 6, 6), 8, 16, 3),
    Case("channel slice", _slice, edge=True),
    Case("channels first", _channels_first, edge=True),
)

_WIDTHS = {
    256: ("res4.slow.*",),
    512: ("res5.slow.*",),
    5: ("identity",),
    36: ("wide identity",),
    9: ("projection", "odd, *"),
    44: ("wide projection",),
    1: ("one channel",),
    40: ("wide dilated",),
    48: ("wide bare projection",),
    6: ("channels first",),
}

REFUSED = (
    refused_types("cpu", "C++", torch.float32, torch.bfloat16),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
    refused_types("cuda", "tensor-core", torch.bfloat16, torch.float16),
    *(
        Refused("cuda", f"the inner width {width} is none of 8, 16, 32, 64, 128", calls)
        for width, calls in _WIDTHS.items()
    ),
)


def contract(draw: Draw) -> Contract:
    return _contract(draw, 14, 9, 21)


def aligned_contract(draw: Draw) -> Contract:
    return _contract(draw, 24, 16, 40)


def _contract(draw: Draw, cin: int, inner: int, cout: int) -> Contract:
    (x, a, b, c, shortcut), kwargs = _call(
        draw, (2, cin, 4, 6, 7), inner, cout, 3, True, stride=1, dilation=1
    )
    convs: dict[str, ConvAffine] = {"a": a, "b": b, "c": c, "shortcut": shortcut}
    changes: dict[str, list[dict[str, Any]]] = {"x": [{"x": draw.normal(*x.shape)}]}
    for name, conv in convs.items():
        parts: list[dict[str, Any]] = [
            {"weight": draw.weight(*conv.weight.shape)},
            *({"scale": v} for v in (None, draw.scale(len(conv.weight)))),
            *({"shift": v} for v in (None, draw.shift(len(conv.weight)))),
        ]
        changes[name] = [{name: conv._replace(**part)} for part in parts]
    # without its own convolution the shortcut is the identity, which needs as many channels as go in
    identity = ConvAffine(draw.weight(cin, inner, 1, 1, 1), draw.scale(cin), draw.shift(cin))
    changes["shortcut"].append({"shortcut": None, "c": identity})
    changes["stride"] = [{"stride": 2}]
    changes["dilation"] = [{"dilation": 2}]
    return Contract({"x": x, **convs, **kwargs}, changes)


def errors() -> Errors:
    zeros = torch.zeros
    a, b, c = ((5, 20, 3, 1, 1), (5, 5, 1, 3, 3), (20, 5, 1, 1, 1))
    return Errors(
        {
            "x": zeros(1, 20, 3, 5, 6),
            **{n: ConvAffine(zeros(v)) for n, v in zip("abc", (a, b, c), strict=True)},
        },
        {
            "x is not a clip": (
                {"x": zeros((20, 3, 5, 6))},
                r"x: expected \[N, C, T, H, W\], got shape \(20, 3, 5, 6\)",
            ),
            "a's channels": (
                {"a.weight": zeros((5, 7, 3, 1, 1))},
                r"as many channels behind the block as before it, got 7 \(weight_a\) and 20 \(weight_c\)",
            ),
            "a's kernel": (
                {"a.weight": zeros((5, 20, 3, 3, 1))},
                r"weight_a: expected shape \(5, 20, 3, 1, 1\), got",
            ),
            "a's kernel is even": (
                {"a.weight": zeros((5, 20, 2, 1, 1))},
                r"weight_a: expected an odd temporal kernel, got 2",
            ),
            "a is 4-D": (
                {"a.weight": zeros((5, 20, 1, 1))},
                r"weight_a: expected shape .*, got \(5, 20, 1, 1\)",
            ),
            "b": (
                {"b.weight": zeros((5, 5, 3, 3, 3))},
                r"weight_b: expected shape \(5, 5, 1, 3, 3\), got \(5, 5, 3, 3, 3\)",
            ),
            "c": (
                {"c.weight": zeros((20, 6, 1, 1, 1))},
                r"weight_c: expected shape \(20, 5, 1, 1, 1\), got \(20, 6, 1, 1, 1\)",
            ),
            "shortcut": (
                {"shortcut.weight": zeros((20, 9, 1, 1, 1))},
                r"weight_shortcut: expected shape \(20, 20, 1, 1, 1\), got \(20, 9, 1, 1, 1\)",
            ),
            "a.scale": ({"a.scale": zeros((20,))}, r"scale_a: expected shape \(5,\), got \(20,\)"),
            "b.shift": ({"b.shift": zeros((20,))}, r"shift_b: expected shape \(5,\), got \(20,\)"),
            "c.scale": ({"c.scale": zeros((5,))}, r"scale_c: expected shape \(20,\), got \(5,\)"),
            "shortcut.shift": (
                {"shortcut.weight": zeros((20, 20, 1, 1, 1)), "shortcut.shift": zeros((5,))},
                r"shift_shortcut: expected shape \(20,\), got \(5,\)",
            ),
            "identity with a stride": ({"stride": 2}, r"an identity shortcut needs stride 1, got stride 2"),
            "identity of other channels": (
                {"c.weight": zeros((30, 5, 1, 1, 1)), "c.scale": zeros((30,)), "c.shift": zeros((30,))},
                r"as many channels behind the block as before it, got 20 \(weight_a\) and 30 \(weight_c\)",
            ),
            "dilation 0": ({"dilation": 0}, r"expected stride and dilation >= 1, got 1 and 0"),
            "x's channels": (
                {"x": zeros((1, 9, 3, 5, 6))},
                r"x: expected 20 channels, as weight_a has, got shape",
            ),
            "no pixels": (
                {"x": zeros((1, 20, 3, 0, 6))},
                r"x: expected at least one frame and one pixel, got shape",
            ),
        },
    )
