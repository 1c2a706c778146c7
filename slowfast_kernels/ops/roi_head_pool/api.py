"""Public ``roi_head_pool``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_clip, check_types, public
from ..roi_align3d.boxes import as_bins, as_ratio, as_rois
from .op import OP
from .spec import TEMPORAL, RoIPoolSpec


@public
def roi_head_pool(
    slow: torch.Tensor,
    fast: torch.Tensor | None,
    rois: torch.Tensor | Sequence[torch.Tensor],
    output_size: int | Sequence[int] = 7,
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 0,
    aligned: bool = True,
    temporal: str = "mean",
) -> torch.Tensor:
    """A vector per box from both pathways: mean (or max) over time, RoIAlign, max over bins, concatenated.

    The features get a gradient, the boxes none (as in torchvision).

    The detection head of SlowFast (arXiv:1812.03982, section 5) up to its classifier. The mean over time and
    RoIAlign with one box for all frames commute, so a clip is averaged once, where boxes need it; the maps of
    bins are never stored. With ``temporal="max"`` the maximum over time comes first (the two do not commute).

    Args:
        slow: Tensor[N, Cs, Ts, H, W], float32, bfloat16, float16 or float64, best in channels_last_3d memory
            (other layouts are converted); at least one frame, row and column.
        fast: Tensor[N, Cf, Tf, H, W] of the same type, or None for a network of one pathway.
        rois: Tensor[K, 5] = batch index, x1, y1, x2, y2 in input pixels, of any floating-point type (float32
            advised), or a list of N Tensor[Ki, 4], the boxes of each clip.
        output_size: bins, an int or (h, w); at most 4096 each.
        spatial_scale: cells of the maps per input pixel.
        sampling_ratio, aligned: as in ``roi_align3d``, which also says what boxes that are empty, outside the
            map or not finite give.
        temporal: "mean" or "max" over the frames.

    Returns:
        Tensor[K, Cs + Cf] of the inputs' type. Coordinates and sums are float32 (float64 where all tensors
        are). The gradient goes through the bin of the maximum only, and with ``temporal="max"`` through the
        frame of the maximum only; of equals the first bin and the first frame. A NaN is the maximum of its
        bins and frames. The gradient is deterministic: no atomics, the same order for any number of threads.

    Raises:
        ValueError: shapes that do not fit, a batch index that is no integer in [0, N) or a bad setting,
            saying what was expected and what came.
        RuntimeError: a backend asked for by name that cannot run the call.
    """
    check_clip(slow, "slow")
    if min(slow.shape[1:]) < 1:
        raise ValueError(
            f"slow: expected at least one channel, frame, row and column, got shape {tuple(slow.shape)}"
        )
    if fast is not None:
        check_clip(fast, "fast")
        check_types("slow", slow, fast=fast)
        expected = (slow.shape[0], *slow.shape[3:])
        if (fast.shape[0], *fast.shape[3:]) != expected or min(fast.shape[1:3]) < 1:
            raise ValueError(
                f"fast: expected N, H, W = {expected}, as slow has, and at least one channel and frame, "
                f"got shape {tuple(fast.shape)}"
            )
    boxes = as_rois(rois, slow, "frame")
    bins, ratio = as_bins(output_size, 2), as_ratio(sampling_ratio)
    if temporal not in TEMPORAL:
        raise ValueError(f"temporal: expected one of {TEMPORAL}, got {temporal!r}")
    spec = RoIPoolSpec(bins, float(spatial_scale), ratio, bool(aligned), temporal)
    pooled, _ = OP(slow, fast, boxes, spec)
    return pooled
