"""The C++ provider: the lateral goes straight into its channels of the fused buffer."""

from __future__ import annotations

from typing import Any

import torch

from .._dtypes import FLOAT32_BF16, refused
from .._registration import float32
from ..conv_bn_act3d import cpu as conv
from . import polyphase
from .joined import Lateral
from .reference import time_to_channel
from .spec import LateralSpec


class CpuLateral(Lateral):
    """A convolution, direct or in its polyphase form, or copies of frames."""

    provider = "cpu"

    def __init__(self, spec: LateralSpec, dtype: torch.dtype, once: bool) -> None:
        super().__init__(spec, dtype, torch.device("cpu"))
        self.phases: tuple[torch.Tensor, ...] = ()
        self.conv = self.shift = None
        if spec.conv is not None and not once and polyphase.pays(spec, dtype):
            self.phases, self.shift = polyphase.pack(spec.conv, spec.alpha), float32(spec.conv.shift)
        elif spec.conv is not None:
            self.conv = conv.CpuConv(spec.full, dtype)

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        return self.phases if self.conv is None else (self.conv.packed,)

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        fast, slow = args
        alpha = self.spec.alpha
        if self.conv is not None:
            self.conv.into(out, fast, None, None)
        elif self.phases:
            relu = self.spec.activation == "relu"
            torch.ops.slowfast._lateral_run_cpu.default(fast, *self.phases, self.shift, alpha, relu, out)
        elif self.spec.sums:
            torch.add(slow, time_to_channel(fast, alpha), out=out)
        else:
            c = fast.shape[1]
            for a in range(self.spec.groups):
                out[:, a * c : (a + 1) * c].copy_(fast[:, :, a::alpha])


def cannot(spec: LateralSpec, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot run this lateral, or None."""
    return refused(dtype, FLOAT32_BF16, "C++") if spec.conv is None else conv.cannot(spec.full, dtype)


def prepare(spec: LateralSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Lateral:
    return CpuLateral(spec, dtype, once)
