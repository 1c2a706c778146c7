"""pytorchvideo's files: names, and the networks it builds. They store no configuration."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from slowfast_kernels.models.checkpoint.files import FORMAT, VERSION
from slowfast_kernels.models.checkpoint.rules import Rule, joined
from slowfast_kernels.models.checkpoint.templates import Layout, Table, paths
from slowfast_kernels.models.config import HeadConfig, ModelConfig


def layout(keys: Sequence[str]) -> Layout:
    """What the keys show."""
    prefix = "model." if any(key.startswith("model.blocks.") for key in keys) else ""
    return Layout(
        two=any(".multipathway_blocks." in key for key in keys),
        detects=any(key.startswith("detection_head.") for key in keys),
        # numbers go up to 5 where a block without weights stands between res2 and res3
        pool=any(re.match(re.escape(prefix) + r"blocks\.5\..*res_blocks\.", key) for key in keys),
        prefix=prefix,
    )


def table(layout: Layout) -> Table:
    """Its names."""
    blocks = f"{layout.prefix}blocks"
    block = f"{blocks}.{{n}}.{{path}}res_blocks.{{i}}"
    head = "detection_head" if layout.detects else f"{blocks}.{6 if layout.two or layout.pool else 5}"
    return Table(
        {
            "stem.{path}.{kind}.{leaf}": f"{blocks}.0.{{path}}{{kind}}.{{leaf}}",
            "lateral.{k}.conv.{leaf}": f"{blocks}.{{k}}.multipathway_fusion.conv_fast_to_slow.{{leaf}}",
            "lateral.{k}.bn.{leaf}": f"{blocks}.{{k}}.multipathway_fusion.norm.{{leaf}}",
            "res{n}.{path}.{i}.shortcut.{kind}.{leaf}": f"{block}.branch1_{{kind}}.{{leaf}}",
            "res{n}.{path}.{i}.{layer}.{kind}.{leaf}": f"{block}.branch2.{{kind}}_{{layer}}.{{leaf}}",
            "head.proj.{param}": f"{head}.proj.{{param}}",
        },
        path=paths(layout, "multipathway_blocks.0.", "multipathway_blocks.1."),
        n=dict(zip("2345", "1345" if layout.pool else "1234", strict=True)),
        kind={"conv": "conv", "bn": "norm"},
    )


def head(config: ModelConfig) -> HeadConfig:
    """The head as its user will have it."""
    head = config.head
    if head.roi is None:
        pool = head.pool or max(1, config.input.crop // 32)
        return replace(head, activation="none", pool=pool, background=False)
    activation = "sigmoid" if head.activation == "none" else head.activation
    return replace(head, activation=activation, pool=None, background=False)


def rules(config: ModelConfig) -> Iterator[Rule]:
    """What it can express."""
    roi, depths = config.head.roi, ((1, 1, 1, 1), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3))
    for name, path in config.paths.items():
        where, blocks, pool = f"in the {name} pathway", path.stage_blocks, path.pool_after_res2
        yield path.block == "bottleneck", "blocks of kind bottleneck", f"{path.block} {where}"
        yield blocks in depths, "the blocks of 50, 101 or 152 layers", f"{blocks} {where}"
        what = "no max-pool after res2 in a network of two pathways"
        yield len(config.paths) == 1 or pool == 1, what, f"{pool} frames"
    yield from joined(config)
    if roi is not None:
        yield roi.temporal == "mean", "the mean over the frames before RoIAlign", f"their {roi.temporal}imum"


def contents(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration beside the weights lets the file be read without help."""
    return {"model_state": dict(weights), FORMAT: {"version": VERSION, "config": config.to_dict()}}
