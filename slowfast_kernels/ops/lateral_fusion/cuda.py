"""The CUDA provider: one kernel from the Fast clip to the lateral's channels of the fused buffer.

Without a buffer to write into there is one more kernel, which brings the Slow channels there. float32 is multiplied
as ``precision.fp32_mode()`` says: on the matrix units for "tf32", exactly for every other mode.
"""

from __future__ import annotations

from typing import Any

import torch

from ... import precision
from .._dtypes import FLOATS, refused
from .._memory import pixel_rows
from .._registration import define_native, float32
from .._spec import ConvAffine
from ..conv_bn_act3d.spec import beyond_kernels
from .joined import Lateral
from .spec import LateralSpec

define_native(
    "_lateral_cuda(Tensor fast, Tensor weight, Tensor? scale, Tensor? shift, int alpha, bool relu, bool tf32,"
    " Tensor(a!) out) -> ()"
)
define_native("_lateral_gather_cuda(Tensor x, Tensor? base, int alpha, int groups, Tensor(a!) out) -> ()")


def pack(weight: torch.Tensor, scale: torch.Tensor | None = None, *, dtype: torch.dtype) -> torch.Tensor:
    """Weights [Cl, Cf, kt, 1, 1], times scale [Cl], as the kernel reads them: [Cl, kt, Cf] in the compute type."""
    w = weight.detach() if scale is None else ConvAffine(weight, scale).folded()
    return w.flatten(2).transpose(1, 2).to(dtype).contiguous()


class CudaLateral(Lateral):
    """A convolution, or one kernel that gathers frames."""

    provider = "cuda"

    def __init__(
        self, spec: LateralSpec, dtype: torch.dtype, device: torch.device, fold: bool = True
    ) -> None:
        super().__init__(spec, dtype, device)
        self.packed = self.scale = self.shift = None
        if spec.conv is not None:
            weight, scale, shift = spec.conv
            self.packed = pack(weight, scale if fold else None, dtype=dtype)
            self.scale, self.shift = None if fold else float32(scale), float32(shift)

    def bring(self, slow: torch.Tensor, out: torch.Tensor) -> None:
        torch.ops.slowfast._lateral_gather_cuda(pixel_rows(slow)[0], None, 1, 1, out)

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        fast, slow = args
        if self.packed is None:
            torch.ops.slowfast._lateral_gather_cuda(fast, slow, self.spec.alpha, self.spec.groups, out)
            return
        tf32, relu = precision.fp32_mode() == "tf32", self.spec.activation == "relu"
        torch.ops.slowfast._lateral_cuda(
            fast, self.packed, self.scale, self.shift, self.spec.alpha, relu, tf32, out
        )


def cannot(spec: LateralSpec, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot run this lateral, or None."""
    reason = refused(dtype, FLOATS, "CUDA")
    return reason if spec.conv is None else reason or beyond_kernels(spec.full, "CUDA")


def prepare(spec: LateralSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Lateral:
    return CudaLateral(spec, dtype, device, fold=not once)
