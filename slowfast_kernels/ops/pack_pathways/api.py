"""Public ``pack_pathways``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import public
from .op import OP
from .slow_frames import RULES
from .spec import FAST_INPUTS, PackSpec


@public
def pack_pathways(
    frames: torch.Tensor,
    alpha: int,
    mean: Sequence[float] = (0.45, 0.45, 0.45),
    std: Sequence[float] = (0.225, 0.225, 0.225),
    dtype: torch.dtype = torch.float32,
    *,
    slow_index: str | torch.Tensor | None = None,
    fast_input: str = "rgb",
    reverse_channels: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded frames to the normalised clips of both pathways, in one pass over the frames.

    ``(x / 255 - mean) / std`` per channel; the Fast pathway gets every frame, the Slow pathway about one in
    ``alpha`` of them (SlowFast paper, sections 3.1 and 3.2).

    Args:
        frames: uint8 Tensor[N, T, H, W, 3] or [T, H, W, 3] (then N = 1), channels R, G, B, any strides: a
            crop taken by slicing a larger buffer is read where it lies.
        alpha: frame rate of the Fast pathway over that of the Slow one, 1 to T.
        mean, std: of R, G and B, for images in 0..1.
        dtype: of the clips: float32, bfloat16, float16 or float64. Computed in float32 (float64 for float64)
            and rounded once. Autocast does not change it.
        slow_index: which frames the Slow pathway takes, T // alpha of them unless given one by one.
            None or "linspace": ``linspace(0, T - 1, T // alpha)`` cut to whole numbers, as PySlowFast does.
            "stride": 0, alpha, 2 alpha, ..., as mmaction2 does.
            int64 Tensor[S]: these frames, in this order, repeats allowed; empty for no Slow clip.
        fast_input: what the Fast pathway sees. The weaker inputs are those of the paper's table 5c, which
            leaves the formulas open; with m and s the averages of ``mean`` and of ``std``, R, G, B in 0..1:
            "rgb": the frames as they are.
            "gray": one channel, ``(0.299 R + 0.587 G + 0.114 B - m) / s`` (ITU-R BT.601 luma).
            "time_diff": one channel, a frame's gray minus that of the frame before it (m cancels); 0 in the
            first frame.
        reverse_channels: give the normalised colour clips as B, G, R; ``mean`` and ``std`` stay in the order
            R, G, B. The one-channel inputs do not change.

    Returns:
        slow: Tensor[N, 3, S, H, W] and fast: Tensor[N, 3 or 1, T, H, W], in channels_last_3d memory.

    Raises:
        ValueError: arguments that do not fit, saying what was expected and what came.
        RuntimeError: a backend asked for by name that cannot run the call.
    """
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames: expected uint8, got {frames.dtype}")
    if frames.dim() not in (4, 5) or frames.shape[-1] != 3:
        raise ValueError(f"frames: expected [N, T, H, W, 3] or [T, H, W, 3], got shape {tuple(frames.shape)}")
    if frames.dim() == 4:
        frames = frames.unsqueeze(0)
    if frames.shape[1] < 1:
        raise ValueError(f"frames: expected at least one frame, got shape {tuple(frames.shape)}")
    if not 1 <= alpha <= frames.shape[1]:
        raise ValueError(f"alpha: expected 1 to {frames.shape[1]}, the number of frames, got {alpha}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"{name}: expected three numbers (R, G, B), got {tuple(values)}")
    if min(std) <= 0:
        raise ValueError(f"std: expected positive numbers, got {tuple(std)}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point dtype, got {dtype}")
    if fast_input not in FAST_INPUTS:
        raise ValueError(f"fast_input: expected one of {FAST_INPUTS}, got {fast_input!r}")
    rule, index = RULES[0], None
    if isinstance(slow_index, torch.Tensor):
        index = slow_index
        if index.dim() != 1 or index.dtype != torch.int64:
            raise ValueError(
                f"slow_index: expected a 1-D int64 tensor, got shape {tuple(index.shape)} of {index.dtype}"
            )
    elif slow_index is not None:
        rule = slow_index
        if rule not in RULES:
            raise ValueError(f"slow_index: expected None, one of {RULES} or a tensor, got {rule!r}")
    means, stds = tuple(float(m) for m in mean), tuple(float(s) for s in std)
    spec = PackSpec(alpha, rule, index, means, stds, dtype, fast_input, reverse_channels)
    return OP(frames, spec)
