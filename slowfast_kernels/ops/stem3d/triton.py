"""The Triton provider: convolution, affine and ReLU, with the max-pool in the same kernel where that pays.

In one kernel every pooled pixel computes its nine window positions, 9/4 of the products: worth it for short
reductions (Slow, 1x7x7), whose time goes into the full-size map; long ones (Fast, 5x7x7) pool in a second kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ... import autotune, backends
from ..._triton import tiles
from ..._triton.ahead import compiled_ahead
from ..._triton.launch import cdiv, launch, next_power_of_2
from .._memory import empty_channels_last, pixel_pitch
from .._prepared import Prepared
from .._registration import float32
from .._spec import Shape
from ..conv_bn_act3d import triton as conv
from .spec import StemSpec, beyond_pool

TUNER = autotune.Tuner("stem3d", __file__, *conv.TUNER.files)

#: Longest reduction that is computed nine times a pooled pixel.
POOLED_PRODUCTS = 192


@dataclass(frozen=True)
class Tiles:
    """How convolution and pool are computed.

    fused:   in one kernel with the tiles that follow; else in two.
    block_m: pooled pixels of a program; block_n: channels; block_k: products per step.
    """

    fused: bool
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    warps: int = 4
    stages: int = 2


@triton.jit(do_not_specialize_on_alignment=[
    "pixels", "frames", "height", "width", "conv_height", "conv_width", "out_frames", "out_height", "out_width",
])  # fmt: skip
def stem_kernel(
    x, w, scale, shift, out, pixels, frames, height, width, conv_height, conv_width,
    out_frames, out_height, out_width, sn, st, sh, sw, sc, stride_t, stride_h, stride_w, w_pitch, out_channels,
    out_pitch, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CHANNELS: tl.constexpr,
    ROW: tl.constexpr, WIDE: tl.constexpr, X_UNIT: tl.constexpr, W_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr, WHOLE_N: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(out_channels * OUT_UNIT, BLOCK_N)
    program = tl.program_id(0)
    m = program // across * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = m < pixels
    columns = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < out_channels * OUT_UNIT
    n, t, h, v = tiles.pixel(m, out_frames, out_height, out_width)
    weight_rows = tiles.index(columns, WIDE) * w_pitch * W_UNIT
    t0 = t * stride_t - KT // 2
    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    for position in range(9):
        # a pixel of the convolution; those outside do not count
        ch = 2 * h - 1 + position // 3
        cw = 2 * v - 1 + position % 3
        inside = row_ok & (ch >= 0) & (ch < conv_height) & (cw >= 0) & (cw < conv_width)
        h0 = ch * stride_h - KH // 2
        w0 = cw * stride_w - KW // 2
        rows = tiles.offset(n, t0, h0, w0, sn, st, sh, sw, WIDE) * X_UNIT
        acc = tiles.rows_product(
            tl.zeros((BLOCK_M, BLOCK_N), tl.float32), x, rows, inside, t0, h0, w0, frames, height, width,
            st, sh, sw, sc, 1, 1, 1, w, weight_rows, column_ok, KT, KH, KW, CHANNELS, ROW,
            KT > 1, KH > 1, KW > 1, X_UNIT, WIDE, WHOLE_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        y = tiles.affine(acc, scale, shift, columns, column_ok)
        y = tl.where(inside[:, None], y, float("-inf"))
        best = tl.maximum(best, y, propagate_nan=tl.PropagateNan.ALL)
    ok = row_ok[:, None] & column_ok[None, :]
    out_rows = tiles.index(m, WIDE) * out_pitch * OUT_UNIT
    tiles.finish(best, None, out_rows, out, out_rows, columns, ok, RELU)


@triton.jit(do_not_specialize_on_alignment=["pixels", "height", "width", "out_height", "out_width"])
def pool_kernel(
    x, out, pixels, height, width, out_height, out_width, channels, x_pitch, out_pitch,
    X_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # 1x3x3, stride 2, padding 1 over clips and frames alike
    across = tl.cdiv(channels * X_UNIT, BLOCK_N)
    program = tl.program_id(0)
    m = program // across * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = m < pixels
    columns = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < channels * X_UNIT
    n, t, h, v = tiles.pixel(m, 1, out_height, out_width)
    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    for position in tl.static_range(9):
        row = 2 * h - 1 + position // 3
        column = 2 * v - 1 + position % 3
        inside = row_ok & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        rows = ((tiles.index(n, WIDE) * height + row) * width + column) * x_pitch * X_UNIT
        y = tl.load(
            x + rows[:, None] + columns[None, :],
            mask=inside[:, None] & column_ok[None, :],
            other=float("-inf"),
        )
        best = tl.maximum(best, tiles.widened(y), propagate_nan=tl.PropagateNan.ALL)
    at = out + (tiles.index(m, WIDE) * out_pitch * OUT_UNIT)[:, None] + columns[None, :]
    ok = row_ok[:, None] & column_ok[None, :]
    tl.store(at, tiles.narrowed(best, out.dtype.element_ty), mask=ok)


# --- tiles -------------------------------------------------------------------------------------------------


def heuristic(
    pixels: int, out_channels: int, products: int, row: int, dtype: torch.dtype, mode: str
) -> Tiles:
    """Tiles of a stem with its pool, unmeasured.

    pixels: the pooled ones; products: of one sum; row: of the packed weights (0: two kernels).
    """
    simulated = backends.simulated("triton")
    if not row or products > POOLED_PRODUCTS or (dtype == torch.float32 and not simulated):
        return Tiles(False)
    n = next_power_of_2(out_channels, 16, 64)
    if simulated:
        return Tiles(True, next_power_of_2(pixels, 16, 2048), n, next_power_of_2(row, 16))
    return Tiles(True, 64, n, next_power_of_2(row, 16), 4, 2)


def candidates(
    pixels: int, out_channels: int, products: int, row: int, dtype: torch.dtype, mode: str
) -> list[Tiles]:
    """Tiles worth measuring."""
    found = [Tiles(False)]
    if row and not (dtype == torch.float32 and mode == "ieee"):
        for m, n in ((m, n) for m in (64, 128) for n in (16, 32, 64)):
            if n <= next_power_of_2(out_channels, 16):
                found += [Tiles(True, m, n, next_power_of_2(row, 16), 4, stages) for stages in (1, 2, 3)]
    return found


# --- calls -------------------------------------------------------------------------------------------------


def max_pool(x: torch.Tensor, out: torch.Tensor) -> None:
    """1x3x3 maxima of ``x`` with stride 2 and padding 1 into ``out``; both channels_last_3d or channel slices."""
    n, channels, frames, height, width = x.shape
    pixels = out.shape[0] * math.prod(out.shape[2:])
    x_pitch, out_pitch = pixel_pitch(x), pixel_pitch(out)
    assert x_pitch is not None and out_pitch is not None
    if pixels * channels == 0:
        return
    block_n = next_power_of_2(channels, 8, 64)
    block_m = 2048 // block_n * (64 if backends.simulated("triton") else 1)
    x_unit, out_unit = conv.unit(x_pitch, channels), conv.unit(out_pitch)
    launch(
        pool_kernel,
        (cdiv(pixels, block_m) * cdiv(channels, block_n),),
        x, out, pixels, height, width, out.shape[3], out.shape[4], channels // x_unit, x_pitch // x_unit,
        out_pitch // out_unit,
        X_UNIT=x_unit, OUT_UNIT=out_unit, WIDE=conv.is_wide(x, out), BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip


def run_packed(
    x: torch.Tensor,
    packed: conv.Packed,
    shift: torch.Tensor | None,
    out: torch.Tensor,
    *,
    stride: tuple[int, int, int] = (1, 2, 2),
    relu: bool = True,
    pool: bool = True,
    middle: torch.Tensor | None = None,
    config: Tiles | None = None,
) -> torch.Tensor:
    """The stem into ``out``.

    x:      [N, Cin, T, H, W], any strides.
    packed: of `conv_bn_act3d.triton.pack`; shift: float32 [Cout] or None.
    out:    [N, Cout, To, Ho, Wo], channels_last_3d or a channel slice.
    middle: scratch for the convolution's result where the pool is a kernel of its own; allocated where None.
    config: tiles; by default the chosen ones.
    """
    kernel = packed.kernel
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    if not pool:
        return conv.run_packed(x, packed, shift, out, stride=stride, padding=padding, relu=relu)
    cout, products = out.shape[1], packed.channels * math.prod(kernel)
    pixels = out.shape[0] * math.prod(out.shape[2:])
    row = packed.row if kernel[2] > 1 else 0  # the one kernel takes rows along the width
    shape = (pixels, cout, products, row, x.dtype, conv.dot_precision(x.dtype))
    scratch = middle

    def start(config: Tiles) -> None:
        full = conv.output_shape(x.shape, (cout, 0, *kernel), stride, padding, (1, 1, 1))
        if config.fused:
            _run_fused(x, packed, shift, out, stride, relu, full, config)
            return
        middle = empty_channels_last(x, full) if scratch is None else scratch
        conv.run_packed(x, packed, shift, middle, stride=stride, padding=padding, relu=relu)
        max_pool(middle, out)

    if pixels:
        start(
            config
            or TUNER.pick(
                (*shape, *kernel, *stride, *out.shape[2:]), x.device,
                lambda: heuristic(*shape), lambda: compiled_ahead(candidates(*shape), start), start,
            )
        )  # fmt: skip
    return out


def _run_fused(
    x: torch.Tensor, packed: conv.Packed, shift: torch.Tensor | None, out: torch.Tensor,
    stride: tuple[int, int, int], relu: bool, full: list[int], config: Tiles,
) -> None:  # fmt: skip
    out_pitch = pixel_pitch(out)
    if out_pitch is None:
        raise ValueError(
            f"out: expected pixels that follow one another in memory, got strides {out.stride()}"
        )
    pixels = out.shape[0] * math.prod(out.shape[2:])
    strides = [x.stride(d) for d in (0, 2, 3, 4)]
    sc = x.stride(1) if x.shape[1] > 1 else 1
    x_unit = conv.unit(*strides) if sc == 1 else 1
    w_unit, out_unit = conv.unit(packed.weight.stride(0)), conv.unit(out_pitch, out.shape[1])
    launch(
        stem_kernel,
        (cdiv(pixels, config.block_m) * cdiv(out.shape[1], config.block_n),),
        x, packed.weight, packed.scale, shift, out, pixels, *x.shape[2:], full[3], full[4], *out.shape[2:],
        *(s // x_unit for s in strides), sc, *stride, packed.weight.stride(0) // w_unit, out.shape[1] // out_unit,
        out_pitch // out_unit,
        warps=config.warps, stages=config.stages,
        KT=packed.kernel[0], KH=packed.kernel[1], KW=packed.kernel[2], CHANNELS=packed.channels,
        ROW=packed.row, WIDE=conv.is_wide(x, out), X_UNIT=x_unit,
        W_UNIT=w_unit, OUT_UNIT=out_unit, WHOLE_N=out.shape[1] % config.block_n == 0,
        RELU=relu, PRECISION=conv.dot_precision(x.dtype),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
    )  # fmt: skip


class TritonStem(Prepared):
    """A stem, its pool in the same kernel or in one of its own."""

    provider, any_layout = "triton", True

    def __init__(self, spec: StemSpec, dtype: torch.dtype, device: torch.device, fold: bool = True) -> None:
        super().__init__(spec, dtype, device)
        self.packed = conv.pack(spec.conv.weight, spec.conv.scale, dtype=dtype, fold=fold)
        self.shift = float32(spec.conv.shift)

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        return [w for w in (self.packed.weight, self.packed.scale, self.shift) if w is not None]

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def into(self, out: torch.Tensor, *args: Any) -> torch.Tensor:
        s: StemSpec = self.spec
        return run_packed(
            args[0], self.packed, self.shift, out, stride=s.stride, relu=s.relu, pool=s.pool is not None
        )


def cannot(spec: StemSpec, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run this stem, or None."""
    if any(k % 2 == 0 for k in spec.conv.kernel):
        return f"the kernel {spec.conv.kernel} has an even extent"
    return beyond_pool(spec, "Triton") or conv.cannot(spec.full, dtype)


def refuses_shapes(spec: StemSpec, x: Shape) -> str | None:
    """Why the Triton kernels cannot run on a clip of this shape, or None."""
    return conv.too_many(x, spec.full.out_shape(x))


def prepare(spec: StemSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Prepared:
    return TritonStem(spec, dtype, device, fold=not once)
