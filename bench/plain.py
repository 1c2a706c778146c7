"""The same layers as their users write them: torch's own modules and nothing of this library, for the peers.

They keep our weights, so that outputs can be compared, and use only operations that every exporter knows. A convolution
stands with its batch norm, or with that folded in; single ops have only the folded form.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels import nn as ours
from slowfast_kernels.bench import torchvision_ops
from slowfast_kernels.ops import BlockSpec, ConvSpec, LateralSpec, StemSpec
from slowfast_kernels.ops._cases import call_of
from slowfast_kernels.ops.roi_align3d.spec import RoIAlignSpec
from slowfast_kernels.ops.roi_head_pool.spec import RoIPoolSpec


def folded_conv(spec: ConvSpec) -> nn.Conv3d:
    """A convolution with its per-channel affine folded in, in the weight's dtype."""
    weight, _, shift = spec.conv
    cout, cin = weight.shape[:2]
    conv = nn.Conv3d(
        cin, cout, spec.conv.kernel, spec.stride, spec.padding, spec.dilation, bias=shift is not None
    )
    conv.weight = nn.Parameter(spec.conv.folded().to(weight.dtype))
    if shift is not None:
        conv.bias = nn.Parameter(shift.detach().to(weight.dtype))
    return conv


def _with_norm(source: Any) -> nn.Module:
    """The convolution of a block with `conv` and `bn`, and its batch norm behind it."""
    old, bn = source.conv, source.bn
    conv = nn.Conv3d(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, bias=False
    )
    conv.weight = nn.Parameter(old.weight.detach().clone())
    if bn is None:
        return conv
    norm = nn.BatchNorm3d(bn.num_features, bn.eps)
    norm.load_state_dict(bn.state_dict())
    return nn.Sequential(conv, norm)


