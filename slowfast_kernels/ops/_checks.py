"""Argument checks of the public functions: every message says what was expected and what came."""

from __future__ import annotations

import torch


def check_clip(x: torch.Tensor, name: str) -> None:
    """A floating-point [N, C, T, H, W] tensor."""
    if x.dim() != 5:
        raise ValueError(f"{name}: expected [N, C, T, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")


def check_channels(x: torch.Tensor, expected: int, name: str, of: str) -> None:
    """Channels of ``x`` as another argument has them."""
    if x.shape[1] != expected:
        raise ValueError(f"{name}: expected {expected} channels, as {of} has, got shape {tuple(x.shape)}")


def check_vector(v: torch.Tensor | None, n: int, name: str) -> None:
    """A per-channel vector, or None."""
    if v is not None and tuple(v.shape) != (n,):
        raise ValueError(f"{name}: expected shape ({n},), got {tuple(v.shape)}")
