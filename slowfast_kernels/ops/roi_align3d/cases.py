"""Calls of ``roi_align3d``: AVA's detector (stride 16 on frames of 256 x 464) and boxes of every odd kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .._cases import Args, Case, Contract, Draw, Errors, refused_types

SCALE = 1 / 16


#: Products of a sum, as it were: what a float32 coordinate may be off by (an ulp of a cell's number) weighs more than
#: the sums' rounding.
COORDINATES = 7000


def boxes(draw: Draw, k: int, clips: int, height: int, width: int) -> torch.Tensor:
    """[K, 5] people on a map of height x width cells: upright, inside the frame, in eighths of a pixel."""
    h = draw.uniform(k, low=0.4, high=1.0) * height / SCALE
    w = draw.uniform(k, low=0.1, high=0.45) * width / SCALE
    y = draw.uniform(k) * (height / SCALE - h)
    x = draw.uniform(k) * (width / SCALE - w)
    corners = (torch.stack([x, y, x + w, y + h], 1) * 8).round() / 8
    return torch.cat([draw.integers(0, clips, k, 1, dtype=torch.float32), corners], 1)


def tubes(draw: Draw, k: int, clips: int, frames: int, height: int, width: int) -> torch.Tensor:
    """[K, T, 5]: boxes that move by up to half a cell a frame."""
    first = boxes(draw, k, clips, height, width)
    steps = (draw.uniform(k, frames, 4, low=-8, high=8) * 8).round() / 8
    return torch.cat([first[:, None, :1].expand(-1, frames, -1), first[:, None, 1:] + steps.cumsum(1)], 2)


def volumes(draw: Draw, k: int, clips: int, frames: int, height: int, width: int) -> torch.Tensor:
    """[K, 7]: boxes that last for half of the frames."""
    start = (draw.uniform(k, 1) * frames * 4).round() / 8
    return torch.cat([boxes(draw, k, clips, height, width), start, start + frames / 2], 1)


def rows(draw: Draw, *values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, device=draw.device, dtype=torch.float32)


def _real(name: str, channels: int, frames: int, k: int, mode: str = "frame") -> Case:
    def build(draw: Draw) -> Args:
        h, w, t = draw.extent(16), draw.extent(29), draw.few(frames)
        x = draw.normal(draw.batch, channels, t, h, w)
        if mode == "frame":
            rois = boxes(draw, draw.few(k), draw.batch, h, w)
        else:
            rois = (tubes if mode == "tube" else volumes)(draw, draw.few(k), draw.batch, t, h, w)
        size = (max(2, t // 2), 7, 7) if mode == "volume" else (7, 7)
        return (x, rois), {"output_size": size, "spatial_scale": SCALE, "mode": mode}

    return Case(name, build, real=True)


#: Finite but odd boxes on maps of 7 x 9 cells in two clips. What is not finite gives NaN: see the op's test.
ODD = (
    (0, -40, -24, 72, 64),  # reaches beyond two sides
    (1, 400, 400, 480, 500),  # outside
    (0, 30, 30, 30, 90),  # no width
    (1, 90, 80, 20, 16),  # ends before it starts
    (0, 48, 48, 52, 51),  # within one cell
    (1, -1e6, -1e6, 1e6, 1e6),  # far larger than the map
    (1, 1e30, 1e30, 3e30, 3e30),
    (0, 0, 0, 144, 112),  # the whole map
)


def _odd(aligned: bool, ratio: int, mode: str = "frame") -> Any:
    def build(draw: Draw) -> Args:
        x, rois = draw.normal(2, 19, 3, 7, 9), rows(draw, *ODD)
        if mode == "tube":
            rois = torch.stack([rois, rois.flip(0), rois.roll(1, 0)], 1)
        if mode == "volume":
            times = rows(draw, (0, 3), (0.5, 1), (-9, 2), (2, 1), (1, 1), (-1e6, 1e6), (0, 2), (1, 3))
            rois = torch.cat([rois, times], 1)
        size: Any = (2, 3, 2) if mode == "volume" else (3, 2)
        return (x, rois, size, SCALE, ratio, aligned, mode), {}

    return build


def _call(shape: tuple[int, ...], k: int, size: Any = 7, **kwargs: Any) -> Any:
    def build(draw: Draw) -> Args:
        rois = boxes(draw, k, max(shape[0], 1), shape[3], shape[4])
        return (draw.normal(*shape), rois, size, SCALE), kwargs

    return build


def _channels_first(draw: Draw) -> Args:
    (x, rois, *rest), kwargs = _call((2, 6, 3, 7, 5), 4)(draw)
    return (x.contiguous(), rois.t().contiguous().t(), *rest), kwargs


def _channel_slice(draw: Draw) -> Args:
    (_, *rest), kwargs = _call((2, 21, 3, 7, 5), 4)(draw)
    return (draw.normal(2, 40, 3, 7, 5)[:, 8:29], *rest), kwargs


_CASES = (
    _real("ava slow, 8 boxes", 2048, 8, 8),
    _real("ava fast, 8 boxes", 256, 32, 8),
    _real("ava slow, 8 tubes", 2048, 8, 8, "tube"),
    _real("ava slow, 8 volumes", 2048, 8, 8, "volume"),
    *(
        Case(
            f"odd boxes, {'aligned' if aligned else 'not aligned'}, ratio {ratio}",
            _odd(aligned, ratio),
            edge=True,
        )
        for aligned in (True, False)
        for ratio in (0, 2)
    ),
    Case("odd tubes", _odd(True, 0, "tube"), edge=True),
    Case("odd volumes", _odd(True, 0, "volume"), edge=True),
    Case("odd volumes, not aligned, ratio 3", _odd(False, 3, "volume"), edge=True),
    Case("far samples", _call((1, 8, 2, 30, 30), 3, 2, sampling_ratio=1), edge=True),
    Case("many samples", _call((1, 8, 2, 5, 6), 3, 2, sampling_ratio=64), edge=True),
    Case("one bin", _call((2, 70, 2, 9, 8), 5, 1), edge=True),
    Case("more bins than cells", _call((1, 33, 1, 3, 4), 3, (14, 9)), edge=True),
    Case("one pixel", _call((3, 16, 2, 1, 1), 4), edge=True),
    Case("one channel", _call((1, 1, 3, 6, 7), 4), edge=True),
    Case("no box", _call((2, 5, 3, 6, 7), 0), edge=True),
    Case("batch 0", _call((0, 5, 3, 6, 7), 0), edge=True),
    Case("channels first", _channels_first, edge=True),
    Case("channel slice", _channel_slice, edge=True),
)

CASES = tuple(replace(case, reduction=COORDINATES) for case in _CASES)

REFUSED = (
    refused_types("cpu", "C++", torch.float32, torch.bfloat16, torch.float16),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
    refused_types("cuda", "CUDA", torch.float32, torch.bfloat16, torch.float16),
)


def contract(draw: Draw) -> Contract:
    x = draw.normal(2, 10, 4, 9, 8)
    rois = volumes(draw, 5, 2, 4, 9, 8)
    rois[0, 1:5] = rows(draw, (4, 4, 9, 8))[
        0
    ]  # below one cell: aligned or not is more than half a cell's shift
    base = {
        "features": x,
        "rois": rois,
        "output_size": (3, 4, 5),
        "spatial_scale": SCALE,
        "sampling_ratio": 0,
        "aligned": True,
        "mode": "volume",
        "temporal_scale": 1.0,
    }
    frame = {"mode": "frame", "rois": boxes(draw, 5, 2, 9, 8), "output_size": (4, 5)}
    return Contract(
        base,
        {
            "features": [{"features": draw.normal(2, 10, 4, 9, 8)}, {"features": draw.normal(2, 7, 5, 8, 9)}],
            "rois": [{"rois": volumes(draw, 5, 2, 4, 9, 8)}, {"rois": rois[:2]}],
            "output_size": [{"output_size": s} for s in [(2, 4, 5), (3, 2, 5), (3, 4, 2), 3]],
            "spatial_scale": [{"spatial_scale": 0.05}],
            "sampling_ratio": [{"sampling_ratio": 1}, {"sampling_ratio": 3}],
            "aligned": [{"aligned": False}],
            "mode": [frame, frame | {"mode": "tube", "rois": tubes(draw, 5, 2, 4, 9, 8)}],
            "temporal_scale": [{"temporal_scale": 0.5}],
        },
    )


def errors() -> Errors:
    zeros = torch.zeros
    x = zeros(2, 4, 3, 6, 7)
    return Errors(
        {"features": x, "rois": zeros(3, 5)},
        {
            "features #1": ({"features": x[0]}, r"features: expected \[N, C, T, H, W\]"),
            "features #2": ({"features": x.int()}, "features: expected a floating-point"),
            "rois #1": ({"rois": zeros(3, 4)}, r"rois: expected \[K, 5\].*got shape \(3, 4\)"),
            "rois #2": ({"rois": zeros(3, 5).int()}, "rois: expected a floating-point"),
            "mode #1": ({"mode": "tube"}, r"rois: expected \[K, 3, 5\]"),
            "mode #2": ({"mode": "volume", "output_size": 2}, r"rois: expected \[K, 7\]"),
            "mode #3": ({"mode": "plane"}, "mode: expected one of"),
            "output_size #1": ({"output_size": (2, 2, 2)}, "output_size: expected an int or 2 ints"),
            "output_size #2": ({"output_size": (0, 2)}, "output_size: expected values of 1 to"),
            "output_size #3": ({"output_size": 5000}, "output_size: expected values of 1 to"),
            "sampling_ratio #1": ({"sampling_ratio": -2}, "sampling_ratio: expected 0"),
            "sampling_ratio #2": ({"sampling_ratio": 5000}, "sampling_ratio: expected 0"),
        },
    )
