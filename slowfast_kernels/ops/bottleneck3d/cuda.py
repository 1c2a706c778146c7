"""The CUDA C++ provider: one kernel for narrow blocks (the Fast pathway's), two for wide ones (Slow's res2, res3).

Operands are bfloat16 or float16 for the tensor cores; sums, shifts and residual additions are float32. Scales are
folded into the weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ... import _extension, autotune
from .._registration import channels_last, define_native, empty_channels_last
from .cpu import output_shape

define_native(
    "_fast_block_run_cuda(Tensor x, Tensor weights, Tensor shifts, int inner, int kernel_t, int stride, int dilation,"
    " bool shortcut, int[] tile, Tensor(a!) out) -> ()"
)
define_native("_point_run_cuda(Tensor x, Tensor weights, Tensor shift, int kernel_t, Tensor(a!) out) -> ()")
define_native(
    "_block_tail_run_cuda(Tensor inner, Tensor x, Tensor weights, Tensor shifts, int stride, int dilation,"
    " bool shortcut, int[] tile, Tensor(a!) out) -> ()"
)

DTYPES = (torch.bfloat16, torch.float16)

#: Inner widths of the one kernel: their weights stay in shared memory.
NARROW = (8, 16, 32)

#: Inner widths of the two: conv_b's result, of all channels, stays in registers.
WIDE = (64, 128)

#: Multiprocessors and shared memory of a block where no device says (the emulator's, an H200's).
PROCESSORS, SHARED_BYTES = 132, 227 * 1024


# --- weights -----------------------------------------------------------------------------------------------


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


# --- tiles -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiles:
    """What a block of threads computes: ``height`` x ``width`` output pixels of ``frames`` frames."""

    height: int
    width: int
    frames: int


def _pitch(channels: int) -> int:
    return (channels // 8 | 1) * 8


def shared_bytes(packed: Packed, tiles: Tiles, stride: int, dilation: int) -> int:
    """Shared memory of a block of threads; as fast_block_shared of bottleneck.cuh counts it."""
    height, width = ((n - 1) * stride + 2 * dilation + 1 for n in (tiles.height, tiles.width))
    halo, rows = height * width, -(-tiles.height * tiles.width // 32) * 32
    ring = max(packed.kernel_t, 2) + 1
    maps = halo * (ring * _pitch(packed.cin) + 2 * _pitch(packed.inner)) * 2
    vectors = 4 * packed.shifts.numel() + 8 * rows + -(-4 * halo // 16) * 16
    return maps + packed.weights.numel() * 2 + vectors


@functools.cache
def _limits(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, shared memory of a block) of a device."""
    if device.type != "cuda":
        return PROCESSORS, SHARED_BYTES
    properties = torch.cuda.get_device_properties(device)
    # torch's own annotations do not know the attribute
    return properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 163 * 1024)


