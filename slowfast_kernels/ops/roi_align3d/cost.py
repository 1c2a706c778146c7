"""Least work of a ``roi_align3d`` call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._cases import Cost, bytes_of
from .boxes import as_bins
from .reference import Samples, axis_samples, coordinates


def _touched(samples: Samples, extent: int) -> torch.Tensor:
    """bool [K, bins, extent]: the cells of one axis that a bin reads."""
    k, bins = samples.cell.shape[:2]
    counts = torch.zeros(k, bins, extent + 1, device=samples.cell.device)
    cell = samples.cell.where(samples.inside & samples.finite[:, None, None, None], extent)
    return counts.scatter_(2, cell.flatten(2), 1.0)[..., :extent] > 0


def frame_work(
    rois: torch.Tensor,
    features: torch.Tensor,
    bins: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of boxes [K, 5]: cells read by all bins together [K]; cells under the box, bool [K, H, W]."""
    _, x1, y1, x2, y2 = coordinates(rois, features)[:, :5].unbind(1)
    height, width = features.shape[3:]
    ys = _touched(axis_samples(y1, y2, spatial_scale, height, bins[0], sampling_ratio, aligned), height)
    xs = _touched(axis_samples(x1, x2, spatial_scale, width, bins[1], sampling_ratio, aligned), width)
    return ys.sum((1, 2)) * xs.sum((1, 2)), ys.any(1)[:, :, None] & xs.any(1)[:, None, :]


def union(covered: torch.Tensor, group: torch.Tensor) -> int:
    """Cells [H, W] covered by any box of a group, summed over the groups."""
    return sum(int(covered[group == g].any(0).sum()) for g in group.unique())


def cost(
    features: torch.Tensor,
    rois: torch.Tensor,
    output_size: int | Sequence[int] = (7, 7),
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: str = "frame",
    *,
    temporal_scale: float = 1.0,
) -> Cost:
    """A multiply-add per cell that a bin reads (samples that share a cell count once).

    Bytes: the cells of the maps that lie under a box, once; boxes and result.
    """
    _, channels, frames, height, width = features.shape
    bins = as_bins(output_size, 3 if mode == "volume" else 2)
    flat = rois.flatten(0, -2)
    reads, covered = frame_work(flat, features, bins[-2:], spatial_scale, sampling_ratio, aligned)
    clip = flat[:, 0].long()
    if mode == "tube":
        clip = clip * frames + torch.arange(frames, device=rois.device).repeat(rois.shape[0])
        total, cells, out_frames = int(reads.sum()), union(covered, clip), frames
    elif mode == "frame":
        total, cells, out_frames = frames * int(reads.sum()), frames * union(covered, clip), frames
    else:
        t1, t2 = coordinates(rois, features)[:, 5:].unbind(1)
        ts = _touched(axis_samples(t1, t2, temporal_scale, frames, bins[0], sampling_ratio, aligned), frames)
        total, out_frames = int((reads * ts.sum((1, 2))).sum()), bins[0]
        cells = sum(union(covered[ts.any(1)[:, t]], clip[ts.any(1)[:, t]]) for t in range(frames))
    out = rois.shape[0] * out_frames * bins[-2] * bins[-1]
    return Cost(2 * channels * total, (cells + out) * channels * features.element_size() + bytes_of(rois))


def cost_bwd(grad: torch.Tensor, rois: torch.Tensor, shape: Sequence[int], **settings: Any) -> Cost:
    """Of the gradient: the same taps of the same cells, the other way round."""
    return cost(torch.empty(tuple(shape), dtype=grad.dtype, device="meta"), rois, **settings)
