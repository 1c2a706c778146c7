"""Plain PyTorch ``pack_pathways``: the specification."""

from __future__ import annotations

import torch

from .slow_frames import slow_frames
from .spec import PackSpec

#: ITU-R BT.601 luma of red, green and blue.
LUMA = (0.299, 0.587, 0.114)


def pack_pathways_reference(frames: torch.Tensor, spec: PackSpec) -> tuple[torch.Tensor, torch.Tensor]:
    dtype, mean, std = spec.dtype, spec.mean, spec.std
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def per_channel(values: tuple[float, ...] | list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=wide, device=frames.device).view(-1, 1, 1, 1)

    image = frames.permute(0, 4, 1, 2, 3).to(wide) / 255  # [N, 3, T, H, W]
    clip = (image - per_channel(mean)) / per_channel(std)
    if spec.reverse_channels:
        clip = clip.flip(1)
    index = slow_frames(frames.shape[1], spec.alpha, spec.slow_rule, spec.slow_index)
    slow = clip.index_select(2, index.to(frames.device))

    fast = clip
    if spec.fast_input != "rgb":
        gray = (image * per_channel(LUMA)).sum(1, keepdim=True)
        fast = (gray - sum(mean) / 3) / (sum(std) / 3)
    if spec.fast_input == "time_diff":
        fast = torch.cat([torch.zeros_like(fast[:, :, :1]), fast.diff(dim=2)], dim=2)
    return slow.to(dtype), fast.to(dtype)
