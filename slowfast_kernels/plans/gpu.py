"""A GPU as a target of plans: Triton for everything, CUDA kernels and cuDNN where they are faster.

Who computes a layer is chosen when a plan is made: by the tuned table (`slowfast_kernels.autotune`), by measuring if
that is switched on, else by the default of each layer. A backend asked for by name narrows the choice: "triton" is
Triton alone, "cuda" the CUDA kernels for the ops that have one and Triton for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .. import backends
from ..graph.graph import Node
from ..ops._dtypes import FLOATS
from ..ops._prepared import Prepared, Reference
from ..ops._registration import OPS
from ..ops._spec import Shape, Spec
from ..ops.bottleneck3d.cuda import CudaBlock
from ..ops.bottleneck3d.spec import BasicBlockSpec, BlockSpec
from ..ops.bottleneck3d.triton import TritonBlock
from ..ops.conv_bn_act3d import cudnn
from ..ops.conv_bn_act3d.chain import ConvChain
from ..ops.conv_bn_act3d.spec import ConvSpec
from ..ops.conv_bn_act3d.triton import TritonConv
from .choose import Chooser
from .lower import Target, emit_call, nbytes
from .plan import Input, Plan, View

# Both as `slowfast-kernels bench gpu-predict` has it (docs/gpu-predicted.md): nothing of it is measured yet.

#: Fewest channels on both sides from which a convolution is left to cuDNN without having been measured.
CUDNN_CHANNELS = 128

#: Widest inner width whose block goes to one provider as a whole without having been measured.
BLOCK_CHANNELS = 64


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why models of this dtype on this device cannot be planned, or None."""
    if device.type != backends.home("triton"):
        return f"the model is on {device}"
    if dtype not in FLOATS:
        return f"dtype is {dtype}, the GPU kernels take float32, bfloat16 and float16"
    return backends.unavailable("triton")


