"""The C++ provider: both pathways pooled into one row per window, then the classifier."""

from __future__ import annotations

import torch

from .._memory import pixel_rows
from .._registration import define_native

# Scores into out[N, classes], float32. pool_h = pool_w = 0: the whole map. activation: 0 none, 1 softmax,
# 2 sigmoid, of every window's logits (per_position) or of their mean. workspace: see workspace_size.
define_native(
    "_pool_head_run_cpu(Tensor slow, Tensor? fast, Tensor weight, Tensor? bias, int pool_h, int pool_w,"
    " bool fast_first, int activation, bool per_position, Tensor(a!)? workspace, Tensor(b!) out) -> ()"
)

ACTIVATIONS = ("none", "softmax", "sigmoid")  # the index is the native kernel's enumeration
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def workspace_size(
    slow: torch.Tensor, fast: torch.Tensor | None, classes: int, pool_size: list[int], per_position: bool
) -> int:
    """float32 values of workspace that always suffice for a call of ``_pool_head_run_cpu``."""
    channels = slow.shape[1] + (0 if fast is None else fast.shape[1])
    windows = 1
    if pool_size and per_position:
        windows = (slow.shape[3] - pool_size[0] + 1) * (slow.shape[4] - pool_size[1] + 1)
    return slow.shape[0] * windows * (channels + classes)


def refuses(slow: torch.Tensor, fast: torch.Tensor | None, weight: torch.Tensor, *rest: object) -> str | None:
    """Why the C++ kernels cannot run this call, or None."""
    for name, x in (("slow", slow), ("fast", fast), ("weight", weight)):
        if x is not None and x.dtype not in DTYPES:
            return f"{name} is {x.dtype}, the C++ kernels take float32, bfloat16 and float16"
    return None


def run(
    slow: torch.Tensor,
    fast: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pool_size: list[int],
    semantics: str,
    activation: str,
) -> torch.Tensor:
    out = slow.new_empty((slow.shape[0], weight.shape[0]), dtype=torch.float32)
    pool_h, pool_w = pool_size or (0, 0)
    torch.ops.slowfast._pool_head_run_cpu(
        pixel_rows(slow)[0],
        None if fast is None else pixel_rows(fast)[0],
        weight.contiguous(),
        None if bias is None else bias.float().contiguous(),
        pool_h,
        pool_w,
        semantics == "mmaction2",
        ACTIVATIONS.index(activation),
        semantics == "pyslowfast",
        None,
        out,
    )
    return out
