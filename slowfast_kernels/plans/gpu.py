"""Layers of a frozen model on a GPU: Triton for everything, CUDA kernels and cuDNN where they are faster.

Who computes a layer is chosen when a plan is made: by the tuned table (`slowfast_kernels.autotune`), by measuring if
that is switched on, else by the default of each layer. A backend asked for by name narrows the choice: "triton" is
Triton alone, "cuda" the CUDA kernels for the ops that have one and Triton for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .. import autotune, backends
from .. import nn as blocks
from ..models.slowfast import SlowFast
from ..ops._registration import OPS
from ..ops.bottleneck3d import cuda as block_cuda
from ..ops.bottleneck3d import triton as block_triton
from ..ops.conv_bn_act3d import triton as conv_triton
from ..ops.conv_bn_act3d.op import output_shape
from ..ops.lateral_fusion import cuda as lateral_cuda
from ..ops.lateral_fusion import triton as lateral_triton
from ..ops.lateral_fusion.cpu import lateral_channels
from ..ops.stem3d import cuda as stem_cuda
from ..ops.stem3d import triton as stem_triton
from ..ops.stem3d.cpu import output_shape as stem_shape
from .network import Network, nbytes, numel
from .plan import Input, Plan, View

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Fewest channels on both sides from which a convolution is left to cuDNN without having been measured.
CUDNN_CHANNELS = 256

#: Widest inner width whose block goes to one provider as a whole without having been measured.
BLOCK_CHANNELS = 64


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why models of this dtype on this device cannot be planned, or None."""
    if device.type != backends.home("triton"):
        return f"the model is on {device}"
    if dtype not in DTYPES:
        return f"dtype is {dtype}, the GPU kernels take float32, bfloat16 and float16"
    return backends.unavailable("triton")


@dataclass(frozen=True)
class Choice:
    """A provider, as the autotuner keeps it."""

    provider: str


class Chooser:
    """Picks providers among those allowed, for one device."""

    def __init__(self, device: torch.device, allowed: Sequence[str]) -> None:
        self.device, self.allowed = device, tuple(allowed)

    def pick(
        self,
        layer: str,
        key: Sequence[object],
        runs: dict[str, Callable[..., Any]],
        args: Callable[[], Sequence[Any]],
    ) -> str:
        """One of ``runs``, which are in the order of preference; ``args`` makes tensors to measure them with."""
        able = {name: run for name, run in runs.items() if name in self.allowed}
        if not able:  # Triton does every layer
            able = {"triton": runs["triton"]}
        first = next(iter(able))
        if len(able) == 1:
            return first
        tensors: list[Any] = []

        def run(choice: Choice) -> None:
            if not tensors:
                tensors.extend(args())
            able[choice.provider](*tensors)

        source = autotune.source_hash(__file__, conv_triton.__file__, block_triton.__file__)
        return autotune.choose(
            "plans", (layer, *key), source, self.device, Choice(first), lambda: [Choice(n) for n in able], run
        ).provider

    def like(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Random values in channels_last_3d memory."""
        x = torch.randn(tuple(shape), device=self.device).to(dtype)
        return x.contiguous(memory_format=torch.channels_last_3d)


def rows(x: torch.Tensor, temporal: bool) -> torch.Tensor:
    """[N, C, T, H, W] in channels_last_3d memory as the 2-D convolution's input: [N, C, T, H * W], or
    [N * T, C, H, W].
    """
    n, c, t, h, w = x.shape
    y = x.permute(0, 2, 3, 4, 1)
    y = y.reshape(n, t, h * w, c) if temporal else y.reshape(n * t, h, w, c)
    return y.permute(0, 3, 1, 2)


class CudnnConv:
    """A convolution through a 2-D view, for which cuDNN's kernels are better than its 3-D ones.

    On the CPU, PyTorch's convolution takes cuDNN's place: for tests.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        shift: torch.Tensor | None,
        conv: Any,
        dtype: torch.dtype,
    ) -> None:
        w = weight.detach().float()
        if scale is not None:
            w = w * scale.detach().view(-1, 1, 1, 1, 1)
        kt, kh, kw = conv.kernel
        self.temporal = kt > 1
        w = w[..., 0] if self.temporal else w[:, :, 0]
        self.weight = w.to(dtype).contiguous(memory_format=torch.channels_last)
        bias = torch.zeros(w.shape[0], device=w.device) if shift is None else shift.detach()
        self.bias = bias.to(dtype)
        two = (0, 1) if self.temporal else (1, 2)
        self.stride, self.padding, self.dilation = (
            [v[d] for d in two] for v in (conv.stride, conv.padding, conv.dilation)
        )

    @staticmethod
    def takes(kernel: Sequence[int], stride: Sequence[int]) -> bool:
        """Whether a convolution is one in two dimensions: k x 1 x 1 without spatial stride, or 1 x k x k."""
        kt, kh, kw = kernel
        return (kt == 1 and stride[0] == 1) or (kh == kw == 1 and stride[1] == stride[2] == 1)

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, relu: bool, shape: Sequence[int]
    ) -> torch.Tensor:
        y = self._run(
            rows(x, self.temporal), None if residual is None else rows(residual, self.temporal), relu
        )
        n, c, t, h, w = shape
        return y.permute(0, 2, 3, 1).reshape(n, t, h, w, c).permute(0, 4, 1, 2, 3)

    def _run(self, x: torch.Tensor, residual: torch.Tensor | None, relu: bool) -> torch.Tensor:
        more = (self.stride, self.padding, self.dilation, 1)
        if x.device.type == "cuda":
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                if relu and residual is not None:
                    return torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, self.bias, *more)
                if relu:
                    return torch.cudnn_convolution_relu(x, self.weight, self.bias, *more)
        y = F.conv2d(x, self.weight, self.bias, *more)
        y = y if residual is None else y.add_(residual)
        return y.relu_() if relu else y


