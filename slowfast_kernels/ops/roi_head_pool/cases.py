"""Calls of ``roi_head_pool``: AVA's detection head with 1 to 64 boxes, and edge cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .._cases import Args, Case, Contract, Draw, Errors, refused_types
from ..roi_align3d.cases import COORDINATES, ODD, SCALE, boxes, rows


def _real(k: int) -> Case:
    def build(draw: Draw) -> Args:
        h, w = draw.extent(16), draw.extent(29)
        slow = draw.normal(draw.batch, 2048, draw.few(8), h, w)
        fast = draw.normal(draw.batch, 256, draw.few(32), h, w)
        return (slow, fast, boxes(draw, draw.few(k), draw.batch, h, w)), {}

    return Case(f"ava, {k} box{'es' if k > 1 else ''}", build, real=True)


def _call(
    cells: tuple[int, int],
    slow: tuple[int, int],
    fast: tuple[int, int] | None,
    k: int,
    clips: int = 2,
    **kwargs: Any,
) -> Any:
    def build(draw: Draw) -> Args:
        x = draw.normal(clips, *slow, *cells)
        y = None if fast is None else draw.normal(clips, *fast, *cells)
        return (x, y, boxes(draw, k, max(clips, 1), *cells)), kwargs

    return build


def _odd(**kwargs: Any) -> Any:
    def build(draw: Draw) -> Args:
        return (draw.normal(2, 19, 3, 7, 9), draw.normal(2, 35, 5, 7, 9), rows(draw, *ODD)), kwargs

    return build


def _relu(draw: Draw) -> Args:
    # what the network's last ReLU leaves: channels that are zero everywhere, so that all bins are equal
    (slow, fast, rois), kwargs = _call((7, 6), (20, 4), (9, 8), 5)(draw)
    slow, fast = slow.relu(), fast.relu()
    slow[:, 3], fast[:, 5] = 0, 0
    return (slow, fast, rois), kwargs


def _channels_first(draw: Draw) -> Args:
    (slow, fast, rois), kwargs = _call((7, 6), (20, 4), (9, 8), 5)(draw)
    return (slow.contiguous(), fast.contiguous(), rois), kwargs


_CASES = (
    *(_real(k) for k in (1, 4, 16, 64)),
    Case("maximum over time", _call((8, 9), (70, 4), (12, 16), 6, temporal="max"), edge=True),
    Case("one pathway", _call((8, 9), (70, 4), None, 6), edge=True),
    Case("one frame", _call((8, 9), (16, 1), (8, 2), 6), edge=True),
    Case("frames not a multiple of anything", _call((5, 9), (33, 7), (65, 13), 6), edge=True),
    Case("one pixel", _call((1, 1), (16, 2), (8, 4), 3), edge=True),
    Case("one channel", _call((6, 5), (1, 2), (1, 4), 3), edge=True),
    Case("8 x 8 bins, not aligned, ratio 2", _call((8, 9), (16, 2), (8, 4), 6, output_size=8, aligned=False,
                                                   sampling_ratio=2), edge=True),
    Case("odd boxes", _odd(output_size=(3, 2)), edge=True),
    Case("odd boxes, not aligned, ratio 2", _odd(output_size=(3, 2), aligned=False, sampling_ratio=2),
         edge=True),
    Case("no box", _call((6, 5), (8, 2), (4, 4), 0), edge=True),
    Case("batch 0", _call((6, 5), (8, 2), (4, 4), 0, clips=0), edge=True),
    Case("a clip without a box", _call((6, 5), (8, 2), (4, 4), 1, clips=3), edge=True),
    Case("equal bins", _relu, edge=True),
    Case("channels first", _channels_first, edge=True),
)  # fmt: skip

CASES = tuple(replace(case, reduction=COORDINATES) for case in _CASES)

REFUSED = (
    refused_types("cpu", "C++", torch.float32, torch.bfloat16, torch.float16),
    refused_types("triton", "Triton", torch.float32, torch.bfloat16, torch.float16),
    refused_types("cuda", "CUDA", torch.float32, torch.bfloat16, torch.float16),
)


def contract(draw: Draw) -> Contract:
    slow, fast = draw.normal(2, 20, 3, 9, 8), draw.normal(2, 10, 6, 9, 8)
    rois = boxes(draw, 5, 2, 9, 8)
    base = {
        "slow": slow,
        "fast": fast,
        "rois": rois,
        "output_size": (4, 3),
        "spatial_scale": SCALE,
        "sampling_ratio": 0,
        "aligned": True,
        "temporal": "mean",
    }
    return Contract(
        base,
        {
            "slow": [{"slow": draw.normal(2, 20, 3, 9, 8)}],
            "fast": [{"fast": None}, {"fast": draw.normal(2, 10, 6, 9, 8)}],
            "rois": [{"rois": boxes(draw, 5, 2, 9, 8)}, {"rois": rois[:3]}],
            "output_size": [{"output_size": s} for s in [(2, 3), (4, 6), 5]],
            "spatial_scale": [{"spatial_scale": 0.05}],
            "sampling_ratio": [{"sampling_ratio": 1}, {"sampling_ratio": 3}],
            "aligned": [{"aligned": False}],
            "temporal": [{"temporal": "max"}],
        },
    )


def errors() -> Errors:
    zeros = torch.zeros
    slow, fast = zeros(2, 4, 3, 6, 7), zeros(2, 3, 6, 6, 7)
    return Errors(
        {"slow": slow, "fast": fast, "rois": zeros(3, 5)},
        {
            "slow #1": ({"slow": slow[0]}, r"slow: expected \[N, C, T, H, W\]"),
            "slow #2": ({"slow": slow[:, :, :0]}, "slow: expected at least one channel, frame"),
            "fast #1": ({"fast": fast[..., :3]}, r"fast: expected N, H, W = \(2, 6, 7\)"),
            "fast #2": ({"fast": fast[:1]}, r"fast: expected N, H, W = \(2, 6, 7\)"),
            "fast #3": ({"fast": fast[:, :, :0]}, "fast: expected"),
            "fast #4": ({"fast": fast[0]}, r"fast: expected \[N, C, T, H, W\]"),
            "rois #1": ({"rois": zeros(3, 7)}, r"rois: expected \[K, 5\].*got shape \(3, 7\)"),
            "output_size #1": ({"output_size": (1, 2, 3)}, "output_size: expected an int or 2 ints"),
            "output_size #2": ({"output_size": 0}, "output_size: expected values of 1 to"),
            "sampling_ratio #1": ({"sampling_ratio": -2}, "sampling_ratio: expected 0"),
            "temporal #1": ({"temporal": "sum"}, "temporal: expected one of"),
        },
    )
