"""Layers of a frozen model on a GPU: Triton for everything, CUDA kernels and cuDNN where they are faster.

Who computes a layer is chosen when a plan is made: by the tuned table (`slowfast_kernels.autotune`), by measuring if
that is switched on, else by the default of each layer. A backend asked for by name narrows the choice: "triton" is
Triton alone, "cuda" the CUDA kernels for the ops that have one and Triton for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import backends
from .. import nn as blocks
from ..models.slowfast import SlowFast
from ..ops._registration import OPS
from ..ops.conv_bn_act3d import triton as conv_triton
from ..ops.lateral_fusion import cuda as lateral_cuda
from ..ops.lateral_fusion import triton as lateral_triton
from ..ops.lateral_fusion.cpu import lateral_channels
from ..ops.stem3d import cuda as stem_cuda
from ..ops.stem3d import triton as stem_triton
from ..ops.stem3d.cpu import output_shape as stem_shape
from .choose import Chooser
from .gpu_blocks import GpuStage
from .network import Network, nbytes, numel
from .plan import Input, Plan, View

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why models of this dtype on this device cannot be planned, or None."""
    if device.type != backends.home("triton"):
        return f"the model is on {device}"
    if dtype not in DTYPES:
        return f"dtype is {dtype}, the GPU kernels take float32, bfloat16 and float16"
    return backends.unavailable("triton")