class GpuConv:
    """A convolution with its batch norm folded in, and optionally a 1x1x1 shortcut on a second input."""

    def __init__(
        self, conv: blocks.ConvBN, dtype: torch.dtype, chooser: Chooser, shortcut: blocks.ConvBN | None = None
    ) -> None:
        c = conv.conv
        self.kernel, self.stride = list(c.kernel_size), list(c.stride)
        self.padding, self.dilation = [int(p) for p in c.padding], list(c.dilation)
        self.cin, self.cout, self.relu = c.in_channels, c.out_channels, conv.relu
        self.dtype, self.chooser = dtype, chooser
        scale, shift = conv.folded()
        self.stride2 = list(shortcut.conv.stride) if shortcut else [1, 1, 1]
        self.cin2 = shortcut.conv.in_channels if shortcut else 0
        weight2, scale2, shift2 = None, None, None
        if shortcut:
            weight2, (scale2, shift2) = shortcut.conv.weight, shortcut.folded()
        self.packed = conv_triton.pack(c.weight, scale, weight2, scale2, dtype=dtype)
        shifts = [s for s in (shift, shift2) if s is not None]
        self.shift = conv_triton.float32(sum(shifts[1:], shifts[0]) if shifts else None)
        self.flat: CudnnConv | None = None
        self.flat2: CudnnConv | None = None
        if "cudnn" in chooser.allowed and CudnnConv.takes(self.kernel, self.stride):
            self.flat = CudnnConv(c.weight, scale, shift, self, dtype)
            if shortcut:
                self.flat2 = CudnnConv(shortcut.conv.weight, scale2, shift2, _Geometry(shortcut.conv), dtype)

    def out_shape(self, x: Sequence[int]) -> list[int]:
        return output_shape(x, [self.cout, self.cin, *self.kernel], self.stride, self.padding, self.dilation)

    def by_triton(
        self, x: torch.Tensor, residual: torch.Tensor | None, second: torch.Tensor | None, out: torch.Tensor
    ) -> torch.Tensor:
        return conv_triton.run_packed(
            x, self.packed, self.shift, out, stride=self.stride, padding=self.padding, dilation=self.dilation,
            relu=self.relu, residual=residual, x2=second, stride2=self.stride2,
        )  # fmt: skip

    def by_cudnn(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        second: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self.flat is not None
        shape = self.out_shape(x.shape)
        if second is not None:
            assert self.flat2 is not None
            residual = self.flat2(second, None, False, shape)
        y = self.flat(x, residual, self.relu, shape)
        return y if out is None else out.copy_(y)

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
        whole = out.channels is None and out.frames is None

        def tensors() -> list[Any]:
            def like(v: View | None) -> torch.Tensor | None:
                return None if v is None else self.chooser.like(v.shape, self.dtype)

            return [like(x), like(residual), like(second), like(out)]

        def cudnn_into(x: Any, residual: Any, second: Any, out: Any) -> Any:
            return self.by_cudnn(x, residual, second, None if whole else out)

        runs: dict[str, Callable[..., Any]] = {"triton": self.by_triton}
        if self.flat is not None:
            wide = min(self.cin, self.cout) >= CUDNN_CHANNELS
            runs = {"cudnn": cudnn_into, **runs} if wide else {**runs, "cudnn": cudnn_into}
        key = (*x.shape, self.cout, *self.kernel, *self.stride, *self.dilation, self.cin2, residual is not None, whole,
               self.dtype)  # fmt: skip
        provider = self.chooser.pick("conv", key, runs, tensors)
        flops = 2 * numel(out.shape) * (self.cin * numel(self.kernel) + (self.cin2 if second else 0))
        moved = nbytes(x, residual, second, out) + self.packed.weight.numel() * self.dtype.itemsize
        if provider == "cudnn" and whole:
            plan.add(stage, name, self.by_cudnn, (x, residual, second, None), flops, moved, produces=out)
        else:
            run = self.by_cudnn if provider == "cudnn" else self.by_triton
            plan.add(stage, name, run, (x, residual, second, out), flops, moved)


class _Geometry:
    """Kernel, stride, padding and dilation of a convolution module, as lists."""

    def __init__(self, conv: torch.nn.Conv3d) -> None:
        self.kernel, self.stride = list(conv.kernel_size), list(conv.stride)
        self.padding, self.dilation = [int(p) for p in conv.padding], list(conv.dilation)


class GpuBlock:
    """A residual block: as a whole where it is narrow, one call per convolution where it is wide."""

    def __init__(
        self, block: blocks.Bottleneck | blocks.BasicBlock, dtype: torch.dtype, chooser: Chooser
    ) -> None:
        self.dtype, self.chooser = dtype, chooser
        self.has_shortcut = block.shortcut is not None
        first = [block.a, block.b] if isinstance(block, blocks.Bottleneck) else [block.a]
        self.inner = [GpuConv(conv, dtype, chooser) for conv in first]
        self.last = GpuConv(block.last, dtype, chooser, block.shortcut)
        self.packed: block_triton.Packed | None = None
        self.cuda: block_cuda.Packed | None = None
        if isinstance(block, blocks.Bottleneck):
            a, b = self.inner
            self.packed = block_triton.Packed(
                a.packed, b.packed, self.last.packed, a.shift, b.shift, self.last.shift
            )
            convs = [block.a, block.b, block.c, *([block.shortcut] if block.shortcut else [])]
            if "cuda" in chooser.allowed and self._cuda_takes([c.conv.weight for c in convs]):
                parts = [part for c in convs for part in (c.conv.weight.detach(), *c.folded())]
                self.cuda = block_cuda.pack(*parts, dtype=dtype)  # type: ignore[arg-type]

    def out_shape(self, x: Sequence[int]) -> list[int]:
        for conv in (*self.inner, self.last):
            x = conv.out_shape(x)
        return list(x)

    def _cuda_takes(self, weights: Sequence[torch.Tensor]) -> bool:
        like = [torch.empty(w.shape, dtype=self.dtype, device="meta") for w in weights]
        x = torch.empty(1, like[0].shape[1], 1, 1, 1, dtype=self.dtype, device="meta")
        args: list[Any] = [v for w in like for v in (w, None, None)]
        return block_cuda.refuses(x, *args, *([None] * (12 - len(args)))) is None

    def by_cuda(
        self, x: torch.Tensor, inner: torch.Tensor, middle: torch.Tensor | None, out: torch.Tensor
    ) -> torch.Tensor:
        assert self.cuda is not None
        b = self.inner[1]
        return block_cuda.run_packed(
            x, self.cuda, out, stride=b.stride[1], dilation=b.dilation[1], inner=inner
        )

    def by_triton(
        self, x: torch.Tensor, inner: torch.Tensor, middle: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        assert self.packed is not None
        b = self.inner[1]
        return block_triton.run_packed(
            x, self.packed, out, stride=b.stride[1], dilation=b.dilation[1], inner=inner, middle=middle
        )

    def add(self, plan: Plan, stage: str, x: View, out: View) -> None:
        """Append the calls that compute the block into `out`."""
        if self.packed is not None:
            a, b = self.inner
            inner_shape = a.out_shape(x.shape)
            middle_shape = b.out_shape(inner_shape)

            def tensors() -> list[torch.Tensor]:
                return [
                    self.chooser.like(s, self.dtype) for s in (x.shape, inner_shape, middle_shape, out.shape)
                ]

            def separately(
                x: torch.Tensor, inner: torch.Tensor, middle: torch.Tensor, out: torch.Tensor
            ) -> None:
                a.by_triton(x, None, None, inner)
                b.by_triton(inner, None, None, middle)
                residual, second = (None, x) if self.has_shortcut else (x, None)
                self.last.by_triton(middle, residual, second, out)

            runs: dict[str, Callable[..., Any]] = {"triton": self.by_triton, "convolutions": separately}
            if a.cout > BLOCK_CHANNELS:
                runs = dict(reversed(runs.items()))
            if self.cuda is not None:
                runs = {"cuda": self.by_cuda, **runs}
            key = (*x.shape, a.cout, out.shape[1], *a.kernel, *b.stride, *b.dilation, self.dtype)
            provider = self.chooser.pick("block", key, runs, tensors)
            if provider != "convolutions":
                inner, middle = plan.buffer(inner_shape, self.dtype), plan.buffer(middle_shape, self.dtype)
                pixels, pixels_out = numel(x.shape) // x.shape[1], numel(out.shape) // out.shape[1]
                flops = 2 * pixels * a.cin * a.cout * a.kernel[0] + 2 * pixels_out * (
                    9 * b.cin * b.cout + self.last.cout * (self.last.cin + self.last.cin2)
                )
                weights = sum(c.packed.weight.numel() for c in (a, b, self.last)) * self.dtype.itemsize
                plan.add(
                    stage,
                    "bottleneck3d",
                    self.by_triton if provider == "triton" else self.by_cuda,
                    (x, inner, middle, out),
                    flops,
                    nbytes(x, out) + weights,
                )
                return
        y = x
        for name, conv in zip("ab", self.inner, strict=False):
            z = plan.buffer(conv.out_shape(y.shape), x.dtype)
            conv.add(plan, stage, f"conv_{name}", y, z)
            y = z
        residual, second = (None, x) if self.has_shortcut else (x, None)
        self.last.add(plan, stage, "conv_c", y, out, residual, second)


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
                providers = ("cuda", *providers)
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

    def make_block(self, block: blocks.Bottleneck | blocks.BasicBlock) -> GpuBlock:
        return GpuBlock(block, self.dtype, self.chooser)

    def stream_of(self, stage: str) -> int:
        """The Fast pathway and the laterals, which need nothing but it, run beside the Slow one."""
        return int(len(self.paths) == 2 and (stage.endswith(".fast") or stage.startswith("lateral")))
