"""Calls of ``lateral_fusion``: SlowFast's four laterals, the other kinds on the same maps, and edge cases."""

from __future__ import annotations

from typing import Any

from .. import _shapes
from .._cases import Args, Case, Contract, Draw
from .cpu import lateral_channels


def _call(
    draw: Draw,
    slow: tuple[int, ...],
    fast: int,
    out: int = 0,
    kernel: int = 5,
    *,
    alpha: int = 4,
    kind: str = "conv",
    affine: bool = True,
    relu: bool = True,
    into_buffer: bool = False,
) -> Args:
    n, channels, frames, h, w = slow
    weight = draw.weight(out, fast, kernel, 1, 1) if kind == "conv" else None
    kwargs: dict[str, object] = {"alpha": alpha, "kind": kind, "relu": relu}
    if into_buffer:
        kwargs["out"] = draw.normal(n, channels + out, frames, h, w)
        narrow = kwargs["out"][:, :channels]  # type: ignore[index]
    else:
        narrow = draw.normal(*slow)
    args = (
        narrow,
        draw.normal(n, fast, alpha * frames, h, w),
        weight,
        draw.scale(out) if affine and weight is not None else None,
        draw.shift(out) if affine and weight is not None else None,
    )
    return args, kwargs


def _layer(layer: _shapes.Lateral, suffix: str = "", count: int = 0, **kwargs: object) -> Case:
    def build(draw: Draw) -> Args:
        size = draw.extent(layer.size)
        slow = (draw.batch, layer.slow, layer.frames, size, size)
        return _call(draw, slow, layer.fast, layer.out, layer.kernel, alpha=layer.alpha, **kwargs)  # type: ignore[arg-type]

    return Case(layer.name + suffix, build, real=True, count=count)


def _other_kind(layer: _shapes.Lateral, kind: str) -> Case:
    def build(draw: Draw) -> Args:
        size = draw.extent(layer.size)
        channels = layer.alpha * layer.fast if kind == "time_to_channel_sum" else layer.slow
        slow = (draw.batch, channels, layer.frames, size, size)
        return _call(draw, slow, layer.fast, alpha=layer.alpha, kind=kind)

    return Case(f"{layer.name} {kind}", build, real=True)


def _edge(name: str, *args: object, **kwargs: object) -> Case:
    return Case(name, lambda draw: _call(draw, *args, **kwargs), edge=True)  # type: ignore[arg-type]


def _channels_first(draw: Draw) -> Args:
    (slow, fast, *rest), kwargs = _call(draw, (2, 6, 2, 5, 4), 3, 10)
    return (slow.contiguous(), fast.contiguous(), *rest), kwargs


_LATERALS = _shapes.laterals()

CASES = (
    *(_layer(layer, count=layer.count) for layer in _LATERALS),
    *(_layer(layer, " bare", affine=False, relu=False) for layer in _LATERALS[1:2]),
    *(
        _other_kind(_LATERALS[1], kind)
        for kind in ("time_to_channel_concat", "time_to_channel_sum", "time_sample")
    ),
    _edge("odd", (2, 7, 3, 5, 3), 5, 11, 5, alpha=3),
    _edge("one frame", (1, 8, 1, 4, 4), 4, 8, 7),
    _edge("alpha 1", (1, 8, 3, 4, 4), 4, 8, 3, alpha=1),
    _edge("alpha 8, kernel 1", (1, 8, 2, 4, 4), 4, 8, 1, alpha=8),
    _edge("wide", (1, 3, 2, 3, 3), 66, 70, 5),
    _edge("batch 0", (0, 8, 2, 4, 4), 4, 8),
    _edge("into the buffer", (2, 12, 2, 5, 4), 6, 9, into_buffer=True),
    _edge("odd concat", (2, 5, 3, 3, 5), 3, alpha=3, kind="time_to_channel_concat"),
    _edge("odd sum", (2, 9, 3, 3, 5), 3, alpha=3, kind="time_to_channel_sum"),
    _edge("odd sample", (2, 5, 3, 3, 5), 3, alpha=3, kind="time_sample"),
    _edge("none", (1, 5, 2, 3, 3), 3, kind="none"),
    Case("channels first", _channels_first, edge=True),
)


def contract(draw: Draw) -> Contract:
    (slow, fast, weight, scale, shift), kwargs = _call(draw, (2, 12, 2, 5, 4), 6, 10, 3, alpha=2)
    base: dict[str, Any] = {
        "slow": slow,
        "fast": fast,
        "weight": weight,
        "scale": scale,
        "shift": shift,
        **kwargs,
        "out": None,
    }

    def kind(name: str) -> dict[str, Any]:
        return {"kind": name, "weight": None, "scale": None, "shift": None}

    changes: dict[str, list[dict[str, Any]]] = {
        "slow": [{"slow": draw.normal(2, 12, 2, 5, 4)}],
        "fast": [{"fast": draw.normal(2, 6, 4, 5, 4)}],
        "weight": [{"weight": draw.weight(10, 6, 3, 1, 1)}, {"weight": draw.weight(10, 6, 5, 1, 1)}],
        "scale": [{"scale": None}, {"scale": draw.scale(10)}],
        "shift": [{"shift": None}, {"shift": draw.shift(10)}],
        "alpha": [{"alpha": 1, "fast": fast[:, :, :2]}, {"alpha": 4, "fast": draw.normal(2, 6, 8, 5, 4)}],
        "kind": [kind("time_to_channel_concat"), kind("time_to_channel_sum"), kind("time_sample")],
        "relu": [{"relu": False}],
    }

    def into_buffer(change: dict[str, Any]) -> dict[str, Any]:
        new = base | change
        n, channels, *extents = new["slow"].shape
        extra = lateral_channels(new["fast"].shape[1], new["weight"], new["alpha"], new["kind"])
        out = draw.normal(n, channels + extra, *extents)
        return {**change, "out": out, "slow": out[:, :channels]}

    # every change again with the result going into a buffer, which is another entry of the library
    single: list[list[dict[str, Any]]] = [[{}], *changes.values()]
    changes["out"] = [into_buffer(change) for several in single for change in several]
    changes["kind"].append(kind("none"))
    return Contract(base, changes)
