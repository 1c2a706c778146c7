"""Calls of ``bottleneck3d``: every distinct block of SlowFast and of its detector, and edge cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import _shapes
from .._cases import Args, Case, Contract, Draw


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
    def conv(cout: int, cin: int, *kernel: int) -> tuple[object, ...]:
        weight = draw.weight(cout, cin, *kernel)
        return (weight, draw.scale(cout), draw.shift(cout)) if affine else (weight, None, None)

    args = (
        draw.normal(*x),
        *conv(inner, x[1], temporal_kernel, 1, 1),
        *conv(inner, inner, 1, 3, 3),
        *conv(cout, inner, 1, 1, 1),
        *(conv(cout, x[1], 1, 1, 1) if shortcut else (None, None, None)),
    )
    return args, kwargs


def _layer(block: _shapes.Block, count: int) -> Case:
    def build(draw: Draw) -> Args:
        size = draw.extent(block.size)
        return _call(
            draw,
            (draw.batch, block.cin, block.frames, size, size),
            block.inner,
            block.cout,
            block.temporal_kernel,
            block.has_shortcut,
            stride=block.stride,
            dilation=block.dilation,
        )

    return Case(block.name, build, real=True, count=count)


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
    *(_layer(block, block.count) for block in _shapes.distinct(_shapes.blocks())),
    *(_layer(replace(b, name=f"{b.name} dilated"), 0) for b in _shapes.detection_only()),
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


def contract(draw: Draw) -> Contract:
    return _contract(draw, 14, 9, 21)


def aligned_contract(draw: Draw) -> Contract:
    return _contract(draw, 24, 16, 40)


def _contract(draw: Draw, cin: int, inner: int, cout: int) -> Contract:
    names = ["x"] + [f"{kind}_{conv}" for conv in "abcs" for kind in ("weight", "scale", "shift")]
    args, kwargs = _call(draw, (2, cin, 4, 6, 7), inner, cout, 3, True, stride=1, dilation=1)
    base = dict(zip(names, args, strict=True)) | kwargs
    changes: dict[str, Any] = {}
    for name in names:
        old = base[name]
        if name.startswith("scale"):
            changes[name] = [{name: None}, {name: draw.scale(*old.shape)}]
        elif name.startswith("shift"):
            changes[name] = [{name: None}, {name: draw.shift(*old.shape)}]
        else:
            changes[name] = [{name: draw.normal(*old.shape) if name == "x" else draw.weight(*old.shape)}]
    # without its own convolution the shortcut is the identity, which needs as many channels as go in
    identity: dict[str, object] = {"weight_s": None, "scale_s": None, "shift_s": None}
    identity |= {
        "weight_c": draw.weight(cin, inner, 1, 1, 1),
        "scale_c": draw.scale(cin),
        "shift_c": draw.shift(cin),
    }
    changes["weight_s"].append(identity)
    changes["stride"] = [{"stride": 2}]
    changes["dilation"] = [{"dilation": 2}]
    return Contract(base, changes)
