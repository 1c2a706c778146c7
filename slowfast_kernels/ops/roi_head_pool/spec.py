"""Settings of ``roi_head_pool``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .._spec import Cost, Shape, Spec
from ..roi_align3d.spec import RoIAlignSpec

TEMPORAL = ("mean", "max")


@dataclass(frozen=True)
class RoIPoolSpec(Spec):
    """Mean or maximum over time, RoIAlign, maximum over the bins; the fields are the public function's arguments."""

    op: ClassVar[str] = "roi_head_pool"
    output_size: tuple[int, ...] = (7, 7)
    spatial_scale: float = 1 / 16
    sampling_ratio: int = 0
    aligned: bool = True
    temporal: str = "mean"

    @property
    def align(self) -> RoIAlignSpec:
        """RoIAlign of the one frame."""
        return RoIAlignSpec(self.output_size, self.spatial_scale, 1.0, self.sampling_ratio, self.aligned)

    @property
    def native(self) -> tuple[tuple[int, ...], float, int, bool, bool]:
        """The settings as the native kernels take them."""
        return self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned, self.temporal == "max"

    def out_shape(self, *inputs: Shape) -> list[int]:
        """Of the shapes of the maps and, last, of the boxes."""
        *maps, rois = inputs
        return [rois[0], sum(x[1] for x in maps)]

    def cost(self, *inputs: Any) -> Cost:
        from .cost import cost

        slow, fast, rois = inputs
        return cost(slow, fast, rois, self)
