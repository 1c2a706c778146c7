"""Plans for the C++ CPU kernels: weights packed once per model, calls collected once per set of input shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import nn as blocks
from ..ops.bottleneck3d import cpu as block_cpu
from ..ops.conv_bn_act3d import cpu as conv_cpu
from ..ops.conv_bn_act3d import winograd
from ..ops.conv_bn_act3d.cpu import output_shape
from ..ops.lateral_fusion import cpu as lateral_cpu
from ..ops.lateral_fusion import polyphase
from ..ops.stem3d import cpu as stem_cpu
from .network import Network, Stage, add_convolutions, nbytes, numel
from .plan import Input, Plan, View

ONE = [1, 1, 1]

#: Output pixels of the frames that a stage without temporal kernels takes at a time: one frame of 56 x 56.
FRAME_GROUP_PIXELS = 3136


class PackedConv:
    """A convolution with its batch norm folded in, and optionally a 1x1x1 shortcut as a second source."""

    def __init__(
        self, conv: blocks.ConvBN, dtype: torch.dtype, shortcut: blocks.ConvBN | None = None
    ) -> None:
        c = conv.conv
        self.kernel, self.stride = list(c.kernel_size), list(c.stride)
        self.padding, self.dilation = [int(p) for p in c.padding], list(c.dilation)
        self.cin, self.cout, self.relu = c.in_channels, c.out_channels, conv.relu
        scale, shift = conv.folded()
        self.shortcut_stride = list(shortcut.conv.stride) if shortcut else ONE
        self.shortcut_cin = shortcut.conv.in_channels if shortcut else 0
        weight2, scale2, shift2 = None, None, None
        if shortcut:
            weight2, (scale2, shift2) = shortcut.conv.weight, shortcut.folded()
        self.winograd = shortcut is None and winograd.pays(
            c.weight.shape, self.stride, self.padding, self.dilation, dtype
        )
        if self.winograd:
            self.packed = winograd.pack(c.weight, scale)
        else:
            self.packed = conv_cpu.pack(c.weight.detach(), scale, weight2, scale2, dtype=dtype)
        self.shift = block_cpu.sum_shifts(shift, shift2, self.cout)

    def out_shape(self, x: Sequence[int]) -> list[int]:
        return output_shape(x, [self.cout, self.cin, *self.kernel], self.stride, self.padding, self.dilation)

    def add(
        self,
        plan: Plan,
        stage: str,
        name: str,
        x: View,
        out: View,
        residual: View | None = None,
        second: View | None = None,
    ) -> None:
        """Append the call that writes `out`."""
        pixels = numel(out.shape) // self.cout
        flops = (
            2 * pixels * self.cout * (self.cin * numel(self.kernel) + (self.shortcut_cin if second else 0))
        )
        if self.winograd:
            spatial = self.kernel[0] == 1
            workspace = plan.buffer([winograd.workspace_numel(x.shape, spatial)], torch.float32)
            run = torch.ops.slowfast._winograd_run_cpu.default
            args = (x, self.packed, self.shift, residual, spatial, self.relu, workspace, out)
            plan.add(stage, name, run, args, flops, nbytes(x, residual, out) + self.packed.numel())
            return
        plan.add(
            stage,
            name,
            torch.ops.slowfast._conv_run_cpu.default,
            (x, self.packed, self.shift, residual, second, self.kernel, self.stride, self.padding,
             self.dilation, self.shortcut_stride, self.relu, out),
            flops,
            nbytes(x, residual, second, out) + self.packed.numel(),
        )  # fmt: skip


class PackedBlock:
    """A residual block: one pass where it is narrow, one call per convolution where it is wide."""

    def __init__(self, block: blocks.Bottleneck | blocks.BasicBlock, dtype: torch.dtype) -> None:
        self.has_shortcut = block.shortcut is not None
        if isinstance(block, blocks.Bottleneck):
            self.inner = [PackedConv(block.a, dtype), PackedConv(block.b, dtype)]
        else:
            self.inner = [PackedConv(block.a, dtype)]
        self.last = PackedConv(block.last, dtype, block.shortcut)
        a, last = self.inner[0], self.last
        self.one_pass = isinstance(block, blocks.Bottleneck) and block_cpu.one_pass(a.cout, a.kernel[0])
        self.temporal = any(c.kernel[0] > 1 for c in (*self.inner, last))

    def out_shape(self, x: Sequence[int]) -> list[int]:
        for conv in (*self.inner, self.last):
            x = conv.out_shape(x)
        return list(x)

    def add(self, plan: Plan, stage: str, x: View, out: View) -> None:
        """Append the calls that compute the block into `out`."""
        if self.one_pass:
            a, b = self.inner
            n, _, t, h, w = x.shape
            pixels_out = numel(out.shape) // self.last.cout
            flops = 2 * (n * t * h * w * a.cin * a.cout * a.kernel[0]) + 2 * pixels_out * (
                9 * b.cin * b.cout + self.last.cout * (self.last.cin + self.last.shortcut_cin)
            )
            packed = (a.packed, a.shift, b.packed, b.shift, self.last.packed, self.last.shift)
            plan.add(
                stage,
                "bottleneck3d",
                torch.ops.slowfast._block_run_cpu.default,
                (x, *packed, a.kernel[0], b.stride[1], b.dilation[1], self.has_shortcut, out),
                flops,
                nbytes(x, out) + sum(p.numel() for p in packed[::2]),
            )
            return
        add_convolutions(plan, stage, self, x, out)


class PackedStem:
    """The stem with its max-pool."""

    def __init__(self, stem: blocks.Stem, dtype: torch.dtype) -> None:
        w = stem.conv.weight.detach()
        self.weight_shape, self.kernel = list(w.shape), list(stem.conv.kernel_size)
        # A pool window is one frame long: its stride in time drops frames, so the convolution skips them.
        self.stride = [stem.conv.stride[0] * stem.pool_stride, *stem.conv.stride[1:]]
        self.relu = stem.relu
        scale, shift = stem.folded()
        self.channels = w.shape[0]
        self.packed = stem_cpu.pack(w, scale, self.stride, dtype=dtype)
        self.planar = stem_cpu.planar(self.weight_shape, self.stride)
        self.shift = block_cpu.zeros_for(shift, w.shape[0])

    def out_shape(self, x: Sequence[int]) -> list[int]:
        return stem_cpu.output_shape(x, self.weight_shape, self.stride, True)

    def add(self, plan: Plan, stage: str, index: int, clip: Sequence[int], out: View) -> None:
        conv = stem_cpu.output_shape(clip, self.weight_shape, self.stride, False)
        padded = plan.buffer([stem_cpu.padded_numel(clip, self.weight_shape, self.stride)], out.dtype)
        plan.add(
            stage,
            "stem3d",
            torch.ops.slowfast._stem_run_cpu.default,
            (
                Input(index),
                self.packed,
                self.shift,
                self.kernel,
                self.stride,
                self.relu,
                True,
                self.planar,
                padded,
                out,
            ),
            2 * numel(conv) * numel(self.weight_shape[1:]),
            numel(clip) * 4 + nbytes(out) + self.packed.numel(),
        )


class PackedLateral:
    """A lateral connection writing into the channels behind the Slow pathway's."""

    def __init__(self, lateral: blocks.Lateral, dtype: torch.dtype) -> None:
        self.kind, self.alpha, self.relu = lateral.kind, lateral.alpha, lateral.relu
        self.packed: tuple[torch.Tensor, ...] = ()
        if lateral.conv is not None:
            c = lateral.conv
            scale, shift = lateral.folded()
            self.kernel, self.cin, self.cout = list(c.kernel_size), c.in_channels, c.out_channels
            self.shift = block_cpu.zeros_for(shift, self.cout)
            self.polyphase = polyphase.pays(c.weight.shape, self.alpha, dtype)
            if self.polyphase:
                self.packed = polyphase.pack(c.weight, scale, self.alpha)
            else:
                self.packed = (conv_cpu.pack(c.weight.detach(), scale, dtype=dtype),)

    def added(self, fast_channels: int) -> int:
        if self.kind == "conv":
            return self.cout
        return lateral_cpu.lateral_channels(fast_channels, None, self.alpha, self.kind)

    def add(self, plan: Plan, stage: str, fast: View, fused: View) -> None:
        if self.kind == "none":
            return
        cl = self.added(fast.shape[1])
        out = fused.slice(fused.shape[1] - cl, fused.shape[1]) if cl else fused
        if not self.packed:
            args: tuple[Any, ...] = (fast, None, None, None, self.alpha, self.kind, self.relu, out)
            plan.add(stage, "lateral_fusion", lateral_cpu.write, args, 0, nbytes(fast, out))
            return
        if self.polyphase:
            run = torch.ops.slowfast._lateral_run_cpu.default
            args = (fast, *self.packed, self.shift, self.alpha, self.relu, out)
        else:
            run = torch.ops.slowfast._conv_run_cpu.default
            args = (fast, *self.packed, self.shift, None, None, self.kernel, [self.alpha, 1, 1],
                    [self.kernel[0] // 2, 0, 0], ONE, ONE, self.relu, out)  # fmt: skip
        flops = 2 * numel(out.shape) * self.cin * self.kernel[0]
        moved = nbytes(fast, out) + sum(p.numel() for p in self.packed)
        plan.add(stage, "lateral_fusion", run, args, flops, moved)


class CpuNetwork(Network):
    """A SlowFast-family model's weights as the C++ CPU kernels read them."""

    def make_stem(self, stem: blocks.Stem) -> PackedStem:
        return PackedStem(stem, self.dtype)

    def make_lateral(self, lateral: blocks.Lateral) -> PackedLateral:
        return PackedLateral(lateral, self.dtype)

    def make_block(self, block: blocks.Bottleneck | blocks.BasicBlock) -> PackedBlock:
        return PackedBlock(block, self.dtype)

    def frames_at_once(self, stage: Stage, out: View) -> int | None:
        """Where no block looks at other frames: few, so that what lies between the blocks stays in the cache and
        needs little memory. Small frames go together: each round reads all of the stage's weights.
        """
        if any(block.temporal for block in stage.blocks) or stage.blocks[0].one_pass:
            return None
        return max(1, FRAME_GROUP_PIXELS // (out.shape[3] * out.shape[4]))
