"""Which frames the Slow pathway takes: shared by the reference and the other providers."""

from __future__ import annotations

import functools

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


@functools.lru_cache(maxsize=64)
def _rule_on(device: torch.device, frames: int, alpha: int, rule: str) -> torch.Tensor:
    """A rule's frame numbers on a device: copied there once, so that a captured graph holds no copy."""
    return slow_frames(frames, alpha, rule, None).to(device)


def slow_frames_on(
    device: torch.device, frames: int, alpha: int, rule: str, index: torch.Tensor | None
) -> torch.Tensor:
    """The same on a device. On a stream that is captured an index may not be read: the kernels then make frames of
    numbers that name none NaN.
    """
    if index is None:
        return _rule_on(device, frames, alpha, rule)
    kind = index.device.type
    if kind == "cpu" or (kind == "cuda" and not torch.cuda.is_current_stream_capturing()):
        slow_frames(frames, alpha, rule, index)  # raises on numbers that name no frame
    return index.to(device).contiguous()
