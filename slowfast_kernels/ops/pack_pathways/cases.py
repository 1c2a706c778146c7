"""Calls of ``pack_pathways``: the views SlowFast is given, and edge cases."""

from __future__ import annotations

import torch

from .. import _layers
from .._cases import Args, Case, Contract, Draw, Errors, refused_types

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _frames(draw: Draw, *shape: int) -> torch.Tensor:
    return draw.integers(0, 256, *shape, dtype=torch.uint8)


def _view(name: str, size: int, count: int = 0) -> Case:
    def build(draw: Draw) -> Args:
        extent = draw.extent(size)
        frames = _frames(draw, draw.batch, _layers.FRAMES, extent, extent, 3)
        return (frames, _layers.ALPHA), {"dtype": draw.dtype}

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
    _view("view", _layers.CROP, count=1),
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

REFUSED = (
    refused_types("cpu", "C++", torch.float32, torch.bfloat16, torch.float16),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
    refused_types("cuda", "CUDA", torch.float32, torch.bfloat16, torch.float16),
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


def errors() -> Errors:
    zeros = torch.zeros
    return Errors(
        {"frames": zeros((1, 4, 3, 3, 3), dtype=torch.uint8), "alpha": 2},
        {
            "floats": ({"frames": zeros(1, 4, 3, 3, 3)}, r"frames: expected uint8, got torch\.float32"),
            "channels first": (
                {"frames": zeros((1, 3, 4, 5, 6), dtype=torch.uint8)},
                r"frames: expected \[N, T, H, W, 3\] or .*\(1, 3, 4, 5, 6\)",
            ),
            "one image": (
                {"frames": zeros((4, 5, 3), dtype=torch.uint8)},
                r"frames: expected \[N, T, H, W, 3\] or .*got shape \(4, 5, 3\)",
            ),
            "no frame": (
                {"frames": zeros((1, 0, 4, 5, 3), dtype=torch.uint8)},
                r"frames: expected at least one frame, got shape",
            ),
            "alpha 0": ({"alpha": 0}, r"alpha: expected 1 to 4, the number of frames, got 0"),
            "alpha above T": ({"alpha": 5}, r"alpha: expected 1 to 4, the number of frames, got 5"),
            "mean": ({"mean": (0.45,)}, r"mean: expected three numbers \(R, G, B\), got \(0\.45,\)"),
            "std": ({"std": (0.2, 0.2, 0.2, 0.2)}, r"std: expected three numbers"),
            "std 0": ({"std": (0.2, 0.0, 0.2)}, r"std: expected positive numbers, got \(0\.2, 0\.0, 0\.2\)"),
            "dtype": ({"dtype": torch.int32}, r"dtype: expected a floating-point dtype, got torch\.int32"),
            "fast_input": (
                {"fast_input": "flow"},
                r"fast_input: expected one of \('rgb', 'gray', 'time_diff'\), got 'flow'",
            ),
            "rule": (
                {"slow_index": "random"},
                r"slow_index: expected None, one of \('linspace', 'stride'\) or a tensor",
            ),
            "index of floats": (
                {"slow_index": zeros(2)},
                r"slow_index: expected a 1-D int64 tensor, got shape \(2,\)",
            ),
            "index 2-D": ({"slow_index": zeros(1, 2, dtype=torch.int64)}, r"expected a 1-D int64 tensor"),
        },
    )
