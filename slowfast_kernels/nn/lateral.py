"""Lateral connection from the Fast to the Slow pathway (sections 3.3 and 3.4 of the paper)."""

import torch
from torch import Tensor, nn

from slowfast_kernels import ops
from slowfast_kernels.nn.conv import Conv3d, Normed
from slowfast_kernels.ops import ConvAffine, LateralSpec


class Lateral(Normed):
    """Fuses [N, Cf, alpha * T, H, W] of the Fast pathway into [N, Cs, T, H, W] of the Slow one.

    Returns [N, Cs + added, T, H, W]. kind: "conv" (T-conv, kernel x 1 x 1 with stride alpha and ratio * Cf
    output channels, then batch norm if `norm`, and the activation), "time_to_channel_concat",
    "time_to_channel_sum", "time_sample" or "none". Only "conv" has parameters: `conv` and, with `norm`, `bn`.
    """

    conv: Conv3d | None  # type: ignore[assignment]

    def __init__(
        self,
        fast_channels: int,
        alpha: int,
        *,
        kind: str = "conv",
        kernel: int = 5,
        ratio: int = 2,
        norm: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.kind, self.alpha, self.activation = kind, alpha, activation
        self.conv = None
        self.bn = None
        if kind == "conv":
            out, padding = ratio * fast_channels, (kernel // 2, 0, 0)
            self.conv = Conv3d(fast_channels, out, (kernel, 1, 1), (alpha, 1, 1), padding)
            self.bn = nn.BatchNorm3d(out) if norm else None

    def spec(self) -> LateralSpec:
        """The parameters as the op takes them, the batch norm folded."""
        affine = None if self.conv is None else ConvAffine(self.conv.weight, *self.folded())
        return LateralSpec(affine, self.alpha, self.kind, self.activation)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """The Slow features with the Fast ones fused in."""
        if not self.folds:
            return torch.cat([slow, self.unfolded(fast)], dim=1)
        spec = self.spec()
        return ops.lateral_fusion(
            slow, fast, *(spec.conv or ()), alpha=spec.alpha, kind=spec.kind, activation=spec.activation
        )

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, alpha={self.alpha}, activation={self.activation!r}"
