"""Single ops as plain torch modules with folded weights, for the peers: what a user's network holds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels.bench import torchvision_ops
from slowfast_kernels.ops._registration import as_triple


def folded_conv(
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> nn.Conv3d:
    """Convolution with a per-channel affine folded in, in the weight's dtype."""
    cout, cin, *kernel = weight.shape
    s, p, d = (as_triple(v, "") for v in (stride, padding, dilation))
    conv = nn.Conv3d(cin, cout, tuple(kernel), tuple(s), tuple(p), tuple(d), bias=shift is not None)  # type: ignore[arg-type]
    wide = weight.detach().float()
    if scale is not None:
        wide = wide * scale.float().view(-1, 1, 1, 1, 1)
    conv.weight = nn.Parameter(wide.to(weight.dtype))
    if shift is not None:
        conv.bias = nn.Parameter(shift.detach().to(weight.dtype))
    return conv


class _Conv(nn.Module):
    def __init__(self, conv: nn.Conv3d, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if residual is not None:
            y = y + residual
        return F.relu(y, inplace=True) if self.relu else y


class _Stem(nn.Module):
    def __init__(self, conv: nn.Conv3d, relu: bool, pool: bool) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = conv, relu, pool

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = F.relu(y, inplace=True) if self.relu else y
        return F.max_pool3d(y, (1, 3, 3), (1, 2, 2), (0, 1, 1)) if self.pool else y


class _Block(nn.Module):
    def __init__(self, a: nn.Conv3d, b: nn.Conv3d, c: nn.Conv3d, shortcut: nn.Conv3d | None) -> None:
        super().__init__()
        self.a, self.b, self.c, self.shortcut = a, b, c, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x), inplace=True)), inplace=True)
        return F.relu(self.c(y) + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class _Lateral(nn.Module):
    def __init__(self, conv: nn.Conv3d, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        y = self.conv(fast)
        return torch.cat([slow, F.relu(y, inplace=True) if self.relu else y], dim=1)


class _RoIAlign(nn.Module):
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


class _RoIHead(nn.Module):
    """Mean (or maximum) over time, torchvision's RoIAlign, maximum over the bins, both pathways together."""

    def __init__(self, bins: tuple[int, int], scale: float, ratio: int, aligned: bool, temporal: str) -> None:
        super().__init__()
        self.options, self.temporal = (bins, scale, ratio, aligned), temporal

    def forward(self, *inputs: Tensor) -> Tensor:
        *maps, rois = inputs
        flat = [x.mean(2) if self.temporal == "mean" else x.amax(2) for x in maps]
        pooled = [torchvision_ops.roi_align(x, rois, *self.options).amax((-2, -1)) for x in flat]
        return torch.cat(pooled, 1)


def _conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    relu: bool = True,
) -> tuple[nn.Module, list[Tensor]]:
    module = _Conv(folded_conv(weight, scale, shift, stride, padding, dilation), relu)
    return module, [x] if residual is None else [x, residual]


def _stem(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    stride: Any = (1, 2, 2),
    relu: bool = True,
    pool: bool = True,
) -> tuple[nn.Module, list[Tensor]]:
    padding = [k // 2 for k in weight.shape[2:]]
    return _Stem(folded_conv(weight, scale, shift, stride, padding), relu, pool), [x]


def _bottleneck(
    x: Tensor, *parts: Tensor | None, stride: int = 1, dilation: int = 1
) -> tuple[nn.Module, list[Tensor]]:
    (wa, sa, ta, wb, sb, tb, wc, sc, tc), rest = parts[:9], [*parts[9:], None, None, None]
    assert wa is not None and wb is not None and wc is not None
    a = folded_conv(wa, sa, ta, 1, (wa.shape[2] // 2, 0, 0))
    b = folded_conv(wb, sb, tb, (1, stride, stride), (0, dilation, dilation), (1, dilation, dilation))
    shortcut = None if rest[0] is None else folded_conv(rest[0], rest[1], rest[2], (1, stride, stride))
    return _Block(a, b, folded_conv(wc, sc, tc), shortcut), [x]


def _lateral(
    slow: Tensor,
    fast: Tensor,
    weight: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    alpha: int,
    kind: str = "conv",
    relu: bool = True,
) -> tuple[nn.Module, list[Tensor]] | None:
    if kind != "conv" or weight is None:
        return None
    conv = folded_conv(weight, scale, shift, (alpha, 1, 1), (weight.shape[2] // 2, 0, 0))
    return _Lateral(conv, relu), [slow, fast]


def _roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: Any = (7, 7),
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: str = "frame",
) -> tuple[nn.Module, list[Tensor]] | None:
    if mode == "volume":
        return None
    return _RoIAlign(_bins(output_size), spatial_scale, sampling_ratio, aligned), [features, rois]


def _roi_head(
    slow: Tensor,
    fast: Tensor | None,
    rois: Tensor,
    output_size: Any = 7,
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 0,
    aligned: bool = True,
    temporal: str = "mean",
) -> tuple[nn.Module, list[Tensor]]:
    module = _RoIHead(_bins(output_size), spatial_scale, sampling_ratio, aligned, temporal)
    return module, [x for x in (slow, fast, rois) if x is not None]


def _bins(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


_MODULES: dict[str, Callable[..., tuple[nn.Module, list[Tensor]] | None]] = {
    "conv_bn_act3d": _conv,
    "stem3d": _stem,
    "bottleneck3d": _bottleneck,
    "lateral_fusion": _lateral,
    "roi_align3d": _roi_align,
    "roi_head_pool": _roi_head,
}


def op_module(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, list[Tensor]] | None:
    """A call as (module in eval mode, inputs), or None where the reference is the only torch form there is.

    RoI ops come out on torchvision's operator, for the peer of that name."""
    make = _MODULES.get(op)
    made = None if make is None else make(*args, **kwargs)
    return None if made is None else (made[0].eval(), made[1])
