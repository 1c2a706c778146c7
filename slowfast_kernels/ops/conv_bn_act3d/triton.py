"""The Triton provider: an implicit product of matrices, pixels times channels, with everything in its epilogue.

There are two forms: `conv_kernel`, which reads any map through pointers, and that of `triton_descriptor`. Which one
runs is part of the `Tiles`.

`pack` brings weights into the kernel's order, `run_packed` runs one convolution on views (channel slices of wider
buffers), with a strided 1x1x1 convolution of a second tensor as further products of the same sums if asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from ... import autotune, precision
from ..._triton import tiles
from ..._triton.ahead import compiled_ahead
from ..._triton.launch import cdiv, launch
from .._dtypes import FLOATS, refused
from .._memory import adjacent_channels, pixel_pitch, pixel_rows
from .._prepared import Prepared, Scratch
from .._registration import float32
from .._spec import Shape
from . import triton_descriptor as descriptor
from . import triton_tiles
from .spec import ConvSpec, beyond_kernels, output_shape
from .triton_tiles import Tiles, candidates, heuristic

POINT, TAPS, ROWS = 0, 1, 2  # as in tiles
TUNER = autotune.Tuner("conv_bn_act3d", __file__, triton_tiles.__file__, descriptor.__file__, tiles.__file__)

#: One step takes a whole row of taps for fewer input channels than this, if it has no more products than that.
ROW_CHANNELS, ROW_PRODUCTS = 32, 128

#: Most taps along the three axes together: one bit of an integer each.
MOST_TAPS = 63

#: Elements from which on offsets into a tensor are 64 bits wide.
WIDE_FROM = 2**31


@dataclass(frozen=True)
class Packed:
    """Weights of a convolution as the kernels read them.

    weight:   [Cout, kt * kh * kw * Cin] in the compute type; with a ``row``, every row of taps (those of the kernel's
              last axis longer than 1) is filled up with zeros to that many values.
    scale:    float32 [Cout], or None where it is part of the weights.
    channels: Cin; kernel: (kt, kh, kw).
    weight2:  [Cout, Cin2] of a 1x1x1 convolution on a second tensor, or None; channels2: Cin2 or 0.
    row:      values of a row of taps where one step of the kernel takes a whole row, else 0.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    channels: int
    kernel: tuple[int, int, int]
    weight2: torch.Tensor | None = None
    channels2: int = 0
    row: int = 0


def row_of(channels: int, kernel: Sequence[int], dtype: torch.dtype) -> int:
    """Values of a row of taps, to whole 16 bytes, if a step takes such a row (few channels, several taps); or 0."""
    inner = next((k for k in reversed(kernel) if k > 1), 1)
    if inner == 1 or channels >= ROW_CHANNELS or inner * channels > ROW_PRODUCTS:
        return 0
    vector = 16 // dtype.itemsize
    return cdiv(inner * channels, vector) * vector


def _rows(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype, row: int = 0) -> torch.Tensor:
    # [Cout, kt, kh, kw, Cin] flattened; free for weights in channels_last_3d memory and for 1x1x1
    if scale is not None:
        weight = weight.float() * scale.float().view(-1, 1, 1, 1, 1)
    cout, cin = weight.shape[:2]
    inner = next((k for k in reversed(weight.shape[2:]) if k > 1), 1) if row else 1
    rows = weight.detach().to(dtype).permute(0, 2, 3, 4, 1).reshape(cout, -1, inner * cin)
    if row > inner * cin:
        rows = torch.nn.functional.pad(rows, (0, row - inner * cin))
    return rows.reshape(cout, -1).contiguous()


def pack(
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    weight2: torch.Tensor | None = None,
    scale2: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    fold: bool = True,
) -> Packed:
    """Weights for `run_packed`.

    weight:  [Cout, Cin, kt, kh, kw]; weight2: [Cout, Cin2, 1, 1, 1] or None.
    scale, scale2: [Cout] of the two convolutions, or None.
    fold:    multiply the scale into the weights; else the epilogue does it (impossible with a ``weight2``).
    """
    fold = fold or weight2 is not None
    row = row_of(weight.shape[1], weight.shape[2:], dtype)
    return Packed(
        _rows(weight, scale if fold else None, dtype, row),
        None if fold else float32(scale),
        weight.shape[1],
        (weight.shape[2], weight.shape[3], weight.shape[4]),
        None if weight2 is None else _rows(weight2, scale2, dtype),
        0 if weight2 is None else weight2.shape[1],
        row,
    )


