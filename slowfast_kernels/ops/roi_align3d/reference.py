"""Plain PyTorch RoIAlign and its gradient: the specification.

RoIAlign is separable. Along one axis a bin's samples have positions, a sample has two taps (the cells around
it), and a bin is the mean over its samples; a sample beyond the map counts in the mean with value zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .boxes import check_batch_index
from .spec import RoIAlignSpec

#: A box of more cells than this along an axis (what float32 can count) has no adaptive samples.
MAX_SIZE = 2**24


class Samples(NamedTuple):
    """Samples of every bin of one axis of K boxes."""

    cell: torch.Tensor  # int64 [K, bins, samples, 2]: the two taps
    weight: torch.Tensor  # [K, bins, samples, 2]: of the taps, over the number of samples of the bin
    inside: torch.Tensor  # bool [K, bins, samples, 1]: the sample exists and lies on the map
    finite: torch.Tensor  # bool [K]: the coordinates are numbers

    def of(self, box: int) -> Samples:
        return Samples(*(x[box] for x in self))


def edges(
    low: torch.Tensor, high: torch.Tensor, scale: float, aligned: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Start and size in cells of boxes from ``low`` to ``high``; which are numbers (the others get 0)."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    size = high * scale - offset - start
    finite = start.isfinite() & size.isfinite()
    start, size = start.where(finite, 0), size.where(finite, 0)
    return start, size if aligned else size.clamp(min=1), finite


def axis_samples(
    low: torch.Tensor,
    high: torch.Tensor,
    scale: float,
    extent: int,
    bins: int,
    sampling_ratio: int,
    aligned: bool,
) -> Samples:
    """Samples along one axis of boxes from ``low`` to ``high`` [K], cut into bins, on ``extent`` cells."""
    start, size, finite = edges(low, high, scale, aligned)
    bin_size = size / torch.full_like(size, bins)
    if sampling_ratio > 0:
        grid = torch.full_like(size, sampling_ratio)
    else:
        grid = bin_size.ceil().clamp(min=0).where(size <= MAX_SIZE, 0)

    # All samples of a bin; of an enormous bin only as many as can lie on the map, from shortly before it on.
    bin_start = start[:, None] + torch.arange(bins, device=low.device) * bin_size[:, None]
    most = int(grid.max()) if grid.numel() else 0
    window = min(most, 2 * extent + 256)
    if sampling_ratio > 0:
        window = most
    step = (bin_size / grid.clamp(min=1))[:, None].double()
    first = ((-1 - bin_start.double()) / step.where(step > 0, 1)).floor() - 128
    first = first.clamp(min=0).minimum((grid - window).clamp(min=0)[:, None].double()).long()
    index = first[:, :, None] + torch.arange(window, device=low.device)
    within = (index.to(low.dtype) + 0.5) * bin_size[:, None, None] / grid.clamp(min=1)[:, None, None]
    position = bin_start[:, :, None] + within
    inside = (index < grid[:, None, None]) & (position >= -1) & (position <= extent) & (extent > 0)

    position = position.clamp(
        0, max(extent - 1, 0)
    )  # beyond the centres of the border cells they are repeated
    tap = position.floor()
    share = position - tap
    cell = torch.stack([tap, (tap + 1).clamp(max=max(extent - 1, 0))], dim=-1).long()
    weight = torch.stack([1 - share, share], dim=-1) / grid.clamp(min=1)[:, None, None, None]
    return Samples(cell, weight, inside[..., None], finite)


def resample(x: torch.Tensor, dim: int, samples: Samples) -> torch.Tensor:
    """One axis of ``x`` from cells to the bins of one box."""
    after = (1,) * (x.dim() - 1 - dim)
    if x.shape[dim] == 0:
        return x.new_zeros(*x.shape[:dim], samples.cell.shape[0], *x.shape[dim + 1 :])
    taps = x.index_select(dim, samples.cell.flatten()).unflatten(dim, samples.cell.shape)
    weight = samples.weight.view(*samples.weight.shape, *after)
    # a sample that does not count must not hand on a NaN either
    return torch.where(samples.inside.view(*samples.inside.shape, *after), taps * weight, 0).sum(
        (dim + 1, dim + 2)
    )


def spread(grad: torch.Tensor, dim: int, samples: Samples, extent: int) -> torch.Tensor:
    """The transpose of ``resample``: the gradient of ``extent`` cells from that of the bins."""
    after = (1,) * (grad.dim() - 1 - dim)
    weight = torch.where(samples.inside, samples.weight, 0).view(*samples.weight.shape, *after)
    taps = (grad.unsqueeze(dim + 1).unsqueeze(dim + 1) * weight).flatten(dim, dim + 2)
    out = grad.new_zeros(*grad.shape[:dim], extent, *grad.shape[dim + 1 :])
    return out.index_add_(dim, samples.cell.flatten(), taps) if extent else out


def wide(x: torch.Tensor) -> torch.dtype:
    """Type of the sums over ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def coordinates(rois: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Coordinates as they are computed with: float32, or float64 if boxes and features are; no gradient."""
    return rois.detach().to(torch.float64 if rois.dtype == features.dtype == torch.float64 else torch.float32)


class Boxes(NamedTuple):
    """Boxes [K, 5 or 7], or the frames' boxes of tubes in turn: the clip each reads and its samples."""

    clip: list[int]
    finite: list[bool]
    axes: dict[int, Samples]  # by the dimension of a [C, T, H, W] clip

    @staticmethod
    def of(rois: torch.Tensor, extent: Sequence[int], spec: RoIAlignSpec) -> Boxes:
        columns, bins = rois.flatten(0, -2).unbind(-1), spec.output_size

        def axis(start: int, end: int, scale: float, cells: int, count: int) -> Samples:
            return axis_samples(
                columns[start], columns[end], scale, cells, count, spec.sampling_ratio, spec.aligned
            )

        axes = {
            2: axis(2, 4, spec.spatial_scale, extent[1], bins[-2]),
            3: axis(1, 3, spec.spatial_scale, extent[2], bins[-1]),
        }
        if len(bins) == 3:
            axes[1] = axis(5, 6, spec.temporal_scale, extent[0], bins[0])
        finite = torch.stack([a.finite for a in axes.values()]).all(0)
        return Boxes(columns[0].long().tolist(), finite.tolist(), axes)


def roi_align3d_reference(features: torch.Tensor, rois: torch.Tensor, spec: RoIAlignSpec) -> torch.Tensor:
    check_batch_index(rois, features.shape[0])
    channels, frames = features.shape[1:3]
    boxes = Boxes.of(coordinates(rois, features), features.shape[2:], spec)

    def align(i: int, x: torch.Tensor) -> torch.Tensor:
        """[C, T, H, W] -> [C, T', h, w] of box i."""
        if not boxes.finite[i]:
            return x.new_full((channels, *spec.bins(x.shape[1])), torch.nan)
        y = x.to(wide(x))
        for dim, samples in boxes.axes.items():
            y = resample(y, dim, samples.of(i))
        return y.to(x.dtype)

    out = features.new_empty(spec.out_shape(features.shape, rois.shape))
    if out.numel() == 0:
        return out
    clips = [features[clip] for clip in boxes.clip]
    if spec.mode != "tube":
        return torch.stack([align(i, x) for i, x in enumerate(clips)])
    of_frames = [align(i, x[:, i % frames : i % frames + 1]) for i, x in enumerate(clips)]
    return torch.cat(of_frames, dim=1).unflatten(1, (-1, frames)).transpose(0, 1)


def roi_align3d_bwd_reference(
    grad: torch.Tensor, rois: torch.Tensor, shape: Sequence[int], spec: RoIAlignSpec
) -> torch.Tensor:
    """Gradient of the features; the op is linear in them, so that their shape is enough."""
    check_batch_index(rois, shape[0])
    boxes = Boxes.of(coordinates(rois, grad), shape[2:], spec)
    dx = torch.zeros(tuple(shape), dtype=wide(grad), device=grad.device)
    for i, (clip, finite) in enumerate(zip(boxes.clip, boxes.finite, strict=True)):
        if not finite:  # the result was NaN whatever the features
            continue
        k, t = divmod(i, shape[2]) if spec.mode == "tube" else (i, None)
        g = grad[k].to(dx.dtype) if t is None else grad[k, :, t : t + 1].to(dx.dtype)
        for dim, samples in boxes.axes.items():
            g = spread(g, dim, samples.of(i), shape[1 + dim])
        (dx[clip] if t is None else dx[clip, :, t : t + 1]).add_(g)
    return dx.to(grad.dtype)
