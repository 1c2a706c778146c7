"""Calls of ``pool_concat_head``: the heads of SlowFast at train and test crops, and edge cases."""

from __future__ import annotations

from .. import _shapes
from .._cases import Args, Case, Contract, Draw


def _call(
    draw: Draw,
    slow: tuple[int, ...],
    fast: tuple[int, ...] | None,
    classes: int,
    bias: bool = True,
    **kwargs: object,
) -> Args:
    channels = slow[1] + (fast[1] if fast else 0)
    args = (
        draw.normal(*slow),
        draw.normal(*fast) if fast else None,
        # spread the classes: averages over many positions are small
        draw.weight(classes, channels) * 8,
        draw.uniform(classes, low=-1, high=1) if bias else None,
    )
    return args, kwargs


def _layer(name: str, size: int, count: int = 0, classes: int | None = None, **kwargs: object) -> Case:
    """The head on ``size`` x ``size`` cells; never shrunk, as the pooling window has a size of its own."""
    head = _shapes.head()

    def build(draw: Draw) -> Args:
        slow = (draw.batch, head.slow, head.frames, size, size)
        fast = (draw.batch, head.fast, head.frames * head.alpha, size, size)
        return _call(draw, slow, fast, classes or head.classes, **kwargs)  # type: ignore[arg-type]

    return Case(name, build, real=True, count=count)


def _edge(name: str, *args: object, **kwargs: object) -> Case:
    return Case(name, lambda draw: _call(draw, *args, **kwargs), edge=True)  # type: ignore[arg-type]


def _sliced(draw: Draw) -> Args:
    # slow as the first channels of a wider buffer, fast in channels-first memory
    (slow, fast, *rest), kwargs = _call(draw, (2, 13, 2, 4, 5), (2, 6, 4, 4, 5), 7, pool_size=3)
    wide = draw.normal(2, 20, 2, 4, 5)
    wide[:, :13] = slow
    return (wide[:, :13], fast.contiguous(), *rest), kwargs


_SIZE = _shapes.head().size
# frames of 256 pixels, as in testing
_LARGER = _shapes.strided(256, 32)

CASES = (
    _layer("head", _SIZE, count=1),
    _layer("head 256", _LARGER),
    _layer("head 256 pytorchvideo", _LARGER, semantics="pytorchvideo"),
    _layer("head mmaction2", _SIZE, semantics="mmaction2"),
    _layer("head charades", _LARGER, classes=157, activation="sigmoid"),
    _edge("one pathway", (2, 20, 3, 7, 7), None, 11),
    _edge("odd", (3, 13, 3, 9, 8), (3, 5, 7, 9, 8), 17, pool_size=(3, 4)),
    _edge("wide window", (1, 9, 2, 4, 8), (1, 3, 4, 4, 8), 5, pool_size=(1, 8), activation="sigmoid"),
    _edge("one cell", (2, 8, 1, 1, 1), (2, 8, 1, 1, 1), 3, pool_size=1),
    _edge("one class", (1, 8, 2, 3, 3), (1, 4, 4, 3, 3), 1, pool_size=3),
    _edge("whole map", (2, 9, 2, 5, 6), (2, 4, 4, 5, 6), 6, pool_size=None, activation="none"),
    _edge("other maps", (2, 9, 2, 5, 6), (2, 4, 3, 3, 4), 6, semantics="mmaction2"),
    _edge("softmax of the mean", (2, 9, 2, 5, 6), (2, 4, 4, 5, 6), 6, pool_size=2, semantics="pytorchvideo",
          activation="softmax"),
    _edge("no bias", (1, 8, 2, 7, 7), (1, 4, 8, 7, 7), 9, False),
    _edge("batch 0", (0, 8, 2, 7, 7), (0, 4, 8, 7, 7), 9),
    Case("channel slice", _sliced, edge=True),
)  # fmt: skip


def contract(draw: Draw) -> Contract:
    (slow, fast, weight, bias), _ = _call(draw, (2, 9, 3, 5, 6), (2, 6, 5, 5, 6), 7)
    base = {"slow": slow, "fast": fast, "weight": weight, "bias": bias}
    base |= {"pool_size": (3, 4), "semantics": "pyslowfast", "activation": "softmax"}
    return Contract(
        base,
        {
            "slow": [{"slow": draw.normal(2, 9, 3, 5, 6)}],
            "fast": [{"fast": draw.normal(2, 6, 5, 5, 6)}, {"fast": None, "weight": weight[:, :9]}],
            "weight": [{"weight": draw.weight(7, 15) * 8}],
            "bias": [{"bias": None}, {"bias": draw.uniform(7, low=-1, high=1)}],
            "pool_size": [{"pool_size": (4, 3)}, {"pool_size": 2}, {"pool_size": None}],
            "semantics": [{"semantics": "pytorchvideo"}, {"semantics": "mmaction2", "pool_size": None}],
            "activation": [{"activation": "sigmoid"}, {"activation": "none"}],
        },
    )