# --- kernel ------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize_on_alignment=[
    "pixels", "frames", "height", "width", "out_frames", "out_height", "out_width",
])  # fmt: skip
def conv_kernel(
    x, w, scale, shift, residual, out, x2, w2,
    pixels, frames, height, width, out_frames, out_height, out_width, sn, st, sh, sw, sc,
    stride_t, stride_h, stride_w, pad_t, pad_h, pad_w, dt, dh, dw, channels, w_pitch,
    out_channels, out_pitch, residual_pitch, sn2, st2, sh2, sw2, channels2, w2_pitch,
    FORM: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    CHANNELS: tl.constexpr, ROW: tl.constexpr,
    CHECK_T: tl.constexpr, CHECK_H: tl.constexpr, CHECK_W: tl.constexpr,
    X_UNIT: tl.constexpr, W_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, RESIDUAL_UNIT: tl.constexpr,
    X2_UNIT: tl.constexpr, WIDE: tl.constexpr, WHOLE_K: tl.constexpr, WHOLE_K2: tl.constexpr,
    WHOLE_N: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Programs that share their pixels follow one another: the pixels stay in the level-2 cache.
    across = tl.cdiv(out_channels * OUT_UNIT, BLOCK_N)
    program = tl.program_id(0)
    m = program // across * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = m < pixels
    columns = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < out_channels * OUT_UNIT

    n, t, h, v = tiles.pixel(m, out_frames, out_height, out_width)
    weight_rows = tiles.index(columns, WIDE) * w_pitch * W_UNIT
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if FORM == tiles.POINT:
        rows = tiles.offset(n, t, h, v, sn, st, sh, sw, WIDE) * X_UNIT
        acc = tiles.point_product(
            acc, x, rows, row_ok, w, weight_rows, column_ok, channels * X_UNIT,
            WHOLE_K, WHOLE_N, BLOCK_K, PRECISION,
        )  # fmt: skip
    else:
        t0 = t * stride_t - pad_t
        h0 = h * stride_h - pad_h
        w0 = v * stride_w - pad_w
        rows = tiles.offset(n, t0, h0, w0, sn, st, sh, sw, WIDE) * X_UNIT
        if FORM == tiles.TAPS:
            acc = tiles.taps_product(
                acc, x, rows, row_ok, t0, h0, w0, frames, height, width, st, sh, sw, dt, dh, dw,
                w, weight_rows, column_ok, channels * X_UNIT, KT, KH, KW, CHECK_T, CHECK_H, CHECK_W, X_UNIT,
                WIDE, WHOLE_K, WHOLE_N, BLOCK_K, PRECISION,
            )  # fmt: skip
        elif KW > 1:
            acc = tiles.rows_product(
                acc, x, rows, row_ok, t0, h0, w0, frames, height, width, st, sh, sw, sc, dt, dh, dw,
                w, weight_rows, column_ok, KT, KH, KW, CHANNELS, ROW, CHECK_T, CHECK_H, CHECK_W, X_UNIT,
                WIDE, WHOLE_N, BLOCK_K, PRECISION,
            )  # fmt: skip
        elif KH > 1:
            acc = tiles.rows_product(
                acc, x, rows, row_ok, t0, w0, h0, frames, width, height, st, sw, sh, sc, dt, dw, dh,
                w, weight_rows, column_ok, KT, KW, KH, CHANNELS, ROW, CHECK_T, CHECK_W, CHECK_H, X_UNIT,
                WIDE, WHOLE_N, BLOCK_K, PRECISION,
            )  # fmt: skip
        else:
            acc = tiles.rows_product(
                acc, x, rows, row_ok, h0, w0, t0, height, width, frames, sh, sw, st, sc, dh, dw, dt,
                w, weight_rows, column_ok, KH, KW, KT, CHANNELS, ROW, CHECK_H, CHECK_W, CHECK_T, X_UNIT,
                WIDE, WHOLE_N, BLOCK_K, PRECISION,
            )  # fmt: skip
    if x2 is not None:
        rows2 = tiles.offset(n, t, h, v, sn2, st2, sh2, sw2, WIDE) * X2_UNIT
        acc = tiles.point_product(
            acc, x2, rows2, row_ok, w2, tiles.index(columns, WIDE) * w2_pitch * W_UNIT, column_ok,
            channels2 * X2_UNIT, WHOLE_K2, WHOLE_N, BLOCK_K, PRECISION,
        )  # fmt: skip

    y = tiles.affine(acc, scale, shift, columns, column_ok)
    at = tiles.index(m, WIDE)
    tiles.finish(
        y, residual, at * residual_pitch * RESIDUAL_UNIT, out, at * out_pitch * OUT_UNIT, columns,
        row_ok[:, None] & column_ok[None, :], RELU,
    )  # fmt: skip


# --- shapes, strides ---------------------------------------------------------------------------------------


def unit(*values: int) -> int:
    """Largest power of two up to 16 that divides every value."""
    return math.gcd(16, *values)


def is_wide(*tensors: torch.Tensor | None) -> bool:
    """Whether offsets into any of the tensors (from its own first element) need 64 bits."""
    return any(
        x is not None and 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) >= WIDE_FROM
        for x in tensors
    )


