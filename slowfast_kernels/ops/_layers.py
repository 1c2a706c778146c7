"""The layers of SlowFast-R50 8x8 as the model calls its blocks: one table for tests and benchmarks."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ._spec import Shape, Spec
from .bottleneck3d.spec import BlockSpec

CLASSIFIER = "slowfast_8x8_r50"
DETECTOR = "slowfast_8x8_r50_ava"  # its res5 keeps stride 16 and is dilated instead
FRAMES, CROP, ALPHA = 32, 224, 4


@dataclass(frozen=True)
class Layer:
    """A call of an op: its parameters, without memory, and the shapes of its maps for one clip.

    residual: a third map is added, as behind a block's last convolution. count: layers of this geometry.
    """

    name: str
    spec: Any
    inputs: tuple[Shape, ...]
    residual: bool = False
    count: int = 1

    @property
    def geometry(self) -> object:
        """What layers of the same cost and the same kernel have in common."""
        values = [tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in self.spec.flat()]
        return type(self.spec), str(values), self.inputs, self.residual


@functools.cache
def layers(preset: str = CLASSIFIER) -> tuple[Layer, ...]:
    """Every op of a network's blocks, in the order they run; a head is not among them, see `head`."""
    return tuple(layer for layer in _called(preset) if isinstance(layer.spec, Spec))


@functools.cache
def _called(preset: str) -> tuple[Layer, ...]:
    from slowfast_kernels import models, nn

    found: list[Layer] = []

    def note(name: str, block: nn.Block, inputs: Any) -> None:
        shapes = (tuple(x.shape) for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor))
        found.append(Layer(name, block if block.op else block.spec(), tuple(shapes)))

    with torch.device("meta"), torch.no_grad():
        model = models.create(preset).eval()
        for name, module in model.named_modules():
            if isinstance(module, nn.Block):
                module.register_forward_pre_hook(lambda m, inputs, name=name: note(name, m, inputs))
        clips = [torch.empty(1, 3, frames, CROP, CROP) for frames in (FRAMES // ALPHA, FRAMES)]
        boxes = (torch.zeros(1, 5),) if preset == DETECTOR else ()
        model(clips, *boxes)
    return tuple(found)


def of(op: str, preset: str = CLASSIFIER) -> list[Layer]:
    """The layers that are one op."""
    return [layer for layer in layers(preset) if layer.spec.op == op]


def head() -> Layer:
    """The classifier: its module, and the maps of both pathways."""
    return _called(CLASSIFIER)[-1]


def convolutions(block: Layer) -> list[Layer]:
    """The convolutions of a bottleneck block or of a lateral connection."""
    if not isinstance(block.spec, BlockSpec):
        return [Layer(f"{block.name}.conv", block.spec.full, block.inputs[1:], count=block.count)]
    found, x = [], block.inputs[0]
    for part, spec in zip("abc", (*block.spec.inner, block.spec.last), strict=True):
        found.append(Layer(f"{block.name}.{part}", spec, (x,), part == "c", block.count))
        x = tuple(spec.out_shape(x))
    if block.spec.projection is not None:
        found.append(Layer(f"{block.name}.shortcut", block.spec.projection, block.inputs, count=block.count))
    return found


def every_convolution() -> list[Layer]:
    """Every convolution of the blocks and the lateral connections (the stems are not among them)."""
    return [
        conv for op in ("bottleneck3d", "lateral_fusion") for layer in of(op) for conv in convolutions(layer)
    ]


def distinct(found: Iterable[Layer]) -> list[Layer]:
    """Layers of the same geometry put together: the first one's name, and how many there are."""
    kept: dict[object, Layer] = {}
    for layer in found:
        before = kept.get(layer.geometry)
        kept[layer.geometry] = layer if before is None else replace(before, count=before.count + layer.count)
    return list(kept.values())


def dilated() -> list[Layer]:
    """Distinct blocks of the detector that the classifier lacks."""
    have = {layer.geometry for layer in of("bottleneck3d")}
    new = distinct(layer for layer in of("bottleneck3d", DETECTOR) if layer.geometry not in have)
    return [replace(layer, name=f"{layer.name} dilated", count=0) for layer in new]
