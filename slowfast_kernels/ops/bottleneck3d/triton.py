"""The Triton provider: conv_a, then conv_b and conv_c with shortcut in one kernel for narrow blocks, in two for wide.

The one kernel keeps a tile of conv_b's result, all inner channels, in registers: it is the first operand of conv_c.
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
from .._memory import channels_last, empty_channels_last, pixel_pitch, pixel_rows
from .._prepared import Prepared, Scratch
from .._spec import Shape
from ..conv_bn_act3d import triton as conv
from .spec import BlockSpec

TUNER = autotune.Tuner("bottleneck3d", __file__, *conv.TUNER.files)

#: (block_m, block_n, stages) of conv_b and conv_c in one kernel that are worth measuring.
SEEDS = ((128, 64, 3), (128, 64, 2), (64, 64, 3), (64, 64, 2), (64, 128, 2), (128, 128, 2), (64, 32, 4))

#: Widest inner width that conv_b + conv_c hold in one tile.
INNER_CHANNELS = 64


@dataclass(frozen=True)
class Tiles:
    """How conv_b and conv_c are computed.

    fused:   in one kernel with the tiles that follow; else in two, with the tiles of their own.
    block_m: output pixels of a program; block_n: output channels at a time; block_k: products per step of conv_b
             and of the shortcut's convolution.
    warps, stages: warps of a program, steps in flight.
    """

    fused: bool
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Packed:
    """Weights and float32 shifts of a block as the kernels read them; conv_c's hold the shortcut's convolution."""

    a: conv.Packed
    b: conv.Packed
    c: conv.Packed
    shift_a: torch.Tensor | None
    shift_b: torch.Tensor | None
    shift_c: torch.Tensor | None


def pack(a: conv.TritonConv, b: conv.TritonConv, c: conv.TritonConv) -> Packed:
    """The block's arguments for `run_packed`, of its convolutions, the last with the shortcut's."""
    return Packed(a.packed, b.packed, c.packed, a.shift, b.shift, c.shift)


# --- kernel ------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize_on_alignment=["pixels", "height", "width", "out_height", "out_width"])
def tail_kernel(
    x, wb, scale_b, shift_b, wc, scale_c, shift_c, residual, out, x2, w2,
    pixels, height, width, out_height, out_width, sn, sh, sw, stride, dilation, wb_pitch, wc_pitch,
    out_channels, out_pitch, residual_pitch, sn2, sh2, sw2, channels2, w2_pitch,
    INNER: tl.constexpr, ROW: tl.constexpr, X_UNIT: tl.constexpr, W_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr, RESIDUAL_UNIT: tl.constexpr, X2_UNIT: tl.constexpr, WIDE: tl.constexpr,
    WHOLE_K: tl.constexpr, WHOLE_K2: tl.constexpr, WHOLE_N: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_INNER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = m < pixels
    n, t, h, v = tiles.pixel(m, 1, out_height, out_width)
    h0 = h * stride - dilation
    w0 = v * stride - dilation
    rows = tiles.offset(n, t, h0, w0, sn, 0, sh, sw, WIDE) * X_UNIT

    inner = tl.arange(0, BLOCK_INNER)
    inner_ok = inner < INNER
    WHOLE_INNER: tl.constexpr = BLOCK_INNER == INNER
    b_rows = tiles.index(inner, WIDE) * wb_pitch * W_UNIT
    acc = tl.zeros((BLOCK_M, BLOCK_INNER), tl.float32)
    if ROW > 0:
        acc = tiles.rows_product(
            acc, x, rows, row_ok, t, h0, w0, 1, height, width, 0, sh, sw, 1, 1, dilation, dilation,
            wb, b_rows, inner_ok, 1, 3, 3, INNER, ROW, False, True, True, X_UNIT,
            WIDE, WHOLE_INNER, BLOCK_K, PRECISION,
        )  # fmt: skip
    else:
        acc = tiles.taps_product(
            acc, x, rows, row_ok, t, h0, w0, 1, height, width, 0, sh, sw, 1, dilation, dilation,
            wb, b_rows, inner_ok, INNER, 1, 3, 3, False, True, True, X_UNIT,
            WIDE, WHOLE_K, WHOLE_INNER, BLOCK_K, PRECISION,
        )  # fmt: skip
    middle = tiles.relu(tiles.affine(acc, scale_b, shift_b, inner, inner_ok))
    if not WHOLE_INNER:
        # an infinity of the clip times the zeros that fill the weights up is NaN
        middle = tl.where(inner_ok[None, :], middle, 0.0)
    middle = tiles.narrowed(middle, x.dtype.element_ty)

    rows2 = tiles.offset(n, t, h, v, sn2, 0, sh2, sw2, WIDE) * X2_UNIT
    at = tiles.index(m, WIDE)
    for start in range(0, out_channels * OUT_UNIT, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        column_ok = columns < out_channels * OUT_UNIT
        c_rows = tiles.index(columns, WIDE) * wc_pitch * W_UNIT
        weight = tiles.weights(wc, c_rows, column_ok, inner, INNER, WHOLE_INNER, WHOLE_N)
        y = tiles.dot(middle, weight, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
        if x2 is not None:
            y = tiles.point_product(
                y, x2, rows2, row_ok, w2, tiles.index(columns, WIDE) * w2_pitch * W_UNIT, column_ok,
                channels2 * X2_UNIT, WHOLE_K2, WHOLE_N, BLOCK_K, PRECISION,
            )  # fmt: skip
        y = tiles.affine(y, scale_c, shift_c, columns, column_ok)
        tiles.finish(
            y, residual, at * residual_pitch * RESIDUAL_UNIT, out, at * out_pitch * OUT_UNIT, columns,
            row_ok[:, None] & column_ok[None, :], True,
        )  # fmt: skip


# --- tiles -------------------------------------------------------------------------------------------------


def heuristic(
    pixels: int, inner: int, out_channels: int, row: int, channels2: int, dtype: torch.dtype, mode: str
) -> Tiles:
    """Tiles of conv_b and conv_c, unmeasured.

    row: of conv_b's packed weights; channels2: input channels of the shortcut's convolution, or 0.
    """
    three_products = dtype == torch.float32 and mode != "tf32"
    if inner > INNER_CHANNELS or (three_products and not backends.simulated("triton")):
        return Tiles(False)
    if backends.simulated("triton"):
        k = next_power_of_2(row or max(inner, channels2), 16, 512)
        return Tiles(True, next_power_of_2(pixels, 16, 2048), next_power_of_2(out_channels, 16, 512), k)
    most = 32 if dtype == torch.float32 else 64
    k = next_power_of_2(row, 16) if row else conv.triton_tiles.step_of(inner, most)
    if channels2 and not row:
        k = max(16, min(k, conv.triton_tiles.step_of(channels2, most)))
    m = 128 if cdiv(pixels, 128) >= conv.triton_tiles.PROCESSORS and dtype != torch.float32 else 64
    n = next_power_of_2(out_channels, 16, 64)
    if channels2 and inner >= 32:  # the shortcut's input is read once per block of channels: few, wide ones
        m, n, k = 64, next_power_of_2(out_channels, 16, 64 if dtype == torch.float32 else 128), min(k, 32)
    return Tiles(True, m, n, k, 4, 2 if dtype == torch.float32 else 3)


def candidates(
    pixels: int, inner: int, out_channels: int, row: int, channels2: int, dtype: torch.dtype, mode: str
) -> list[Tiles]:
    """Tiles worth measuring: in two kernels, and `SEEDS` narrowed to the channels in steps of conv_b's own."""
    found = [Tiles(False)]
    if inner > INNER_CHANNELS or (dtype == torch.float32 and mode == "ieee"):
        return found
    most = 32 if dtype == torch.float32 else 64
    k = next_power_of_2(row, 16) if row else conv.triton_tiles.step_of(inner, most)
    for m, n, stages in SEEDS:
        n = min(n, next_power_of_2(out_channels, 16))
        while (m + max(n, inner)) * k * dtype.itemsize * stages > conv.triton_tiles.SHARED_BYTES:
            stages -= 1
        found.append(Tiles(True, m, n, k, 4, stages))
    return list(dict.fromkeys(found))


