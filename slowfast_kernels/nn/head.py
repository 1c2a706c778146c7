"""Heads: features of one or two pathways to class scores per clip, or per box."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels import ops
from slowfast_kernels.nn.block import Block

_ACTIVATIONS = {"softmax": lambda x: x.softmax(dim=-1), "sigmoid": torch.sigmoid, "none": lambda x: x}


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Head(Block):
    """Average pooling of every pathway, concatenation and a linear classifier: [N, C, T, H, W] each -> [N,
    classes].

    semantics, activation, pool: as in `HeadConfig`; a window of all frames and pool x pool cells slides over
    the map, pool=None averages the whole map. In training mode there is dropout before the classifier and no
    activation: the outputs are logits, averaged over the positions.
    """

    op = "pool_concat_head"

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        semantics: str = "pyslowfast",
        activation: str = "softmax",
        pool: int | None = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.semantics, self.activation = semantics, activation
        self.pool = None if semantics == "mmaction2" else pool
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(in_channels, classes)

    def forward(self, features: Sequence[Tensor], output: str = "scores") -> Tensor:
        """features: (slow, fast), or the one pathway there is. output: "scores", or `features`. Raises ValueError if
        a map is below the window."""
        if output == "features":
            return self.features(features)
        self._check(features)
        if self.training:
            return self._logits(features).mean(dim=(1, 2, 3))
        slow, fast = features if len(features) == 2 else (features[0], None)
        return ops.pool_concat_head(
            slow,
            fast,
            self.proj.weight,
            self.proj.bias,
            pool_size=None if self.pool is None else (self.pool, self.pool),
            semantics=self.semantics,
            activation=self.activation,
        )

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """What the classifier would get, before dropout: [N, C], the mean over the window's positions, in float32
        (float64 of float64 maps). maps: as in `forward`."""
        self._check(maps)
        return self._pooled([_wide(x) for x in maps]).mean(dim=(2, 3, 4))

    def positions(self, maps: Sequence[Tensor]) -> int:
        """Positions of the pooling window, at each of which the classifier is applied."""
        self._check(maps)
        height, width = maps[0].shape[-2:]
        return 1 if self.pool is None else (height - self.pool + 1) * (width - self.pool + 1)

    def _pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """[N, C, 1, H', W']: both pathways at every position of the pooling window."""
        means = [x.mean(dim=2, keepdim=True) for x in maps]
        if self.pool is None:
            pooled = [F.adaptive_avg_pool3d(x, 1) for x in means]
        else:
            pooled = [F.avg_pool3d(x, (1, self.pool, self.pool), stride=1) for x in means]
        if self.semantics == "mmaction2":
            pooled.reverse()  # its classifier's columns are (fast, slow)
        return torch.cat(pooled, dim=1)

    def _logits(self, features: Sequence[Tensor]) -> Tensor:
        """[N, 1, H', W', classes]: logits at every position of the pooling window."""
        return self.proj(self.dropout(self._pooled(features).permute(0, 2, 3, 4, 1)))

    def _check(self, features: Sequence[Tensor]) -> None:
        height, width = features[0].shape[-2:]
        if self.pool is not None and min(height, width) < self.pool:
            raise ValueError(
                f"head: expected features of at least {self.pool}x{self.pool} cells (its pooling window), "
                f"got {height}x{width}; feed larger frames or build the model with crop= or pool=None"
            )

    def extra_repr(self) -> str:
        return f"semantics={self.semantics!r}, activation={self.activation!r}, pool={self.pool}"


class RoIHead(Block):
    """Detection head: mean (or max) over time, RoIAlign, max over the bins, linear: boxes -> [K, classes].

    Arguments as in `RoIConfig` and `HeadConfig`. The order of pooling and replicating boxes over the frames
    does not matter for the mean: both it and RoIAlign are linear. The activation is applied in training mode
    too, as PySlowFast and pytorchvideo do. With mmaction2 semantics dropout acts on the bins, before their
    maximum.
    """

    op = "roi_head_pool"

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        resolution: int = 7,
        scale: float = 1 / 16,
        sampling_ratio: int = 0,
        aligned: bool = True,
        temporal: str = "mean",
        semantics: str = "pyslowfast",
        activation: str = "sigmoid",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.resolution, self.scale, self.sampling_ratio = resolution, scale, sampling_ratio
        self.aligned, self.temporal = aligned, temporal
        self.semantics, self.activation = semantics, activation
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(in_channels, classes)

    def forward(self, features: Sequence[Tensor], rois: Tensor, output: str = "scores") -> Tensor:
        """features: (slow, fast) or one. rois: [K, 5] = clip index in the batch, x1, y1, x2, y2 in input
        pixels. output: "scores", or `features`."""
        if output == "features":
            return self.features(features, rois)
        if self.training and self.semantics == "mmaction2" and self.dropout.p > 0:
            pooled = torch.cat([self._bins(x, rois) for x in features], dim=1)
            pooled = self.dropout(pooled).amax(dim=(-2, -1))
        else:
            pooled = self.dropout(self._pooled(features, rois))
        # maps may be narrower than the classifier, as in a frozen model
        return _ACTIVATIONS[self.activation](self.proj(pooled.to(self.proj.weight.dtype)))

    def features(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """What the classifier would get, before dropout: [K, C] in float32 (float64 of float64 maps). Arguments as in
        `forward`."""
        return _wide(self._pooled(maps, rois))

    def _pooled(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """[K, C]: the largest bin of every box, both pathways."""
        slow, fast = maps if len(maps) == 2 else (maps[0], None)
        return ops.roi_head_pool(
            slow,
            fast,
            rois,
            output_size=self.resolution,
            spatial_scale=self.scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            temporal=self.temporal,
        )

    def positions(self, maps: Sequence[Tensor]) -> int:
        """Places at which the classifier is applied to a box."""
        return 1

    def _bins(self, x: Tensor, rois: Tensor) -> Tensor:
        """[K, C, resolution, resolution]: the aligned boxes of one pathway after pooling over time."""
        x = x.mean(dim=2, keepdim=True) if self.temporal == "mean" else x.amax(dim=2, keepdim=True)
        size = (self.resolution, self.resolution)
        bins = ops.roi_align3d(
            x,
            rois,
            output_size=size,
            spatial_scale=self.scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            mode="frame",
        )
        return bins.squeeze(2)

    def extra_repr(self) -> str:
        return (
            f"resolution={self.resolution}, scale={self.scale}, aligned={self.aligned}, "
            f"temporal={self.temporal!r}, semantics={self.semantics!r}, activation={self.activation!r}"
        )
