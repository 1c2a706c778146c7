"""Residual blocks of a frozen model on a GPU, and the convolutions that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import nn as blocks
from ..ops.bottleneck3d import cuda as block_cuda
from ..ops.bottleneck3d import triton as block_triton
from ..ops.conv_bn_act3d import triton as conv_triton
from ..ops.conv_bn_act3d.cpu import output_shape
from .choose import Chooser
from .cudnn import CudnnConv
from .network import Stage, add_convolutions, nbytes, numel
from .plan import Plan, View

#: Fewest channels on both sides from which a convolution is left to cuDNN without having been measured.
CUDNN_CHANNELS = 256

#: Widest inner width whose block goes to one provider as a whole without having been measured.
BLOCK_CHANNELS = 64


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
                self.cuda = pack_for_cuda(block, dtype)

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

    def separately(
        self, x: torch.Tensor, inner: torch.Tensor, middle: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """One kernel per convolution, to be measured."""
        a, b = self.inner
        a.by_triton(x, None, None, inner)
        b.by_triton(inner, None, None, middle)
        residual, second = (None, x) if self.has_shortcut else (x, None)
        return self.last.by_triton(middle, residual, second, out)

    def inner_shapes(self, x: Sequence[int]) -> list[list[int]]:
        """Shapes of a bottleneck's conv_a and conv_b."""
        a, b = self.inner
        first = a.out_shape(x)
        return [first, b.out_shape(first)]

    def choose(self, x: Sequence[int]) -> tuple[str, Callable[..., Any]]:
        """The provider of a bottleneck, and its call: of x, conv_a's and conv_b's results, and the block's."""
        a, b = self.inner
        runs: dict[str, Callable[..., Any]] = {"triton": self.by_triton, "convolutions": self.separately}
        if a.cout > BLOCK_CHANNELS:
            runs = dict(reversed(runs.items()))
        if self.cuda is not None:
            runs = {"cuda": self.by_cuda, **runs}

        def tensors() -> list[torch.Tensor]:
            return [self.chooser.like(s, self.dtype) for s in (x, *self.inner_shapes(x), self.out_shape(x))]

        key = (*x, a.cout, self.last.cout, *a.kernel, *b.stride, *b.dilation, self.dtype)
        provider = self.chooser.pick("block", key, runs, tensors)
        return provider, runs[provider]

    def flops(self, x: Sequence[int]) -> int:
        """Of a bottleneck."""
        a, b = self.inner
        y = self.out_shape(x)
        return 2 * numel(x) // x[1] * a.cin * a.cout * a.kernel[0] + 2 * numel(y) // y[1] * (
            9 * b.cin * b.cout + self.last.cout * (self.last.cin + self.last.cin2)
        )

    @property
    def weight_bytes(self) -> int:
        return sum(c.packed.weight.numel() for c in (*self.inner, self.last)) * self.dtype.itemsize

    def add(self, plan: Plan, stage: str, x: View, out: View) -> None:
        """Append the calls that compute the block into `out`."""
        if self.packed is not None:
            provider, run = self.choose(x.shape)
            if provider != "convolutions":
                inner, middle = (plan.buffer(s, self.dtype) for s in self.inner_shapes(x.shape))
                moved = nbytes(x, out) + self.weight_bytes
                plan.add(stage, "bottleneck3d", run, (x, inner, middle, out), self.flops(x.shape), moved)
                return
        add_convolutions(plan, stage, self, x, out)


class ChainedBlock:
    """A wide block on the CUDA kernels that also computes conv_a of the block behind it, where that follows.

    ready: conv_a of this block is computed by the block before.
    """

    def __init__(self, block: GpuBlock, packed: block_cuda.Packed, ready: bool) -> None:
        self.block, self.packed, self.ready = block, packed, ready

    def by_chain(
        self, x: torch.Tensor, inner: torch.Tensor, following: torch.Tensor | None, out: torch.Tensor
    ) -> torch.Tensor:
        b = self.block.inner[1]
        return block_cuda.run_packed(
            x, self.packed, out, stride=b.stride[1], dilation=b.dilation[1], inner=inner, following=following,
            ready=self.ready,
        )  # fmt: skip