def empty_like_view(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory with the shape and the strides of a channel slice."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


@dataclass
class Geometry:
    """What the kernel is told of a convolution's input, axes that nothing distinguishes put together."""

    n: int
    size: list[int]  # frames, rows, columns of the input
    out: list[int]
    strides: list[int]  # clip, frame, row, column; elements
    kernel: tuple[int, int, int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    @property
    def point(self) -> bool:
        return self.kernel == (1, 1, 1) and not any(self.padding) and self.stride == [1, 1, 1]

    @property
    def checks(self) -> tuple[bool, bool, bool]:
        """Along which axes a window may leave the input."""
        t, h, w = (p > 0 for p in self.padding)
        return t, h, w


def geometry(
    x: torch.Tensor, kernel: tuple[int, int, int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Geometry:  # fmt: skip
    """Geometry of a convolution of ``x`` ([N, C, T, H, W], any strides)."""
    size = list(x.shape[2:])
    strides = [x.stride(0), x.stride(2), x.stride(3), x.stride(4)]
    stride, padding = list(stride), list(padding)
    out = output_shape(x.shape, (0, 0, *kernel), stride, padding, dilation)[2:]
    n = x.shape[0]
    for axis in range(3):
        if kernel[axis] == 1 and padding[axis] == 0:  # a strided view of the input: only its strides differ
            strides[axis + 1] *= stride[axis]
            size[axis], stride[axis] = out[axis], 1
    plain = [kernel[a] == 1 and padding[a] == 0 for a in range(3)]
    if plain[1] and plain[2] and (size[1] == 1 or strides[2] == size[2] * strides[3]):
        size[2] = out[2] = size[1] * size[2]
        size[1], out[1], strides[2] = 1, 1, 0
    if plain[0] and (n == 1 or size[0] == 1 or strides[0] == size[0] * strides[1]):
        strides[0] = strides[1] if size[0] > 1 else strides[0]
        n, size[0], out[0], strides[1] = n * size[0], 1, 1, 0
        if plain[1] and plain[2] and size[1] == 1 and (n == 1 or strides[0] == size[2] * strides[3]):
            size[2] = out[2] = n * size[2]
            n, strides[0] = 1, 0
    return Geometry(n, size, out, strides, kernel, stride, padding, list(dilation))


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` of tl.dot."""
    return precision.fp32_mode() if dtype == torch.float32 else "ieee"


# --- calls -------------------------------------------------------------------------------------------------


def run_packed(
    x: torch.Tensor,
    packed: Packed,
    shift: torch.Tensor | None,
    out: torch.Tensor,
    *,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    relu: bool = True,
    residual: torch.Tensor | None = None,
    x2: torch.Tensor | None = None,
    stride2: Sequence[int] = (1, 1, 1),
    partial: torch.Tensor | None = None,
    config: Tiles | None = None,
) -> torch.Tensor:
    """One convolution into ``out``; nothing is allocated if every tensor lies as said.

    x:        [N, Cin, T, H, W] with adjacent channels (others are copied); may be a view.
    shift:    float32 [Cout] or None.
    out:      [N, Cout, To, Ho, Wo], channels_last_3d or a channel slice of such a tensor.
    residual: like ``out``, may be ``out`` itself.
    x2:       input of the packed 1x1x1 ``weight2``, read with ``stride2``.
    partial:  scratch for the sums of split tiles, `split_scratch`; allocated where None and needed.
    config:   tiles; by default the tuned ones, else the heuristic's.
    """
    if not packed.row:
        x = adjacent_channels(x)
    g = geometry(x, packed.kernel, stride, padding, dilation)
    out_pitch = pixel_pitch(out)
    if out_pitch is None:
        raise ValueError(
            f"out: expected pixels that follow one another in memory, got strides {out.stride()}"
        )
    residual_pitch = 0
    if residual is not None:
        residual, residual_pitch = pixel_rows(residual)
    cout, taps = out.shape[1], math.prod(packed.kernel)
    pixels = out.shape[0] * math.prod(out.shape[2:])
    sc = x.stride(1) if x.shape[1] > 1 else 1

    # the second source is read by the pixels of the output: undo what was put together if it does not fit
    strides2 = [0, 0, 0, 0]
    if x2 is not None:
        x2 = adjacent_channels(x2)
        g, strides2 = _with_second(g, x, x2, packed.kernel, stride, padding, dilation, stride2)

    wide = is_wide(x, packed.weight, residual, out, x2)
    mode = dot_precision(x.dtype)
    shape = (pixels, cout, packed.channels, taps, packed.row, packed.channels2, x.dtype, mode)
    call = None
    if pixels:
        call = descriptor.call_of(x, packed, out, stride, padding, dilation, residual, x2, stride2)

    def start(tiles: Tiles, out: torch.Tensor = out) -> None:
        if tiles.descriptors:
            assert call is not None, "descriptors cannot read these maps"
            descriptor.run(call, shift, relu, tiles, out, partial)
            return
        form = ROWS if packed.row else POINT if g.point else TAPS
        x_unit = unit(*g.strides, *(() if packed.row else (packed.channels,))) if sc == 1 else 1
        w_unit = unit(
            packed.weight.stride(0), *(() if packed.weight2 is None else (packed.weight2.stride(0),))
        )
        x2_unit = unit(*strides2, packed.channels2) if x2 is not None else 1
        out_unit, residual_unit = unit(out_pitch, cout), unit(residual_pitch)
        launch(
            conv_kernel,
            (cdiv(pixels, tiles.block_m) * cdiv(cout, tiles.block_n),),
            x, packed.weight, packed.scale, shift, residual, out, x2, packed.weight2,
            pixels, *g.size, *g.out, *(s // x_unit for s in g.strides), sc,
            *g.stride, *g.padding, *g.dilation, packed.channels // x_unit, packed.weight.stride(0) // w_unit,
            cout // out_unit, out_pitch // out_unit, residual_pitch // residual_unit,
            *(s // x2_unit for s in strides2), packed.channels2 // x2_unit,
            0 if packed.weight2 is None else packed.weight2.stride(0) // w_unit,
            warps=tiles.warps, stages=tiles.stages,
            FORM=form, KT=g.kernel[0], KH=g.kernel[1], KW=g.kernel[2],
            CHANNELS=packed.channels if packed.row else 0, ROW=packed.row,
            CHECK_T=g.checks[0], CHECK_H=g.checks[1], CHECK_W=g.checks[2],
            X_UNIT=x_unit, W_UNIT=w_unit, OUT_UNIT=out_unit, RESIDUAL_UNIT=residual_unit, X2_UNIT=x2_unit,
            WIDE=wide, WHOLE_K=packed.channels % tiles.block_k == 0 and not packed.row,
            WHOLE_K2=packed.channels2 % tiles.block_k == 0, WHOLE_N=cout % tiles.block_n == 0,
            RELU=relu, PRECISION=mode,
            BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        )  # fmt: skip

    def measured(tiles: Tiles) -> None:
        # run again and again: where the residual is overwritten, on a copy
        overwritten = residual is not None and residual.data_ptr() == out.data_ptr()
        start(tiles, empty_like_view(out) if overwritten else out)

    if pixels and cout:
        start(
            config
            or TUNER.pick(
                (*shape, *packed.kernel, *stride, *g.out, *(call.work.extents if call else ())),
                x.device,
                lambda: triton_tiles.descriptor_heuristic(call.work) if call else heuristic(*shape),
                lambda: compiled_ahead(
                    (triton_tiles.descriptor_candidates(call.work) if call else []) + candidates(*shape),
                    measured,
                ),
                measured,
            )
        )
    return out


def _with_second(
    g: Geometry, x: torch.Tensor, x2: torch.Tensor, kernel: tuple[int, int, int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], stride2: Sequence[int],
) -> tuple[Geometry, list[int]]:  # fmt: skip
    """Geometry of both sources of a sum, and the second one's strides, over the same axes."""
    second = geometry(x2, (1, 1, 1), stride2, (0, 0, 0), (1, 1, 1))
    if second.out == g.out and second.n == g.n:
        return g, second.strides
    size, out = list(x.shape[2:]), output_shape(x.shape, (0, 0, *kernel), stride, padding, dilation)[2:]
    apart = replace(
        g, n=x.shape[0], size=size, out=out, strides=[x.stride(d) for d in (0, 2, 3, 4)],
        stride=list(stride),
    )  # fmt: skip
    steps = (1, *stride2)
    return apart, [x2.stride(d) * s for d, s in zip((0, 2, 3, 4), steps, strict=True)]


def split_scratch(out: Shape, packed: Packed, dtype: torch.dtype, device: torch.device) -> Sequence[Scratch]:
    """Scratch memory of a convolution with a result of this shape: for the sums of split tiles, if there may be any."""
    pixels = out[0] * math.prod(out[2:])
    values = descriptor.partial_values(pixels, packed, out[1], dtype, device)
    return [((values,), torch.float32)] if values else []


class TritonConv(Prepared):
    """A convolution; with a ``shortcut``, a 1x1x1 convolution of a second map in the same sums."""

    provider, arity = "triton", 3

    def __init__(
        self,
        spec: ConvSpec,
        dtype: torch.dtype,
        device: torch.device,
        shortcut: ConvSpec | None = None,
        fold: bool = True,
    ) -> None:
        super().__init__(spec, dtype, device)
        weight2, scale2, shift2 = shortcut.conv if shortcut else (None, None, None)
        self.packed = pack(spec.conv.weight, spec.conv.scale, weight2, scale2, dtype=dtype, fold=fold)
        shifts = [s for s in (float32(spec.conv.shift), float32(shift2)) if s is not None]
        self.shift = sum(shifts[1:], shifts[0]) if shifts else None
        self.stride2 = shortcut.stride if shortcut else (1, 1, 1)

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        found = (self.packed.weight, self.packed.weight2, self.packed.scale, self.shift)
        return [w for w in found if w is not None]

    def flops(self, *inputs: Shape) -> int:
        pixels = 2 * math.prod(self.out_shape(*inputs))
        return super().flops(*inputs) + pixels * self.packed.channels2

    def scratch(self, *inputs: Shape) -> Sequence[Scratch]:
        return split_scratch(self.out_shape(*inputs), self.packed, self.dtype, self.device)

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def into(self, out: torch.Tensor, *args: Any) -> torch.Tensor:
        x, residual, second, *scratch = args
        s: ConvSpec = self.spec
        return run_packed(
            x, self.packed, self.shift, out, stride=s.stride, padding=s.padding, dilation=s.dilation, relu=s.relu,
            residual=residual, x2=second, stride2=self.stride2, partial=scratch[0] if scratch else None,
        )  # fmt: skip


def cannot(spec: ConvSpec, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run this convolution, or None."""
    if sum(spec.conv.kernel) > MOST_TAPS:
        return f"the kernel {spec.conv.kernel} spans more than {MOST_TAPS} places along its axes together"
    return refused(dtype, FLOATS, "Triton") or beyond_kernels(spec, "Triton")


def too_many(*shapes: Shape) -> str | None:
    """Why the Triton kernels cannot run on maps of these shapes, or None."""
    pixels = max(x[0] * math.prod(x[2:]) for x in shapes)
    return (
        f"there are {pixels} pixels, the Triton kernels count up to {2**31 - 1}" if pixels >= 2**31 else None
    )


def refuses_shapes(spec: ConvSpec, x: Shape) -> str | None:
    """Why the Triton kernels cannot run on a map of this shape, or None."""
    return too_many(x, spec.out_shape(x))


def prepare(
    spec: ConvSpec,
    dtype: torch.dtype,
    device: torch.device,
    once: bool = False,
    shortcut: ConvSpec | None = None,
) -> TritonConv:
    """For one call the scale is applied behind the sums: the weights are then read as they lie."""
    return TritonConv(spec, dtype, device, shortcut, fold=not once)
