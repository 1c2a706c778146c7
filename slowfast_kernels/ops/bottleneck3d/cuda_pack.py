"""Weights as the CUDA kernels read them: fragments of the tensor cores' second operand, scales folded in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

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


def _products(weight: torch.Tensor, scale: torch.Tensor | None, per_tap: bool) -> torch.Tensor:
    """A weight [Cout, Cin, kt, kh, kw] with its scale as float32 products x channels, filled up to whole 16s.

    per_tap: the products of every tap are filled up, else all together.
    """
    weight = weight.detach().float()
    if scale is not None:
        weight = weight * scale.detach().float().view(-1, 1, 1, 1, 1)
    rows = weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[1], weight.shape[0])
    if per_tap:
        rows = F.pad(rows, (0, 0, 0, -rows.shape[1] % 16))
    rows = rows.reshape(-1, weight.shape[0])
    return F.pad(rows, (0, 0, 0, -rows.shape[0] % 16))


def _ordered(products: torch.Tensor, wide: int) -> torch.Tensor:
    """Columns filled up to ``wide`` and in the order in which results are stored."""
    products = F.pad(products, (0, wide - products.shape[1]))
    return products[:, _stored_order(wide).to(products.device)]


def _shift(shift: torch.Tensor | None, channels: int, like: torch.Tensor) -> torch.Tensor:
    if shift is None:
        return torch.zeros(channels, device=like.device)
    return F.pad(shift.detach().float(), (0, channels - shift.shape[0]))


@dataclass(frozen=True)
class Packed:
    """A block's weights and shifts as the kernels read them.

    weights: conv_a, conv_b, conv_c and the shortcut's convolution, one after another, in the compute type. Of a wide
             block without conv_a; conv_c and the shortcut's 64 channels at a time.
    shifts:  float32, of conv_a, conv_b, and of conv_c plus the shortcut's, the last filled up with zeros. Of a wide
             block without conv_a's.
    weights_a, shift_a: of a wide block's conv_a, else None.
    cin, inner, cout, kernel_t, shortcut: of the block.
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


def pack(
    weight_a: torch.Tensor,
    scale_a: torch.Tensor | None,
    shift_a: torch.Tensor | None,
    weight_b: torch.Tensor,
    scale_b: torch.Tensor | None,
    shift_b: torch.Tensor | None,
    weight_c: torch.Tensor,
    scale_c: torch.Tensor | None,
    shift_c: torch.Tensor | None,
    weight_s: torch.Tensor | None = None,
    scale_s: torch.Tensor | None = None,
    shift_s: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> Packed:
    """The block's arguments for `run_packed`; ``dtype`` is the compute type."""
    inner, cin, kernel_t = weight_a.shape[:3]
    cout = weight_c.shape[0]
    columns = 64 if inner in WIDE else 32
    wide = -(-cout // columns) * columns
    shift = _shift(shift_c, wide, weight_c)
    if weight_s is not None:
        shift = shift + _shift(shift_s, wide, weight_c)
    a = _fragments(_ordered(_products(weight_a, scale_a, True), inner)).to(dtype)
    first = _shift(shift_a, inner, weight_c)
    b = _fragments(_products(weight_b, scale_b, False))
    c = _ordered(_products(weight_c, scale_c, True), wide)
    second = _shift(shift_b, inner, weight_c)
    s = None if weight_s is None else _ordered(_products(weight_s, scale_s, True), wide)
    if inner not in WIDE:
        parts = [b, _fragments(c), *([] if s is None else [_fragments(s)])]
        return Packed(
            torch.cat([a, torch.cat(parts).to(dtype)]), torch.cat([first, second, shift]), None, None,
            cin, inner, cout, kernel_t, s is not None,
        )  # fmt: skip
    parts = [b]
    if s is not None:
        s = F.pad(s, (0, 0, 0, -s.shape[0] % inner))  # whole stages
    for n in range(0, wide, columns):
        parts += [_fragments(m[:, n : n + columns].contiguous()) for m in (c, s) if m is not None]
    return Packed(
        torch.cat(parts).to(dtype), torch.cat([second, shift]), a, first,
        cin, inner, cout, kernel_t, s is not None,
    )  # fmt: skip
