"""The C++ provider: both pathways pooled into one row per window, then the classifier."""

from __future__ import annotations

import torch

from .._dtypes import FLOATS, refused
from .._memory import pixel_rows
from .._registration import define_native, float32
from .spec import ACTIVATIONS, HeadSpec

# Scores into out[N, classes], float32. pool_h = pool_w = 0: the whole map. activation: 0 none, 1 softmax,
# 2 sigmoid, of every window's logits (per_position) or of their mean. workspace: float32, or None.
define_native(
    "_pool_head_run_cpu(Tensor slow, Tensor? fast, Tensor weight, Tensor? bias, int pool_h, int pool_w,"
    " bool fast_first, int activation, bool per_position, Tensor(a!)? workspace, Tensor(b!) out) -> ()"
)


def refuses(slow: torch.Tensor, fast: torch.Tensor | None, spec: HeadSpec) -> str | None:
    """Why the C++ kernels cannot run this call, or None."""
    for x in (slow, fast, spec.weight):
        if x is not None and (reason := refused(x.dtype, FLOATS, "C++")):
            return reason
    return None


def run(slow: torch.Tensor, fast: torch.Tensor | None, spec: HeadSpec) -> torch.Tensor:
    out = slow.new_empty(spec.out_shape(slow.shape), dtype=torch.float32)
    pool_h, pool_w = spec.pool_size or (0, 0)
    torch.ops.slowfast._pool_head_run_cpu(
        pixel_rows(slow)[0],
        None if fast is None else pixel_rows(fast)[0],
        spec.weight.contiguous(),
        float32(spec.bias),
        pool_h,
        pool_w,
        spec.semantics == "mmaction2",
        ACTIVATIONS.index(spec.activation),
        spec.per_position,
        None,
        out,
    )
    return out
