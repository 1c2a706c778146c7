"""Public ``pool_concat_head``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_clip, check_types, public
from .op import OP
from .spec import DEFAULTS, HeadSpec


@public
def pool_concat_head(
    slow: torch.Tensor,
    fast: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    pool_size: int | Sequence[int] | None | str = "default",
    semantics: str = "pyslowfast",
    activation: str | None = None,
) -> torch.Tensor:
    """Average pooling of both pathways, concatenation and a linear classifier: the head of a network.

    SlowFast paper, section 3.4 and table 1 (global average pool, concatenate, fc). On maps larger than the
    pooling window the libraries differ, hence ``semantics``:

    - "pyslowfast": a window of all frames and ``pool_size`` cells slides over the map (stride 1); columns of
      ``weight`` are (slow, fast); the linear map and then the activation act on every position; mean over the
      positions.
    - "pytorchvideo": the same, but the activation (default: none) acts on the mean of the positions' logits.
    - "mmaction2": the average of the whole map; columns of ``weight`` are (fast, slow); activation last.

    Args:
        slow: Tensor[N, Cs, Ts, H, W], float32, bfloat16, float16 or float64, best in channels_last_3d memory
            or a channel slice of it (other layouts are converted).
        fast: Tensor[N, Cf, Tf, H, W], or None for a single-pathway model (Cf = 0).
        weight: Tensor[classes, Cs + Cf]; its dtype may differ from the features' (float32 weights keep their
            precision under bfloat16 features).
        bias: Tensor[classes] or None.
        pool_size: cells of the window (height, width), or one int for both, or None for the whole map.
            Default: 7 x 7; None for mmaction2, which has no window.
        semantics: "pyslowfast", "pytorchvideo" or "mmaction2".
        activation: "softmax", "sigmoid" or "none"; default: softmax for pyslowfast, none for the others.

    Returns:
        Tensor[N, classes] of scores, float32 whatever the inputs (float64 for float64 features): sums are
        float32, and rounding them would only lose the order of close classes. Autocast converts slow and
        fast; weight, bias and result stay as they are. NaN in a clip's features reaches all its scores; a
        class with an infinite weight scores infinity or NaN.

    Raises:
        ValueError: shapes that do not fit, among them a map smaller than the window.
        RuntimeError: a backend asked for by name that cannot run the call.
    """
    if semantics not in DEFAULTS:
        raise ValueError(f"semantics: expected one of {tuple(DEFAULTS)}, got {semantics!r}")
    default_pool, default_activation = DEFAULTS[semantics]
    window = _window(default_pool if pool_size == "default" else pool_size)
    spec = HeadSpec(weight, bias, window, semantics, default_activation if activation is None else activation)
    spec.check()
    check_clip(slow, "slow")
    if fast is not None:
        check_clip(fast, "fast")
        check_types("slow", slow, fast=fast)
        if fast.shape[0] != slow.shape[0]:
            raise ValueError(f"fast: expected a batch of {slow.shape[0]}, as slow has, got {fast.shape[0]}")
        if window and fast.shape[3:] != slow.shape[3:]:
            cells, got = tuple(slow.shape[3:]), tuple(fast.shape[3:])
            raise ValueError(f"fast: expected a map of {cells} cells, as slow has, got {got}")
    for name, x in (("slow", slow), ("fast", fast)):
        if x is None:
            continue
        least = (1, *(window or (1, 1)))
        if any(n < k for n, k in zip(x.shape[2:], least, strict=True)):
            raise ValueError(
                f"{name}: expected at least one frame of at least {least[1]}x{least[2]} cells, the pooling "
                f"window, got shape {tuple(x.shape)}; pool_size=None averages maps of any size"
            )
    channels = slow.shape[1] + (0 if fast is None else fast.shape[1])
    if weight.shape[1] != channels:
        raise ValueError(
            f"weight: expected [classes, {channels}], all channels of the pathways, got {tuple(weight.shape)}"
        )
    return OP(slow, fast, spec)


def _window(pool_size: int | Sequence[int] | None | str) -> tuple[int, ...]:
    """Window as the op takes it: height and width, or nothing for the whole map."""
    if pool_size is None:
        return ()
    if isinstance(pool_size, int):
        pool_size = (pool_size, pool_size)
    if isinstance(pool_size, str) or len(pool_size) != 2 or min(pool_size) < 1:
        raise ValueError(f"pool_size: expected an int, (height, width) in cells or None, got {pool_size!r}")
    return int(pool_size[0]), int(pool_size[1])
