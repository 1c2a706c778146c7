"""Calls of ``pack_pathways``: the views SlowFast is given, and edge cases."""

from __future__ import annotations

import torch

from .. import _shapes
from .._cases import Args, Case, Contract, Draw

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _frames(draw: Draw, *shape: int) -> torch.Tensor:
    return draw.integers(0, 256, *shape, dtype=torch.uint8)


def _view(name: str, size: int, count: int = 0) -> Case:
    net = _shapes.SLOWFAST_8X8_R50

    def build(draw: Draw) -> Args:
        extent = draw.extent(size)
        frames = _frames(draw, draw.batch, net.frames, extent, extent, 3)
        return (frames, net.alpha), {"dtype": draw.dtype}

    return Case(name, build, real=True, count=count)


def _edge(name: str, shape: tuple[int, ...], alpha: int, **kwargs: object) -> Case:
    return Case(
        name, lambda draw: ((_frames(draw, *shape), alpha), {"dtype": draw.dtype, **kwargs}), edge=True
    )


def _cropped(draw: Draw) -> Args:
    # the centre of larger frames, every second one, as view sampling leaves it
    frames = _frames(draw, 2, 12, 14, 19, 3)[:, ::2, 3:11, 4:15]
    return (frames, 3), {"dtype": draw.dtype}


def _planar(draw: Draw) -> Args:
    # channels stored first
    frames = _frames(draw, 2, 3, 4, 5, 7).permute(0, 2, 3, 4, 1)
    return (frames, 2), {"dtype": draw.dtype, **IMAGENET}


def _by_index(draw: Draw) -> Args:
    index = torch.tensor([5, 0, 0, 3], device=draw.device)
    return (_frames(draw, 1, 6, 5, 4, 3), 2), {"dtype": draw.dtype, "slow_index": index}


CASES = (
    _view("view", _shapes.SLOWFAST_8X8_R50.crop, count=1),
    _view("view 256", 256),
    _edge("no batch axis", (8, 5, 7, 3), 4),
    _edge("frames left over", (1, 11, 3, 5, 3), 4),
    _edge("one frame", (2, 1, 6, 5, 3), 1),
    _edge("one pixel", (1, 8, 1, 1, 3), 8),
    _edge("stride rule", (1, 10, 4, 6, 3), 4, slow_index="stride"),
    _edge("other statistics", (1, 8, 4, 6, 3), 4, **IMAGENET),
    _edge("reversed", (1, 8, 4, 6, 3), 4, reverse_channels=True, **IMAGENET),
    _edge("gray", (1, 8, 4, 7, 3), 4, fast_input="gray", **IMAGENET),
    _edge("time difference", (2, 8, 4, 7, 3), 4, fast_input="time_diff", **IMAGENET),
    _edge("batch 0", (0, 8, 4, 7, 3), 4),
    Case("cropped", _cropped, edge=True),
    Case("planar", _planar, edge=True),
    Case("by index", _by_index, edge=True),
)


def contract(draw: Draw) -> Contract:
    base = {
        "frames": _frames(draw, 2, 10, 5, 6, 3),
        "alpha": 3,
        "mean": (0.45, 0.45, 0.45),
        "std": (0.225, 0.225, 0.225),
        "dtype": draw.dtype,
        "slow_index": None,
        "fast_input": "rgb",
        "reverse_channels": False,
    }
    third = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]  # each channel's own value moves to each channel
    return Contract(
        base,
        {
            "frames": [{"frames": _frames(draw, 2, 10, 5, 6, 3)}],
            "alpha": [{"alpha": 2}, {"alpha": 5}],
            "mean": [{"mean": tuple((0.3, 0.4, 0.6)[i] for i in order)} for order in third],
            "std": [{"std": tuple((0.2, 0.25, 0.3)[i] for i in order)} for order in third],
            "dtype": [{"dtype": torch.bfloat16 if draw.dtype == torch.float32 else torch.float32}],
            "slow_index": [
                {"slow_index": "stride"},
                {"slow_index": torch.tensor([9, 1, 1], device=draw.device)},
                {"slow_index": torch.tensor([4], device=draw.device)},
            ],
            "fast_input": [{"fast_input": "gray"}, {"fast_input": "time_diff"}],
            "reverse_channels": [{"reverse_channels": True}],
        },
    )
