"""Public ``lateral_fusion``."""

from __future__ import annotations

import torch

from .._checks import check_channels, check_clip, check_out, check_types, check_vector, public
from .cpu import lateral_channels
from .op import OP, OP_OUT
from .reference import KINDS


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
    relu: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Lateral connection: the Fast pathway's features join the Slow pathway's channels.

    SlowFast paper, section 3.4. Kinds:

    - ``"conv"`` (T-conv): kt x 1 x 1 convolution with stride alpha in time, affine and ReLU, concatenated. Without
      ``scale``, ``shift`` and ``relu`` this is mmaction2's lateral.
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
        relu: clamp the convolution at zero.
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
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {(*KINDS, 'none')}, got {kind!r}")
    check_clip(slow, "slow")
    check_clip(fast, "fast")
    check_types("slow", slow, fast=fast, weight=weight)
    if alpha < 1:
        raise ValueError(f"alpha: expected at least 1, got {alpha}")
    n, cs, t, h, w = slow.shape
    if (fast.shape[0], *fast.shape[2:]) != (n, alpha * t, h, w):
        raise ValueError(
            f"fast: expected N, T, H, W = {(n, alpha * t, h, w)} (alpha = {alpha} times slow's frames), "
            f"got shape {tuple(fast.shape)}"
        )
    if (weight is not None) != (kind == "conv"):
        raise ValueError(f"weight: expected {'a tensor' if kind == 'conv' else 'None'} for kind {kind!r}")
    if weight is not None:
        if weight.dim() != 5 or weight.shape[3:] != (1, 1) or weight.shape[2] % 2 == 0:
            raise ValueError(f"weight: expected [Cl, Cf, kt, 1, 1] with kt odd, got {tuple(weight.shape)}")
        check_channels(fast, weight.shape[1], "fast", "weight")
        check_vector(scale, weight.shape[0], "scale")
        check_vector(shift, weight.shape[0], "shift")
    if kind == "time_to_channel_sum":
        check_channels(slow, alpha * fast.shape[1], "slow", "fast, times alpha,")
    if out is None:
        return OP.handle(slow, fast, weight, scale, shift, alpha, KINDS.index(kind), relu)
    check_out(out, slow.dtype)
    shape = (n, cs + lateral_channels(fast.shape[1], weight, alpha, kind), t, h, w)
    if tuple(out.shape) != shape or not out.is_contiguous(memory_format=torch.channels_last_3d):
        raise ValueError(f"out: expected channels_last_3d memory of shape {shape}, got {tuple(out.shape)}")
    if out.data_ptr() != slow.data_ptr() or (slow.numel() and out[:, :cs].stride() != slow.stride()):
        raise ValueError("out: expected its first channels to be slow itself (slow = out[:, :Cs])")
    OP_OUT.handle(out, fast, weight, scale, shift, alpha, KINDS.index(kind), relu)
    return out
