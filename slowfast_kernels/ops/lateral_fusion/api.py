"""Public ``lateral_fusion``."""

from __future__ import annotations

import torch

from .._checks import check_channels, check_clip, check_out, check_types, public
from .._spec import ConvAffine
from .op import OP, OP_OUT
from .spec import LateralSpec


@public
def lateral_fusion(
    slow: torch.Tensor,
    fast: torch.Tensor,
    weight: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    alpha: int,
    kind: str = "conv",
    activation: str = "relu",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Lateral connection: the Fast pathway's features join the Slow pathway's channels.

    SlowFast paper, section 3.4. Kinds:

    - ``"conv"`` (T-conv): kt x 1 x 1 convolution with stride alpha in time, affine and ReLU, concatenated. Without
      ``scale``, ``shift`` and activation this is mmaction2's lateral.
    - ``"time_to_channel_concat"``, ``"time_to_channel_sum"`` (TtoC): alpha frames become channels (channel
      a * C + c is frame t * alpha + a), concatenated or added (then slow has alpha * C channels).
    - ``"time_sample"`` (T-sample): every alpha-th frame, concatenated.
    - ``"none"``: returns ``slow``.

    Args:
        slow: Tensor[N, Cs, T, H, W].
        fast: Tensor[N, Cf, alpha * T, H, W] of the same dtype.
        weight: Tensor[Cl, Cf, kt, 1, 1], kt odd, for ``"conv"`` only.
        scale, shift: Tensor[Cl] or None: folded batch norm.
        alpha: frame-rate ratio of the pathways.
        activation: of the convolution: "relu", "none", or, as plain PyTorch, "silu", "hardswish", "sigmoid".
        out: fused buffer, Tensor[N, Cs + Cl, T, H, W] in channels_last_3d memory, whose first Cs channels are
            ``slow`` itself (same memory): only the lateral's channels are then written. Inference only.

    Returns:
        Tensor[N, Cs + Cl, T, H, W] in channels_last_3d memory (Cl = 0 for the sum and for none), or ``out``.

    Raises:
        ValueError: shapes that do not fit, saying what was expected and what came.
        RuntimeError: a backend asked for by name that cannot run the call, ``out`` where a gradient is wanted.
    """
    if kind == "none":
        return slow
    spec = LateralSpec(None if weight is None else ConvAffine(weight, scale, shift), alpha, kind, activation)
    spec.check()
    check_clip(slow, "slow")
    check_clip(fast, "fast")
    check_types("slow", slow, fast=fast, weight=weight)
    n, cs, t, h, w = slow.shape
    if (fast.shape[0], *fast.shape[2:]) != (n, alpha * t, h, w):
        raise ValueError(
            f"fast: expected N, T, H, W = {(n, alpha * t, h, w)} (alpha = {alpha} times slow's frames), "
            f"got shape {tuple(fast.shape)}"
        )
    if weight is not None:
        check_channels(fast, weight.shape[1], "fast", "weight")
    if spec.sums:
        check_channels(slow, alpha * fast.shape[1], "slow", "fast, times alpha,")
    if out is None:
        return OP(slow, fast, spec)
    check_out(out, slow.dtype)
    shape = tuple(spec.out_shape(slow.shape, fast.shape))
    if tuple(out.shape) != shape or not out.is_contiguous(memory_format=torch.channels_last_3d):
        raise ValueError(f"out: expected channels_last_3d memory of shape {shape}, got {tuple(out.shape)}")
    if out.data_ptr() != slow.data_ptr() or (slow.numel() and out[:, :cs].stride() != slow.stride()):
        raise ValueError("out: expected its first channels to be slow itself (slow = out[:, :Cs])")
    OP_OUT(out, fast, spec)
    return out