# --- calls -------------------------------------------------------------------------------------------------


def run_tail(
    inner: torch.Tensor,
    packed: Packed,
    x: torch.Tensor,
    out: torch.Tensor,
    stride: int,
    dilation: int,
    config: Tiles,
) -> None:
    """conv_b, conv_c and the shortcut in one kernel; ``inner`` is conv_a's result, ``x`` the block's input."""
    n, channels, frames, height, width = inner.shape
    shortcut = packed.c.weight2 is not None
    (inner, inner_pitch), (x, x_pitch) = pixel_rows(inner), pixel_rows(x)
    out_pitch = pixel_pitch(out)
    if out_pitch is None:
        raise ValueError(
            f"out: expected pixels that follow one another in memory, got strides {out.stride()}"
        )
    pixels, cout = n * frames * out.shape[3] * out.shape[4], out.shape[1]
    strides = [s * inner_pitch for s in (height * width, width, 1)]
    strides2 = [s * x_pitch for s in (height * width, width * stride, stride)] if shortcut else [0, 0, 0]
    channels2 = packed.c.channels2
    pitches = [packed.b.weight.stride(0), packed.c.weight.stride(0)]
    if packed.c.weight2 is not None:
        pitches.append(packed.c.weight2.stride(0))
    x_unit = conv.unit(*strides, *(() if packed.b.row else (channels,)))
    x2_unit = conv.unit(*strides2, channels2)
    w_unit, out_unit, residual_unit = conv.unit(*pitches), conv.unit(out_pitch, cout), conv.unit(x_pitch)
    launch(
        tail_kernel,
        (cdiv(pixels, config.block_m),),
        inner, packed.b.weight, packed.b.scale, packed.shift_b, packed.c.weight, packed.c.scale,
        packed.shift_c, None if shortcut else x, out, x if shortcut else None, packed.c.weight2,
        pixels, height, width, out.shape[3], out.shape[4], *(s // x_unit for s in strides), stride, dilation,
        pitches[0] // w_unit, pitches[1] // w_unit, cout // out_unit, out_pitch // out_unit,
        0 if shortcut else x_pitch // residual_unit, *(s // x2_unit for s in strides2), channels2 // x2_unit,
        pitches[2] // w_unit if shortcut else 0,
        warps=config.warps, stages=config.stages,
        INNER=channels, ROW=packed.b.row, X_UNIT=x_unit, W_UNIT=w_unit, OUT_UNIT=out_unit,
        RESIDUAL_UNIT=1 if shortcut else residual_unit, X2_UNIT=x2_unit if shortcut else 1,
        WIDE=conv.is_wide(inner, x, out),
        WHOLE_K=channels % config.block_k == 0, WHOLE_K2=channels2 % config.block_k == 0,
        WHOLE_N=cout % config.block_n == 0, PRECISION=conv.dot_precision(inner.dtype),
        BLOCK_M=config.block_m, BLOCK_INNER=next_power_of_2(channels, 16), BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
    )  # fmt: skip


def run_packed(
    x: torch.Tensor,
    packed: Packed,
    out: torch.Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    inner: torch.Tensor | None = None,
    middle: torch.Tensor | None = None,
    partial: torch.Tensor | None = None,
    config: Tiles | None = None,
) -> torch.Tensor:
    """The whole block into ``out``.

    x:      [N, Cin, T, H, W], channels_last_3d or a channel slice (others are copied).
    out:    [N, Cout, T, Ho, Wo], channels_last_3d or a channel slice.
    inner:  scratch for conv_a's result, [N, Cmid, T, H, W]; middle: for conv_b's, [N, Cmid, T, Ho, Wo], only
            used by wide blocks; partial: as of a convolution's `run_packed`. Allocated where None.
    config: tiles; by default the chosen ones.
    """
    if pixel_pitch(x) is None:
        x = channels_last(x)
    cmid, kt = packed.a.weight.shape[0], packed.a.kernel[0]
    if inner is None:
        inner = empty_channels_last(x, [x.shape[0], cmid, *x.shape[2:]])
    conv.run_packed(x, packed.a, packed.shift_a, inner, padding=(kt // 2, 0, 0), partial=partial)
    scratch = middle

    def tail(config: Tiles) -> None:
        if config.fused:
            run_tail(inner, packed, x, out, stride, dilation, config)
            return
        middle = scratch
        if middle is None:
            middle = empty_channels_last(x, [x.shape[0], cmid, *out.shape[2:]])
        around = (1, dilation, dilation)
        conv.run_packed(
            inner, packed.b, packed.shift_b, middle,
            stride=(1, stride, stride), padding=(0, dilation, dilation), dilation=around, partial=partial,
        )  # fmt: skip
        second = packed.c.weight2 is not None
        conv.run_packed(
            middle, packed.c, packed.shift_c, out,
            residual=None if second else x, x2=x if second else None, stride2=(1, stride, stride),
            partial=partial,
        )  # fmt: skip

    pixels = out.shape[0] * math.prod(out.shape[2:])
    shape = (
        pixels,
        cmid,
        out.shape[1],
        packed.b.row,
        packed.c.channels2,
        x.dtype,
        conv.dot_precision(x.dtype),
    )
    if pixels:
        tail(
            config
            or TUNER.pick(
                (*shape, *out.shape[2:], stride, dilation), x.device,
                lambda: heuristic(*shape), lambda: compiled_ahead(candidates(*shape), tail), tail,
            )
        )  # fmt: skip
    return out


class TritonBlock(Prepared):
    """A block: conv_a, then the others in one kernel or two."""

    provider = "triton"

    def __init__(self, spec: BlockSpec, convs: Sequence[conv.TritonConv]) -> None:
        """convs: a, b, and c with the shortcut's."""
        super().__init__(spec, convs[0].dtype, convs[0].device)
        self.packed = pack(*convs)

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        p = self.packed
        found = (p.a.weight, p.b.weight, p.c.weight, p.c.weight2, p.shift_a, p.shift_b, p.shift_c)
        return [w for w in found if w is not None]

    def scratch(self, *inputs: Shape) -> Sequence[Scratch]:
        a, b = self.spec.inner
        first = a.out_shape(inputs[0])
        second = b.out_shape(first)
        parts = zip(
            (first, second, self.out_shape(*inputs)),
            (self.packed.a, self.packed.b, self.packed.c),
            strict=True,
        )
        split = [s for shape, part in parts for s in conv.split_scratch(shape, part, self.dtype, self.device)]
        return [(first, self.dtype), (second, self.dtype), *split[:1]]

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def into(self, out: torch.Tensor, *args: Any) -> torch.Tensor:
        x, inner, middle, *partial = args
        s: BlockSpec = self.spec
        return run_packed(
            x, self.packed, out, stride=s.stride, dilation=s.dilation, inner=inner, middle=middle,
            partial=partial[0] if partial else None,
        )  # fmt: skip


def cannot(spec: BlockSpec, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run this block, or None."""
    reasons = (conv.cannot(part, dtype) for part in (*spec.inner, spec.last))
    return next((reason for reason in reasons if reason), None)


def refuses_shapes(spec: BlockSpec, x: Shape) -> str | None:
    """Why the Triton kernels cannot run on a map of this shape, or None."""
    return conv.too_many(x)


def prepare(spec: BlockSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Prepared:
    inner = [conv.prepare(part, dtype, device, once) for part in spec.inner]
    return TritonBlock(spec, [*inner, conv.prepare(spec.last, dtype, device, once, spec.projection)])
