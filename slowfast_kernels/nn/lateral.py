"""Lateral connection from the Fast to the Slow pathway (sections 3.3 and 3.4 of the paper)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels import ops
from slowfast_kernels.nn.conv import Conv3d, fold_batch_norm


class Lateral(nn.Module):
    """Fuses [N, Cf, alpha * T, H, W] of the Fast pathway into [N, Cs, T, H, W] of the Slow one.

    Returns [N, Cs + added, T, H, W]. kind: "conv" (T-conv, kernel x 1 x 1 with stride alpha and ratio * Cf
    output channels, then batch norm and ReLU if `norm` and `relu`), "time_to_channel_concat",
    "time_to_channel_sum", "time_sample" or "none". Only "conv" has parameters: `conv` and, with `norm`, `bn`.
    """

    def __init__(
        self,
        fast_channels: int,
        alpha: int,
        *,
        kind: str = "conv",
        kernel: int = 5,
        ratio: int = 2,
        norm: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.alpha, self.relu = kind, alpha, relu
        self.conv: Conv3d | None = None
        self.bn: nn.BatchNorm3d | None = None
        if kind == "conv":
            out, padding = ratio * fast_channels, (kernel // 2, 0, 0)
            self.conv = Conv3d(fast_channels, out, (kernel, 1, 1), (alpha, 1, 1), padding)
            self.bn = nn.BatchNorm3d(out) if norm else None

    def folded(self) -> tuple[Tensor | None, Tensor | None]:
        """(scale, shift) of the batch norm in eval mode, each [added] float32; (None, None) without one."""
        return fold_batch_norm(self.bn) if self.bn is not None else (None, None)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """The Slow features with the Fast ones fused in."""
        if self.conv is None:
            return ops.lateral_fusion(slow, fast, alpha=self.alpha, kind=self.kind)
        if self.training:
            y = self.conv(fast)
            y = self.bn(y) if self.bn is not None else y
            return torch.cat([slow, F.relu(y) if self.relu else y], dim=1)
        scale, shift = self.folded()
        return ops.lateral_fusion(
            slow, fast, self.conv.weight, scale, shift, alpha=self.alpha, kind=self.kind, relu=self.relu
        )

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, alpha={self.alpha}, relu={self.relu}"
