"""The C++ provider: one pass for narrow blocks, three convolutions with fused epilogues for wide ones."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .._prepared import Prepared
from .._registration import define_native
from ..conv_bn_act3d import cpu as conv
from ..conv_bn_act3d.chain import ConvChain
from .spec import BlockSpec

define_native(
    "_block_run_cpu(Tensor x, Tensor packed_a, Tensor shift_a, Tensor packed_b, Tensor shift_b, Tensor packed_c,"
    " Tensor shift_c, int kernel_t, int stride, int dilation, bool shortcut, Tensor(a!) out) -> ()"
)

#: Widest inner width whose block runs as one pass: beyond it the weights no longer stay in the level-2 cache
#: while a row is computed.
ONE_PASS_CHANNELS = 32


class OnePassBlock(Prepared):
    """A block as one kernel."""

    provider = "cpu"

    def __init__(self, spec: BlockSpec, dtype: torch.dtype) -> None:
        super().__init__(spec, dtype, torch.device("cpu"))
        a, b, c, s = spec.a, spec.b, spec.c, spec.shortcut
        weight_s, scale_s, shift_s = s or (None, None, None)
        self.packed_a = conv.pack(a.weight, a.scale, dtype=dtype)
        self.packed_b = conv.pack(b.weight, b.scale, dtype=dtype)
        self.packed_c = conv.pack(c.weight, c.scale, weight_s, scale_s, dtype=dtype)
        cmid, cout = a.weight.shape[0], c.weight.shape[0]
        self.shift_a, self.shift_b = _or_zeros(a.shift, cmid), _or_zeros(b.shift, cmid)
        self.shift_c = _or_zeros(conv.sum_of(c.shift, shift_s), cout)

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        s: BlockSpec = self.spec
        torch.ops.slowfast._block_run_cpu.default(
            args[0], self.packed_a, self.shift_a, self.packed_b, self.shift_b, self.packed_c, self.shift_c,
            s.a.kernel[0], s.stride, s.dilation, s.shortcut is not None, out,
        )  # fmt: skip


def _or_zeros(shift: torch.Tensor | None, channels: int) -> torch.Tensor:
    return torch.zeros(channels) if shift is None else shift.detach().float().contiguous()


def cannot(spec: BlockSpec, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot run this block, or None."""
    if spec.a.kernel[0] % 2 == 0:
        return f"conv_a's temporal kernel {spec.a.kernel[0]} is even"
    return conv.cannot(spec.last, dtype)


def prepare(spec: BlockSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Prepared:
    if spec.a.weight.shape[0] <= ONE_PASS_CHANNELS and spec.a.kernel[0] < 64:
        return OnePassBlock(spec, dtype)
    return ConvChain(spec, functools.partial(conv.prepare, dtype=dtype, device=device, once=once))
