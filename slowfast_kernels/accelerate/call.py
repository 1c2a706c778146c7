"""Calls and answers as the other library has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SameCall:
    """Forward pre-hook of a frozen network: names of arguments, one clip for two.

    every: as in `Counterpart`. views: a clip may come as [N, views, C, T, H, W], of which each counts as a clip of the
    batch.
    """

    def __init__(self, every: Sequence[int], *, views: bool = False) -> None:
        self.every, self.views = tuple(every), views

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        given = dict(zip(("clips", "rois"), args, strict=False))
        for theirs, ours in (("x", "clips"), ("inputs", "clips"), ("bboxes", "rois")):
            if theirs in kwargs:
                kwargs = {(ours if name == theirs else name): value for name, value in kwargs.items()}
        given.update(kwargs)
        clips = given.pop("clips", None)
        if self.views and given:
            raise TypeError(
                f"accelerate: expected clips alone (output= was asked for), got {', '.join(given)} as well; without "
                "output= all calls of mmaction2's models work"
            )
        if self.views and isinstance(clips, Tensor) and clips.ndim == 6:
            clips = clips.flatten(0, 1)
        return (thinned(clips, self.every) if isinstance(clips, Tensor) else clips,), given


def thinned(clip: Tensor, every: Sequence[int]) -> Tensor | list[Tensor]:
    """The clips of the pathways, made of one as mmaction2 makes them; the clip itself where there is one pathway."""
    if not every:
        return clip
    scales = [(1.0 / step, 1.0, 1.0) for step in every]
    return [
        clip if step == 1 else F.interpolate(clip, scale_factor=scale, mode="nearest")
        for step, scale in zip(every, scales, strict=True)
    ]


class FrozenTrunk(nn.Module):
    """Stem to res5, frozen: clips as the library's own parts take them -> the res5 maps as they return them.

    form: "list", "tuple" or "tensor". every: as in `Counterpart`. dtype: of the maps, whatever they are computed in.
    """

    def __init__(self, frozen: nn.Module, form: str, every: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.frozen, self.form, self.every, self.dtype = frozen, form, tuple(every), dtype

    def forward(self, x: Any) -> Any:
        clips = thinned(x, self.every) if isinstance(x, Tensor) else list(x)
        maps = [y.to(self.dtype).contiguous() for y in self.frozen(clips)]
        return {"list": maps, "tuple": tuple(maps), "tensor": maps[0]}[self.form]

    def extra_repr(self) -> str:
        return f"form={self.form!r}, every={self.every}, dtype={self.dtype}"


class WithHead(nn.Module):
    """A frozen trunk and the head that a module has above its own, which takes the maps, and boxes if they come."""

    def __init__(self, trunk: FrozenTrunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Any, bboxes: Any = None) -> Any:
        maps = self.trunk(x)
        return self.head(maps) if bboxes is None else self.head(maps, bboxes)
