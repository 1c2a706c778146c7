"""Weights as the CUDA kernels read them: fragments of the tensor cores' second operand, scales folded in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .._spec import ConvAffine
from .spec import BlockSpec

#: Inner widths of the one kernel: their weights stay in shared memory.
NARROW = (8, 16, 32)

#: Inner widths of the others: conv_b's result, of all channels, stays in registers.
WIDE = (64, 128)


def _stored_order(channels: int) -> torch.Tensor:
    """Channel of every column of the tensor cores' tiles, such that a lane's results are neighbours in memory.

    A lane holds two columns of each tile of eight; of up to four tiles that belong together it gets 2, 4 or 8
    consecutive channels.
    """
    joined = min(4, channels // 8)
    chunk, j, g = (torch.arange(n) for n in (channels // (8 * joined), joined, 8))
    where = chunk.view(-1, 1, 1) * 8 * joined + g // 2 * 2 * joined + j.view(-1, 1) * 2 + g % 2
    return where.flatten()


def _fragments(matrix: torch.Tensor) -> torch.Tensor:
    """Products x channels ([16 k, 8 n]) as the tensor cores' second operands, lane by lane, tiles in pairs."""
    k, n = matrix.shape
    pair = 2 if n % 16 == 0 else 1
    return matrix.view(k // 16, 2, 4, 2, n // (8 * pair), pair, 8).permute(0, 4, 6, 2, 5, 1, 3).flatten()


def _products(conv: ConvAffine, per_tap: bool) -> torch.Tensor:
    """A weight [Cout, Cin, kt, kh, kw] with its scale as float32 products x channels, filled up to whole 16s.

    per_tap: the products of every tap are filled up, else all together.
    """
    weight = conv.folded()
    rows = weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[1], weight.shape[0])
    if per_tap:
        rows = F.pad(rows, (0, 0, 0, -rows.shape[1] % 16))
    rows = rows.reshape(-1, weight.shape[0])
    return F.pad(rows, (0, 0, 0, -rows.shape[0] % 16))


def _ordered(products: torch.Tensor, wide: int) -> torch.Tensor:
    """Columns filled up to ``wide`` and in the order in which results are stored."""
    products = F.pad(products, (0, wide - products.shape[1]))
    return products[:, _stored_order(wide).to(products.device)]


def _shift(conv: ConvAffine, channels: int) -> torch.Tensor:
    if conv.shift is None:
        return torch.zeros(channels, device=conv.weight.device)
    return F.pad(conv.shift.detach().float(), (0, channels - conv.shift.shape[0]))


def _chained_order(steps: int) -> torch.Tensor:
    """Channel of every product of a conv_a of ``steps`` times 16, whose first operand is as conv_c's result is stored.

    Of 64 channels a lane quarter stores 8 of each 32: four of them are products of one step, four of the next.
    """
    pairs, step, high, quarter, low = (torch.arange(n) for n in (steps // 2, 2, 2, 4, 2))
    where = quarter.view(-1, 1) * 8 + low + high.view(-1, 1, 1) * 2
    return (where + step.view(-1, 1, 1, 1) * 4 + pairs.view(-1, 1, 1, 1, 1) * 32).flatten()


@dataclass(frozen=True)
class Packed:
    """A block's weights and shifts as the kernels read them.

    weights: conv_a, conv_b, conv_c and the shortcut's convolution, one after another, in the compute type. Of a wide
             block without conv_a; conv_c, the shortcut's and the next block's conv_a 64 channels at a time.
    shifts:  float32, of conv_a, conv_b, and of conv_c plus the shortcut's, the last filled up with zeros. Of a wide
             block without conv_a's, with the next block's behind them.
    weights_a, shift_a: of a wide block's conv_a, else None.
    cin, inner, cout, kernel_t, shortcut: of the block.
    chained: whether weights and shifts hold the next block's conv_a.
    """

    weights: torch.Tensor
    shifts: torch.Tensor
    weights_a: torch.Tensor | None
    shift_a: torch.Tensor | None
    cin: int
    inner: int
    cout: int
    kernel_t: int
    shortcut: bool
    chained: bool = False


def pack(spec: BlockSpec, dtype: torch.dtype, following: ConvAffine | None = None) -> Packed:
    """The block's arguments for `run_packed`; ``dtype`` is the compute type.

    following: the next block's conv_a, to compute it along with this block: 1x1x1, of this block's cout to its inner
               width, which has to be a wide one; anything else is a ValueError.
    """
    inner, cin, kernel_t = spec.a.weight.shape[:3]
    cout = spec.c.weight.shape[0]
    if following is not None:
        if inner not in WIDE:
            raise ValueError(
                f"following: expected a block of inner width {' or '.join(map(str, WIDE))}, got {inner}"
            )
        if following.weight.shape != (inner, cout, 1, 1, 1):
            raise ValueError(
                f"following: expected a weight of shape {(inner, cout, 1, 1, 1)}, got {tuple(following.weight.shape)}"
            )
    columns = 64 if inner in WIDE else 32
    wide = -(-cout // columns) * columns
    shift = _shift(spec.c, wide)
    if spec.shortcut is not None:
        shift = shift + _shift(spec.shortcut, wide)
    a = _fragments(_ordered(_products(spec.a, True), inner)).to(dtype)
    first = _shift(spec.a, inner)
    b = _fragments(_products(spec.b, False))
    c = _ordered(_products(spec.c, True), wide)
    second = _shift(spec.b, inner)
    s = None if spec.shortcut is None else _ordered(_products(spec.shortcut, True), wide)
    if inner not in WIDE:
        parts = [b, _fragments(c), *([] if s is None else [_fragments(s)])]
        return Packed(
            torch.cat([a, torch.cat(parts).to(dtype)]), torch.cat([first, second, shift]), None, None,
            cin, inner, cout, kernel_t, s is not None,
        )  # fmt: skip
    parts = [b]
    if s is not None:
        s = F.pad(s, (0, 0, 0, -s.shape[0] % inner))  # whole stages
    f, shifts = None, [second, shift]
    if following is not None:
        f = _ordered(_products(following, True), inner)
        f = F.pad(f, (0, 0, 0, wide - f.shape[0]))[_chained_order(wide // 16).to(f.device)]
        shifts.append(_shift(following, inner))
    for n in range(0, wide, columns):
        parts += [_fragments(m[:, n : n + columns].contiguous()) for m in (c, s) if m is not None]
        if f is not None:
            parts.append(_fragments(f[n : n + columns].contiguous()))
    return Packed(
        torch.cat(parts).to(dtype), torch.cat(shifts), a, first,
        cin, inner, cout, kernel_t, s is not None, f is not None,
    )  # fmt: skip
