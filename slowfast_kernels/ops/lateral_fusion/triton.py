"""The Triton provider: the lateral goes straight into its channels of the fused buffer.

Without a buffer to write into there is one more kernel, which brings the Slow channels there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ... import backends
from ..._triton import tiles
from ..._triton.launch import cdiv, launch, next_power_of_2
from .._memory import empty_channels_last, pixel_pitch, pixel_rows
from ..conv_bn_act3d import triton as conv
from .cpu import lateral_channels
from .reference import KINDS


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


def refuses(slow: torch.Tensor, fast: torch.Tensor, weight: torch.Tensor | None, *rest: object) -> str | None:
    """Why the Triton kernels cannot run this call, or None."""
    if fast.dtype != slow.dtype:
        return f"fast is {fast.dtype} but slow is {slow.dtype}"
    if slow.dtype not in conv.DTYPES:
        return f"slow is {slow.dtype}, the Triton kernels take float32, bfloat16 and float16"
    return None if weight is None else conv.refuses(fast, weight)


refuses_out = refuses


def write(
    fast: torch.Tensor,
    packed: conv.Packed | None,
    shift: torch.Tensor | None,
    alpha: int,
    kind: str,
    relu: bool,
    out: torch.Tensor,
    slow: torch.Tensor | None = None,
) -> None:
    """The lateral into ``out``, a channel slice of the fused buffer; for the sum ``slow`` plus it.

    packed, shift: of the convolution (`conv_bn_act3d.triton.pack`), None for other kinds.
    """
    if kind == "conv":
        assert packed is not None
        conv.run_packed(
            fast, packed, shift, out,
            stride=(alpha, 1, 1), padding=(packed.kernel[0] // 2, 0, 0), relu=relu,
        )  # fmt: skip
    else:
        gather(fast, out, alpha, 1 if kind == "time_sample" else alpha, slow)


def _pack(weight: torch.Tensor | None, scale: torch.Tensor | None, fast: torch.Tensor) -> conv.Packed | None:
    return None if weight is None else conv.pack(weight, scale, dtype=fast.dtype, fold=False)


def run(
    slow: torch.Tensor,
    fast: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    alpha: int,
    kind: int,
    relu: bool,
) -> torch.Tensor:
    name = KINDS[kind]
    n, cs, t, h, w = slow.shape
    cl = lateral_channels(fast.shape[1], weight, alpha, name)
    out = empty_channels_last(slow, [n, cs + cl, t, h, w])
    summed = name == "time_to_channel_sum"
    if not summed:
        gather(slow, out[:, :cs], 1, 1)
    target = out if summed else out[:, cs:]
    write(
        fast,
        _pack(weight, scale, fast),
        conv.float32(shift),
        alpha,
        name,
        relu,
        target,
        slow if summed else None,
    )
    return out


def run_out(
    out: torch.Tensor,
    fast: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    alpha: int,
    kind: int,
    relu: bool,
) -> None:
    name = KINDS[kind]
    summed = name == "time_to_channel_sum"
    cl = lateral_channels(fast.shape[1], weight, alpha, name)
    target = out if summed else out[:, out.shape[1] - cl :]
    write(
        fast,
        _pack(weight, scale, fast),
        conv.float32(shift),
        alpha,
        name,
        relu,
        target,
        out if summed else None,
    )
