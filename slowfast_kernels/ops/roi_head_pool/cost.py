"""Least work of a ``roi_head_pool`` call."""

from __future__ import annotations

import math

import torch

from .._spec import Cost, bytes_of
from ..roi_align3d.cost import frame_work, union
from .spec import RoIPoolSpec


def cost(slow: torch.Tensor, fast: torch.Tensor | None, rois: torch.Tensor, spec: RoIPoolSpec) -> Cost:
    """An addition (or comparison) per frame and cell under a box, a multiply-add per averaged cell that a bin
    reads, a comparison per bin.

    Bytes: the cells of the clips that lie under a box, once; boxes and result.
    """
    reads, covered = frame_work(rois, slow, spec.align)
    cells, total, k = union(covered, rois[:, 0].long()), int(reads.sum()), rois.shape[0]
    work = Cost(0, bytes_of(rois))
    for x in (slow,) if fast is None else (slow, fast):
        channels, frames = x.shape[1:3]
        flops = channels * (cells * frames + 2 * total + k * math.prod(spec.output_size))
        work += Cost(flops, channels * (cells * frames + k) * x.element_size())
    return work
