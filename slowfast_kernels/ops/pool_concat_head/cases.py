"""Calls of ``pool_concat_head``: the heads of SlowFast at train and test crops, and edge cases."""

from __future__ import annotations

from dataclasses import replace

import torch

from .. import _layers
from .._cases import Args, Case, Contract, Draw, Errors, refused_types


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
    head = _layers.head()
    known: int = head.spec.proj.out_features

    def build(draw: Draw) -> Args:
        slow, fast = ((draw.batch, c, draw.few(t), size, size) for _, c, t, *_ in head.inputs)
        some = min(classes or known, 20 * draw.few(known))
        return _call(draw, slow, fast, some, **kwargs)  # type: ignore[arg-type]

    return Case(name, build, real=True, count=count)


def _edge(name: str, *args: object, **kwargs: object) -> Case:
    return Case(name, lambda draw: _call(draw, *args, **kwargs), edge=True)  # type: ignore[arg-type]


def _sliced(draw: Draw) -> Args:
    # slow as the first channels of a wider buffer, fast in channels-first memory
    (slow, fast, *rest), kwargs = _call(draw, (2, 13, 2, 4, 5), (2, 6, 4, 4, 5), 7, pool_size=3)
    wide = draw.normal(2, 20, 2, 4, 5)
    wide[:, :13] = slow
    return (wide[:, :13], fast.contiguous(), *rest), kwargs


_SIZE = _layers.head().inputs[0][-1]
_LARGER = 256 // 32  # frames of 256 pixels, as in testing

CASES = (
    _layer("head", _SIZE, count=1),
    _layer("head 256", _LARGER),
    _layer("head 256 pytorchvideo", _LARGER, semantics="pytorchvideo"),
    _layer("head mmaction2", _SIZE, semantics="mmaction2"),
    _layer("head charades", _LARGER, classes=157, activation="sigmoid"),
    _edge("one pathway", (2, 20, 3, 7, 7), None, 11),
    _edge("odd", (3, 13, 3, 9, 8), (3, 5, 7, 9, 8), 17, pool_size=(3, 4)),
    _edge("wide window", (1, 9, 2, 4, 8), (1, 3, 4, 4, 8), 5, pool_size=(1, 8), activation="sigmoid"),
    # its softmax is nearly one class's, whose gradient is a difference
    replace(_edge("one cell", (2, 8, 1, 1, 1), (2, 8, 1, 1, 1), 3, pool_size=1), gradient=3e-5),
    _edge("one class", (1, 8, 2, 3, 3), (1, 4, 4, 3, 3), 1, pool_size=3),
    _edge("whole map", (2, 9, 2, 5, 6), (2, 4, 4, 5, 6), 6, pool_size=None, activation="none"),
    _edge("other maps", (2, 9, 2, 5, 6), (2, 4, 3, 3, 4), 6, semantics="mmaction2"),
    _edge("softmax of the mean", (2, 9, 2, 5, 6), (2, 4, 4, 5, 6), 6, pool_size=2, semantics="pytorchvideo",
          activation="softmax"),
    _edge("no bias", (1, 8, 2, 7, 7), (1, 4, 8, 7, 7), 9, False),
    _edge("batch 0", (0, 8, 2, 7, 7), (0, 4, 8, 7, 7), 9),
    Case("channel slice", _sliced, edge=True),
)  # fmt: skip

REFUSED = (
    refused_types("cpu", "C++", torch.float32, torch.bfloat16, torch.float16),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
)


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


def errors() -> Errors:
    zeros = torch.zeros
    slow, fast = (2, 6, 2, 8, 8), (2, 3, 4, 8, 8)
    return Errors(
        {"slow": zeros(slow), "fast": zeros(fast), "weight": zeros(5, 9), "bias": zeros(5)},
        {
            "slow is 4-D": (
                {"slow": zeros(slow[1:])},
                r"slow: expected \[N, C, T, H, W\], got shape \(6, 2, 8, 8\)",
            ),
            "fast is 4-D": (
                {"fast": zeros(fast[1:])},
                r"fast: expected \[N, C, T, H, W\], got shape \(3, 4, 8, 8\)",
            ),
            "batch": ({"fast": zeros((1, 3, 4, 8, 8))}, r"fast: expected a batch of 2, as slow has, got 1"),
            "map": (
                {"fast": zeros((2, 3, 4, 8, 7))},
                r"fast: expected a map of \(8, 8\) cells, as slow has, got \(8, 7\)",
            ),
            "below the window": (
                {"slow": zeros((2, 6, 2, 6, 9)), "fast": zeros((2, 3, 4, 6, 9))},
                r"expected at least one frame of at least 7x7 cells.*got shape \(2, 6, 2, 6, 9\); pool_size=None",
            ),
            "no frame": (
                {"fast": zeros((2, 3, 0, 8, 8))},
                r"fast: expected at least one frame .*got shape \(2, 3, 0, 8, 8\)",
            ),
            "no cell": (
                {"slow": zeros((2, 6, 2, 8, 0)), "pool_size": None},
                r"slow: expected at least one frame of at least 1x1 cells",
            ),
            "weight": (
                {"weight": zeros((5, 6))},
                r"weight: expected \[classes, 9\], all channels of .*, got \(5, 6\)",
            ),
            "weight is 1-D": ({"weight": zeros((9,))}, r"weight: expected \[classes, channels\], got \(9,\)"),
            "bias": ({"bias": zeros((4,))}, r"bias: expected shape \(5,\), got \(4,\)"),
            "semantics": (
                {"semantics": "caffe2"},
                r"semantics: expected one of \('pyslowfast', .*, got 'caffe2'",
            ),
            "activation": ({"activation": "relu"}, r"activation: expected one of \('none', .*, got 'relu'"),
            "window of three": (
                {"pool_size": (2, 7, 7)},
                r"pool_size: expected an int, .* or None, got \(2, 7, 7\)",
            ),
            "window 0": ({"pool_size": 0}, r"pool_size: expected an int, .* or None, got \(0, 0\)"),
            "window of a name": ({"pool_size": "adaptive"}, r"pool_size: .* or None, got 'adaptive'"),
            "mmaction2's window": (
                {"semantics": "mmaction2", "pool_size": 7},
                r"pool_size: expected None, mmaction2 averages the whole map, got \(7, 7\)",
            ),
        },
    )
