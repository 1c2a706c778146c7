"""A SlowFast as its users write it: torch's own layers and nothing of this library.

The benchmark's peers run this twin of one of our models: eager, compiled, exported to ONNX Runtime and
OpenVINO. It keeps our weights, so outputs can be compared, and uses only operations every exporter knows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels.nn import Bottleneck, ConvBN, Lateral, Stage, Stem


def _fold(conv: nn.Conv3d, bn: nn.BatchNorm3d) -> nn.Conv3d:
    return torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), bn.eval())


def _conv(source: Any, fold: bool) -> nn.Module:
    """Convolution and batch norm of a block with `conv` and `bn`, together or folded into one convolution."""
    old, bn = source.conv, source.bn
    conv = nn.Conv3d(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, bias=False
    )
    conv.weight = nn.Parameter(old.weight.detach().clone())
    if bn is None:
        return conv
    norm = nn.BatchNorm3d(bn.num_features, bn.eps)
    norm.load_state_dict(bn.state_dict())
    return _fold(conv, norm) if fold else nn.Sequential(conv, norm)


class PlainStem(nn.Module):
    """conv, batch norm, ReLU, max-pool."""

    def __init__(self, source: Stem, fold: bool) -> None:
        super().__init__()
        self.conv = _conv(source, fold)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool3d((1, 3, 3), (source.pool_stride, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.conv(x)))


class PlainBlock(nn.Module):
    """Bottleneck with an in-place ReLU, as PySlowFast's and torchvision's."""

    def __init__(self, source: Bottleneck, fold: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (_conv(part, fold) for part in (source.a, source.b, source.c))
        self.shortcut = None if source.shortcut is None else _conv(source.shortcut, fold)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.a(x))
        y = self.relu(self.b(y))
        y = self.c(y)
        return self.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class PlainLateral(nn.Module):
    """Time-strided convolution of the Fast features, batch norm, ReLU, concatenation."""

    def __init__(self, source: Lateral, fold: bool) -> None:
        super().__init__()
        if source.conv is None:
            raise ValueError(f"peers are built for lateral kind 'conv', got {source.kind!r}")
        self.conv = _conv(source, fold)
        self.relu = nn.ReLU(inplace=True) if source.relu else nn.Identity()

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([slow, self.relu(self.conv(fast))], dim=1)


def plain_stage(source: Stage, fold: bool = False) -> nn.Sequential:
    """The bottlenecks of one stage of one pathway."""
    blocks = []
    for block in source:
        if not isinstance(block, Bottleneck):
            raise ValueError(f"peers are built for bottleneck blocks, got {type(block).__name__}")
        blocks.append(PlainBlock(block, fold))
    return nn.Sequential(*blocks).eval()


def plain_lateral(source: Lateral, fold: bool = False) -> PlainLateral:
    """One lateral connection."""
    return PlainLateral(source, fold).eval()


class PlainSlowFast(nn.Module):
    """Two pathways, four lateral connections, average pool, concatenation, linear: logits [N, classes].

    forward(slow, fast) takes the clips as two arguments, as exporters want them.
    """

    def __init__(self, source: Any, fold: bool = False) -> None:
        super().__init__()
        if source.config.pathways != ("slow", "fast"):
            raise ValueError(f"peers are built for two pathways, got {source.config.pathways}")
        self.stems = nn.ModuleList(PlainStem(source.stem[p], fold) for p in ("slow", "fast"))
        self.laterals = nn.ModuleList(PlainLateral(part, fold) for part in source.lateral)
        stages = (source.res2, source.res3, source.res4, source.res5)
        self.slow_stages = nn.ModuleList(plain_stage(stage["slow"], fold) for stage in stages)
        self.fast_stages = nn.ModuleList(plain_stage(stage["fast"], fold) for stage in stages)
        head = source.head
        self.window = head.pool
        self.swapped = head.semantics == "mmaction2"
        self.proj = nn.Linear(head.proj.in_features, head.proj.out_features)
        self.proj.load_state_dict(head.proj.state_dict())
        self.eval()

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        slow, fast = self.stems[0](slow), self.stems[1](fast)
        for lateral, slow_stage, fast_stage in zip(
            self.laterals, self.slow_stages, self.fast_stages, strict=True
        ):
            slow, fast = slow_stage(lateral(slow, fast)), fast_stage(fast)
        pooled = [self._pool(slow), self._pool(fast)]
        if self.swapped:
            pooled.reverse()
        x = torch.cat(pooled, dim=1).permute(0, 2, 3, 1)
        return self.proj(x).mean(dim=(1, 2))

    def _pool(self, x: Tensor) -> Tensor:
        """Mean over all frames and a sliding window of cells, [N, C, positions, positions]. Written without
        avg_pool3d, which torch has no bf16 kernel for on the CPU."""
        x = x.mean(dim=2)
        return x.mean(dim=(2, 3), keepdim=True) if self.window is None else F.avg_pool2d(x, self.window, 1)


def trained_like(model: Any, seed: int = 0, crop: int = 64) -> Any:
    """The model with batch norms as after training: running statistics that fit its activations, and weights
    that are neither one nor zero. In eval mode afterwards.

    A fresh network ends every residual branch with a zero weight: what happens inside would not reach the
    outputs, and a parity check would see nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    last = {id(m.last.bn) for m in model.modules() if hasattr(m, "last") and isinstance(m.last, ConvBN)}
    with torch.no_grad():
        for bn in norms:
            top = 0.6 if id(bn) in last else 1.4
            bn.weight.copy_(uniform(bn.weight, 0.5 * top, top))
            bn.bias.copy_(uniform(bn.bias, -0.3, 0.3))
            bn.reset_running_stats()
        momentum = [bn.momentum for bn in norms]
        for bn in norms:
            bn.momentum = None  # the running statistics become those of this one batch
        config = model.config
        clips = []
        for p in config.pathways:
            shape = (1, config.pathway(p).in_channels, config.frames_of(p), crop, crop)
            clips.append(torch.randn(shape, generator=generator))
        model.train()
        model.forward_features(clips if len(clips) > 1 else clips[0])
        for bn, value in zip(norms, momentum, strict=True):
            bn.momentum = value
    return model.eval()
