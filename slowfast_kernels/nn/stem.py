"""First layer of a pathway (conv1 and pool1 in table 1 of the paper)."""

from torch import Tensor
from torch.nn import functional as F

from slowfast_kernels import ops
from slowfast_kernels.nn.conv import ConvBN


class Stem(ConvBN):
    """(kernel)x7x7 convolution with spatial stride 2, batch norm, ReLU, 1x3x3 max-pool with spatial stride 2.

    [N, Ci, T, H, W] -> [N, Co, T', H/4, W/4], sizes rounded up. Strides in time are 1 in the SlowFast family
    (T' = T); mmaction2's I3D has 2 in both the convolution and the pool.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, pool_stride: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, (kernel, 7, 7), stride=(stride, 2, 2))
        self.pool_stride = pool_stride

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a stem has nothing to add
        if self.training:
            y = super().forward(x)
            return F.max_pool3d(y, (1, 3, 3), (self.pool_stride, 2, 2), (0, 1, 1))
        # The pool's window is one frame long, so its stride in time drops frames: better not to compute them.
        stride = (self.conv.stride[0] * self.pool_stride, 2, 2)
        scale, shift = self.folded()
        return ops.stem3d(x, self.conv.weight, scale, shift, stride=stride)
