"""The Triton provider: the lateral goes straight into its channels of the fused buffer.

Without a buffer to write into there is one more kernel, which brings the Slow channels there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ... import backends
from ..._triton import tiles
from ..._triton.launch import cdiv, launch, next_power_of_2
from .._dtypes import FLOATS, refused
from .._memory import pixel_pitch, pixel_rows
from ..conv_bn_act3d import triton as conv
from .joined import Lateral
from .spec import LateralSpec


@triton.jit(do_not_specialize_on_alignment=["pixels", "frame_pixels"])
def gather_kernel(
    x, base, out, pixels, frame_pixels, alpha, total, x_pitch, base_pitch, out_pitch,
    CHANNELS: tl.constexpr, X_UNIT: tl.constexpr, BASE_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # channel a * CHANNELS + c of frame t holds channel c of x's frame t * alpha + a; base, if any, is added
    across = tl.cdiv(total, BLOCK_N)
    program = tl.program_id(0)
    m = program // across * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = (m < pixels)[:, None] & (channel < total)[None, :]
    a = channel // CHANNELS
    frame = (m // frame_pixels * alpha)[:, None] + a[None, :]
    rows = frame.to(tl.int64) * frame_pixels + (m % frame_pixels)[:, None]
    wide = m.to(tl.int64)
    y = tl.load(x + rows * x_pitch * X_UNIT + (channel % CHANNELS)[None, :], mask=ok, other=0.0)
    if base is not None:
        at = base + (wide * base_pitch * BASE_UNIT)[:, None] + channel[None, :]
        y = tiles.widened(y) + tiles.widened(tl.load(at, mask=ok, other=0.0))
        y = tiles.narrowed(y, out.dtype.element_ty)
    tl.store(out + (wide * out_pitch * OUT_UNIT)[:, None] + channel[None, :], y, mask=ok)


def gather(
    x: torch.Tensor, out: torch.Tensor, alpha: int, groups: int, base: torch.Tensor | None = None
) -> None:
    """``out`` [N, groups * C, T, H, W] from ``x`` [N, C, alpha * T, H, W]: its frames t * alpha + (0 ... groups - 1)
    side by side, plus ``base``.
    """
    n, channels, _, h, w = x.shape
    total, pixels = groups * channels, n * out.shape[2] * h * w
    x, x_pitch = pixel_rows(x)
    base_pitch = 0
    if base is not None:
        base, base_pitch = pixel_rows(base)
    out_pitch = pixel_pitch(out)
    assert out_pitch is not None
    if pixels * total == 0:
        return
    block_n = next_power_of_2(total, 8, 64)
    block_m = 4096 // block_n * (64 if backends.simulated("triton") else 1)
    units = [conv.unit(p) for p in (x_pitch, base_pitch, out_pitch)]
    launch(
        gather_kernel,
        (cdiv(pixels, block_m) * cdiv(total, block_n),),
        x, base, out, pixels, h * w, alpha, total,
        *(p // u for p, u in zip((x_pitch, base_pitch, out_pitch), units, strict=True)),
        CHANNELS=channels, X_UNIT=units[0], BASE_UNIT=units[1], OUT_UNIT=units[2],
        BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip


class TritonLateral(Lateral):
    """A convolution, or one kernel that gathers frames."""

    provider = "triton"

    def __init__(
        self, spec: LateralSpec, dtype: torch.dtype, device: torch.device, fold: bool = True
    ) -> None:
        super().__init__(spec, dtype, device)
        self.conv = None if spec.conv is None else conv.TritonConv(spec.full, dtype, device, fold=fold)

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        return [] if self.conv is None else self.conv.weights

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def bring(self, slow: torch.Tensor, out: torch.Tensor) -> None:
        gather(slow, out, 1, 1)

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        fast, slow = args
        if self.conv is not None:
            self.conv.into(out, fast, None, None)
        else:
            gather(fast, out, self.spec.alpha, self.spec.groups, slow)


def cannot(spec: LateralSpec, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run this lateral, or None."""
    return refused(dtype, FLOATS, "Triton") if spec.conv is None else conv.cannot(spec.full, dtype)


def prepare(spec: LateralSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Lateral:
    return TritonLateral(spec, dtype, device, fold=not once)
