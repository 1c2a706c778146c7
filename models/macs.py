"""Multiply-adds of a model, the number that papers print as "GFLOPs"."""

import torch

from slowfast_kernels.models.slowfast import SlowFast


def macs(model: SlowFast, frames: int, crop: int | tuple[int, int]) -> int:
    """Multiply-adds of the convolutions and linear layers for one clip (and one box with a detection head).

    model: one that `create` made. frames: length of the clip of the densest pathway. crop: side of the frames
    in pixels, or (height, width). One multiply-add counts once; batch norm, ReLU, pooling and additions do
    not count, as in the papers' tables; the classifier counts where the model returns scores. Nothing is
    computed: the numbers follow from the shapes of the model's graph. Raises ValueError where the model would
    (frames not a multiple of alpha, frames below the head's window).
    """
    from slowfast_kernels.graph.shapes import flops, infer
    from slowfast_kernels.graph.trace import trace

    height, width = (crop, crop) if isinstance(crop, int) else crop
    config = model.config
    if frames % config.input.alpha:
        raise ValueError(f"frames: expected a multiple of alpha={config.input.alpha}, got {frames}")
    lengths = {"slow": frames // config.input.alpha, "fast": frames}
    clips = [
        torch.empty(1, config.pathway(name).in_channels, lengths[name], height, width, device="meta")
        for name in config.pathways
    ]
    boxes = [torch.empty(1, 5, device="meta")] if config.head.takes_rois else []
    args = clips if len(clips) > 1 else clips[0], *boxes
    model.arguments(*args)
    graph = trace(model, args)
    metas = infer(graph, [*clips, *boxes], torch.float32)
    total = flops(graph, metas) // 2
    if config.head.output != "scores":
        return total
    (head,) = graph.outputs()
    maps = [metas[node] for node in head.inputs if metas[node].dim() == 5]
    return total + model.head.positions(maps) * model.head.proj.weight.numel()
