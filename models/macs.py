"""Multiply-adds of a model, the number that papers print as "GFLOPs"."""

import copy
import math

import torch
from torch import Tensor, nn

from slowfast_kernels.models.slowfast import SlowFast
from slowfast_kernels.nn import RoIHead


def macs(model: SlowFast, frames: int, crop: int | tuple[int, int]) -> int:
    """Multiply-adds of the convolutions and linear layers for one clip (and one box with a detection head).

    model: one that `create` made. frames: length of the clip of the densest pathway. crop: side of the frames
    in pixels, or (height, width). One multiply-add counts once; batch norm, ReLU, pooling and additions do
    not count, as in the papers' tables; the classifier counts where the model returns scores. Nothing is
    computed: a copy without storage is run for its shapes, and the model is left alone. Raises ValueError where
    the model would (frames not a multiple of alpha, frames below the head's window).
    """
    height, width = (crop, crop) if isinstance(crop, int) else crop
    shapes = _without_storage(model)
    config = shapes.config
    if frames % config.input.alpha:
        raise ValueError(f"frames: expected a multiple of alpha={config.input.alpha}, got {frames}")
    lengths = {"slow": frames // config.input.alpha, "fast": frames}
    clips = [
        torch.empty(1, config.pathway(name).in_channels, lengths[name], height, width, device="meta")
        for name in config.pathways
    ]
    total = 0

    def count(layer: nn.Conv3d | nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * math.prod(layer.weight.shape[1:])

    for layer in shapes.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            layer.register_forward_hook(count)
    features = shapes.forward_features(clips)
    if config.head.output != "scores":
        return total
    if isinstance(shapes.head, RoIHead):
        shapes.head.proj(torch.empty(1, shapes.head.proj.in_features, device="meta"))
    else:
        shapes.head(features)
    return total


def _without_storage(model: SlowFast) -> SlowFast:
    """A copy on the meta device, set up so that a forward pass calls every layer as a module."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(t): torch.empty_like(t, device="meta", dtype=_real(t)) for t in tensors}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(memo[id(p)])
    shapes = copy.deepcopy(model, memo).train()
    for module in shapes.modules():
        if isinstance(module, nn.BatchNorm3d | nn.Dropout):
            module.eval()  # batch statistics would refuse a single value per channel
    return shapes


def _real(t: Tensor) -> torch.dtype:
    """float32 whatever the model's precision, to go with the clips."""
    return torch.float32 if t.is_floating_point() else t.dtype
