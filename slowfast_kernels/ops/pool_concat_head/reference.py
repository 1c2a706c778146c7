"""Plain PyTorch ``pool_concat_head``: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .spec import HeadSpec


def _activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "softmax":
        return x.softmax(dim=-1)
    return x.sigmoid() if activation == "sigmoid" else x


def pool_concat_head_reference(slow: torch.Tensor, fast: torch.Tensor | None, spec: HeadSpec) -> torch.Tensor:
    wide = torch.float64 if slow.dtype == torch.float64 else torch.float32
    paths = [x.to(wide) for x in (slow, fast) if x is not None]
    if spec.pool_size:
        pooled = [F.avg_pool3d(x, (x.shape[2], *spec.pool_size), stride=1) for x in paths]
    else:
        pooled = [F.adaptive_avg_pool3d(x, 1) for x in paths]
    if spec.semantics == "mmaction2":
        pooled.reverse()
    features = torch.cat(pooled, dim=1).permute(0, 2, 3, 4, 1)  # [N, 1, H', W', C]
    bias = None if spec.bias is None else spec.bias.to(wide)
    logits = F.linear(features, spec.weight.to(wide), bias)
    if spec.per_position:
        return _activate(logits, spec.activation).mean(dim=(1, 2, 3))
    return _activate(logits.mean(dim=(1, 2, 3)), spec.activation)
