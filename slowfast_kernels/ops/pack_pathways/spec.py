"""Settings of ``pack_pathways``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .._memory import empty_channels_last
from .._spec import Cost, Shape, Spec, bytes_of
from .slow_frames import slow_count

#: What the Fast pathway sees; the index is the native kernels' enumeration.
FAST_INPUTS = ("rgb", "gray", "time_diff")


@dataclass(frozen=True)
class PackSpec(Spec):
    """Frames to clips; the fields are the public function's arguments.

    slow_rule: which frames the Slow pathway takes, where there is no slow_index, int64 Tensor[S] of their numbers.
    """

    op: ClassVar[str] = "pack_pathways"
    alpha: int
    slow_rule: str
    slow_index: torch.Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype
    fast_input: str
    reverse_channels: bool

    @property
    def native(self) -> tuple[Sequence[float], Sequence[float], int, bool]:
        """The settings as the native kernels take them."""
        return self.mean, self.std, FAST_INPUTS.index(self.fast_input), self.reverse_channels

    def clips(self, frames: Shape, slow: int | None = None) -> tuple[list[int], list[int]]:
        """Shapes of the Slow clip, of ``slow`` frames, and of the Fast one."""
        n, t, h, w, _ = frames
        slow = slow_count(t, self.alpha, self.slow_index) if slow is None else slow
        return [n, 3, slow, h, w], [n, 3 if self.fast_input == "rgb" else 1, t, h, w]

    def empty(self, frames: torch.Tensor, slow: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Uninitialised clips."""
        a, b = self.clips(frames.shape, slow)
        return empty_channels_last(frames, a, self.dtype), empty_channels_last(frames, b, self.dtype)

    def cost(self, *inputs: Any) -> Cost:
        """A multiply-add per value of the clips (plus the luma's three per gray pixel); every frame read once."""
        frames = inputs[0]
        slow, fast = (torch.Size(shape).numel() for shape in self.clips(frames.shape))
        luma = 6 * fast if self.fast_input != "rgb" else 0
        return Cost(2 * (slow + fast) + luma, bytes_of(frames) + (slow + fast) * self.dtype.itemsize)
