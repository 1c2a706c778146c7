"""The CUDA C++ provider: convolution, affine, ReLU and max-pool in one kernel that marches in time.

Operands are bfloat16 or float16 for the tensor cores, sums and shift float32; the scale is folded into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ... import autotune
from .._device import limits
from .._dtypes import HALVES, refused
from .._prepared import Prepared
from .._registration import define_native, float32
from .._spec import ConvAffine, Pool
from ..conv_bn_act3d.spec import beyond_kernels
from .spec import StemSpec

define_native(
    "_stem_run_cuda(Tensor x, Tensor weights, Tensor? shift, int kernel_t, bool relu, int segment,"
    " Tensor(a!) out) -> ()"
)

TUNER = autotune.Tuner("stem3d", cuda=("stem",))

#: Most output channels by temporal extent of the kernel.
CHANNELS = {1: 64, 5: 8}

#: Pooled pixels of a block of threads, height and width.
TILE = (7, 8)


@dataclass(frozen=True)
class Packed:
    """Weights and shift as the kernel reads them.

    weights: second operands of the tensor cores, lane by lane, in the compute type.
    shift:   float32 [Cout] or None.
    cout, kernel_t: of the convolution.
    """

    weights: torch.Tensor
    shift: torch.Tensor | None
    cout: int
    kernel_t: int


def pack(conv: ConvAffine, dtype: torch.dtype) -> Packed:
    """Arguments of the stem for `run_packed`; ``dtype`` is the compute type.

    Under one row of the kernel: one value before the window, its 7 x 3, two behind it; 24 products in three
    registers of a lane, for every temporal tap and tile of eight channels.
    """
    w = conv.folded()
    cout, cin, kernel_t, kh, kw = w.shape
    tiles = 1 if cout <= 8 else 8
    rows = w.permute(3, 2, 0, 4, 1).reshape(kh, kernel_t, cout, kw * cin)
    rows = F.pad(rows, (1, 2, 0, 8 * tiles - cout))
    # the channel of every column, such that a lane's results are neighbours in memory
    joined = min(4, tiles)
    q, j, g = (torch.arange(n, device=w.device) for n in (tiles // joined, joined, 8))
    channel = q.view(-1, 1, 1) * 8 * joined + g // 2 * 2 * joined + j.view(-1, 1) * 2 + g % 2
    rows = rows[:, :, channel.flatten()].view(kh, kernel_t, tiles, 8, 3, 4, 2)
    # [row, lane's column, lane's products, tap, tile, register, two values]
    registers = rows.permute(0, 3, 5, 1, 2, 4, 6).reshape(kh, 32, 3 * kernel_t * tiles, 2)
    registers = F.pad(registers, (0, 0, 0, -registers.shape[2] % 4))
    fours = registers.view(kh, 32, -1, 8).transpose(1, 2)
    return Packed(
        fours.to(dtype).contiguous().flatten(),
        float32(conv.shift),
        cout,
        kernel_t,
    )


@dataclass(frozen=True)
class Segment:
    """Frames that a block of threads computes."""

    frames: int


def heuristic(clips: int, frames: int, height: int, width: int, kernel_t: int, processors: int) -> Segment:
    """Frames of a block of threads, unmeasured, for [clips, cout, frames, height, width] results.

    Every segment brings its own weights and, with a long kernel, frames before and behind it.
    """
    tiles = clips * -(-height // TILE[0]) * -(-width // TILE[1])
    resident = 3 if kernel_t == 5 else 2

    def time(segment: Segment) -> float:
        rounds = -(-tiles * -(-frames // segment.frames) // (processors * resident))
        return rounds * (min(frames, segment.frames + kernel_t - 1) + 0.7)

    return min(candidates(frames), key=time)


def candidates(frames: int) -> list[Segment]:
    """Segments worth measuring, the longest first."""
    lengths = {-(-frames // parts) for parts in (1, 2, 3, 4, 6, 8, 16, 32) if parts <= frames}
    return [Segment(n) for n in sorted(lengths, reverse=True)]


def run_packed(
    x: torch.Tensor,
    packed: Packed,
    out: torch.Tensor,
    *,
    relu: bool = True,
    config: Segment | None = None,
) -> torch.Tensor:
    """The stem with its pool into ``out``.

    x:      [N, 3, T, H, W], any strides; fastest with adjacent channels and rows at 16-byte boundaries.
    out:    [N, Cout, T, Ho, Wo], channels_last_3d or a channel slice at a multiple of 8.
    config: frames of a block of threads; by default the tuned table's, measured, or the heuristic's.
    """
    segment = config or _chosen(x, packed, out, relu)
    torch.ops.slowfast._stem_run_cuda(
        x, packed.weights, packed.shift, packed.kernel_t, relu, segment.frames, out
    )
    return out


def _chosen(x: torch.Tensor, packed: Packed, out: torch.Tensor, relu: bool) -> Segment:
    """The segment of a call, found once."""
    n, _, t, h, w = out.shape

    def run(config: Segment) -> None:
        run_packed(x, packed, out, relu=relu, config=config)

    return TUNER.pick(
        ("cuda", packed.kernel_t, packed.cout, *out.shape, x.dtype),
        x.device,
        lambda: heuristic(n, t, h, w, packed.kernel_t, limits(x.device)[0]),
        lambda: candidates(t),
        run,
    )


class CudaStem(Prepared):
    """A stem with its pool."""

    provider, any_layout = "cuda", True

    def __init__(self, spec: StemSpec, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(spec, dtype, device)
        self.packed = pack(spec.conv, dtype)

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        return [w for w in (self.packed.weights, self.packed.shift) if w is not None]

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def into(self, out: torch.Tensor, *args: Any) -> torch.Tensor:
        return run_packed(args[0], self.packed, out, relu=self.spec.relu)


def cannot(spec: StemSpec, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernel cannot run this stem, or None."""
    if reason := refused(dtype, HALVES, "tensor-core") or beyond_kernels(spec.full, "CUDA"):
        return reason
    cout, cin, *kernel = spec.conv.weight.shape
    if cin != 3 or kernel[0] not in CHANNELS or kernel[1:] != [7, 7]:
        return f"the kernel {tuple(kernel)} of {cin} channels is not 1x7x7 or 5x7x7 of 3"
    if cout % 8 or cout > CHANNELS[kernel[0]]:
        most = CHANNELS[kernel[0]]
        return f"{cout} output channels of {kernel[0]} x 7 x 7 are not a multiple of 8 and at most {most}"
    if spec.stride != (1, 2, 2) or spec.pool != Pool():
        return f"the stride is {spec.stride} and the pool {spec.pool}: the kernel has stride (1, 2, 2) and its own pool"
    return None


def prepare(spec: StemSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Prepared:
    return CudaStem(spec, dtype, device)