class GpuStage(Stage):
    """Residual blocks one after another; of wide ones, each may compute the next one's conv_a as well."""

    def __init__(
        self,
        modules: Sequence[blocks.Bottleneck | blocks.BasicBlock],
        dtype: torch.dtype,
        chooser: Chooser,
    ) -> None:
        super().__init__([GpuBlock(block, dtype, chooser) for block in modules])
        self.dtype, self.chooser = dtype, chooser
        self.chain: list[ChainedBlock] = []
        if "chain" in chooser.allowed and len(modules) > 1 and self._chainable():
            wide = [m for m in modules if isinstance(m, blocks.Bottleneck)]  # all of them
            for i, (block, module) in enumerate(zip(self.blocks, wide, strict=True)):
                packed = pack_for_cuda(module, dtype, wide[i + 1] if i + 1 < len(wide) else None)
                self.chain.append(ChainedBlock(block, packed, ready=i > 0))

    def _chainable(self) -> bool:
        """Whether all blocks run on the kernels for wide ones, and no conv_a but the first sees other frames."""
        for i, block in enumerate(self.blocks):
            if block.cuda is None or block.cuda.weights_a is None:
                return False
            if i and (block.inner[0].kernel[0] != 1 or block.cuda.inner != self.blocks[0].cuda.inner):
                return False
        return True

    def add(self, plan: Plan, name: str, x: View, out: View) -> None:
        if not self.chain or self._choose(x.shape) == "blocks":
            super().add(plan, name, x, out)
            return
        inner = plan.buffer(self.blocks[0].inner_shapes(x.shape)[0], self.dtype)
        for i, link in enumerate(self.chain):
            last = i + 1 == len(self.chain)
            shape = link.block.out_shape(x.shape)
            y = out if last else plan.buffer(shape, self.dtype)
            following = None if last else plan.buffer(self.blocks[i + 1].inner_shapes(shape)[0], self.dtype)
            moved = nbytes(x, inner, y, following) + link.block.weight_bytes
            # conv_a's products are counted where the weights are
            flops = link.block.flops(x.shape)
            plan.add(name, "bottleneck3d", link.by_chain, (x, inner, following, y), flops, moved)
            if following is not None:
                x, inner = y, following

    def _choose(self, x: Sequence[int]) -> str:
        runs = {"blocks": self._by_blocks, "chain": self._by_chain}

        def tensors() -> list[torch.Tensor]:
            """x, and of every block conv_a's, conv_b's and the block's result."""
            shape, found = x, [self.chooser.like(x, self.dtype)]
            for block in self.blocks:
                end = block.out_shape(shape)
                found += [self.chooser.like(s, self.dtype) for s in (*block.inner_shapes(shape), end)]
                shape = end
            return found

        first = self.blocks[0]
        key = (*x, first.inner[0].cout, first.last.cout, len(self.blocks), *first.inner[1].stride,
               *first.inner[1].dilation, self.dtype)  # fmt: skip
        return self.chooser.pick("stage", key, runs, tensors)

    def _by_blocks(self, x: torch.Tensor, *rest: torch.Tensor) -> None:
        for i, block in enumerate(self.blocks):
            inner, middle, out = rest[3 * i : 3 * i + 3]
            block.choose(x.shape)[1](x, inner, middle, out)
            x = out

    def _by_chain(self, x: torch.Tensor, *rest: torch.Tensor) -> None:
        inners, outs = rest[0::3], rest[2::3]
        for i, link in enumerate(self.chain):
            link.by_chain(x, inners[i], inners[i + 1] if i + 1 < len(inners) else None, outs[i])
            x = outs[i]


def pack_for_cuda(
    block: blocks.Bottleneck, dtype: torch.dtype, following: blocks.Bottleneck | None = None
) -> block_cuda.Packed:
    """A block's weights for the CUDA kernels, with conv_a of the block behind it where one is given."""
    convs = [block.a, block.b, block.c, *([block.shortcut] if block.shortcut else [])]
    parts = [part for conv in convs for part in (conv.conv.weight.detach(), *conv.folded())]
    more = (
        {} if following is None else {"following": (following.a.conv.weight.detach(), *following.a.folded())}
    )
    return block_cuda.pack(*parts, **more, dtype=dtype)  # type: ignore[arg-type]