class Candidates(Prepared):
    """An op as several providers have prepared it, in the order of preference."""

    provider = "triton"

    def __init__(self, each: Mapping[str, Prepared]) -> None:
        first = next(iter(each.values()))
        super().__init__(first.spec, first.dtype, first.device)
        self.each, self.arity = dict(each), first.arity  # type: ignore[misc]
        self.any_layout = all(prepared.any_layout for prepared in each.values())  # type: ignore[misc]

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        return [w for prepared in self.each.values() for w in prepared.weights]

    def out_shape(self, *inputs: Shape) -> list[int]:
        return next(iter(self.each.values())).out_shape(*inputs)

    def run(self, *inputs: torch.Tensor | None, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.each["triton"].run(*inputs, out=out)


class GpuTarget(Target):
    """A CUDA device; or the CPU, where it plays one.

    providers: who may compute; by default everybody whom the backend in force admits.
    """

    provider, two_lanes, captures = "triton", True, True

    def __init__(
        self, device: torch.device, dtype: torch.dtype, providers: Sequence[str] | None = None
    ) -> None:
        super().__init__(device, dtype)
        if providers is None:
            providers = ("triton", "convolutions")
            if self.backend in ("auto", "cuda") and backends.unavailable("cuda") is None:
                providers = ("cuda", "blocks", "chain", *providers)
            if self.backend == "auto" and device.type == "cuda" and torch.backends.cudnn.is_available():
                providers = (*providers, "cudnn")
        self.chooser = Chooser(device, providers)
        self.chained: dict[Node, list[CudaBlock]] = {}  # by the first node of a chain

    def backend_of(self, op: str) -> str:
        """A head without a kernel in CUDA runs on Triton."""
        return "triton" if self.backend == "cuda" and "cuda" not in OPS[op].providers else self.backend

    def reads(self, layer: Prepared, value: Input) -> bool:
        """The kernels read one type."""
        return layer.any_layout and value.dtype == self.dtype

    # --- layers

    def layer(self, spec: Any) -> Prepared:
        if isinstance(spec, BasicBlockSpec):
            return ConvChain(spec, self._conv)
        providers = OPS[spec.op].providers
        triton = providers["triton"]
        if triton.cannot(spec, self.dtype):
            return Reference(spec, self.dtype, self.device)
        if isinstance(spec, ConvSpec):
            return self._conv(spec)
        each: dict[str, Any] = {}
        cuda = providers["cuda"]
        if "cuda" in self.chooser.allowed and cuda.cannot(spec, self.dtype) is None:
            assert cuda.prepare is not None
            each["cuda"] = cuda.prepare(spec, self.dtype, self.device)
        if isinstance(spec, BlockSpec):
            chain = ConvChain(spec, self._conv)
            convs = [_triton_of(conv) for conv in (*chain.inner, chain.last)]
            each["triton"], each["convolutions"] = TritonBlock(spec, convs), chain
            if spec.a.weight.shape[0] > BLOCK_CHANNELS:
                order = ["cuda", "convolutions", "triton"]
                if "cudnn" in self.chooser.allowed:
                    # on wgmma, whose rate the CUDA kernels' mma.sync does not reach
                    order = ["convolutions", "triton", "cuda"]
                each = {name: each[name] for name in order if name in each}
        else:
            assert triton.prepare is not None
            each["triton"] = triton.prepare(spec, self.dtype, self.device)
        return Candidates(self.chooser.able(each))

    def _conv(self, spec: ConvSpec, shortcut: ConvSpec | None = None) -> Prepared:
        each: dict[str, Prepared] = {"triton": TritonConv(spec, self.dtype, self.device, shortcut)}
        flat = all(cudnn.cannot(s, self.dtype) is None for s in (spec, shortcut) if s is not None)
        if flat and "cudnn" in self.chooser.allowed:
            each["cudnn"] = cudnn.CudnnConv(spec, self.dtype, self.device, shortcut)
            if min(spec.conv.weight.shape[:2]) >= CUDNN_CHANNELS:
                each = dict(reversed(each.items()))
        # a convolution alone is whoever's; Triton's weights stay for the block that it may be part of
        return Candidates(each)

    def prepare_chain(self, chain: Sequence[Node]) -> None:
        super().prepare_chain(chain)
        blocks = [_cuda_of(self.layers.get(node)) for node in chain]
        if len(chain) < 2 or "chain" not in self.chooser.allowed or not _chainable(blocks):
            return
        specs: list[Any] = [node.spec for node in chain]
        after = [spec.a for spec in specs[1:]] + [None]
        self.chained[chain[0]] = [
            CudaBlock(spec, self.dtype, self.device, following, ready=i > 0)
            for i, (spec, following) in enumerate(zip(specs, after, strict=True))
        ]

    # --- plans

    def emit(self, plan: Plan, layer: Any, stage: str, op: str, out: View, inputs: Sequence[Any]) -> None:
        if isinstance(layer, Candidates):
            layer = self._pick(layer, out, inputs)
        if isinstance(layer, cudnn.CudnnConv) and out.whole:
            emit_call(plan, layer, stage, op, out, inputs, layer.fresh)
        else:
            super().emit(plan, layer, stage, op, out, inputs)

    def _pick(self, layer: Candidates, out: View, inputs: Sequence[Any]) -> Prepared:
        each = self._able(layer, out.whole, [None if x is None else tuple(x.shape) for x in inputs])
        shapes = [tuple(x.shape) for x in inputs if x is not None]
        key = (layer.op, *shapes, *_described(layer.spec), tuple(out.shape), out.whole, self.dtype)

        def tensors() -> list[Any]:
            wide = self.chooser.like(out.shape if out.frames else out.buffer.shape or (), self.dtype)
            target = wide[:, out.channels[0] : out.channels[1]] if out.channels else wide
            maps = [None if x is None else self.chooser.like(x.shape, self.dtype) for x in inputs]
            return [target, *maps, *[None] * (layer.arity - len(maps))]

        def measured(prepared: Prepared) -> Callable[..., Any]:
            def call(target: torch.Tensor, *maps: torch.Tensor | None) -> Any:
                if out.whole and isinstance(prepared, cudnn.CudnnConv):
                    return prepared.fresh(*maps)  # type: ignore[arg-type]
                scratch = [
                    torch.empty(tuple(s), dtype=d, device=self.device) for s, d in prepared.scratch(*shapes)
                ]
                return prepared.into(target, *maps, *scratch)

            return call

        return each[self.chooser.pick(key, {name: measured(p) for name, p in each.items()}, tensors)]

    def _able(self, layer: Candidates, whole: bool, shapes: Sequence[Shape | None]) -> dict[str, Prepared]:
        """Who may compute a layer, in the order of preference."""
        each = dict(layer.each)
        by_cudnn = each.get("cudnn")
        if isinstance(by_cudnn, cudnn.CudnnConv):
            if by_cudnn.cannot_run(*shapes):
                del each["cudnn"]
            elif not whole:  # its result is copied to its place, the others write there
                each["cudnn"] = each.pop("cudnn")
        return self.chooser.able(each)

    def emit_chain(self, plan: Plan, chain: Sequence[Node], x: View, out: View) -> None:
        """Of wide blocks, each may compute the next one's conv_a as well."""
        links = self.chained.get(chain[0])
        if links is None or self._form(chain, x, out) == "blocks":
            super().emit_chain(plan, chain, x, out)
            return
        inner = plan.buffer(links[0].scratch(x.shape)[0][0], self.dtype)
        for node, link, after in zip(chain, links, [*links[1:], None], strict=True):
            y = plan.buffer(link.out_shape(x.shape), self.dtype) if after else out
            following = plan.buffer(after.scratch(y.shape)[0][0], self.dtype) if after else None
            moved = nbytes(x, inner, y, following) + link.nbytes
            # conv_a's products are counted where the weights are
            plan.add(
                node.stage, node.op, link.into, (y, x, inner, following), link.flops(x.shape), moved,
                provider="cuda chain",
            )  # fmt: skip
            if following is not None:
                x, inner = y, following

    def _form(self, chain: Sequence[Node], x: View, out: View) -> str:
        links = self.chained[chain[0]]
        shapes, between = [list(x.shape)], []
        for link in links:
            between.append(link.scratch(shapes[-1])[0][0])
            shapes.append(link.out_shape(shapes[-1]))

        def tensors() -> list[torch.Tensor]:
            """Of every block x, conv_a's result; and the last one's result."""
            return [self.chooser.like(s, self.dtype) for s in (*shapes, *between)]

        def by_blocks(*maps: torch.Tensor) -> None:
            for i, node in enumerate(chain):
                self.layers[node].run(maps[i], out=maps[i + 1])

        def by_chain(*maps: torch.Tensor) -> None:
            inners = [*maps[len(shapes) :], None]
            for i, link in enumerate(links):
                link.into(maps[i + 1], maps[i], inners[i], inners[i + 1])

        key = ("stage", len(chain), *shapes[0], *_described(links[0].spec), self.dtype)
        runs = {"blocks": by_blocks, "chain": by_chain}
        able = {name: run for name, run in runs.items() if name in self.chooser.allowed}
        return self.chooser.pick(key, able, tensors)


def _described(spec: Spec) -> list[object]:
    """What tells one op's parameters from another's, apart from their values."""
    return [tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in spec.flat()]


def _triton_of(layer: Prepared) -> TritonConv:
    assert isinstance(layer, Candidates)
    found = layer.each["triton"]
    assert isinstance(found, TritonConv)
    return found


def _cuda_of(layer: Any) -> CudaBlock | None:
    found = layer.each.get("cuda") if isinstance(layer, Candidates) else None
    return found if isinstance(found, CudaBlock) else None


def _chainable(blocks: Sequence[CudaBlock | None]) -> bool:
    """Whether all blocks run on the kernels for wide ones, and no conv_a but the first sees other frames."""
    first = blocks[0]
    for block in blocks:
        if first is None or block is None or block.packed.weights_a is None:
            return False
        if block is not first and (block.packed.kernel_t != 1 or block.packed.inner != first.packed.inner):
            return False
    return True