class GpuStem:
    """The stem with its max-pool, reading a copy of the caller's clip."""

    def __init__(self, stem: blocks.Stem, dtype: torch.dtype, chooser: Chooser) -> None:
        w = stem.conv.weight.detach()
        self.dtype, self.chooser = dtype, chooser
        self.weight_shape, self.channels, self.relu = list(w.shape), w.shape[0], stem.relu
        # A pool window is one frame long: its stride in time drops frames, so the convolution skips them.
        self.stride = (stem.conv.stride[0] * stem.pool_stride, stem.conv.stride[1], stem.conv.stride[2])
        scale, shift = stem.folded()
        self.packed, self.shift = conv_triton.pack(w, scale, dtype=dtype), conv_triton.float32(shift)
        self.cuda: stem_cuda.Packed | None = None
        like, x = (torch.empty(s, dtype=dtype, device="meta") for s in (w.shape, (1, w.shape[1], 1, 1, 1)))
        refused = stem_cuda.refuses(x, like, scale, shift, self.stride, self.relu, True)
        if "cuda" in chooser.allowed and refused is None:
            self.cuda = stem_cuda.pack(w, scale, shift, dtype=dtype)

    def out_shape(self, x: Sequence[int]) -> list[int]:
        return stem_shape(x, self.weight_shape, self.stride, True)

    def by_cuda(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        assert self.cuda is not None
        return stem_cuda.run_packed(x, self.cuda, out, relu=self.relu)

    def by_triton(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return stem_triton.run_packed(x, self.packed, self.shift, out, stride=self.stride, relu=self.relu)

    def add(self, plan: Plan, stage: str, index: int, clip: Sequence[int], out: View) -> None:
        x = plan.buffer(clip, self.dtype)
        plan.add(stage, "input", copy_into, (x, Input(index)), 0, 2 * nbytes(x))
        full = stem_shape(clip, self.weight_shape, self.stride, False)
        flops = 2 * numel(full) * numel(self.weight_shape[1:])
        weights = self.packed.weight.numel() * self.dtype.itemsize
        runs: dict[str, Callable[..., Any]] = {"triton": self.by_triton}
        if self.cuda is not None:
            runs = {"cuda": self.by_cuda, **runs}

        def tensors() -> list[torch.Tensor]:
            return [self.chooser.like(clip, self.dtype), self.chooser.like(out.shape, self.dtype)]

        key = (*clip, *self.weight_shape, *self.stride, self.dtype)
        provider = self.chooser.pick("stem", key, runs, tensors)
        plan.add(stage, "stem3d", runs[provider], (x, out), flops, nbytes(x, out) + weights)


class GpuLateral:
    """A lateral connection writing into the channels behind the Slow pathway's."""

    def __init__(self, lateral: blocks.Lateral, dtype: torch.dtype, chooser: Chooser) -> None:
        self.kind, self.alpha, self.relu = lateral.kind, lateral.alpha, lateral.relu
        self.dtype, self.chooser = dtype, chooser
        self.packed: conv_triton.Packed | None = None
        self.shift: torch.Tensor | None = None
        self.cuda: torch.Tensor | None = None
        self.cout = 0
        if lateral.conv is not None:
            scale, shift = lateral.folded()
            self.packed = conv_triton.pack(lateral.conv.weight.detach(), scale, dtype=dtype)
            self.shift, self.cout = conv_triton.float32(shift), lateral.conv.out_channels
            if "cuda" in chooser.allowed:
                self.cuda = lateral_cuda.pack(lateral.conv.weight.detach(), scale, dtype=dtype)

    def added(self, fast_channels: int) -> int:
        if self.kind == "conv":
            return self.cout
        return lateral_channels(fast_channels, None, self.alpha, self.kind)

    def by_triton(self, fast: torch.Tensor, out: torch.Tensor) -> None:
        slow = out if self.kind == "time_to_channel_sum" else None
        lateral_triton.write(fast, self.packed, self.shift, self.alpha, self.kind, self.relu, out, slow)

    def by_cuda(self, fast: torch.Tensor, out: torch.Tensor) -> None:
        assert self.cuda is not None
        lateral_cuda.run_packed(fast, self.cuda, self.shift, out, alpha=self.alpha, relu=self.relu)

    def add(self, plan: Plan, stage: str, fast: View, fused: View) -> None:
        if self.kind == "none":
            return
        cl = self.added(fast.shape[1])
        out = fused.slice(fused.shape[1] - cl, fused.shape[1]) if cl else fused
        runs: dict[str, Callable[..., Any]] = {"triton": self.by_triton}
        if self.cuda is not None:
            runs = {"cuda": self.by_cuda, **runs}

        def tensors() -> list[torch.Tensor]:
            wide = self.chooser.like(fused.shape, self.dtype)
            return [self.chooser.like(fast.shape, self.dtype), wide[:, fused.shape[1] - cl :] if cl else wide]

        key = (*fast.shape, self.kind, cl, fused.shape[1], self.alpha, self.dtype)
        provider = self.chooser.pick("lateral", key, runs, tensors)
        products = 0 if self.packed is None else self.packed.weight.shape[1]
        weights = 0 if self.packed is None else self.packed.weight.numel() * self.dtype.itemsize
        plan.add(
            stage, "lateral_fusion", runs[provider], (fast, out), 2 * numel(out.shape) * products,
            nbytes(fast, out) + weights,
        )  # fmt: skip


def copy_into(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The caller's clip into the plan's memory; nothing if it lies there already."""
    return out if x.data_ptr() == out.data_ptr() and x.stride() == out.stride() else out.copy_(x)


class GpuNetwork(Network):
    """A SlowFast-family model's weights as the GPU kernels read them."""

    def __init__(self, model: SlowFast, dtype: torch.dtype, providers: Sequence[str] | None = None) -> None:
        asked = backends.current()
        device = next(model.parameters()).device
        if providers is None:
            providers = ("triton", "convolutions")
            if asked in ("auto", "cuda") and backends.unavailable("cuda") is None:
                providers = ("cuda", "blocks", "chain", *providers)
            if asked == "auto" and device.type == "cuda" and torch.backends.cudnn.is_available():
                providers = (*providers, "cudnn")
        self.chooser = Chooser(device, providers)
        super().__init__(model, dtype)
        if asked == "cuda" and "cuda" not in OPS[self.head.op].providers:
            self.head.backend = "triton"
        self.head.head.to(device)

    def make_stem(self, stem: blocks.Stem) -> GpuStem:
        return GpuStem(stem, self.dtype, self.chooser)

    def make_lateral(self, lateral: blocks.Lateral) -> GpuLateral:
        return GpuLateral(lateral, self.dtype, self.chooser)

    def make_stage(self, modules: Sequence[Any]) -> GpuStage:
        return GpuStage(modules, self.dtype, self.chooser)

    def stream_of(self, stage: str) -> int:
        """The Fast pathway and the laterals, which need nothing but it, run beside the Slow one."""
        return int(len(self.paths) == 2 and (stage.endswith(".fast") or stage.startswith("lateral")))
