"""PyTorch's own ways to use cuDNN well, as the GPU's peers: convolutions on 2-D views, and with fused epilogues.

views_2d    every convolution and pool that allows it as a 2-D one on a free view of the memory: 1xkxk on
            [N*T, C, H, W], kx1x1 on [N, C, T, H*W]. cuDNN's best engines are 2-D.
fused       batch norms folded, the same views; of every layer the fastest of ``cudnn_convolution_relu`` or
            ``cudnn_convolution_add_relu``, the 2-D convolution followed by the rest, and the 3-D one likewise, which
            the first call times.
streams     a fused network with its Fast pathway on a stream of its own.

Modules come from ``bench.plain``. Where there is no cuDNN the fused form computes the same with separate layers, so
that it can be checked anywhere.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
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
        self.volume = self.stride, self.padding, self.dilation  # of the 3-D convolution
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
        return ViewConv(copy.deepcopy(module), relu=False, how=PARTS)
    if isinstance(module, nn.MaxPool3d):
        return ViewPool(module.kernel_size, module.stride, module.padding)
    module = copy.deepcopy(module)
    for name, child in module.named_children():
        setattr(module, name, views_2d(child))
    return module


# --- folded, with cuDNN's fused epilogues --------------------------------------------------------------------


#: How a layer is computed: one call of cuDNN, or a convolution on the view or in three dimensions, and then the rest.
WHOLE, PARTS, VOLUME = "whole", "parts", "volume"


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, v: View, z: Tensor | None, relu: bool, how: str
) -> Tensor:
    """Convolution, bias, plus z, ReLU, of and to [N, C, T, H, W]."""
    if how == VOLUME:
        weight = weight if v.kind is None else weight.unsqueeze(2 if v.kind == "space" else 4)
        y = F.conv3d(x, weight, bias, *v.volume)
    else:
        flat, settings = v.enter(x), (v.stride, v.padding, v.dilation, 1)
        if how == WHOLE and z is None:
            return v.leave(torch.cudnn_convolution_relu(flat, weight, bias, *settings), x)
        if how == WHOLE and z is not None:
            return v.leave(
                torch.cudnn_convolution_add_relu(flat, weight, v.enter(z), 1.0, bias, *settings), x
            )
        convolve: Callable[..., Tensor] = F.conv3d if v.kind is None else F.conv2d
        y = v.leave(convolve(flat, weight, bias, *settings[:3]), x)
    y = y if z is None else y + z
    return F.relu(y, inplace=True) if relu else y


class ViewConv(nn.Module):
    """A convolution through a `View`, with its ReLU and what is added before that.

    how: the way it is computed; where it is not given the first call on a GPU finds the fastest.
    """

    def __init__(self, conv: nn.Module, relu: bool, how: str | None = None) -> None:
        super().__init__()
        if not isinstance(conv, nn.Conv3d):
            raise TypeError(f"fused: expected a folded Conv3d, got {type(conv).__name__}")
        self.view, self.relu = View(conv), relu
        self.weight, self.bias = self.view.weight, conv.bias
        self.how = how

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        call = functools.partial(_conv, x, self.weight, self.bias, self.view, z, self.relu)
        if self.how is None:
            self.how = (
                _fastest(call, (WHOLE, PARTS, VOLUME) if self.relu else (PARTS, VOLUME))
                if x.is_cuda
                else PARTS
            )
        return call(self.how)


def _fastest(call: Callable[[str], Any], ways: Sequence[str]) -> str:
    seconds = {}
    for how in ways:
        # No such engine: 3-D kernels, odd channel counts. And one that adds what was in its output before, times 0,
        # which NaN survives, is none to use.
        with contextlib.suppress(RuntimeError):
            if call(how).isfinite().all():
                seconds[how] = autotune.time_call(functools.partial(call, how), 5)
    return min(seconds, key=lambda how: seconds[how], default=PARTS)


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


# --- two streams ---------------------------------------------------------------------------------------------


class TwoStreams(nn.Module):
    """A network with its Fast pathway on a stream of its own, which every lateral connection waits for; without
    streams, one after the other.
    """

    def __init__(self, net: plain.SlowFast) -> None:
        super().__init__()
        self.net = net

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        net, side = self.net, _Side(slow.device)
        # All of them are kept until the end: what one stream lets go of, the other may still read.
        maps = [fast]
        with side.work():
            for layer in (net.stems[1], *net.fast_stages):
                maps.append(layer(maps[-1]))
                side.mark()
        slow = net.stems[0](slow)
        for i, (lateral, stage) in enumerate(zip(net.laterals, net.slow_stages, strict=True)):
            side.wait(i)
            slow = stage(lateral(slow, maps[i + 1]))
        side.wait(-1)
        return net.head(slow, maps[-1])


class _Side:
    """A stream beside the current one, in step with what was started there before; on a CPU nothing."""

    def __init__(self, device: torch.device) -> None:
        self.main: Any = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self.marks: list[Any] = []

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """What the block starts runs beside."""
        if self.main is None:
            yield
            return
        side = _side_stream(self.main.device)
        side.wait_stream(self.main)
        with torch.cuda.stream(side):
            yield

    def mark(self) -> None:
        """A place to wait for."""
        if self.main is not None:
            self.marks.append(torch.cuda.current_stream(self.main.device).record_event())

    def wait(self, place: int) -> None:
        """The current stream waits for one."""
        if self.main is not None:
            self.main.wait_event(self.marks[place])


@functools.cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
