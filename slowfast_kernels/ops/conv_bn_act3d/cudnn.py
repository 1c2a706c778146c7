"""Convolutions of frozen networks that cuDNN computes, through free two-dimensional views of NDHWC memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from ... import precision
from .._prepared import Prepared
from .._spec import Shape
from .spec import ConvSpec, beyond_kernels


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """cuDNN measures its algorithms, and multiplies float32 values as `precision.fp32_mode` says as far as it can:
    on matrix units for "tf32", exactly for every other mode.

    (``torch.backends.cudnn.flags`` would switch "tf32" on, and fails once somebody chose a precision by operator.)
    """
    cudnn: Any = torch.backends.cudnn  # torch's annotations do not know all of it
    mode = "tf32" if precision.fp32_mode() == "tf32" else "ieee"
    before = cudnn.benchmark, cudnn.conv.fp32_precision
    cudnn.benchmark, cudnn.conv.fp32_precision = True, mode
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.conv.fp32_precision = before


def rows(x: torch.Tensor, temporal: bool) -> torch.Tensor:
    """[N, C, T, H, W] in channels_last_3d memory as the 2-D convolution's input: [N, C, T, H * W], or
    [N * T, C, H, W].
    """
    n, c, t, h, w = x.shape
    y = x.permute(0, 2, 3, 4, 1)
    y = y.reshape(n, t, h * w, c) if temporal else y.reshape(n * t, h, w, c)
    return y.permute(0, 3, 1, 2)


class CudnnConv(Prepared):
    """A convolution through a 2-D view, for which cuDNN's kernels are better than its 3-D ones; with a ``shortcut``, a
    1x1x1 convolution of a second map as the residual.

    What follows the products is part of cuDNN's call, or the layer is somebody else's (`cannot_run`): passes of their
    own over the map cost more than the products. On the CPU, PyTorch's convolution takes cuDNN's place: for tests.
    """

    provider, arity = "cudnn", 3

    def __init__(
        self, spec: ConvSpec, dtype: torch.dtype, device: torch.device, shortcut: ConvSpec | None = None
    ) -> None:
        super().__init__(spec, dtype, device)
        w, shift = spec.conv.folded(), spec.conv.shift
        self.temporal = spec.conv.kernel[0] > 1
        w = w[..., 0] if self.temporal else w[:, :, 0]
        self.weight = w.to(dtype).contiguous(memory_format=torch.channels_last)
        two = (0, 1) if self.temporal else (1, 2)
        self.stride, self.padding, self.dilation = (
            [v[d] for d in two] for v in (spec.stride, spec.padding, spec.dilation)
        )
        self.second: CudnnConv | None = None
        if shortcut is not None:  # its shift goes with ours: a convolution's own bias is a pass over the map
            own = shortcut.conv.shift
            self.second = CudnnConv(replace(shortcut, conv=shortcut.conv._replace(shift=None)), dtype, device)
            shift = own if shift is None else shift if own is None else shift + own
        if shift is None and spec.relu:  # the fused calls take one
            shift = torch.zeros(w.shape[0], device=w.device)
        self.bias = None if shift is None else shift.detach().to(dtype)
        self.found: dict[tuple[Any, ...], str | None] = {}

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        own = [self.weight] if self.bias is None else [self.weight, self.bias]
        return [*own, *(self.second.weights if self.second else ())]

    def flops(self, *inputs: Shape) -> int:
        pixels = 2 * torch.Size(self.out_shape(*inputs)).numel()
        return super().flops(*inputs) + (pixels * self.second.weight.shape[1] if self.second else 0)

    def cannot_run(self, *inputs: Shape | None) -> str | None:
        """Why cuDNN's calls do not do this layer in one pass on maps of these shapes, or None: they are tried once.

        PyTorch gives cuDNN the memory of the result as the operand which a convolution with ReLU alone does not have,
        times zero. An engine that multiplies makes NaN of whatever NaN that memory held; so memory is poisoned first.
        """
        if not self.spec.relu and (self.bias is not None or len(inputs) > 1):
            return "cuDNN's fused call ends in a ReLU"
        if self.device.type != "cuda":
            return None
        if torch.cuda.is_current_stream_capturing():
            return "nothing can be tried while a stream is captured"
        key = (*inputs, precision.fp32_mode())
        if key not in self.found:
            self.found[key] = self._trouble(inputs)
        return self.found[key]

    def _trouble(self, inputs: Sequence[Shape | None]) -> str | None:
        def like(shape: Shape) -> torch.Tensor:
            x = torch.randn(tuple(shape), device=self.weight.device).to(self.dtype)
            return x.contiguous(memory_format=torch.channels_last_3d)

        maps = [None if shape is None else like(shape) for shape in inputs]
        maps += [None] * (self.arity - len(maps))
        assert maps[0] is not None
        size = torch.Size(self.out_shape(maps[0].shape)).numel()
        # freed at once: what is asked for next gets this memory
        [self.weight.new_full((size,), math.nan) for _ in range(3)]
        try:
            y = self.fresh(maps[0], maps[1], maps[2])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return f"cuDNN: {str(error).splitlines()[0]}"
        return "cuDNN reads memory that nobody wrote" if bool(y.isnan().any()) else None

    def fresh(
        self, x: torch.Tensor, residual: torch.Tensor | None, second: torch.Tensor | None
    ) -> torch.Tensor:
        """The result in memory of its own."""
        if self.second is not None:
            assert second is not None
            residual = self.second.fresh(second, None, None)
        flat = None if residual is None else rows(residual, self.temporal)
        y = self._run(rows(x, self.temporal), flat)
        n, c, t, h, w = self.out_shape(x.shape)
        return y.permute(0, 2, 3, 1).reshape(n, t, h, w, c).permute(0, 4, 1, 2, 3)

    def into(self, out: torch.Tensor, *args: Any) -> torch.Tensor:
        return out.copy_(self.fresh(*args))

    def _run(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        more = (self.stride, self.padding, self.dilation, 1)
        if self.device.type == "cuda":
            with settings():
                if not self.spec.relu:
                    return F.conv2d(x, self.weight, self.bias, *more)
                if residual is None:
                    return torch.cudnn_convolution_relu(x, self.weight, self.bias, *more)
                return torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, self.bias, *more)
        y = F.conv2d(x, self.weight, self.bias, *more)
        y = y if residual is None else y.add_(residual)
        return y.relu_() if self.spec.relu else y


def cannot(spec: ConvSpec, dtype: torch.dtype) -> str | None:
    """Why a convolution is none in two dimensions (k x 1 x 1 without spatial stride, or 1 x k x k), or None."""
    if reason := beyond_kernels(spec, "cuDNN"):
        return reason
    (kt, kh, kw), stride = spec.conv.kernel, spec.stride
    if (kt == 1 and stride[0] == 1) or (kh == kw == 1 and stride[1] == stride[2] == 1):
        return None
    return f"a kernel {spec.conv.kernel} of stride {stride} is none in two dimensions"
