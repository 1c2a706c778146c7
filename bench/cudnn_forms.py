"""PyTorch's own ways to use cuDNN well, as the GPU's peers: convolutions on 2-D views, and with fused epilogues.

views_2d    every convolution and pool that allows it as a 2-D one on a free view of the memory: 1xkxk on
            [N*T, C, H, W], kx1x1 on [N, C, T, H*W]. cuDNN's best engines are 2-D.
fused       batch norms folded, the same views, ``cudnn_convolution_relu`` and ``cudnn_convolution_add_relu``
            wherever they beat the convolution followed by the rest, which the first call times.

Modules come from ``bench.plain``. Where there is no cuDNN the fused form computes the same with separate layers, so
that it can be checked anywhere.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels import autotune
from slowfast_kernels.bench import plain
from slowfast_kernels.ops._spec import as_triple

# --- convolutions as 2-D ones ------------------------------------------------------------------------------


def _rows(x: Tensor) -> Tensor:
    """[N, C, T, H, W] in channels_last_3d memory as [N, T, H, W, C], contiguous (a copy only where it is not)."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


class View:
    """How a 3-D convolution is a 2-D one on a view of channels-last memory.

    kind: "space" for 1xkxk (frames become part of the batch), "time" for kx1x1 without stride in space (all
    pixels become one axis), None where neither fits.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        kernel, stride, padding, dilation = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        assert not isinstance(padding, str)
        self.kind: str | None = None
        self.weight = conv.weight
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        if kernel[0] == 1 and stride[0] == 1 and padding[0] == 0:
            self.kind = "space"
            self.weight = nn.Parameter(conv.weight.detach()[:, :, 0], requires_grad=False)
            self.stride, self.padding, self.dilation = stride[1:], padding[1:], dilation[1:]
        elif kernel[1:] == (1, 1) and stride[1:] == (1, 1) and padding[1:] == (0, 0):
            self.kind = "time"
            self.weight = nn.Parameter(conv.weight.detach()[..., 0], requires_grad=False)
            self.stride, self.padding, self.dilation = (stride[0], 1), (padding[0], 0), (dilation[0], 1)
        memory = torch.channels_last_3d if self.kind is None else torch.channels_last
        self.weight.data = self.weight.detach().contiguous(memory_format=memory)

    def enter(self, x: Tensor) -> Tensor:
        """[N, C, T, H, W] as the 2-D convolution's input."""
        if self.kind is None:
            return x
        n, c, t, h, w = x.shape
        rows = _rows(x)
        if self.kind == "space":
            return rows.view(n * t, h, w, c).permute(0, 3, 1, 2)
        return rows.view(n, t, h * w, c).permute(0, 3, 1, 2)

    def leave(self, y: Tensor, like: Tensor) -> Tensor:
        """The 2-D convolution's output as [N, C, T, H, W]; ``like`` is the 5-D input."""
        if self.kind is None:
            return y
        n, _, t, h, w = like.shape
        rows = y.permute(0, 2, 3, 1).contiguous()
        shape = (n, t, *rows.shape[1:3], -1) if self.kind == "space" else (n, rows.shape[1], h, w, -1)
        return rows.view(shape).permute(0, 4, 1, 2, 3)


class ViewPool(nn.Module):
    """A max-pool of [N, C, T, H, W], on a 2-D view if it leaves the frames alone."""

    def __init__(self, window: Any, stride: Any, padding: Any) -> None:
        super().__init__()
        self.settings = [as_triple(v, "pool") for v in (window, stride, padding)]

    def forward(self, x: Tensor) -> Tensor:
        window, stride, padding = map(tuple, self.settings)
        if (window[0], stride[0], padding[0]) != (1, 1, 0):
            return F.max_pool3d(x, window, stride, padding)
        n, c, t, h, w = x.shape
        flat = _rows(x).view(n * t, h, w, c).permute(0, 3, 1, 2)
        y = F.max_pool2d(flat, window[1:], stride[1:], padding[1:]).permute(0, 2, 3, 1)
        return y.reshape(n, t, *y.shape[1:3], c).permute(0, 4, 1, 2, 3)


