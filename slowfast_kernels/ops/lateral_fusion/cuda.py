"""The CUDA provider: one kernel from the Fast clip to the lateral's channels of the fused buffer.

Without a buffer to write into there is one more kernel, which brings the Slow channels there. float32 is multiplied
as ``precision.fp32_mode()`` says: on the matrix units for "tf32", exactly for every other mode.
"""

from __future__ import annotations

import torch

from ... import precision
from .._memory import empty_channels_last, pixel_rows
from .._registration import define_native, float32
from ..roi_align3d.cuda import DTYPES
from .cpu import lateral_channels
from .reference import KINDS

define_native(
    "_lateral_cuda(Tensor fast, Tensor weight, Tensor? scale, Tensor? shift, int alpha, bool relu, bool tf32,"
    " Tensor(a!) out) -> ()"
)
define_native("_lateral_gather_cuda(Tensor x, Tensor? base, int alpha, int groups, Tensor(a!) out) -> ()")


def refuses(slow: torch.Tensor, fast: torch.Tensor, weight: torch.Tensor | None, *rest: object) -> str | None:
    """Why the CUDA kernels cannot run this call, or None."""
    if fast.dtype != slow.dtype:
        return f"fast is {fast.dtype} but slow is {slow.dtype}"
    if slow.dtype not in DTYPES:
        return f"slow is {slow.dtype}, the CUDA kernels take float32, bfloat16 and float16"
    if weight is not None and weight.dtype != fast.dtype:
        return f"weight is {weight.dtype} but fast is {fast.dtype}"
    return None


refuses_out = refuses


def pack(weight: torch.Tensor, scale: torch.Tensor | None = None, *, dtype: torch.dtype) -> torch.Tensor:
    """Weights [Cl, Cf, kt, 1, 1], times scale [Cl], as the kernel reads them: [Cl, kt, Cf] in the compute type."""
    w = weight.detach()
    if scale is not None:
        w = w.float() * scale.detach().float().view(-1, 1, 1, 1, 1)
    return w.flatten(2).transpose(1, 2).to(dtype).contiguous()


def run_packed(
    fast: torch.Tensor,
    packed: torch.Tensor,
    shift: torch.Tensor | None,
    out: torch.Tensor,
    *,
    alpha: int,
    relu: bool = True,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The lateral convolution into ``out``, [N, Cl, T, H, W], a channel slice of the fused buffer.

    fast: [N, Cf, alpha * T, H, W]; packed: of `pack`; shift, scale: float32 [Cl] or None.
    """
    tf32 = precision.fp32_mode() == "tf32"
    torch.ops.slowfast._lateral_cuda(pixel_rows(fast)[0], packed, scale, shift, alpha, relu, tf32, out)
    return out


def write(
    fast: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    alpha: int,
    kind: str,
    relu: bool,
    out: torch.Tensor,
    slow: torch.Tensor | None = None,
) -> None:
    """The lateral into ``out``, a channel slice of the fused buffer; for the sum ``slow`` plus it."""
    if kind == "conv":
        assert weight is not None
        run_packed(
            fast,
            pack(weight, dtype=fast.dtype),
            float32(shift),
            out,
            alpha=alpha,
            relu=relu,
            scale=float32(scale),
        )
    else:
        groups = 1 if kind == "time_sample" else alpha
        base = None if slow is None else pixel_rows(slow)[0]
        torch.ops.slowfast._lateral_gather_cuda(pixel_rows(fast)[0], base, alpha, groups, out)


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
    out = empty_channels_last(slow, [n, cs + lateral_channels(fast.shape[1], weight, alpha, name), t, h, w])
    if name == "time_to_channel_sum":
        write(fast, weight, scale, shift, alpha, name, relu, out, slow)
    else:
        torch.ops.slowfast._lateral_gather_cuda(pixel_rows(slow)[0], None, 1, 1, out[:, :cs])
        write(fast, weight, scale, shift, alpha, name, relu, out[:, cs:])
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
    write(fast, weight, scale, shift, alpha, name, relu, target, out if summed else None)
