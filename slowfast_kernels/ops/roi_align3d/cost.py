"""Least work of a ``roi_align3d`` call."""

from __future__ import annotations

import math

import torch

from .._spec import Cost, bytes_of
from .reference import Samples, axis_samples, coordinates
from .spec import RoIAlignSpec


def _touched(samples: Samples, extent: int) -> torch.Tensor:
    """bool [K, bins, extent]: the cells of one axis that a bin reads."""
    k, bins = samples.cell.shape[:2]
    counts = torch.zeros(k, bins, extent + 1, device=samples.cell.device)
    cell = samples.cell.where(samples.inside & samples.finite[:, None, None, None], extent)
    return counts.scatter_(2, cell.flatten(2), 1.0)[..., :extent] > 0


def frame_work(
    rois: torch.Tensor, features: torch.Tensor, spec: RoIAlignSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of boxes [K, 5]: cells read by all bins together [K]; cells under the box, bool [K, H, W]."""
    _, x1, y1, x2, y2 = coordinates(rois, features)[:, :5].unbind(1)
    height, width = features.shape[3:]
    bins, scale, how = spec.output_size, spec.spatial_scale, (spec.sampling_ratio, spec.aligned)
    ys = _touched(axis_samples(y1, y2, scale, height, bins[-2], *how), height)
    xs = _touched(axis_samples(x1, x2, scale, width, bins[-1], *how), width)
    return ys.sum((1, 2)) * xs.sum((1, 2)), ys.any(1)[:, :, None] & xs.any(1)[:, None, :]


def union(covered: torch.Tensor, group: torch.Tensor) -> int:
    """Cells [H, W] covered by any box of a group, summed over the groups."""
    return sum(int(covered[group == g].any(0).sum()) for g in group.unique())


def cost(features: torch.Tensor, rois: torch.Tensor, spec: RoIAlignSpec) -> Cost:
    """A multiply-add per cell that a bin reads (samples that share a cell count once).

    Bytes: the cells of the maps that lie under a box, once; boxes and result.
    """
    _, channels, frames, height, width = features.shape
    flat, mode, out_frames = rois.flatten(0, -2), spec.mode, spec.bins(frames)[0]
    reads, covered = frame_work(flat, features, spec)
    clip = flat[:, 0].long()
    if mode == "tube":
        clip = clip * frames + torch.arange(frames, device=rois.device).repeat(rois.shape[0])
        total, cells = int(reads.sum()), union(covered, clip)
    elif mode == "frame":
        total, cells = frames * int(reads.sum()), frames * union(covered, clip)
    else:
        t1, t2 = coordinates(rois, features)[:, 5:].unbind(1)
        ts = _touched(
            axis_samples(t1, t2, spec.temporal_scale, frames, out_frames, spec.sampling_ratio, spec.aligned),
            frames,
        )
        total = int((reads * ts.sum((1, 2))).sum())
        cells = sum(union(covered[ts.any(1)[:, t]], clip[ts.any(1)[:, t]]) for t in range(frames))
    out = rois.shape[0] * math.prod(spec.bins(frames))
    return Cost(2 * channels * total, (cells + out) * channels * features.element_size() + bytes_of(rois))
