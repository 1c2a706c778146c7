"""The C++ provider: a padded copy of the clip, then convolution, affine, ReLU and max-pool row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .._prepared import Prepared
from .._registration import define_native, float32
from .._spec import Shape
from ..conv_bn_act3d import cpu as conv
from .spec import StemSpec, beyond_pool

define_native(
    "_stem_run_cpu(Tensor x, Tensor packed, Tensor? shift, int[] kernel, int[] stride, bool relu, bool pool,"
    " bool planar, Tensor(a!) padded, Tensor(b!) out) -> ()"
)

#: Most output channels that run with pixels as vector lanes; more fill the lanes themselves.
PLANAR_CHANNELS = 32


def is_planar(weight: Shape, stride: Shape) -> bool:
    """Whether the stem of this weight shape runs with pixels as vector lanes."""
    co, ci, kt, kh, _ = weight
    return co <= PLANAR_CHANNELS and stride[2] == 2 and kt * kh * ci <= 1024


def pack(spec: StemSpec, dtype: torch.dtype) -> torch.Tensor:
    """Weights as the stem reads them.

    Panels: under one kernel row the kw * Cin values of a pixel row are contiguous. Planar: [kt, kh, Cin, columns,
    channels rounded up to 8], two bfloat16 columns side by side.
    """
    weight, scale, _ = spec.conv
    co, ci, kt, kh, kw = weight.shape
    if not is_planar(weight.shape, spec.stride):
        rows = weight.detach().permute(0, 4, 1, 2, 3).reshape(co, kw * ci, kt, kh, 1)
        return conv.pack(rows, scale, dtype=dtype)
    per_unit = 4 // dtype.itemsize
    w = F.pad(spec.conv.folded(), (0, -kw % per_unit, 0, 0, 0, 0, 0, 0, 0, -co % 8))
    w = w.view(w.shape[0], ci, kt, kh, -1, per_unit).permute(2, 3, 1, 4, 0, 5)
    return w.to(dtype).contiguous().view(torch.uint8).flatten()


class CpuStem(Prepared):
    """A stem that takes clips in any memory layout, float32 or bfloat16."""

    provider, any_layout = "cpu", True

    def __init__(self, spec: StemSpec, dtype: torch.dtype) -> None:
        super().__init__(spec, dtype, torch.device("cpu"))
        self.packed, self.shift = pack(spec, dtype), float32(spec.conv.shift)
        self.planar = is_planar(spec.conv.weight.shape, spec.stride)

    def scratch(self, *inputs: Shape) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        n, c, t, h, w = inputs[0]
        _, kh, kw = self.spec.conv.kernel
        width = w + kw - 1
        if self.planar:
            width = 2 * (-(-((w - 1) // 2 + 1) // 16) * 16 + kw // 2 + 1)
        return [((n * c * t * (h + kh - 1) * width,), self.dtype)]

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        x, padded = args
        s = self.spec
        torch.ops.slowfast._stem_run_cpu.default(
            x,
            self.packed,
            self.shift,
            s.conv.kernel,
            s.stride,
            s.relu,
            s.pool is not None,
            self.planar,
            padded,
            out,
        )


def cannot(spec: StemSpec, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot run this stem, or None."""
    kernel = spec.conv.kernel
    if any(k % 2 == 0 for k in kernel):
        return f"the kernel {kernel} has an even extent"
    if kernel[0] * kernel[1] > 256:
        return f"the kernel {kernel} has more than 256 rows"
    return beyond_pool(spec, "C++") or conv.cannot(spec.full, dtype)


def prepare(spec: StemSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Prepared:
    return CpuStem(spec, dtype)
