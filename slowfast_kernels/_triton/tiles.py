"""Device functions of the convolution kernels: pixel indices, products of a tile, the epilogue.

A tile is BLOCK_M output pixels times BLOCK_N output channels. Activations are read where they lie: an offset per
pixel, computed once (64 bits wide where WIDE says that a tensor needs it), and steps from there. Strides and channel
counts come divided by a power of two (``*_UNIT``) that is a constant, so that the compiler knows how wide a load may
be. Weights are [Cout, kt, kh, kw, Cin].
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

#: Triton's interpreter multiplies bfloat16 as the integers it keeps them in, and cuts them off where a GPU rounds:
#: `dot`, `widened` and `narrowed` do these things by hand there.
SIMULATED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")

# Where the products of a tile come from.
POINT: tl.constexpr = tl.constexpr(0)  # one tap without padding: a plain product of matrices
TAPS: tl.constexpr = tl.constexpr(1)  # taps in a row, each with blocks of channels
ROWS: tl.constexpr = tl.constexpr(2)  # rows of taps, a row's taps and channels as one index: few channels


@triton.jit
def pixel(m, frames, rows, columns):
    """(clip, frame, row, column) of output pixels in memory order."""
    w = m % columns
    m = m // columns
    h = m % rows
    m = m // rows
    return m // frames, m % frames, h, w


@triton.jit
def index(i, WIDE: tl.constexpr):
    """i as a type for offsets."""
    if WIDE:
        return tl.cast(i, tl.int64)
    else:
        return i


@triton.jit
def offset(n, t, h, w, sn, st, sh, sw, WIDE: tl.constexpr):
    """Offset of pixels in units of the strides."""
    return index(n, WIDE) * sn + index(t, WIDE) * st + index(h, WIDE) * sh + index(w, WIDE) * sw


@triton.jit
def widened(x):
    """x as float32, exactly."""
    if SIMULATED and x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrowed(x, DTYPE: tl.constexpr):
    """float32 x rounded to DTYPE: to the nearest, ties to even."""
    if SIMULATED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        rounded = tl.where(x == x, rounded, 0x7FC00000)
        return (rounded >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b; sums are float32."""
    if SIMULATED:
        return tl.dot(widened(a), widened(b), acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def point_product(
    acc, x, rows, row_ok, w, weight_rows, column_ok, channels,
    WHOLE_K: tl.constexpr, WHOLE_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + x[rows, :channels] @ w[weight_rows, :channels].T"""
    k = tl.arange(0, BLOCK_K)
    for start in range(0, channels, BLOCK_K):
        c = start + k
        a_ok = row_ok[:, None] if WHOLE_K else row_ok[:, None] & (c < channels)[None, :]
        a = tl.load(x + rows[:, None] + c[None, :], mask=a_ok, other=0.0)
        b = weights(w, weight_rows, column_ok, c, channels, WHOLE_K, WHOLE_N)
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def weights(w, weight_rows, column_ok, k, limit, WHOLE_K: tl.constexpr, WHOLE_N: tl.constexpr):
    """w[weight_rows, k] as the second operand, [K, N]; zero from ``limit`` on."""
    pointers = w + weight_rows[None, :] + k[:, None]
    if WHOLE_K and WHOLE_N:
        return tl.load(pointers)
    elif WHOLE_K:
        return tl.load(pointers, mask=column_ok[None, :], other=0.0)
    else:
        return tl.load(pointers, mask=column_ok[None, :] & (k < limit)[:, None], other=0.0)


@triton.jit
def inside_bits(
    t0, h0, w0, frames, height, width, dt, dh, dw,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    CHECK_T: tl.constexpr, CHECK_H: tl.constexpr, CHECK_W: tl.constexpr,
):  # fmt: skip
    """Which places of the windows lie inside the clip: KT bits for frames, then KH for rows, KW for columns."""
    TYPE: tl.constexpr = tl.int32 if KT + KH + KW < 32 else tl.int64
    bits = tl.zeros(h0.shape, TYPE)
    if CHECK_T:
        for i in tl.static_range(KT):
            bits |= ((t0 + i * dt >= 0) & (t0 + i * dt < frames)).to(TYPE) << i
    if CHECK_H:
        for i in tl.static_range(KH):
            bits |= ((h0 + i * dh >= 0) & (h0 + i * dh < height)).to(TYPE) << (KT + i)
    if CHECK_W:
        for i in tl.static_range(KW):
            bits |= ((w0 + i * dw >= 0) & (w0 + i * dw < width)).to(TYPE) << (KT + KH + i)
    return bits


@triton.jit
def taps_product(
    acc, x, rows, row_ok, t0, h0, w0, frames, height, width, st, sh, sw, dt, dh, dw,
    w, weight_rows, column_ok, channels,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    CHECK_T: tl.constexpr, CHECK_H: tl.constexpr, CHECK_W: tl.constexpr, X_UNIT: tl.constexpr,
    WIDE: tl.constexpr, WHOLE_K: tl.constexpr, WHOLE_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + the convolution, tap by tap.

    rows: offsets of the windows' first pixels (t0, h0, w0), which may lie outside the clip.
    CHECK_*: whether a window may leave the clip along this axis; what lies outside counts as zero.
    """
    k = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(channels, BLOCK_K)
    CHECKED: tl.constexpr = CHECK_T or CHECK_H or CHECK_W
    inside = row_ok.to(tl.int32)
    if CHECKED:
        # a bit per place along every checked axis: one register a pixel, where coordinates would take three
        inside = inside_bits(
            t0, h0, w0, frames, height, width, dt, dh, dw, KT, KH, KW, CHECK_T, CHECK_H, CHECK_W
        )
        inside = tl.where(row_ok, inside, 0)
    for i in range(0, KT * KH * KW * blocks):
        tap = i // blocks
        c = (i - tap * blocks) * BLOCK_K + k
        at = rows
        bits = tl.full(inside.shape, 1, inside.dtype) if CHECKED else inside
        if KT > 1:
            kt = tap // (KH * KW)
            at += index(kt * dt, WIDE) * st * X_UNIT
            if CHECK_T:
                bits = bits & (inside >> kt)
        elif CHECK_T:
            bits = bits & inside
        if KH > 1:
            kh = tap // KW % KH
            at += index(kh * dh, WIDE) * sh * X_UNIT
            if CHECK_H:
                bits = bits & (inside >> (KT + kh))
        elif CHECK_H:
            bits = bits & (inside >> KT)
        if KW > 1:
            kw = tap % KW
            at += index(kw * dw, WIDE) * sw * X_UNIT
            if CHECK_W:
                bits = bits & (inside >> (KT + KH + kw))
        elif CHECK_W:
            bits = bits & (inside >> (KT + KH))
        ok = (bits & 1) != 0
        a_ok = ok[:, None] if WHOLE_K else ok[:, None] & (c < channels)[None, :]
        a = tl.load(x + at[:, None] + c[None, :], mask=a_ok, other=0.0)
        b = weights(w + tap * channels, weight_rows, column_ok, c, channels, WHOLE_K, WHOLE_N)
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def rows_product(
    acc, x, rows, row_ok, a0, b0, c0, size_a, size_b, size_c, sa, sb, sc, channel_stride, da, db, dc,
    w, weight_rows, column_ok,
    KA: tl.constexpr, KB: tl.constexpr, KC: tl.constexpr, CHANNELS: tl.constexpr, ROW: tl.constexpr,
    CHECK_A: tl.constexpr, CHECK_B: tl.constexpr, CHECK_C: tl.constexpr, X_UNIT: tl.constexpr,
    WIDE: tl.constexpr, WHOLE_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + the convolution, one row of taps at a time: the KC taps along the axis c, times the channels.

    What depends on the place within a row is computed once. ROW weights follow each other for a row, the last of
    them zeros beyond KC * CHANNELS; ROW is at most BLOCK_K. ``channel_stride`` is in elements.
    """
    k = tl.arange(0, BLOCK_K)
    tap = k // CHANNELS * dc
    inside = index(tap, WIDE) * sc * X_UNIT + index(k % CHANNELS, WIDE) * channel_stride
    ok = row_ok[:, None]
    if KC * CHANNELS != BLOCK_K:
        ok = ok & (k < KC * CHANNELS)[None, :]
    if CHECK_C:
        c = c0[:, None] + tap[None, :]
        ok = ok & (c >= 0) & (c < size_c)
    for i in range(0, KA * KB):
        at = rows
        here = row_ok
        if KA > 1 or CHECK_A:
            a = i // KB * da
            at += index(a, WIDE) * sa * X_UNIT
            if CHECK_A:
                here = here & (a0 + a >= 0) & (a0 + a < size_a)
        if KB > 1 or CHECK_B:
            b = i % KB * db
            at += index(b, WIDE) * sb * X_UNIT
            if CHECK_B:
                here = here & (b0 + b >= 0) & (b0 + b < size_b)
        values = tl.load(x + at[:, None] + inside[None, :], mask=ok & here[:, None], other=0.0)
        weight = weights(w + i * ROW, weight_rows, column_ok, k, ROW, ROW == BLOCK_K, WHOLE_N)
        acc = dot(values, weight, acc, PRECISION)
    return acc


@triton.jit
def finish(y, residual, residual_rows, out, out_rows, columns, ok, RELU: tl.constexpr):
    """Add the residual, clamp at zero, round and store; rows are offsets."""
    if residual is not None:
        y += widened(tl.load(residual + residual_rows[:, None] + columns[None, :], mask=ok, other=0.0))
    if RELU:
        y = relu(y)
    tl.store(out + out_rows[:, None] + columns[None, :], narrowed(y, out.dtype.element_ty), mask=ok)


@triton.jit
def relu(x):
    """Clamp at zero; NaN passes."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def affine(acc, scale, shift, columns, column_ok):
    """acc * scale + shift per channel; None leaves out."""
    if scale is not None:
        acc = acc * tl.load(scale + columns, mask=column_ok, other=0.0)[None, :]
    if shift is not None:
        acc = acc + tl.load(shift + columns, mask=column_ok, other=0.0)[None, :]
    return acc
