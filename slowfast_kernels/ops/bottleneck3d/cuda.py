"""The CUDA C++ provider: one kernel for narrow blocks (the Fast pathway's) and for Slow's res2, two for Slow's res3.

Operands are bfloat16 or float16 for the tensor cores; sums, shifts and residual additions are float32. Scales are
folded into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ... import autotune
from .._device import limits
from .._dtypes import HALVES, refused
from .._memory import channels_last, empty_channels_last, pixel_pitch
from .._prepared import Prepared
from .._registration import define_native
from .._spec import ConvAffine, Shape
from .cuda_pack import NARROW, WIDE, Packed, pack
from .cuda_tiles import (
    TailTiles,
    Tiles,
    candidates,
    heuristic,
    least_shared_bytes,
    tail_candidates,
    tail_heuristic,
    whole_candidates,
    whole_heuristic,
)
from .spec import BlockSpec

define_native(
    "_block_narrow_run_cuda(Tensor x, Tensor weights, Tensor shifts, int inner, int kernel_t, int stride, int dilation,"
    " bool shortcut, int[] tile, Tensor(a!) out) -> ()"
)
define_native(
    "_block_wide_a_run_cuda(Tensor x, Tensor weights, Tensor shift, int kernel_t, Tensor(a!) out) -> ()"
)
define_native(
    "_block_wide_rest_run_cuda(Tensor inner, Tensor x, Tensor weights, Tensor shifts, int stride, int dilation,"
    " bool shortcut, int[] tile, Tensor(a!) out, Tensor(b!)? following) -> ()"
)
define_native(
    "_block_wide_one_run_cuda(Tensor x, Tensor weights_a, Tensor shift_a, Tensor weights, Tensor shifts, int dilation,"
    " bool shortcut, int[] tile, int blocks, Tensor(a!) out) -> ()"
)

TUNER = autotune.Tuner("bottleneck3d", cuda=("block",))


def _takes(x: torch.Tensor) -> bool:
    """Whether the kernels read this memory: pixels that follow one another, channels at 16-byte boundaries."""
    pitch = pixel_pitch(x)
    return pitch is not None and pitch % 8 == 0 and x.data_ptr() % 16 == 0


def run_packed(
    x: torch.Tensor,
    packed: Packed,
    out: torch.Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    inner: torch.Tensor | None = None,
    following: torch.Tensor | None = None,
    ready: bool = False,
    config: Tiles | TailTiles | None = None,
) -> torch.Tensor:
    """The whole block into ``out``.

    x:      [N, Cin, T, H, W], channels_last_3d or a channel slice at a multiple of 8 (others are copied).
    out:    [N, Cout, T, Ho, Wo], channels_last_3d or a channel slice at a multiple of 8.
    inner:  scratch for a wide block's conv_a, [N, Cmid, T, H, W] in channels_last_3d; allocated where None and needed.
    following: where the next block's conv_a goes, [N, Cmid, T, Ho, Wo] as ``out``, in memory other than ``inner``'s:
            of weights that carry it (`pack`), and only of those.
    ready:  ``inner`` holds this block's conv_a already: it was ``following`` of the block before.
    config: tiles, `TailTiles` for a wide block; by default the heuristic's.
    """
    if packed.chained != (following is not None):
        raise ValueError(
            f"following: the weights were packed with{'' if packed.chained else 'out'} the next block's conv_a, got"
            f" {'no' if following is None else 'a'} place for its result"
        )
    if ready and (inner is None or packed.weights_a is None):
        raise ValueError("ready: expected a wide block, and inner with its conv_a")
    if not _takes(x):
        x = channels_last(x)
        x = x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.channels_last_3d)
    if config is None:
        found = _chosen(x, packed, out, stride, dilation, inner, following, ready)
        if found is None:
            raise RuntimeError(
                "bottleneck3d: not even one output pixel fits into this device's shared memory"
            )
        config = found
    if packed.weights_a is None:
        assert isinstance(config, Tiles)
        torch.ops.slowfast._block_narrow_run_cuda(
            x, packed.weights, packed.shifts, packed.inner, packed.kernel_t, stride, dilation, packed.shortcut,
            [config.height, config.width, config.frames], out,
        )  # fmt: skip
        return out
    assert isinstance(config, TailTiles)
    if config.whole:
        if ready or packed.chained:
            raise ValueError(
                f"config: expected tiles of a block in two kernels, which alone chain, got {config}"
            )
        torch.ops.slowfast._block_wide_one_run_cuda(
            x, packed.weights_a, packed.shift_a, packed.weights, packed.shifts, dilation, packed.shortcut,
            [config.height, config.width], limits(x.device)[0], out,
        )  # fmt: skip
        return out
    if inner is None:
        inner = empty_channels_last(x, [x.shape[0], packed.inner, *x.shape[2:]])
    if not ready:
        torch.ops.slowfast._block_wide_a_run_cuda(x, packed.weights_a, packed.shift_a, packed.kernel_t, inner)
    torch.ops.slowfast._block_wide_rest_run_cuda(
        inner, x, packed.weights, packed.shifts, stride, dilation, packed.shortcut,
        [config.height, config.width], out, following,
    )  # fmt: skip
    return out


def _chosen(
    x: torch.Tensor,
    packed: Packed,
    out: torch.Tensor,
    stride: int,
    dilation: int,
    inner: torch.Tensor | None,
    following: torch.Tensor | None = None,
    ready: bool = False,
) -> Tiles | TailTiles | None:
    """Tiles of a call, found once: by the tuned table or by measuring, else by the heuristic."""
    n, _, t, h, w = out.shape
    processors, shared = limits(x.device)

    def first() -> Tiles | TailTiles | None:
        if packed.weights_a is None:
            return heuristic(packed, n, t, h, w, stride, dilation, processors, shared)
        call = (packed, n * t, h, w, stride, dilation, processors, shared)
        # Unmeasured, by the least traffic: one kernel, unless a shortcut keeps it from fetching ahead.
        whole = None if packed.shortcut or packed.chained or ready else whole_heuristic(*call)
        return whole or tail_heuristic(*call)

    def others() -> Sequence[Tiles | TailTiles | None]:
        if packed.weights_a is None:
            return candidates(packed, n, t, h, w, stride, dilation, shared)
        shape = (packed, h, w, stride, dilation, shared)
        whole = [] if packed.chained or ready else whole_candidates(*shape)
        return [*tail_candidates(*shape), *whole]

    def run(config: Tiles | TailTiles | None) -> None:
        run_packed(
            x, packed, out, stride=stride, dilation=dilation, inner=inner, following=following, ready=ready,
            config=config,
        )  # fmt: skip

    key = (
        "cuda",
        packed.cin,
        packed.inner,
        packed.cout,
        packed.kernel_t,
        packed.shortcut,
        packed.chained,
        ready,
        *out.shape,
        stride,
        dilation,
        x.dtype,
    )
    return TUNER.pick(key, x.device, first, others, run)


class CudaBlock(Prepared):
    """A block as one kernel, or two; ``following``: the next block's conv_a, which this one then computes as well.

    ready: the block before has computed this one's conv_a.
    """

    provider = "cuda"

    def __init__(
        self,
        spec: BlockSpec,
        dtype: torch.dtype,
        device: torch.device,
        following: ConvAffine | None = None,
        ready: bool = False,
    ) -> None:
        super().__init__(spec, dtype, device)
        self.packed, self.ready = pack(spec, dtype, following), ready

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        p = self.packed
        return [w for w in (p.weights, p.shifts, p.weights_a, p.shift_a) if w is not None]

    def scratch(self, *inputs: Shape) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        return (
            [(self.spec.inner[0].out_shape(inputs[0]), self.dtype)]
            if self.packed.weights_a is not None
            else []
        )

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def into(self, out: torch.Tensor, *args: Any) -> torch.Tensor:
        """args: x; of a wide block memory for conv_a's result; of a chained one memory for the next one's."""
        x, inner, following = (*args, None, None)[:3]
        s: BlockSpec = self.spec
        return run_packed(
            x,
            self.packed,
            out,
            stride=s.stride,
            dilation=s.dilation,
            inner=inner,
            following=following,
            ready=self.ready,
        )


def cannot(spec: BlockSpec, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot run this block, or None."""
    if reason := refused(dtype, HALVES, "tensor-core"):
        return reason
    inner, cin, kernel_t = spec.a.weight.shape[:3]
    cout = spec.c.weight.shape[0]
    if inner not in NARROW + WIDE:
        return f"the inner width {inner} is none of {', '.join(map(str, NARROW + WIDE))}"
    if cin % 8 or cout % 8:
        return f"{cin} and {cout} channels are not multiples of 8, which the kernels move at a time"
    shortcut = spec.shortcut is not None
    least = least_shared_bytes(cin, inner, cout, kernel_t, shortcut, spec.stride, spec.dilation)
    most = limits(spec.a.weight.device)[1]
    if least > most:
        return f"one output pixel takes {least} bytes of shared memory, and a block of threads has {most}"
    return None


def refuses_shapes(spec: BlockSpec, x: Shape) -> str | None:
    """Why the CUDA kernels cannot run on a map of this shape, or None."""
    if x[3] * x[4] >= 2**31:
        return f"a frame has {x[3]} x {x[4]} pixels, 2^31 or more"
    return None


def prepare(spec: BlockSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Prepared:
    return CudaBlock(spec, dtype, device)
