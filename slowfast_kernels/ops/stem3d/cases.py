"""Calls of ``stem3d``: the stems of SlowFast and of its relatives, and edge cases."""

from __future__ import annotations

import torch

from .. import _layers
from .._cases import Args, Case, Contract, Draw, Errors, Refused, refused_activations, refused_types
from .._spec import Pool

STRIDE = (1, 2, 2)


def _call(
    draw: Draw,
    x: tuple[int, ...],
    cout: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = STRIDE,
    activation: str = "relu",
    pool: bool = True,
    affine: bool = True,
) -> Args:
    args = (
        draw.normal(*x),
        draw.weight(cout, x[1], *kernel),
        draw.scale(cout) if affine else None,
        draw.shift(cout) if affine else None,
    )
    return args, {"stride": stride, "activation": activation, "pool": pool}


def _layer(layer: _layers.Layer) -> Case:
    conv = layer.spec.conv
    return Case(
        layer.name,
        lambda draw: _call(draw, draw.map(layer.inputs[0]), conv.weight.shape[0], conv.kernel),
        real=True,
        count=layer.count,
    )


def _edge(name: str, *args: object, **kwargs: object) -> Case:
    return Case(name, lambda draw: _call(draw, *args, **kwargs), edge=True)  # type: ignore[arg-type]


def _channels_first(draw: Draw) -> Args:
    # as a decoder's frames arrive
    (x, *rest), kwargs = _call(draw, (2, 3, 3, 18, 21), 8, (5, 7, 7))
    return (x.contiguous(), *rest), kwargs


def _every_alpha(draw: Draw) -> Args:
    # the Slow clip as a view of the Fast one
    (x, *rest), kwargs = _call(draw, (1, 3, 8, 17, 19), 64, (1, 7, 7))
    return (x[:, :, ::4], *rest), kwargs


CASES = (
    *map(_layer, _layers.of("stem3d")),
    _edge("odd", (1, 3, 3, 19, 23), 12, (5, 7, 7)),
    _edge("odd after the convolution", (2, 3, 2, 22, 18), 20, (1, 7, 7)),
    _edge("one frame", (1, 3, 1, 16, 16), 8, (5, 7, 7)),
    _edge("one pixel", (2, 3, 1, 1, 1), 8, (1, 7, 7)),
    _edge("gray", (1, 1, 4, 15, 14), 8, (5, 7, 7)),
    _edge("time difference", (1, 2, 4, 15, 14), 8, (5, 7, 7)),
    _edge("time stride", (1, 3, 7, 14, 14), 24, (5, 7, 7), (2, 2, 2)),
    _edge("no stride", (1, 4, 3, 9, 10), 16, (3, 3, 3), (1, 1, 1)),
    _edge("stride 3", (1, 3, 5, 20, 22), 16, (3, 5, 3), (3, 3, 2)),
    _edge("no pool", (1, 3, 2, 13, 11), 70, (1, 7, 7), pool=False),
    _edge("negative sums", (1, 3, 2, 13, 11), 16, (1, 7, 7), activation="none"),
    _edge("bare", (1, 3, 2, 12, 12), 8, (1, 5, 5), activation="none", pool=False, affine=False),
    _edge("wide", (1, 3, 1, 8, 300), 64, (1, 7, 7)),
    _edge("batch 0", (0, 3, 2, 12, 12), 8, (1, 7, 7)),
    Case("channels first", _channels_first, edge=True),
    Case("every alpha-th frame", _every_alpha, edge=True),
)

_BEYOND: dict[str, tuple[str, ...]] = {
    "silu": ("*, activation #1",),
    "hardswish": ("*, activation #2",),
    "sigmoid": ("*, activation #3",),
}
_POOL = "the pool is ((2, 2, 3), (1, 1, 2), (1, 1, 0)), the {} kernels have ((1, 3, 3), (1, 2, 2), (0, 1, 1)) or none"
_CHANNELS = "{} output channels of {} x 7 x 7 are not a multiple of 8 and at most {}"
_KERNEL = "the kernel {} of {} channels is not 1x7x7 or 5x7x7 of 3"
_OWN = "the stride is {} and the pool {}: the kernel has stride (1, 2, 2) and its own pool"