def candidates(
    packed: Packed, clips: int, frames: int, height: int, width: int, stride: int, dilation: int, shared: int
) -> list[Tiles]:
    """Tiles worth measuring for [clips, cout, frames, height, width] results, by what they leave of shared memory."""
    found = []
    for h in sorted({min(n, height) for n in (4, 7, 8, 14, 16, 28)}):
        for w in sorted({min(n, width) for n in (4, 7, 8, 14, 16, 28)}):
            tiles = Tiles(h, w, frames)
            if h * w <= 512 and shared_bytes(packed, tiles, stride, dilation) <= shared:
                found.append(tiles)
    if not found and shared_bytes(packed, Tiles(1, 1, frames), stride, dilation) <= shared:
        found.append(Tiles(1, 1, frames))
    return [
        Tiles(t.height, t.width, f)
        for t in found
        for f in sorted({-(-frames // parts) for parts in (1, 2, 4, 8)}, reverse=True)
    ]


def heuristic(
    packed: Packed,
    clips: int,
    frames: int,
    height: int,
    width: int,
    stride: int,
    dilation: int,
    processors: int,
    shared: int,
) -> Tiles | None:
    """Tiles of a call, unmeasured; None where nothing fits into ``shared`` bytes.

    A model of one phase of a multiprocessor: the products of all its tensor-core tiles, whole or not, and bytes
    brought in, a byte taking as long as some 20 products; or the longest chain of tasks of 32 rows that one warp
    does, which has a quarter of the multiprocessor at most and waits for its own results. Blocks of threads that
    find no multiprocessor wait for the next round.
    """
    best: tuple[float, Tiles] | None = None
    cin, inner, cout = packed.cin, packed.inner, packed.cout
    warps = 8 if inner >= 32 else 4
    for tiles in candidates(packed, clips, frames, height, width, stride, dilation, shared):
        halo = math.prod((n - 1) * stride + 2 * dilation + 1 for n in (tiles.height, tiles.width))
        a_tasks, b_tasks = -(-halo // 32), -(-tiles.height * tiles.width // 32)
        a = 32 * packed.kernel_t * cin * inner
        bc = 32 * (9 * inner * inner + inner * cout + packed.shortcut * cin * cout)
        work = a_tasks * a + b_tasks * bc + halo * cin * 40
        chain = -(-(a_tasks + b_tasks) // warps) * max(a, bc) * 8
        resident = max(1, min(16 // warps, shared // shared_bytes(packed, tiles, stride, dilation)))
        blocks = clips * -(-height // tiles.height) * -(-width // tiles.width) * -(-frames // tiles.frames)
        together = max(1, min(resident, -(-blocks // processors)))
        rounds = -(-blocks // (processors * resident))
        start = packed.kernel_t // 2 * halo * cin * 40 + packed.weights.numel() * 40
        phase = max(together * work, chain) * (
            1.0 if together > 1 else 1.25
        )  # alone, nothing hides the barriers
        time = rounds * (tiles.frames * phase + together * start)
        if best is None or time < best[0]:
            best = time, tiles
    return best[1] if best else None


@dataclass(frozen=True)
class TailTiles:
    """What a block of threads of a wide block's second kernel computes: at most 128 output pixels of a frame."""

    height: int
    width: int


def tail_shared_bytes(packed: Packed, tiles: TailTiles, stride: int, dilation: int) -> int:
    """Shared memory of a block of threads; as tail_shared of bottleneck_bc.cuh counts it."""
    height, width = ((n - 1) * stride + 2 * dilation + 1 for n in (tiles.height, tiles.width))
    rows = 64 if tiles.height * tiles.width <= 64 else 128
    maps = height * width * _pitch(packed.inner) * 2
    operand = rows * _pitch(-(-packed.cin // 16) * 16) * 2 if packed.shortcut else 0
    return 3 * 64 * packed.inner * 2 + max(maps, operand) + 8 * rows


def tail_candidates(
    packed: Packed, height: int, width: int, stride: int, dilation: int, shared: int
) -> list[TailTiles]:
    """Tiles worth measuring for frames of height x width results."""
    sizes = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 28, 32, 56)
    found = (
        TailTiles(h, w)
        for h in sorted({min(n, height) for n in sizes})
        for w in sorted({min(n, width) for n in sizes})
        if h * w <= 128
    )
    return [t for t in found if tail_shared_bytes(packed, t, stride, dilation) <= shared]


def tail_heuristic(
    packed: Packed,
    frames: int,
    height: int,
    width: int,
    stride: int,
    dilation: int,
    processors: int,
    shared: int,
) -> TailTiles | None:
    """Tiles of a wide block's second kernel, unmeasured; ``frames`` counts those of all clips.

    Every block of threads multiplies whole 64s of rows by all weights; the halo costs a little, idle
    multiprocessors and a block alone on its own cost more.
    """
    best: tuple[float, TailTiles] | None = None
    for tiles in tail_candidates(packed, height, width, stride, dilation, shared):
        rows = 64 if tiles.height * tiles.width <= 64 else 128
        halo = math.prod((n - 1) * stride + 2 * dilation + 1 for n in (tiles.height, tiles.width))
        blocks = frames * -(-height // tiles.height) * -(-width // tiles.width)
        resident = max(1, min(2, shared // tail_shared_bytes(packed, tiles, stride, dilation)))
        alone = 1.0 if min(resident, blocks / processors) >= 2 else 1.2
        # 64 rows do not use a weight's way into the registers as often as 128 do.
        time = -(-blocks // (processors * resident)) * resident * alone * (rows + 40 + halo / 16)
        if best is None or time < best[0]:
            best = time, tiles
    return best[1] if best else None


# --- calls -------------------------------------------------------------------------------------------------


def _takes(x: torch.Tensor) -> bool:
    """Whether the kernels read this memory: pixels that follow one another, channels at 16-byte boundaries."""
    n, c, t, h, w = x.shape
    if x.stride(1) != 1 or x.data_ptr() % 16:
        return False
    steps = [(x.stride(d), f) for d, f in ((4, 1), (3, w), (2, h * w), (0, t * h * w)) if x.shape[d] > 1]
    pitch = steps[0][0] // steps[0][1] if steps else c
    return pitch >= c and pitch % 8 == 0 and all(s == pitch * f for s, f in steps)


def run_packed(
    x: torch.Tensor,
    packed: Packed,
    out: torch.Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    inner: torch.Tensor | None = None,
    config: Tiles | TailTiles | None = None,
) -> torch.Tensor:
    """The whole block into ``out``.

    x:      [N, Cin, T, H, W], channels_last_3d or a channel slice at a multiple of 8 (others are copied).
    out:    [N, Cout, T, Ho, Wo], channels_last_3d or a channel slice at a multiple of 8.
    inner:  scratch for a wide block's conv_a, [N, Cmid, T, H, W] in channels_last_3d; allocated where None.
    config: tiles, `TailTiles` for a wide block; by default the heuristic's.
    """
    if not _takes(x):
        x = channels_last(x)
        x = x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.channels_last_3d)
    if config is None:
        found = _chosen(x, packed, out, stride, dilation, inner)
        if found is None:
            raise RuntimeError(
                "bottleneck3d: not even one output pixel fits into this device's shared memory"
            )
        config = found
    if packed.weights_a is None:
        assert isinstance(config, Tiles)
        torch.ops.slowfast._fast_block_run_cuda(
            x, packed.weights, packed.shifts, packed.inner, packed.kernel_t, stride, dilation, packed.shortcut,
            [config.height, config.width, config.frames], out,
        )  # fmt: skip
        return out
    if inner is None:
        inner = empty_channels_last(x, [x.shape[0], packed.inner, *x.shape[2:]])
    torch.ops.slowfast._point_run_cuda(x, packed.weights_a, packed.shift_a, packed.kernel_t, inner)
    torch.ops.slowfast._block_tail_run_cuda(
        inner, x, packed.weights, packed.shifts, stride, dilation, packed.shortcut,
        [config.height, config.width], out,
    )  # fmt: skip
    return out


def _chosen(
    x: torch.Tensor, packed: Packed, out: torch.Tensor, stride: int, dilation: int, inner: torch.Tensor | None
) -> Tiles | TailTiles | None:
    """Tiles of a call, found once: by the tuned table or by measuring, else by the heuristic."""
    key = (
        packed.cin,
        packed.inner,
        packed.cout,
        packed.kernel_t,
        packed.shortcut,
        tuple(out.shape),
        stride,
        dilation,
    )
    place = (*key, x.dtype, x.device)
    if place in _choices:
        return _choices[place]
    n, _, t, h, w = out.shape
    processors, shared = _limits(x.device)
    first: Tiles | TailTiles | None
    if packed.weights_a is None:
        first = heuristic(packed, n, t, h, w, stride, dilation, processors, shared)
    else:
        first = tail_heuristic(packed, n * t, h, w, stride, dilation, processors, shared)

    def others() -> Sequence[Tiles | TailTiles]:
        if packed.weights_a is None:
            return candidates(packed, n, t, h, w, stride, dilation, shared)
        return tail_candidates(packed, h, w, stride, dilation, shared)

    def run(config: Tiles | TailTiles) -> None:
        run_packed(x, packed, out, stride=stride, dilation=dilation, inner=inner, config=config)

    if first is not None and x.device.type == "cuda":
        source = autotune.source_hash(__file__, str(_extension.LIB_DIR / "libslowfast_cuda.so"))
        named = ("cuda", *key[:-3], *out.shape, stride, dilation, x.dtype)
        first = autotune.choose("bottleneck3d", named, source, x.device, first, others, run)
    _choices[place] = first
    return first


_choices: dict[tuple[object, ...], Tiles | TailTiles | None] = {}


@functools.cache
def _least_shared_bytes(
    cin: int, inner: int, cout: int, kernel_t: int, shortcut: bool, stride: int, dilation: int
) -> int:
    """Shared memory of the smallest tile of a block of these widths."""
    steps, wide = -(-cin // 16), -(-cout // 32) * 32
    weights = (
        kernel_t * steps * inner + -(-9 * inner // 16) * inner + (-(-inner // 16) + shortcut * steps) * wide
    )
    packed = Packed(
        torch.empty(16 * weights, device="meta"), torch.empty(2 * inner + wide, device="meta"), None, None,
        cin, inner, cout, kernel_t, shortcut,
    )  # fmt: skip
    if inner in WIDE:
        return tail_shared_bytes(packed, TailTiles(1, 1), stride, dilation)
    return shared_bytes(packed, Tiles(1, 1, 1), stride, dilation)


def refuses(x: torch.Tensor, weight_a: torch.Tensor, *rest: object) -> str | None:
    """Why the CUDA kernels cannot run this call, or None."""
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}: the tensor-core kernels take bfloat16 and float16"
    weights = [weight_a, *(w for w in (rest[2], rest[5], rest[8]) if isinstance(w, torch.Tensor))]
    for weight in weights:
        if weight.dtype != x.dtype:
            return f"weight is {weight.dtype} but x is {x.dtype}"
    inner, cin, kernel_t = weight_a.shape[:3]
    cout = weights[2].shape[0]
    if inner not in NARROW + WIDE:
        return f"the inner width {inner} is none of {', '.join(map(str, NARROW + WIDE))}"
    if cin % 8 or cout % 8:
        return f"{cin} and {cout} channels are not multiples of 8, which the kernels move at a time"
    # stride and dilation may be left out: what is asked then is about the weights
    stride, dilation = (v if isinstance(v, int) else 1 for v in (*rest[11:13], 1, 1)[:2])
    least, most = (
        _least_shared_bytes(cin, inner, cout, kernel_t, len(weights) > 3, stride, dilation),
        _limits(x.device)[1],
    )
    if least > most:
        return f"one output pixel takes {least} bytes of shared memory, and a block of threads has {most}"
    if x.shape[3] * x.shape[4] >= 2**31:
        return f"a frame has {x.shape[3]} x {x.shape[4]} pixels, 2^31 or more"
    return None


def run(x: torch.Tensor, *args: object) -> torch.Tensor:
    *parameters, stride, dilation = args
    assert isinstance(stride, int) and isinstance(dilation, int)
    packed = pack(*parameters, dtype=x.dtype)  # type: ignore[arg-type]
    out = empty_channels_last(x, output_shape(x.shape, (packed.cout,), stride))
    return run_packed(x, packed, out, stride=stride, dilation=dilation)
