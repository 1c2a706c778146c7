"""Settings of ``roi_align3d``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .._spec import Cost, Shape, Spec
from .boxes import MODES


@dataclass(frozen=True)
class RoIAlignSpec(Spec):
    """RoIAlign of boxes over a clip; the fields are the public function's arguments.

    output_size: bins (h, w), or (t, h, w) of volumes. sampling_ratio: 0 = adaptive.
    """

    op: ClassVar[str] = "roi_align3d"
    output_size: tuple[int, ...] = (7, 7)
    spatial_scale: float = 1.0
    temporal_scale: float = 1.0
    sampling_ratio: int = 0
    aligned: bool = True
    mode: str = "frame"

    @property
    def volume(self) -> bool:
        """Whether boxes have a start and an end."""
        return self.mode == "volume"

    def bins(self, frames: int) -> tuple[int, int, int]:
        """Bins (t, h, w) of the result on a map of so many frames."""
        return self.output_size[0] if self.volume else frames, self.output_size[-2], self.output_size[-1]

    @property
    def native(self) -> tuple[float, float, int, bool, int]:
        """The settings as the native kernels take them."""
        return (
            self.spatial_scale,
            self.temporal_scale,
            self.sampling_ratio,
            self.aligned,
            MODES.index(self.mode),
        )

    def out_shape(self, *inputs: Shape) -> list[int]:
        """Of the shapes of maps and boxes."""
        features, rois = inputs
        return [rois[0], features[1], *self.bins(features[2])]

    def cost(self, *inputs: Any) -> Cost:
        from .cost import cost

        features, rois = inputs
        return cost(features, rois, self)
