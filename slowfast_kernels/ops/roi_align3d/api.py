"""Public ``roi_align3d``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_clip, public
from .boxes import as_bins, as_ratio, as_rois
from .op import OP
from .spec import RoIAlignSpec


@public
def roi_align3d(
    features: torch.Tensor,
    rois: torch.Tensor | Sequence[torch.Tensor],
    output_size: int | Sequence[int] = (7, 7),
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: str = "frame",
    *,
    temporal_scale: float = 1.0,
) -> torch.Tensor:
    """RoIAlign over a clip: one box for all frames, a box per frame, or a box with a start and an end.

    The features get a gradient, the boxes none (as in torchvision).

    Mask R-CNN (arXiv:1703.06870), section 3, on the clips of SlowFast's detector (arXiv:1812.03982, section
    5): a box is cut into bins, a bin is the mean of bilinear samples. With ``mode="frame"`` every frame of
    the result equals torchvision's ``roi_align`` of that frame.

    Args:
        features: Tensor[N, C, T, H, W], float32, bfloat16, float16 or float64, best in channels_last_3d
            memory (other layouts are converted). Coordinates and sums are float32 (float64 where both tensors
            are).
        rois: batch index and boxes in input pixels, of any floating-point type (float32 advised: the batch
            index must stay exact).
            mode="frame": Tensor[K, 5] = batch index, x1, y1, x2, y2; the box holds for every frame. Or, as in
            torchvision, a list of N Tensor[Ki, 4] = x1, y1, x2, y2, the boxes of each clip.
            mode="tube": Tensor[K, T, 5], the same per frame; an actor who is absent has an empty box.
            mode="volume": Tensor[K, 7] = batch index, x1, y1, x2, y2, t1, t2.
        output_size: bins (h, w) per frame, or (t, h, w) with mode="volume"; an int for all alike; at most
            4096.
        spatial_scale: cells of the map per input pixel (1/16 for SlowFast's detector).
        sampling_ratio: samples per bin and axis, at most 4096; 0 or -1 = as many as the bin has started cells.
        aligned: True puts pixel centres at half integers (subtracts half a cell); False is the older
            convention, which also stretches boxes to at least one cell. Holds for the time axis as well.
        mode: "frame", "tube" or "volume" (trilinear).
        temporal_scale: frames of the map per unit of t1 and t2; mode="volume" only.

    Returns:
        Tensor[K, C, T, h, w] of the features' type in channels_last_3d memory; [K, C, t, h, w] for "volume".

    Positions count cells from the first cell's centre. A sample before -1 or beyond the number of cells
    counts as zero, the border is repeated up to there: a box outside the map gives zeros. So does an empty
    one (no extent, or its end before its start) with adaptive sampling and ``aligned``; with a fixed sampling
    ratio it is sampled as it is, mirrored. A box of more than 2^24 cells gives zeros with adaptive sampling.
    A box with a NaN or infinite coordinate, or one that overflows when scaled, gives NaN in its results and
    no gradient. NaN in the features comes through where a sample has a tap, whatever its weight. K = 0 gives
    an empty result. The gradient is deterministic: no atomics, the same order for any number of threads.

    Raises:
        ValueError: shapes that do not fit, a batch index that is no integer in [0, N) or a bad setting,
            saying what was expected and what came.
        RuntimeError: a backend asked for by name that cannot run the call.
    """
    check_clip(features, "features")
    boxes = as_rois(rois, features, mode)
    bins, ratio = as_bins(output_size, 3 if mode == "volume" else 2), as_ratio(sampling_ratio)
    spec = RoIAlignSpec(bins, float(spatial_scale), float(temporal_scale), ratio, bool(aligned), mode)
    return OP(features, boxes, spec)
