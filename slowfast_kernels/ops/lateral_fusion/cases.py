"""Calls of ``lateral_fusion``: SlowFast's four laterals, the other kinds on the same maps, and edge cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .. import _layers
from .._cases import Args, Case, Contract, Draw, Errors, refused_activations, refused_types
from .._spec import ConvAffine
from .spec import LateralSpec


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
    activation: str = "relu",
    into_buffer: bool = False,
) -> Args:
    n, channels, frames, h, w = slow
    weight = draw.weight(out, fast, kernel, 1, 1) if kind == "conv" else None
    kwargs: dict[str, object] = {"alpha": alpha, "kind": kind, "activation": activation}
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


def _layer(layer: _layers.Layer, suffix: str = "", count: int = 0, **kwargs: Any) -> Case:
    conv, alpha = layer.spec.conv, layer.spec.alpha

    def build(draw: Draw) -> Args:
        slow, fast = map(draw.map, layer.inputs)
        return _call(draw, slow, fast[1], conv.weight.shape[0], conv.kernel[0], alpha=alpha, **kwargs)

    return Case(layer.name + suffix, build, real=True, count=count)


def _other_kind(layer: _layers.Layer, kind: str) -> Case:
    def build(draw: Draw) -> Args:
        (n, channels, *extents), fast = map(draw.map, layer.inputs)
        channels = layer.spec.alpha * fast[1] if kind == "time_to_channel_sum" else channels
        return _call(draw, (n, channels, *extents), fast[1], alpha=layer.spec.alpha, kind=kind)

    return Case(f"{layer.name} {kind}", build, real=True)


def _edge(name: str, *args: object, **kwargs: object) -> Case:
    return Case(name, lambda draw: _call(draw, *args, **kwargs), edge=True)  # type: ignore[arg-type]


def _channels_first(draw: Draw) -> Args:
    (slow, fast, *rest), kwargs = _call(draw, (2, 6, 2, 5, 4), 3, 10)
    return (slow.contiguous(), fast.contiguous(), *rest), kwargs


_LATERALS = _layers.of("lateral_fusion")

CASES = (
    *(_layer(layer, count=layer.count) for layer in _LATERALS),
    *(_layer(layer, " bare", affine=False, activation="none") for layer in _LATERALS[1:2]),
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
    replace(_edge("into the buffer", (2, 12, 2, 5, 4), 6, 9, into_buffer=True), gradient=None),
    _edge("odd concat", (2, 5, 3, 3, 5), 3, alpha=3, kind="time_to_channel_concat"),
    _edge("odd sum", (2, 9, 3, 3, 5), 3, alpha=3, kind="time_to_channel_sum"),
    _edge("odd sample", (2, 5, 3, 3, 5), 3, alpha=3, kind="time_sample"),
    _edge("none", (1, 5, 2, 3, 3), 3, kind="none"),
    Case("channels first", _channels_first, edge=True),
)

_BEYOND: dict[str, tuple[str, ...]] = {
    "silu": ("odd, activation #1", "odd, out #15"),
    "hardswish": ("odd, activation #2", "odd, out #16"),
    "sigmoid": ("odd, activation #3", "odd, out #17"),
}

REFUSED = (
    refused_types("cpu", "C++", torch.float32, torch.bfloat16),
    *refused_activations("cpu", "C++", **_BEYOND),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
    *refused_activations("triton", "Triton", **_BEYOND),
    refused_types("cuda", "CUDA", torch.float32, torch.bfloat16, torch.float16),
    *refused_activations("cuda", "CUDA", **_BEYOND),
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
        "activation": [{"activation": a} for a in ("none", "silu", "hardswish", "sigmoid")],
    }

    def into_buffer(change: dict[str, Any]) -> dict[str, Any]:
        new = base | change
        n, channels, *extents = new["slow"].shape
        conv = None if new["weight"] is None else ConvAffine(new["weight"])
        extra = LateralSpec(conv, new["alpha"], new["kind"]).added(new["fast"].shape[1])
        out = draw.normal(n, channels + extra, *extents)
        return {**change, "out": out, "slow": out[:, :channels]}

    # every change again with the result going into a buffer, which is another entry of the library
    single: list[list[dict[str, Any]]] = [[{}], *changes.values()]
    changes["out"] = [into_buffer(change) for several in single for change in several]
    changes["kind"].append(kind("none"))
    return Contract(base, changes)


def errors() -> Errors:
    zeros = torch.zeros
    slow, fast, weight = (2, 6, 2, 5, 4), (2, 3, 8, 5, 4), (10, 3, 5, 1, 1)
    return Errors(
        {"slow": zeros(slow), "fast": zeros(fast), "weight": zeros(weight), "alpha": 4},
        {
            "kind": ({"kind": "sum"}, r"kind: expected one of \('conv', .*'none'\), got 'sum'"),
            "slow": (
                {"slow": zeros(slow[1:])},
                r"slow: expected \[N, C, T, H, W\], got shape \(6, 2, 5, 4\)",
            ),
            "fast": (
                {"fast": zeros(fast[1:])},
                r"fast: expected \[N, C, T, H, W\], got shape \(3, 8, 5, 4\)",
            ),
            "frames": (
                {"fast": zeros((2, 3, 6, 5, 4))},
                r"fast: expected N, T, H, W = \(2, 8, 5, 4\) \(alpha = 4 times slow's frames\), got shape \(2, 3, 6,",
            ),
            "no weight": ({"weight": None}, r"weight: expected a tensor for kind 'conv'"),
            "unneeded weight": ({"kind": "time_sample"}, r"weight: expected None for kind 'time_sample'"),
            "weight's kernel": (
                {"weight": zeros((10, 3, 4, 1, 1))},
                r"weight: expected \[Cl, Cf, kt, 1, 1\] with kt odd, got \(10, 3, 4, 1, 1\)",
            ),
            "weight's channels": (
                {"weight": zeros((10, 4, 5, 1, 1))},
                r"fast: expected 4 channels, as weight has, got shape",
            ),
            "scale": ({"scale": zeros((6,))}, r"scale: expected shape \(10,\), got \(6,\)"),
            "sum": (
                {"kind": "time_to_channel_sum", "weight": None},
                r"slow: expected 12 channels, as fast, times alpha, has, got shape \(2, 6, 2, 5, 4\)",
            ),
            "out's shape": (
                {"out": zeros((2, 17, 2, 5, 4))},
                r"out: expected channels_last_3d memory of shape \(2, 16, 2, 5, 4\), got",
            ),
            "out is not slow": (
                {"out": zeros((2, 16, 2, 5, 4))},
                r"out: expected its first channels to be slow itself",
            ),
            "alpha 0": ({"fast": zeros(2, 3, 0, 5, 4), "alpha": 0}, r"alpha: expected at least 1, got 0"),
        },
    )
