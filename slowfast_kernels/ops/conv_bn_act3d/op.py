"""``slowfast::conv_bn_act3d`` and its in-place form ``slowfast::conv_bn_act3d_out``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...backends import Provider, lazy
from .._conv3d import conv3d_gradients
from .._memory import empty_channels_last
from .._registration import register
from .reference import conv_bn_act3d_reference
from .spec import ConvSpec

PROVIDERS = {name: lazy(__package__, name) for name in ("cpu", "triton")}


def _vjp(
    grad: torch.Tensor, needs: Sequence[bool], x: torch.Tensor, residual: torch.Tensor | None, spec: ConvSpec
) -> list[torch.Tensor] | None:
    """Gradients of a bare convolution, as training makes them; of others the reference knows."""
    weight, scale, shift = spec.conv
    if residual is not None or scale is not None or shift is not None or spec.activation != "none":
        return None
    settings = (spec.stride, spec.padding, spec.dilation, spec.groups)
    found = conv3d_gradients(grad, x, weight, *settings, (needs[0], needs[2]))
    return [g for g in found if g is not None]


OP = register(
    "conv_bn_act3d",
    "Tensor x, Tensor? residual",
    ConvSpec,
    reference=conv_bn_act3d_reference,
    fake=lambda x, residual, spec: empty_channels_last(x, spec.out_shape(x.shape)),
    providers=PROVIDERS,
    autocast=("x", "residual"),
    vjp=_vjp,
)


def _slice(out: torch.Tensor, offset: int, spec: ConvSpec) -> torch.Tensor:
    return out.narrow(1, offset, spec.conv.weight.shape[0])


def _reference_out(
    x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor, offset: int, spec: ConvSpec
) -> None:
    _slice(out, offset, spec).copy_(conv_bn_act3d_reference(x, residual, spec))


def _in_place(provider: Provider) -> Provider:
    """The same provider, writing into channels of a buffer."""
    assert provider.prepare is not None
    prepare = provider.prepare

    def run(x: Any, residual: Any, out: torch.Tensor, offset: int, spec: ConvSpec) -> None:
        prepare(spec, x.dtype, x.device, once=True).run(x, residual, out=_slice(out, offset, spec))

    def refuses(x: Any, residual: Any, out: torch.Tensor, offset: int, spec: ConvSpec) -> str | None:
        if out.dtype != x.dtype:
            return f"out is {out.dtype} but x is {x.dtype}"
        if not out.is_contiguous(memory_format=torch.channels_last_3d):
            return "out is not channels_last_3d"
        return provider.refuses(x, residual, spec)

    return Provider(run, refuses)


OP_OUT = register(
    "conv_bn_act3d_out",
    "Tensor x, Tensor? residual, Tensor(a!) out, int channel_offset",
    ConvSpec,
    "()",
    reference=_reference_out,
    fake=lambda *args: None,
    providers={name: _in_place(provider) for name, provider in PROVIDERS.items()},
    cost=lambda x, residual, out, offset, spec: spec.cost(x, residual),
    mutates=True,
)
