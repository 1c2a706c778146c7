"""Least work of a ``roi_head_pool`` call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._cases import Cost, bytes_of
from ..roi_align3d.boxes import as_bins
from ..roi_align3d.cost import frame_work, union


def cost(
    slow: torch.Tensor,
    fast: torch.Tensor | None,
    rois: torch.Tensor,
    output_size: int | Sequence[int] = 7,
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 0,
    aligned: bool = True,
    temporal: str = "mean",
) -> Cost:
    """An addition (or comparison) per frame and cell under a box, a multiply-add per averaged cell that a bin
    reads, a comparison per bin.

    Bytes: the cells of the clips that lie under a box, once; boxes and result.
    """
    bins = as_bins(output_size, 2)
    reads, covered = frame_work(rois, slow, bins, spatial_scale, sampling_ratio, aligned)
    cells, total, k = union(covered, rois[:, 0].long()), int(reads.sum()), rois.shape[0]
    work = Cost(0, bytes_of(rois))
    for x in (slow,) if fast is None else (slow, fast):
        channels, frames = x.shape[1:3]
        flops = channels * (cells * frames + 2 * total + k * bins[0] * bins[1])
        work += Cost(flops, channels * (cells * frames + k) * x.element_size())
    return work


def cost_bwd(
    grad: torch.Tensor,
    arg: torch.Tensor,
    rois: torch.Tensor,
    features: torch.Tensor | None,
    shape: Sequence[int],
    **settings: Any,
) -> Cost:
    """Of one pathway's gradient: at most what its forward does (only the bins of the maxima take part)."""
    return cost(torch.empty(tuple(shape), dtype=grad.dtype, device="meta"), None, rois, **settings)