REFUSED = (
    Refused("cpu", _POOL.format("C++"), ("*, pool #1",)),
    refused_types("cpu", "C++", torch.float32, torch.bfloat16),
    *refused_activations("cpu", "C++", **_BEYOND),
    Refused("triton", _POOL.format("Triton"), ("*, pool #1",)),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
    *refused_activations("triton", "Triton", **_BEYOND),
    refused_types("cuda", "tensor-core", torch.bfloat16, torch.float16),
    *refused_activations("cuda", "CUDA", **_BEYOND),
    Refused("cuda", _CHANNELS.format(12, 5, 8), ("odd",)),
    Refused("cuda", _CHANNELS.format(20, 1, 64), ("odd after the convolution",)),
    Refused("cuda", _CHANNELS.format(24, 5, 8), ("time stride",)),
    Refused("cuda", _CHANNELS.format(70, 1, 64), ("no pool",)),
    Refused("cuda", _KERNEL.format((5, 7, 7), 1), ("gray",)),
    Refused("cuda", _KERNEL.format((5, 7, 7), 2), ("time difference",)),
    Refused("cuda", _KERNEL.format((3, 3, 3), 4), ("no stride",)),
    Refused("cuda", _KERNEL.format((3, 5, 3), 3), ("stride 3",)),
    Refused("cuda", _KERNEL.format((1, 5, 5), 3), ("bare",)),
    Refused("cuda", _KERNEL.format((3, 5, 7), 3), ("odd, *",)),
    Refused("cuda", _OWN.format((2, 2, 2), Pool()), ("aligned, stride #0",)),
    Refused("cuda", _OWN.format((1, 1, 2), Pool()), ("aligned, stride #1",)),
    Refused("cuda", _OWN.format((1, 2, 1), Pool()), ("aligned, stride #2",)),
    Refused("cuda", _OWN.format(STRIDE, None), ("aligned, pool #0",)),
    Refused("cuda", _OWN.format(STRIDE, Pool((2, 2, 3), (1, 1, 2), (1, 1, 0))), ("aligned, pool #1",)),
)


def contract(draw: Draw) -> Contract:
    return _contract(draw, 10, (3, 5, 7), (1, 1, 1), [(2, 1, 1), (1, 2, 1), (1, 1, 2)])


def aligned_contract(draw: Draw) -> Contract:
    return _contract(draw, 8, (5, 7, 7), (1, 2, 2), [(2, 2, 2), (1, 1, 2), (1, 2, 1)])


def _contract(
    draw: Draw,
    cout: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    strides: list[tuple[int, int, int]],
) -> Contract:
    (x, weight, scale, shift), kwargs = _call(draw, (2, 3, 5, 14, 15), cout, kernel, stride)
    return Contract(
        {"x": x, "weight": weight, "scale": scale, "shift": shift, **kwargs},
        {
            "x": [{"x": draw.normal(2, 3, 5, 14, 15)}],
            "weight": [{"weight": draw.weight(cout, 3, *kernel)}],
            "scale": [{"scale": None}, {"scale": draw.scale(cout)}],
            "shift": [{"shift": None}, {"shift": draw.shift(cout)}],
            "stride": [{"stride": s} for s in strides],
            # enough below zero for whole pool windows
            "activation": [
                {"activation": a, "shift": shift - 3} for a in ("none", "silu", "hardswish", "sigmoid")
            ],
            "pool": [{"pool": False}, {"pool": Pool((2, 2, 3), (1, 1, 2), (1, 1, 0))}],
        },
    )


def errors() -> Errors:
    zeros = torch.zeros
    x, w = (2, 3, 2, 9, 9), (6, 3, 1, 3, 3)
    return Errors(
        {"x": zeros(x), "weight": zeros(w)},
        {
            "x is not a clip": (
                {"x": zeros(x[1:])},
                r"x: expected \[N, C, T, H, W\], got shape \(3, 2, 9, 9\)",
            ),
            "even kernel": (
                {"weight": zeros((6, 3, 1, 4, 3))},
                r"weight: expected .* with odd kernel extents, got \(6, 3, 1, 4, 3\)",
            ),
            "channels differ": (
                {"x": zeros((2, 1, 2, 9, 9))},
                r"x: expected 3 channels, as weight has, got shape \(2, 1, 2, 9, 9\)",
            ),
            "scale": ({"scale": zeros((5,))}, r"scale: expected shape \(6,\), got \(5,\)"),
            "shift": ({"shift": zeros((6, 1))}, r"shift: expected shape \(6,\), got \(6, 1\)"),
            "no frames": (
                {"x": zeros((2, 3, 0, 9, 9))},
                r"x: expected at least one frame and one pixel, got shape \(2, 3, 0, 9, 9\)",
            ),
            "two strides": ({"stride": (1, 2)}, r"stride: expected an int or three ints .*, got \(1, 2\)"),
            "stride 0": ({"stride": (1, 0, 2)}, r"stride"),
        },
    )
