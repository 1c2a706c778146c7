"""Plans for the C++ CPU kernels: weights packed once per model, calls collected once per set of input shapes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from . import nn as blocks
from .models.slowfast import SlowFast
from .ops.bottleneck3d import cpu as block_cpu
from .ops.conv_bn_act3d import cpu as conv_cpu
from .ops.conv_bn_act3d import winograd
from .ops.conv_bn_act3d.op import output_shape
from .ops.lateral_fusion import cpu as lateral_cpu
from .ops.lateral_fusion import polyphase
from .ops.stem3d import cpu as stem_cpu
from .plan import Input, Plan, View

ONE = [1, 1, 1]

#: Output pixels of the frames that a stage without temporal kernels takes at a time: one frame of 56 x 56.
FRAME_GROUP_PIXELS = 3136


def numel(shape: Sequence[int]) -> int:
    n = 1
    for extent in shape:
        n *= extent
    return n


def nbytes(*views: View | None) -> int:
    """Bytes that the views cover."""
    return sum(numel(v.shape) * v.dtype.itemsize for v in views if v is not None)


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
        y = x
        for name, conv in zip("ab", self.inner, strict=False):
            z = plan.buffer(conv.out_shape(y.shape), x.dtype)
            conv.add(plan, stage, f"conv_{name}", y, z)
            y = z
        residual, second = (None, x) if self.has_shortcut else (x, None)
        self.last.add(plan, stage, "conv_c", y, out, residual, second)


class PackedStem:
    """The stem with its max-pool."""

    def __init__(self, stem: blocks.Stem, dtype: torch.dtype) -> None:
        w = stem.conv.weight.detach()
        self.weight_shape, self.kernel = list(w.shape), list(stem.conv.kernel_size)
        # A pool window is one frame long: its stride in time drops frames, so the convolution skips them.
        self.stride = [stem.conv.stride[0] * stem.pool_stride, *stem.conv.stride[1:]]
        self.relu = stem.relu
        scale, shift = stem.folded()
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


def pool_frames(x: torch.Tensor, window: int, out: torch.Tensor) -> None:
    """Max over `window` frames with the same stride, into `out`."""
    t = out.shape[2]
    first = x[:, :, 0 : t * window : window]
    out.copy_(first)
    for k in range(1, window):
        torch.maximum(out, x[:, :, k : t * window : window], out=out)


class PackedModel:
    """A SlowFast-family model's weights as the CPU kernels read them."""

    def __init__(self, model: SlowFast, dtype: torch.dtype) -> None:
        self.config, self.dtype = model.config, dtype
        self.paths = model.config.pathways
        self.stem = {p: PackedStem(model.stem[p], dtype) for p in self.paths}
        self.lateral = [PackedLateral(m, dtype) for m in model.lateral]
        self.stages = {
            s: {p: [PackedBlock(b, dtype) for b in getattr(model, s)[p]] for p in self.paths}
            for s in ("res2", "res3", "res4", "res5")
        }
        self.head = PackedHead(model.head)

    def plan(self, shapes: Sequence[Sequence[int]]) -> Plan:
        """Calls for clips of these shapes (in the order of the pathways)."""
        plan = Plan()
        x: dict[str, View] = {}
        clip = dict(zip(self.paths, shapes, strict=True))
        widths = {p: self.stem[p].weight_shape[0] for p in self.paths}
        out = self._outputs(plan, 0, {p: self.stem[p].out_shape(clip[p]) for p in self.paths}, widths)
        for i, p in enumerate(self.paths):
            self.stem[p].add(plan, f"stem.{p}", i, clip[p], self._own(out[p], widths[p]))
        x = self._fuse(plan, 0, out)
        for k, (name, stages) in enumerate(self.stages.items(), start=1):
            ends = {p: self._end(stages[p], x[p].shape) for p in self.paths}
            widths = {p: ends[p][1] for p in self.paths}
            out = self._outputs(plan, k, ends, widths)
            for p in reversed(self.paths):  # Fast first: its input is the smaller one to keep waiting
                self._stage(plan, f"{name}.{p}", stages[p], x[p], self._own(out[p], widths[p]))
            x = self._fuse(plan, k, out)
            if name == "res2":
                x = {p: self._pool(plan, p, v) for p, v in x.items()}
        self.head.add(plan, [x[p] for p in self.paths])
        plan.lay_out()
        return plan

    def _outputs(
        self, plan: Plan, level: int, shapes: dict[str, list[int]], widths: dict[str, int]
    ) -> dict[str, View]:
        """Buffers for a level's outputs; the Slow one is as wide as the lateral that joins it makes it."""
        out = {}
        for p in self.paths:
            n, c, t, h, w = shapes[p]
            if p == "slow" and level < len(self.lateral):
                c += self.lateral[level].added(widths["fast"])
            out[p] = plan.buffer([n, c, t, h, w], self.dtype)
        return out

    @staticmethod
    def _own(out: View, width: int) -> View:
        return out if out.shape[1] == width else out.slice(0, width)

    def _fuse(self, plan: Plan, level: int, out: dict[str, View]) -> dict[str, View]:
        if level < len(self.lateral):
            self.lateral[level].add(plan, f"lateral.{level}", out["fast"], out["slow"])
        return out

    @staticmethod
    def _end(stage: Sequence[PackedBlock], x: Sequence[int]) -> list[int]:
        for block in stage:
            x = block.out_shape(x)
        return list(x)

    def _stage(self, plan: Plan, name: str, stage: Sequence[PackedBlock], x: View, out: View) -> None:
        if not any(block.temporal for block in stage) and not stage[0].one_pass:
            # No block looks at other frames: go through the stage a few frames at a time, so that what lies
            # between its blocks stays in the cache and needs little memory. Small frames go together: each
            # round reads all of the stage's weights.
            frames = x.shape[0] * x.shape[2]
            step = max(1, FRAME_GROUP_PIXELS // (out.shape[3] * out.shape[4]))
            for t in range(0, frames, step):
                end = min(t + step, frames)
                self._blocks(plan, name, stage, x.frame_range(t, end), out.frame_range(t, end))
            return
        self._blocks(plan, name, stage, x, out)

    def _blocks(self, plan: Plan, name: str, stage: Sequence[PackedBlock], x: View, out: View) -> None:
        for block in stage[:-1]:
            y = plan.buffer(block.out_shape(x.shape), self.dtype)
            block.add(plan, name, x, y)
            x = y
        stage[-1].add(plan, name, x, out)

    def _pool(self, plan: Plan, path: str, x: View) -> View:
        window = self.config.pathway(path).pool_after_res2
        if window == 1:
            return x
        n, c, t, h, w = x.shape
        out = plan.buffer([n, c, t // window, h, w], self.dtype)
        plan.add(f"res2.{path}", "max_pool", pool_frames, (x, window, out), 0, nbytes(x, out))
        return out


class PackedHead:
    """Pooling, concatenation and classifier; with boxes for a detection head."""

    def __init__(self, head: blocks.Head | blocks.RoIHead) -> None:
        self.head = copy.deepcopy(head).eval().float().requires_grad_(False)

    def add(self, plan: Plan, features: Sequence[View]) -> None:
        fast = features[1] if len(features) == 2 else None
        proj = self.head.proj
        plan.add(
            "head",
            "pool_concat_head" if isinstance(self.head, blocks.Head) else "roi_head_pool",
            self._run,
            (features[0], fast, Input(len(features))),
            2 * features[0].shape[0] * proj.in_features * proj.out_features,
            nbytes(*features) + 4 * proj.weight.numel(),
        )

    def _run(self, slow: torch.Tensor, fast: torch.Tensor | None, rois: torch.Tensor | None) -> torch.Tensor:
        features = [f for f in (slow, fast) if f is not None]
        if isinstance(self.head, blocks.Head):
            return self.head(features)  # the op takes features and float32 weights of different dtypes
        return self.head([f.float() for f in features], rois)
