"""What a box is: modes, layouts, the check that no box reads beyond the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: mode -> values per box; the index of a mode is its number in the C++ kernels.
COLUMNS = {"frame": 5, "tube": 5, "volume": 7}
MODES = tuple(COLUMNS)

#: Most samples per bin and axis that a call may ask for.
MAX_RATIO = 4096

#: Most bins along an axis.
MAX_BINS = 4096


def check_batch_index(rois: torch.Tensor, clips: int) -> None:
    """Every box names a clip of the batch. Reads the values: for an op's inside, not for tracing."""
    index = rois[..., 0]
    wrong = ~((index >= 0) & (index < clips) & (index == index.floor()))  # true for NaN as well
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"rois: expected batch indices that are integers in [0, {clips}), got {index[tuple(at)].item()} "
            f"at row {at[0] if len(at) == 1 else at}"
        )


def boxes_float32(rois: torch.Tensor, clips: int) -> torch.Tensor:
    """Boxes as the kernels read them. Batch indices are checked where their values may be read.

    The check waits for the GPU. A stream that is being captured must not wait: there, a box with a wrong batch
    index gives NaN (and no gradient) when the graph runs.
    """
    if rois.device.type == "cpu":
        check_batch_index(rois, clips)
    elif rois.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        check_batch_index(rois[..., :1].cpu(), clips)  # one copy, the rest on the host
    return rois.detach().float().contiguous()


def check_rois(rois: torch.Tensor, features: torch.Tensor, mode: str) -> None:
    """Shape and type of ``rois`` for ``mode``."""
    if mode not in COLUMNS:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if not rois.is_floating_point():
        raise ValueError(f"rois: expected a floating-point tensor, got {rois.dtype}")
    if rois.device != features.device:
        raise ValueError(f"rois: expected a tensor on {features.device}, as features are, got {rois.device}")
    if mode == "tube":
        frames = features.shape[2]
        if rois.dim() != 3 or rois.shape[1] != frames or rois.shape[2] != 5:
            raise ValueError(
                f"rois: expected [K, {frames}, 5] (a box per frame), got shape {tuple(rois.shape)}"
            )
    elif rois.dim() != 2 or rois.shape[1] != COLUMNS[mode]:
        raise ValueError(
            f"rois: expected [K, {COLUMNS[mode]}] for mode {mode!r}, got shape {tuple(rois.shape)}"
        )


def check_sampling(bins: Sequence[int], sampling_ratio: int) -> None:
    """Numbers of bins and of samples."""
    if min(bins) < 1 or max(bins) > MAX_BINS:
        raise ValueError(f"output_size: expected values of 1 to {MAX_BINS}, got {tuple(bins)}")
    if not 0 <= sampling_ratio <= MAX_RATIO:
        raise ValueError(f"sampling_ratio: expected 0 (adaptive) to {MAX_RATIO}, got {sampling_ratio}")


def as_bins(output_size: int | Sequence[int], axes: int) -> list[int]:
    """An int or ``axes`` ints as a list."""
    if isinstance(output_size, int):
        return [output_size] * axes
    if len(output_size) != axes:
        raise ValueError(f"output_size: expected an int or {axes} ints, got {tuple(output_size)}")
    return [int(n) for n in output_size]
