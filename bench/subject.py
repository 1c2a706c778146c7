"""The network under test: weights, inputs, the frozen model and its plain twins."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels import freeze, models, report
from slowfast_kernels.bench import plain
from slowfast_kernels.bench.harness import DTYPES
from slowfast_kernels.models.config import ModelConfig
from slowfast_kernels.nn import ConvBN


def described(name: str, frames: int, crop: int, batch: int, threads: int) -> str:
    """What was measured, in words: network, clip, batch, threads."""
    return f"{name}, {frames} frames of {crop}x{crop}, batch {batch}, {report.count(threads, 'thread')}"


def clips(config: ModelConfig, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Clips of every pathway, on the generator's device, as a decoder's pixels come out of normalisation: mean 0,
    deviation about 1; channels_last_3d, the layout that `pack_pathways` writes."""
    found, side = [], config.input.crop
    for p in config.pathways:
        shape = (batch, config.frames_of(p), side, side, config.pathway(p).in_channels)
        found.append(torch.randn(shape, generator=generator, device=generator.device).permute(0, 4, 1, 2, 3))
    return found


def lateral_maps(model: Any, batch: int, generator: torch.Generator) -> list[list[Tensor]]:
    """Maps of both pathways before each of the lateral connections, non-negative as behind a ReLU."""
    config, found = model.config, []
    side = config.input.crop
    for i, strides in enumerate(((2, 2), *((s,) for s in config.pathway("slow").strides[:3]))):
        for stride in strides:  # the stem's two, then a stage's
            side = (side - 1) // stride + 1
        pair = []
        for p in ("slow", "fast"):
            path = config.pathway(p)
            width = path.width if i == 0 else path.out_channels(i - 1)
            shape = (batch, config.frames_of(p), side, side, width)
            x = torch.randn(shape, generator=generator, device=generator.device).relu_()
            pair.append(x.permute(0, 4, 1, 2, 3))
        found.append(pair)
    return found


def trained_like(model: Any, seed: int = 0, crop: int = 64) -> Any:
    """The model with batch norms as after training: running statistics that fit its activations, and weights
    that are neither one nor zero. In eval mode afterwards.

    A fresh network ends every residual branch with a zero weight: what happens inside would not reach the
    outputs, and a parity check would see nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    last = {id(m.last.bn) for m in model.modules() if hasattr(m, "last") and isinstance(m.last, ConvBN)}
    with torch.no_grad():
        for bn in norms:
            top = 0.6 if id(bn) in last else 1.4
            bn.weight.copy_(uniform(bn.weight, 0.5 * top, top))
            bn.bias.copy_(uniform(bn.bias, -0.3, 0.3))
            bn.reset_running_stats()
        momentum = [bn.momentum for bn in norms]
        for bn in norms:
            bn.momentum = None  # the running statistics become those of this one batch
        config = model.config
        clips = []
        for p in config.pathways:
            shape = (1, config.pathway(p).in_channels, config.frames_of(p), crop, crop)
            clips.append(torch.randn(shape, generator=generator))
        model.train()
        model.forward_features(clips if len(clips) > 1 else clips[0])
        for bn, value in zip(norms, momentum, strict=True):
            bn.momentum = value
    return model.eval()


@dataclass
class Subject:
    """A model of this library with logits as outputs, and inputs of its own size.

    batch, frames, crop: frames of the densest clip and side in pixels; None takes the preset's.
    """

    name: str = "slowfast_8x8_r50"
    batch: int = 1
    frames: int | None = None
    crop: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    calibrate: bool = True  # batch norms as after training; parity needs it, times do not

    @cached_property
    def model(self) -> Any:
        """The model in eval mode. Its outputs are logits: after a softmax nearly equal numbers would hide
        errors from a relative comparison."""
        overrides: dict[str, Any] = {"activation": "none", **self.overrides}
        if self.frames is not None:
            overrides["frames"] = self.frames
        if self.crop is not None:
            overrides["crop"] = self.crop
        torch.manual_seed(self.seed)
        model = models.create(self.name, **overrides)
        return trained_like(model, self.seed) if self.calibrate else model.eval()

    def with_batch(self, batch: int) -> "Subject":
        """The same model, other inputs."""
        other = replace(self, batch=batch)
        other.__dict__["model"] = self.model  # where cached_property looks
        return other

    @cached_property
    def inputs(self) -> list[Tensor]:
        """Its `clips`."""
        return clips(self.model.config, self.batch, torch.Generator().manual_seed(self.seed + 1))

    def call(self, model: Any) -> Any:
        """Our call convention: a list of clips, or the one clip."""
        return model(self.inputs if len(self.inputs) > 1 else self.inputs[0])

    def frozen(self, dtype: str) -> Any:
        """The frozen model."""
        return freeze(self.model, DTYPES[dtype])

    def twin(self, folded: bool) -> plain.SlowFast:
        """A fresh plain twin of the model."""
        return plain.SlowFast(self.model, fold=folded)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one call."""
        config = self.model.config
        return self.batch * models.macs(self.model, config.input.frames, config.input.crop)
