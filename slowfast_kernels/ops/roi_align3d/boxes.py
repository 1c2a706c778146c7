"""What a box is: modes, layouts, the check that no box reads beyond the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch

from .._checks import type_name

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


_checked: ContextVar[bool] = ContextVar("slowfast_boxes_checked", default=True)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Calls on a GPU inside the block do not wait for it: a box with a wrong batch index gives NaN."""
    token = _checked.set(False)
    try:
        yield
    finally:
        _checked.reset(token)


def boxes_float32(rois: torch.Tensor, clips: int) -> torch.Tensor:
    """Boxes as the kernels read them. Batch indices are checked where their values may be read.

    The check waits for the GPU. A stream that is being captured must not wait, and a frozen model does not: there, a
    box with a wrong batch index gives NaN (and no gradient).
    """
    if rois.device.type == "cpu":
        check_batch_index(rois, clips)
    elif rois.device.type == "cuda" and _checked.get() and not torch.cuda.is_current_stream_capturing():
        check_batch_index(rois[..., :1].cpu(), clips)  # one copy, the rest on the host
    return rois.detach().float().contiguous()


def as_rois(rois: torch.Tensor | Sequence[torch.Tensor], features: torch.Tensor, mode: str) -> torch.Tensor:
    """Boxes of ``mode`` as the op takes them; a list of every clip's boxes gets the batch indices."""
    if mode not in COLUMNS:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if not isinstance(rois, torch.Tensor):
        rois = _joined(rois, features, mode)
    check_rois(rois, features, mode)
    return rois


def _joined(boxes: Sequence[torch.Tensor], features: torch.Tensor, mode: str) -> torch.Tensor:
    """[Ki, 4] of every clip -> [K, 5]."""
    if mode != "frame" or not isinstance(boxes, (list, tuple)):
        or_list = " or a list of [Ki, 4]" if mode == "frame" else ""
        raise ValueError(f"rois: expected a tensor{or_list} for mode {mode!r}, got {type_name(boxes)}")
    for i, box in enumerate(boxes):
        if not isinstance(box, torch.Tensor):
            raise ValueError(f"rois[{i}]: expected a tensor [Ki, 4], got {type_name(box)}")
        if box.dim() != 2 or box.shape[1] != 4 or not box.is_floating_point():
            raise ValueError(
                f"rois[{i}]: expected floating-point [Ki, 4] (x1, y1, x2, y2), got {box.dtype} "
                f"of shape {tuple(box.shape)}"
            )
    clips = features.shape[0]
    if len(boxes) != clips:
        raise ValueError(f"rois: expected a list of {clips} tensors, one for every clip, got {len(boxes)}")
    # half precision does not count far enough for a batch index
    wide = [box.to(torch.promote_types(box.dtype, torch.float32)) for box in boxes]
    rows = [torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(wide)]
    return torch.cat(rows) if rows else torch.zeros(0, 5, device=features.device)


def check_rois(rois: torch.Tensor, features: torch.Tensor, mode: str) -> None:
    """Shape and type of ``rois`` for ``mode``."""
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


def as_ratio(sampling_ratio: int) -> int:
    """Samples per bin and axis; torchvision's -1 is 0, adaptive."""
    if not -1 <= sampling_ratio <= MAX_RATIO:
        raise ValueError(f"sampling_ratio: expected 0 or -1 (adaptive) to {MAX_RATIO}, got {sampling_ratio}")
    return max(sampling_ratio, 0)


def as_bins(output_size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """An int or ``axes`` ints as so many ints."""
    if isinstance(output_size, int):
        output_size = [output_size] * axes
    if len(output_size) != axes:
        raise ValueError(f"output_size: expected an int or {axes} ints, got {tuple(output_size)}")
    bins = tuple(int(n) for n in output_size)
    if min(bins) < 1 or max(bins) > MAX_BINS:
        raise ValueError(f"output_size: expected values of 1 to {MAX_BINS}, got {bins}")
    return bins
