"""Who computes a layer of a GPU plan: by the tuned table, by measuring where that is switched on, else by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .. import autotune
from ..ops.bottleneck3d import triton as block
from ..ops.conv_bn_act3d import cudnn
from ..ops.conv_bn_act3d import triton as conv
from ..ops.lateral_fusion import triton as lateral
from ..ops.stem3d import triton as stem

T = TypeVar("T")

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
        self.tuner = autotune.Tuner("plans", *SOURCES, cuda=cuda, family="plans")

    def able(self, candidates: Mapping[str, T]) -> dict[str, T]:
        """Those of ``candidates`` that are allowed; Triton's, which does every layer, where none is."""
        found = {name: candidate for name, candidate in candidates.items() if name in self.allowed}
        return found or {"triton": candidates["triton"]}

    def pick(
        self,
        key: Sequence[object],
        runs: Mapping[str, Callable[..., Any]],
        args: Callable[[], Sequence[Any]],
    ) -> str:
        """One of ``runs``, which are in the order of preference; ``args`` makes tensors to measure them with."""
        first = next(iter(runs))
        if len(runs) == 1:
            return first
        tensors: list[Any] = []

        def run(choice: Choice) -> None:
            if not tensors:
                tensors.extend(args())
            runs[choice.provider](*tensors)

        return self.tuner.pick(
            key, self.device, lambda: Choice(first), lambda: [Choice(n) for n in runs], run
        ).provider

    def like(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Random values in channels_last_3d memory."""
        x = torch.randn(tuple(shape), device=self.device).to(dtype)
        return x.contiguous(memory_format=torch.channels_last_3d)