def views_2d(module: nn.Module) -> nn.Module:
    """A copy of the module with its convolutions and pools through 2-D views."""
    if isinstance(module, nn.Conv3d):
        return ViewConv(copy.deepcopy(module), relu=False)
    if isinstance(module, nn.MaxPool3d):
        return ViewPool(module.kernel_size, module.stride, module.padding)
    module = copy.deepcopy(module)
    for name, child in module.named_children():
        setattr(module, name, views_2d(child))
    return module


# --- folded, with cuDNN's fused epilogues --------------------------------------------------------------------


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, v: View, z: Tensor | None, relu: bool, whole: bool
) -> Tensor:
    """Convolution, bias, plus z, ReLU; as one cuDNN call if ``whole``."""
    if whole:
        settings = (v.stride, v.padding, v.dilation, 1)
        if z is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *settings)
        return torch.cudnn_convolution_add_relu(x, weight, z, 1.0, bias, *settings)
    convolve: Callable[..., Tensor] = F.conv3d if v.kind is None else F.conv2d
    y = convolve(x, weight, bias, v.stride, v.padding, v.dilation)
    y = y if z is None else y + z
    return F.relu(y, inplace=True) if relu else y


class ViewConv(nn.Module):
    """A convolution through a `View`, with its ReLU and what is added before that: in one cuDNN call where that is
    faster."""

    def __init__(self, conv: nn.Module, relu: bool) -> None:
        super().__init__()
        if not isinstance(conv, nn.Conv3d):
            raise TypeError(f"fused: expected a folded Conv3d, got {type(conv).__name__}")
        self.view, self.relu = View(conv), relu
        self.weight, self.bias = self.view.weight, conv.bias
        self.whole: bool | None = None  # whether one call of cuDNN is used; found out by the first one

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        v = self.view
        added = None if z is None else v.enter(z)
        call = functools.partial(_conv, v.enter(x), self.weight, self.bias, v, added, self.relu)
        if self.whole is None:
            self.whole = x.is_cuda and self.relu and _whole_is_faster(call)
        return v.leave(call(self.whole), x)


def _whole_is_faster(call: Callable[[bool], Any]) -> bool:
    try:
        whole, parts = (autotune.time_call(functools.partial(call, how), 5) for how in (True, False))
    except RuntimeError:  # no such engine: 3-D kernels, odd channel counts
        return False
    return whole <= parts


class FusedBlock(nn.Module):
    """Bottleneck in three cuDNN calls at best, four with a convolution in the shortcut."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = (ViewConv(conv, True) for conv in (block.a, block.b, block.c))
        self.shortcut = None if block.shortcut is None else ViewConv(block.shortcut, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)), x if self.shortcut is None else self.shortcut(x))


class FusedLateral(nn.Module):
    """Convolution with ReLU, and the concatenation."""

    def __init__(self, conv: nn.Module, relu: bool) -> None:
        super().__init__()
        self.conv = ViewConv(conv, relu)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([slow, self.conv(fast)], dim=1)


def _fused_one(module: nn.Module) -> nn.Module | None:
    """The fused form of a layer that is known as a whole, else None."""
    if isinstance(module, plain.Block):
        return FusedBlock(module)
    if isinstance(module, plain.Stem):
        return nn.Sequential(ViewConv(module.conv, module.relu), views_2d(module.pool))
    if isinstance(module, plain.Lateral):
        return FusedLateral(module.conv, module.relu)
    if isinstance(module, plain.Conv):
        return ViewConv(module.conv, module.relu)
    return None


def fused(module: nn.Module) -> nn.Module:
    """A copy of a module with folded batch norms on cuDNN's fused calls."""
    module = copy.deepcopy(module)
    whole = _fused_one(module)
    if whole is not None:
        return whole.eval()
    for name, child in module.named_children():
        setattr(module, name, fused(child))
    return module
