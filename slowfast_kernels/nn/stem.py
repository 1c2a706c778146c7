"""First layer of a pathway (conv1 and pool1 in table 1 of the paper)."""

from torch import Tensor
from torch.nn import functional as F

from slowfast_kernels import ops
from slowfast_kernels.nn.conv import ConvBN
from slowfast_kernels.ops import ConvAffine, StemSpec


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

    def spec(self) -> StemSpec:  # type: ignore[override]
        """The parameters as the op takes them, the batch norm folded.

        The pool's window is one frame long, so its stride in time drops frames: better not to compute them.
        """
        stride = (self.conv.stride[0] * self.pool_stride, 2, 2)
        return StemSpec(ConvAffine(self.conv.weight, *self.folded()), stride, self.activation)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a stem has nothing to add
        if not self.folds:
            return F.max_pool3d(self.unfolded(x), (1, 3, 3), (self.pool_stride, 2, 2), (0, 1, 1))
        spec = self.spec()
        return ops.stem3d(x, *spec.conv, stride=spec.stride, activation=spec.activation)
