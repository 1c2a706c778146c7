"""The walk through a SlowFast-family network that every device's plan shares.

A device brings its layers (`Layer` objects: weights packed once, `add` appends kernel calls) and inherits `Network`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from .. import backends
from .. import nn as blocks
from ..models.slowfast import SlowFast
from .plan import Input, Plan, Result, View, copied, for_the_caller

STAGES = ("res2", "res3", "res4", "res5")


def numel(shape: Sequence[int]) -> int:
    n = 1
    for extent in shape:
        n *= extent
    return n


def nbytes(*views: View | None) -> int:
    """Bytes that the views cover."""
    return sum(numel(v.shape) * v.dtype.itemsize for v in views if v is not None)


def pool_frames(x: torch.Tensor, window: int, out: torch.Tensor) -> None:
    """Max over `window` frames with the same stride, into `out`."""
    t = out.shape[2]
    first = x[:, :, 0 : t * window : window]
    out.copy_(first)
    for k in range(1, window):
        torch.maximum(out, x[:, :, k : t * window : window], out=out)


def copies(slow: torch.Tensor, fast: torch.Tensor | None) -> Result:
    """The maps of the pathways that there are, for the caller."""
    return copied([x for x in (slow, fast) if x is not None])


def add_convolutions(plan: Plan, stage: str, block: Any, x: View, out: View) -> None:
    """Append a residual block's convolutions, one call each: `inner`, then `last` with the residual or the shortcut."""
    y = x
    for name, conv in zip("ab", block.inner, strict=False):
        z = plan.buffer(conv.out_shape(y.shape), x.dtype)
        conv.add(plan, stage, f"conv_{name}", y, z)
        y = z
    residual, second = (None, x) if block.has_shortcut else (x, None)
    block.last.add(plan, stage, "conv_c", y, out, residual, second)


class Stage:
    """Residual blocks one after another."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks = list(blocks)

    def out_shape(self, x: Sequence[int]) -> list[int]:
        for block in self.blocks:
            x = block.out_shape(x)
        return list(x)

    def add(self, plan: Plan, name: str, x: View, out: View) -> None:
        """Append the calls that compute the stage into `out`."""
        for block in self.blocks[:-1]:
            y = plan.buffer(block.out_shape(x.shape), x.dtype)
            block.add(plan, name, x, y)
            x = y
        self.blocks[-1].add(plan, name, x, out)


class Network:
    """A model's weights as one device's kernels read them, and the plan of a forward through them.

    Layers, made by `make_stem`, `make_lateral`, `make_block` and, of blocks, `make_stage`:

    stem:    channels; out_shape(clip); add(plan, stage, index, clip, out)
    lateral: added(fast_channels); add(plan, stage, fast, fused)
    block:   out_shape(x); add(plan, stage, x, out)
    """

    def __init__(self, model: SlowFast, dtype: torch.dtype) -> None:
        self.config, self.dtype = model.config, dtype
        self.device = next(model.parameters()).device
        self.paths = model.config.pathways
        self.stem = {p: self.make_stem(cast(blocks.Stem, model.stem[p])) for p in self.paths}
        self.lateral = [self.make_lateral(cast(blocks.Lateral, m)) for m in model.lateral]
        self.stages = {s: {p: self.make_stage(getattr(model, s)[p]) for p in self.paths} for s in STAGES}
        self.head = PackedHead(model.head, model.config.head.output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        return self  # nothing in it ever changes: copies of a frozen model share its weights

    def make_stem(self, stem: blocks.Stem) -> Any:
        raise NotImplementedError

    def make_lateral(self, lateral: blocks.Lateral) -> Any:
        raise NotImplementedError

    def make_block(self, block: blocks.Bottleneck | blocks.BasicBlock) -> Any:
        raise NotImplementedError

    def make_stage(self, modules: Sequence[Any]) -> Stage:
        return Stage([self.make_block(b) for b in modules])

    def frames_at_once(self, stage: Stage, out: View) -> int | None:
        """Frames that a stage takes at a time, None for all of them."""
        return None

    def stream_of(self, stage: str) -> int:
        """Which of the device's streams runs a stage ("res2.fast", "lateral.1", "head")."""
        return 0

    def plan(self, shapes: Sequence[Sequence[int]]) -> Plan:
        """Calls for clips of these shapes (in the order of the pathways)."""
        plan = Plan(stream_of=self.stream_of)
        x: dict[str, View] = {}
        clip = dict(zip(self.paths, shapes, strict=True))
        widths = {p: self.stem[p].channels for p in self.paths}
        out = self._outputs(plan, 0, {p: self.stem[p].out_shape(clip[p]) for p in self.paths}, widths)
        for i, p in enumerate(self.paths):
            self.stem[p].add(plan, f"stem.{p}", i, clip[p], self._own(out[p], widths[p]))
        x = self._fuse(plan, 0, out)
        for k, (name, stages) in enumerate(self.stages.items(), start=1):
            ends = {p: stages[p].out_shape(x[p].shape) for p in self.paths}
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

    def _stage(self, plan: Plan, name: str, stage: Stage, x: View, out: View) -> None:
        step = self.frames_at_once(stage, out)
        if step is None:
            stage.add(plan, name, x, out)
            return
        frames = x.shape[0] * x.shape[2]
        for t in range(0, frames, step):
            end = min(t + step, frames)
            stage.add(plan, name, x.frame_range(t, end), out.frame_range(t, end))

    def _pool(self, plan: Plan, path: str, x: View) -> View:
        window = self.config.pathway(path).pool_after_res2
        if window == 1:
            return x
        n, c, t, h, w = x.shape
        out = plan.buffer([n, c, t // window, h, w], self.dtype)
        plan.add(f"res2.{path}", "max_pool", pool_frames, (x, window, out), 0, nbytes(x, out))
        return out


class PackedHead:
    """What comes after res5: pooling, concatenation and classifier (with boxes for a detection head), pooling and
    concatenation alone (`output` is "features"), or nothing ("maps")."""

    def __init__(self, head: blocks.Head | blocks.RoIHead, output: str) -> None:
        self.head = copy.deepcopy(head).eval().float().requires_grad_(False)
        self.output = output
        self.backend = backends.current()
        self.op = "pool_concat_head" if isinstance(head, blocks.Head) else "roi_head_pool"
        if output == "maps":
            self.op = "maps"

    def add(self, plan: Plan, maps: Sequence[View]) -> None:
        fast = maps[1] if len(maps) == 2 else None
        if self.output == "maps":
            plan.add("head", self.op, copies, (maps[0], fast), 0, 2 * nbytes(*maps))
            return
        proj, classified = self.head.proj, self.output == "scores"
        plan.add(
            "head",
            self.op,
            self._run,
            (maps[0], fast, Input(len(maps))),
            2 * maps[0].shape[0] * proj.in_features * proj.out_features if classified else 0,
            nbytes(*maps) + (4 * proj.weight.numel() if classified else 0),
        )

    def _run(self, slow: torch.Tensor, fast: torch.Tensor | None, rois: torch.Tensor | None) -> torch.Tensor:
        maps = [x for x in (slow, fast) if x is not None]
        run: Callable[..., torch.Tensor] = self.head if self.output == "scores" else self.head.features
        with for_the_caller(), backends.use_backend(self.backend):
            if isinstance(self.head, blocks.Head):
                return run(maps)  # the op takes maps and float32 weights of different dtypes
            return run([x.float() for x in maps], rois)
