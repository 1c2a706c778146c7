"""Polyphase form of the lateral convolution, float32: 11 products of a frame and a tap for 14 (7x1x1, alpha 4).

See ``csrc/cpu/isa/lateral.cpp``. Its relative L2 error is that of a direct sum within a factor of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._registration import define_native
from ..conv_bn_act3d import cpu as conv

define_native(
    "_lateral_run_cpu(Tensor x, Tensor packed_sum, Tensor packed_first, Tensor packed_second, Tensor? shift,"
    " int alpha, bool relu, Tensor(a!) out) -> ()"
)

#: Fewest channels of the Fast pathway from which the differences pay: below, the lateral is bound by memory.
LEAST_CHANNELS = 8


def pays(weight: Sequence[int], alpha: int, dtype: torch.dtype) -> bool:
    """Whether a lateral convolution of this weight shape [Cl, Cf, kt, 1, 1] has a polyphase form that is faster."""
    return (
        dtype == torch.float32
        and 3 <= alpha <= 64
        and tuple(weight[2:]) == (2 * alpha - 1, 1, 1)
        and weight[1] >= LEAST_CHANNELS
    )


def pack(
    weight: torch.Tensor, scale: torch.Tensor | None, alpha: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights (times scale) of the three products: the phases' sums; the differences that belong to the first and
    to the second output frame of a pair, each with the middle tap behind.
    """
    w = weight.detach().double()
    if scale is not None:
        w = w * scale.detach().double().view(-1, 1, 1, 1, 1)
    before, middle, after = w[:, :, : alpha - 1], w[:, :, alpha - 1 : alpha], w[:, :, alpha:]

    def panels(taps: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        return conv.pack(taps.float(), None, None if last is None else last.float(), dtype=torch.float32)

    return panels(before + after), panels(before, middle), panels(after, middle)
