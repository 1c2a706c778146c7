"""The C++ provider: packed weights, then one pass over the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._dtypes import FLOAT32_BF16, refused
from .._prepared import Prepared
from .._registration import define_native, float32
from .._spec import Shape
from . import winograd
from .spec import ConvSpec, beyond_kernels

define_native(
    "_conv_pack_cpu(Tensor weight, Tensor? scale, Tensor? weight2, Tensor? scale2, bool bf16) -> Tensor"
)
define_native(
    "_conv_run_cpu(Tensor x, Tensor packed, Tensor? shift, Tensor? residual, Tensor? x2, int[] kernel, int[] stride,"
    " int[] padding, int[] dilation, int[] stride2, bool relu, Tensor(a!) out) -> ()"
)


def pack(
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    weight2: torch.Tensor | None = None,
    scale2: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Weights (times scale) as the panels that the kernels stream; a 1x1x1 ``weight2`` is packed behind."""
    return torch.ops.slowfast._conv_pack_cpu(
        weight.detach(), float32(scale), weight2, float32(scale2), dtype == torch.bfloat16
    )


class CpuConv(Prepared):
    """A convolution as panels; with a ``shortcut``, a 1x1x1 convolution of a second map in the same sums."""

    provider, arity = "cpu", 3

    def __init__(self, spec: ConvSpec, dtype: torch.dtype, shortcut: ConvSpec | None = None) -> None:
        super().__init__(spec, dtype, torch.device("cpu"))
        self.kernel, self.second, self.stride2 = spec.conv.kernel, 0, (1, 1, 1)
        weight, scale, shift = spec.conv
        if shortcut is None:
            self.packed = pack(weight, scale, dtype=dtype)
        else:
            weight2, scale2, shift2 = shortcut.conv
            self.packed = pack(weight, scale, weight2.detach(), scale2, dtype=dtype)
            shift = sum_of(shift, shift2)
            self.second, self.stride2 = weight2.shape[1], shortcut.stride
        self.shift = float32(shift)

    def flops(self, *inputs: Shape) -> int:
        spec: ConvSpec = self.spec
        pixels = 2 * torch.Size(self.out_shape(*inputs)).numel()
        return spec.flops(*inputs) + pixels * self.second

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        x, residual, second = args
        s = self.spec
        torch.ops.slowfast._conv_run_cpu.default(
            x, self.packed, self.shift, residual, second, self.kernel, s.stride, s.padding, s.dilation,
            self.stride2, s.relu, out,
        )  # fmt: skip


class WinogradConv(Prepared):
    """A convolution in its Winograd form (`winograd`)."""

    provider, arity = "cpu", 3

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec, torch.float32, torch.device("cpu"))
        self.spatial = spec.conv.kernel[0] == 1
        self.packed, self.shift = winograd.pack(spec.conv), float32(spec.conv.shift)

    def scratch(self, *inputs: Shape) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        return [((winograd.workspace_numel(inputs[0], self.spatial),), torch.float32)]

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        x, residual, _, workspace = args
        torch.ops.slowfast._winograd_run_cpu.default(
            x, self.packed, self.shift, residual, self.spatial, self.spec.relu, workspace, out
        )


def sum_of(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of two shifts, in float32."""
    if a is None or b is None:
        return b if a is None else a
    return a.detach().float() + b.detach().float()


def cannot(spec: ConvSpec, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot run this convolution, or None."""
    return refused(dtype, FLOAT32_BF16, "C++") or beyond_kernels(spec, "C++")


def prepare(
    spec: ConvSpec,
    dtype: torch.dtype,
    device: torch.device,
    once: bool = False,
    shortcut: ConvSpec | None = None,
) -> Prepared:
    """The direct kernel, or the Winograd form where it pays and the transformed weights are kept."""
    if not once and shortcut is None and winograd.pays(spec, dtype):
        return WinogradConv(spec)
    return CpuConv(spec, dtype, shortcut)
