"""The C++ CPU kernels as a target of plans."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ..graph.graph import Node
from ..ops._prepared import Prepared, Reference
from ..ops._registration import OPS
from ..ops.bottleneck3d.spec import BasicBlockSpec
from ..ops.conv_bn_act3d import cpu as conv
from ..ops.conv_bn_act3d.chain import ConvChain
from .lower import Target
from .plan import Plan, View

#: Output pixels of the frames that blocks without temporal kernels take at a time: one frame of 56 x 56.
FRAME_GROUP_PIXELS = 3136


class CpuTarget(Target):
    """This machine's processor."""

    provider = "cpu"

    def layer(self, spec: Any) -> Prepared:
        if isinstance(spec, BasicBlockSpec):
            return ConvChain(spec, functools.partial(conv.prepare, dtype=self.dtype, device=self.device))
        provider = OPS[spec.op].providers["cpu"]
        if provider.prepare is None or provider.cannot(spec, self.dtype):
            return Reference(spec, self.dtype, self.device)
        return provider.prepare(spec, self.dtype, self.device)

    def emit_chain(self, plan: Plan, chain: Sequence[Node], x: View, out: View) -> None:
        """Where no block looks at other frames: few at a time, so that what lies between the blocks stays in the cache
        and needs little memory. Small frames go together: each round reads all of the weights.
        """
        layers = [self.layers[node] for node in chain]
        if not all(isinstance(layer, ConvChain) and not layer.temporal for layer in layers):
            super().emit_chain(plan, chain, x, out)
            return
        step = max(1, FRAME_GROUP_PIXELS // (out.shape[3] * out.shape[4]))
        frames = x.shape[0] * x.shape[2]
        for t in range(0, frames, step):
            end = min(t + step, frames)
            super().emit_chain(plan, chain, x.frame_range(t, end), out.frame_range(t, end))
