"""Calls of ``stem3d``: the stems of SlowFast and of its relatives, and edge cases."""

from __future__ import annotations

from .. import _shapes
from .._cases import Args, Case, Contract, Draw

STRIDE = (1, 2, 2)


def _call(
    draw: Draw,
    x: tuple[int, ...],
    cout: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = STRIDE,
    relu: bool = True,
    pool: bool = True,
    affine: bool = True,
) -> Args:
    args = (
        draw.normal(*x),
        draw.weight(cout, x[1], *kernel),
        draw.scale(cout) if affine else None,
        draw.shift(cout) if affine else None,
    )
    return args, {"stride": stride, "relu": relu, "pool": pool}


def _layer(stem: _shapes.Stem) -> Case:
    def build(draw: Draw) -> Args:
        size = draw.extent(stem.size)
        return _call(draw, (draw.batch, stem.cin, stem.frames, size, size), stem.cout, stem.kernel)

    return Case(stem.name, build, real=True, count=stem.count)


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
    *(_layer(stem) for stem in _shapes.stems()),
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
    _edge("negative sums", (1, 3, 2, 13, 11), 16, (1, 7, 7), relu=False),
    _edge("bare", (1, 3, 2, 12, 12), 8, (1, 5, 5), relu=False, pool=False, affine=False),
    _edge("wide", (1, 3, 1, 8, 300), 64, (1, 7, 7)),
    _edge("batch 0", (0, 3, 2, 12, 12), 8, (1, 7, 7)),
    Case("channels first", _channels_first, edge=True),
    Case("every alpha-th frame", _every_alpha, edge=True),
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
            "relu": [{"relu": False, "shift": shift - 3}],  # enough below zero for whole pool windows
            "pool": [{"pool": False}],
        },
    )
