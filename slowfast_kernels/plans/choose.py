"""Who computes a layer of a GPU plan: by the tuned table, by measuring where that is switched on, else by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import autotune
from ..ops.bottleneck3d import triton as block
from ..ops.conv_bn_act3d import triton as conv
from ..ops.lateral_fusion import triton as lateral
from ..ops.stem3d import triton as stem
from . import cudnn

#: What the speed of a layer's providers depends on, apart from the CUDA sources.
SOURCES = tuple(
    dict.fromkeys(
        (*block.TUNER.files, *stem.TUNER.files, *conv.TUNER.files, lateral.__file__, cudnn.__file__)
    )
)


@dataclass(frozen=True)
class Choice:
    """A provider, as the autotuner keeps it."""

    provider: str


class Chooser:
    """Picks providers among those allowed, for one device."""

    def __init__(self, device: torch.device, allowed: Sequence[str]) -> None:
        self.device, self.allowed = device, tuple(allowed)
        cuda = ("block", "lateral", "stem") if "cuda" in self.allowed else ()
        self.tuner = autotune.Tuner("plans", *SOURCES, cuda=cuda)

    def pick(
        self,
        layer: str,
        key: Sequence[object],
        runs: dict[str, Callable[..., Any]],
        args: Callable[[], Sequence[Any]],
    ) -> str:
        """One of ``runs``, which are in the order of preference; ``args`` makes tensors to measure them with."""
        able = {name: run for name, run in runs.items() if name in self.allowed}
        if not able:  # Triton does every layer
            able = {"triton": runs["triton"]}
        first = next(iter(able))
        if len(able) == 1:
            return first
        tensors: list[Any] = []

        def run(choice: Choice) -> None:
            if not tensors:
                tensors.extend(args())
            able[choice.provider](*tensors)

        return self.tuner.pick(
            (layer, *key), self.device, lambda: Choice(first), lambda: [Choice(n) for n in able], run
        ).provider

    def like(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Random values in channels_last_3d memory."""
        x = torch.randn(tuple(shape), device=self.device).to(dtype)
        return x.contiguous(memory_format=torch.channels_last_3d)
