"""Plain PyTorch ``roi_head_pool``: the specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..roi_align3d.reference import coordinates, edges, roi_align3d_bwd_reference, roi_align3d_reference, wide
from .spec import RoIPoolSpec


def roi_head_pool_reference(
    slow: torch.Tensor,
    fast: torch.Tensor | None,
    rois: torch.Tensor,
    spec: RoIPoolSpec,
) -> tuple[torch.Tensor, torch.Tensor]:
    results = []
    for x in (slow,) if fast is None else (slow, fast):
        x = x.to(wide(x))
        x = x.mean(2, keepdim=True) if spec.temporal == "mean" else x.max(2, keepdim=True).values
        results.append(roi_align3d_reference(x, rois, spec.align).flatten(2).max(-1))  # the first of equals
    value = torch.cat([r.values for r in results], 1).to(slow.dtype)
    arg = torch.cat([r.indices for r in results], 1).int()
    x1, y1, x2, y2 = coordinates(rois, slow)[:, 1:].unbind(1)
    finite = (
        edges(x1, x2, spec.spatial_scale, spec.aligned)[2]
        & edges(y1, y2, spec.spatial_scale, spec.aligned)[2]
    )
    return value, arg.where(finite[:, None], -1)


def roi_head_pool_bwd_reference(
    grad: torch.Tensor,
    arg: torch.Tensor,
    rois: torch.Tensor,
    features: torch.Tensor | None,
    shape: Sequence[int],
    spec: RoIPoolSpec,
) -> torch.Tensor:
    """Gradient of one pathway through the bins in ``arg``; the mean is linear and needs no features."""
    bins = spec.output_size[0] * spec.output_size[1]
    g = grad.new_zeros(*grad.shape, bins, dtype=wide(grad))
    g.scatter_(2, arg.long().clamp(min=0)[..., None], torch.where(arg >= 0, grad.to(g.dtype), 0)[..., None])
    g = g.unflatten(2, (1, *spec.output_size))
    reduced = (*shape[:2], 1, *shape[3:])
    dx = roi_align3d_bwd_reference(g, rois, reduced, spec.align)
    if features is None:
        return (dx / shape[2]).expand(*shape).to(grad.dtype)
    first = features.max(2, keepdim=True).indices  # the first of equals
    return dx.new_zeros(tuple(shape)).scatter_(2, first, dx).to(grad.dtype)
