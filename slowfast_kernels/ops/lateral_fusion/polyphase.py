"""Polyphase form of the lateral convolution, float32: 11 products of a frame and a tap for 14 (7x1x1, alpha 4).

See ``csrc/cpu/isa/lateral.cpp``. Its relative L2 error is that of a direct sum within a factor of two.
"""

from __future__ import annotations

import torch

from .._registration import define_native
from .._spec import ConvAffine
from ..conv_bn_act3d import cpu as conv
from .spec import LateralSpec

define_native(
    "_lateral_run_cpu(Tensor x, Tensor packed_sum, Tensor packed_first, Tensor packed_second, Tensor? shift,"
    " int alpha, bool relu, Tensor(a!) out) -> ()"
)

#: Fewest channels of the Fast pathway from which the differences pay: below, the lateral is bound by memory.
LEAST_CHANNELS = 8


def pays(spec: LateralSpec, dtype: torch.dtype) -> bool:
    """Whether a lateral convolution has a polyphase form that is faster."""
    assert spec.conv is not None
    return (
        dtype == torch.float32
        and 3 <= spec.alpha <= 64
        and spec.conv.kernel == (2 * spec.alpha - 1, 1, 1)
        and spec.conv.weight.shape[1] >= LEAST_CHANNELS
    )


def pack(lateral: ConvAffine, alpha: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights (times scale) of the three products: the phases' sums; the differences that belong to the first and
    to the second output frame of a pair, each with the middle tap behind.
    """
    w = lateral.weight.detach().double()
    if lateral.scale is not None:
        w = w * lateral.scale.detach().double().view(-1, 1, 1, 1, 1)
    before, middle, after = w[:, :, : alpha - 1], w[:, :, alpha - 1 : alpha], w[:, :, alpha:]

    def panels(taps: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        return conv.pack(taps.float(), None, None if last is None else last.float(), dtype=torch.float32)

    return panels(before + after), panels(before, middle), panels(after, middle)
