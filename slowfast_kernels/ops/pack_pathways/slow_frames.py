"""Which frames the Slow pathway takes: shared by the reference and the other providers."""

from __future__ import annotations

import torch

RULES = ("linspace", "stride")


def slow_count(frames: int, alpha: int, index: torch.Tensor | None) -> int:
    """Frames of the Slow clip made from ``frames`` frames."""
    return frames // alpha if index is None else index.shape[0]


def slow_frames(frames: int, alpha: int, rule: str, index: torch.Tensor | None) -> torch.Tensor:
    """int64 frame numbers on the CPU; ``index``, where given, goes before ``rule``."""
    if index is not None:
        numbers = index.cpu()
        outside = numbers[(numbers < 0) | (numbers >= frames)]
        if outside.numel():
            raise ValueError(f"slow_index: expected frame numbers in [0, {frames}), got {outside.tolist()}")
        return numbers
    count = slow_count(frames, alpha, None)
    if rule == "stride":
        return torch.arange(count) * alpha
    # Through torch's own linspace, as PySlowFast does it: its points just below a whole number count.
    return torch.linspace(0, frames - 1, count).long()
