"""``slowfast::lateral_fusion`` and its in-place form ``slowfast::lateral_fusion_out``."""

from __future__ import annotations

import torch

from ...backends import Provider, lazy
from .._memory import empty_channels_last
from .._registration import register
from .reference import lateral_fusion_reference
from .spec import LateralSpec

PROVIDERS = {name: lazy(__package__, name) for name in ("cpu", "triton", "cuda")}

OP = register(
    "lateral_fusion",
    "Tensor slow, Tensor fast",
    LateralSpec,
    reference=lateral_fusion_reference,
    fake=lambda slow, fast, spec: empty_channels_last(slow, spec.out_shape(slow.shape, fast.shape)),
    providers=PROVIDERS,
    autocast=("slow", "fast"),
)


def _reference_out(out: torch.Tensor, fast: torch.Tensor, spec: LateralSpec) -> None:
    slow = out[:, : out.shape[1] - spec.added(fast.shape[1])]
    out.copy_(lateral_fusion_reference(slow, fast, spec))


def _in_place(provider: Provider) -> Provider:
    """The same provider where the Slow maps lie in the result already."""
    assert provider.prepare is not None
    prepare = provider.prepare

    def run(out: torch.Tensor, fast: torch.Tensor, spec: LateralSpec) -> None:
        prepare(spec, fast.dtype, fast.device, once=True).in_place(out, fast)  # type: ignore[attr-defined]

    return Provider(run, provider.refuses)


OP_OUT = register(
    "lateral_fusion_out",
    "Tensor(a!) out, Tensor fast",
    LateralSpec,
    "()",
    reference=_reference_out,
    fake=lambda *args: None,
    providers={name: _in_place(provider) for name, provider in PROVIDERS.items()},
    cost=lambda out, fast, spec: spec.cost_in_place(out, fast),
    mutates=True,
)