class Conv(nn.Module):
    """Convolution, plus what is given beside, ReLU."""

    def __init__(self, conv: nn.Module, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if residual is not None:
            y = y + residual
        return F.relu(y, inplace=True) if self.relu else y


class Stem(Conv):
    """Convolution, ReLU, max-pool."""

    def __init__(self, conv: nn.Module, relu: bool, pool: nn.Module) -> None:
        super().__init__(conv, relu)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.pool(super().forward(x))


class Block(nn.Module):
    """Bottleneck with in-place ReLUs, as PySlowFast's and torchvision's."""

    def __init__(self, a: nn.Module, b: nn.Module, c: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.a, self.b, self.c, self.shortcut = a, b, c, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x), inplace=True)), inplace=True)
        return F.relu(self.c(y) + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class Lateral(Conv):
    """Time-strided convolution of the Fast features, ReLU, concatenation."""

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([slow, super().forward(fast)], dim=1)


class SlowFast(nn.Module):
    """Two pathways, four lateral connections, average pool, concatenation, linear: logits [N, classes].

    forward(slow, fast) takes the clips as two arguments, as exporters want them.
    """

    def __init__(self, source: Any, fold: bool = False) -> None:
        super().__init__()
        if source.config.pathways != ("slow", "fast"):
            raise ValueError(f"peers are built for two pathways, got {source.config.pathways}")
        stages = (source.res2, source.res3, source.res4, source.res5)
        self.stems = nn.ModuleList(plain(source.stem[p], fold) for p in ("slow", "fast"))
        self.laterals = nn.ModuleList(plain(part, fold) for part in source.lateral)
        self.slow_stages = nn.ModuleList(plain(stage["slow"], fold) for stage in stages)
        self.fast_stages = nn.ModuleList(plain(stage["fast"], fold) for stage in stages)
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
        return self.head(slow, fast)

    def head(self, slow: Tensor, fast: Tensor) -> Tensor:
        """Logits from the last stage's maps."""
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


class RoIAlign(nn.Module):
    """torchvision's RoIAlign of every frame: rois [K, 5], or a box for each frame, [K, T, 5]."""

    def __init__(self, bins: tuple[int, int], scale: float, ratio: int, aligned: bool) -> None:
        super().__init__()
        self.options = bins, scale, ratio, aligned

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        n, c, t, h, w = x.shape
        boxes = rois if rois.dim() == 3 else rois[:, None].expand(-1, t, -1)
        frame = boxes[..., :1] * t + torch.arange(t)[:, None]
        flat = torch.cat([frame, boxes[..., 1:]], -1).reshape(-1, 5)
        y = torchvision_ops.roi_align(x.transpose(1, 2).reshape(n * t, c, h, w), flat, *self.options)
        return y.view(-1, t, c, *y.shape[-2:]).transpose(1, 2)


class RoIHead(nn.Module):
    """Mean (or maximum) over time, torchvision's RoIAlign, maximum over the bins, both pathways together."""

    def __init__(self, bins: tuple[int, int], scale: float, ratio: int, aligned: bool, temporal: str) -> None:
        super().__init__()
        self.options, self.temporal = (bins, scale, ratio, aligned), temporal

    def forward(self, *inputs: Tensor) -> Tensor:
        *maps, rois = inputs
        flat = [x.mean(2) if self.temporal == "mean" else x.amax(2) for x in maps]
        pooled = [torchvision_ops.roi_align(x, rois, *self.options).amax((-2, -1)) for x in flat]
        return torch.cat(pooled, 1)


def plain(source: nn.Module, fold: bool = False) -> nn.Module:
    """A stem, a lateral connection, a bottleneck block or a sequence of them, in eval mode."""
    module: nn.Module
    if isinstance(source, nn.Sequential):
        module = nn.Sequential(*(plain(part, fold) for part in source))
    elif not isinstance(source, ours.Stem | ours.Bottleneck) and getattr(source, "conv", None) is None:
        kind = f"of kind {source.kind!r}" if isinstance(source, ours.Lateral) else ""
        raise ValueError(
            "peers are built for stems, bottleneck blocks and laterals of kind 'conv', got a "
            f"{type(source).__name__} {kind}".rstrip()
        )
    elif fold:
        module = _module(source.spec())  # type: ignore[operator,assignment]
    elif isinstance(source, ours.Bottleneck):
        parts = (source.a, source.b, source.c, source.shortcut)
        module = Block(*(None if part is None else _with_norm(part) for part in parts))  # type: ignore[arg-type]
    elif isinstance(source, ours.Stem):
        pool = nn.MaxPool3d((1, 3, 3), (source.pool_stride, 2, 2), (0, 1, 1))
        module = Stem(_with_norm(source), source.activation == "relu", pool)
    else:
        module = Lateral(_with_norm(source), source.activation == "relu")
    return module.eval()


def op_module(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, list[Tensor]] | None:
    """A call as (module in eval mode, inputs), or None where the reference is the only torch form there is.

    RoI ops come out on torchvision's operator, for the peer of that name."""
    call = call_of(op, args, kwargs)
    if call is None:
        return None
    called, inputs, spec = call
    module = _module(spec)
    if called.name == "lateral_fusion_out":  # the Slow maps lie in the result
        inputs[0] = args[0]
    return None if module is None else (module.eval(), [x for x in inputs if isinstance(x, Tensor)])


def _module(spec: Any) -> nn.Module | None:
    if isinstance(spec, ConvSpec):
        return Conv(folded_conv(spec), spec.relu)
    if isinstance(spec, StemSpec):
        pool = nn.Identity() if spec.pool is None else nn.MaxPool3d(*spec.pool)
        return Stem(folded_conv(spec.full), spec.relu, pool)
    if isinstance(spec, BlockSpec):
        a, b, c = (folded_conv(part) for part in (*spec.inner, spec.last))
        return Block(a, b, c, None if spec.projection is None else folded_conv(spec.projection))
    if isinstance(spec, LateralSpec) and spec.conv is not None:
        return Lateral(folded_conv(spec.full), spec.activation == "relu")
    if isinstance(spec, RoIAlignSpec) and not spec.volume:
        return RoIAlign(spec.bins(1)[1:], spec.spatial_scale, spec.sampling_ratio, spec.aligned)
    if isinstance(spec, RoIPoolSpec):
        return RoIHead(
            spec.align.bins(1)[1:], spec.spatial_scale, spec.sampling_ratio, spec.aligned, spec.temporal
        )
    return None
