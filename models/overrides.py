"""Changes to a preset: flat keyword arguments, checked and written into the nested configuration."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from slowfast_kernels.models.config import (
    STAGES,
    HeadConfig,
    InputSpec,
    LateralConfig,
    ModelConfig,
    PathwayConfig,
    RoIConfig,
    fast_width,
    require,
)

# Keyword argument -> field, for those that are one field.
_INPUT = {field.name: field.name for field in fields(InputSpec) if field.name != "call"}
_LATERAL = {
    "lateral": "kind",
    "fusion_kernel": "kernel",
    "lateral_ratio": "ratio",
    "lateral_norm": "norm",
    "lateral_relu": "relu",
}
_HEAD = {"head" if field.name == "semantics" else field.name: field.name for field in fields(HeadConfig)}
_GIVEN = ("width", "in_channels", "stem_kernel")  # by beta, fast_input, temporal_kernels
_PATHWAY = tuple(field.name for field in fields(PathwayConfig) if field.name not in _GIVEN)
_MODEL = {"zero_init_final_bn": "zero_init_final_bn"}
_DERIVED = ("beta", "res5_stride", "res5_dilation")
OVERRIDES = tuple(sorted((*_INPUT, *_LATERAL, *_HEAD, *_PATHWAY, *_MODEL, *_DERIVED)))


def closest(what: str, name: str, choices: Iterable[str]) -> str:
    """One line for an unknown name: what it is, and the names that look like it (or all of a few)."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    return f"unknown {what} {name!r}: " + (
        f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(choices)}"
    )


def override(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """The configuration with the changes that `create` documents. Raises a one-line ValueError for a bad one."""
    for name in changes:
        if name not in OVERRIDES:
            raise ValueError(closest("override", name, OVERRIDES))
    if not changes:
        return config
    return replace(
        config,
        input=_input(config, changes),
        lateral=_lateral(config, changes),
        head=_head(config, changes),
        **_pathways(config, changes),
        **_pick(_MODEL, changes),
    )


def _pick(fields: Mapping[str, str], changes: Mapping[str, Any]) -> dict[str, Any]:
    picked = {field: changes[name] for name, field in fields.items() if name in changes}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in picked.items()}


def _input(config: ModelConfig, changes: Mapping[str, Any]) -> InputSpec:
    picked = _pick(_INPUT, changes)
    if "crop" in picked:
        picked.setdefault("test_crop", picked["crop"])
    return replace(config.input, **picked)


def _lateral(config: ModelConfig, changes: Mapping[str, Any]) -> LateralConfig:
    picked = _pick(_LATERAL, changes)
    for name in (name for name in _LATERAL if name in changes):
        require(len(config.pathways) == 2, f"override {name!r}", "a model of two pathways", config.name)
    if picked.get("kind") == "conv_plain":  # mmaction2's: neither batch norm nor ReLU
        picked = {"norm": False, **picked, "kind": "conv"}
    if "norm" in picked:
        picked.setdefault("relu", picked["norm"])
    return replace(config.lateral, **picked)


def _head(config: ModelConfig, changes: Mapping[str, Any]) -> HeadConfig:
    picked, old = _pick(_HEAD, changes), config.head
    if "roi" in picked:
        picked["roi"] = _roi(picked["roi"], old.roi)
    detects = picked.get("roi", old.roi) is not None
    if detects and old.roi is None:
        picked.setdefault("multi_label", True)
    if "activation" not in picked and ("semantics" in picked or detects != (old.roi is not None)):
        picked["activation"] = replace(old, **picked).usual_activation
    if detects or picked.get("semantics", old.semantics) == "mmaction2":
        picked.setdefault("pool", None)
    elif old.roi is not None or old.semantics == "mmaction2" or ("crop" in changes and old.pool is not None):
        picked.setdefault("pool", max(1, changes.get("crop", config.input.crop) // 32))
    return replace(old, **picked)


def _roi(value: Any, old: RoIConfig | None) -> RoIConfig | None:
    """What is given of a detection head; the rest stays as it is, or as usual where there was none."""
    old = old or RoIConfig()
    if isinstance(value, Mapping):
        known = [field.name for field in fields(RoIConfig)]
        for name in value:
            if name not in known:
                raise ValueError(closest("field of roi", name, known))
        return replace(old, **value)
    known_type = value in (None, True) or isinstance(value, RoIConfig)
    require(known_type, "roi", "None, True, a RoIConfig or its fields", value)
    return old if value is True else value


def _pathways(config: ModelConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The pathways that there are; a change is for all of them unless it says which."""
    new: dict[str, dict[str, Any]] = {name: {} for name in config.pathways}
    for name in _PATHWAY:
        if name in changes:
            for path, value in _per_pathway(name, changes[name], config.pathways).items():
                new[path].update(_pathway_fields(name, value))
    for name, field in (("res5_stride", "strides"), ("res5_dilation", "dilations")):
        if name in changes:
            for path, value in _per_pathway(name, changes[name], config.pathways).items():
                old = new[path].get(field, getattr(config.pathway(path), field))
                new[path][field] = (*old[:3], value)
    if "beta" in changes:
        require(len(config.pathways) == 2, "override 'beta'", "a model of two pathways", config.name)
        new["fast"]["width"] = fast_width(config.pathway("slow").width, changes["beta"])
    if "fast_input" in changes and config.fast is not None:
        new["fast"]["in_channels"] = 3 if changes["fast_input"] == "rgb" else 1
    return {path: replace(config.pathway(path), **values) for path, values in new.items()}


def _pathway_fields(name: str, value: Any) -> dict[str, Any]:
    """The fields of a `PathwayConfig` that one override sets."""
    if name == "depth":
        block = {"block": "basic"} if value == 34 else {}
        return {"depth": value, "blocks": None, "temporal_blocks": None, **block}
    if name == "temporal_kernels":
        require(len(value) == 1 + len(STAGES), name, "five entries: stem, res2, res3, res4, res5", value)
        stem, *stages = ((k,) if isinstance(k, int) else tuple(k) for k in value)
        require(len(stem) == 1, f"{name} of the stem", "one number", stem)
        return {"stem_kernel": stem[0], "temporal_kernels": tuple(stages)}
    return {name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value}


def _per_pathway(name: str, value: Any, pathways: tuple[str, ...]) -> dict[str, Any]:
    """An override's value for each pathway it is for.

    A dictionary {"slow": ..., "fast": ...} names them. Per-stage counts may give [slow, fast] at each stage,
    as PySlowFast writes NUM_BLOCK_TEMP_KERNEL; single numbers may come as one pair.
    """
    if isinstance(value, Mapping):
        for path in value:
            if path not in pathways:
                raise ValueError(closest(f"pathway in {name}", str(path), pathways))
        return dict(value)
    if isinstance(value, list | tuple):
        single = (
            name in ("depth", "block", "stem_stride", "stem_pool_stride", "pool_after_res2") or "res5" in name
        )
        if single:
            require(len(value) == len(pathways), name, f"a value for each of {', '.join(pathways)}", value)
            return dict(zip(pathways, value, strict=True))
        per_stage = name in ("blocks", "temporal_blocks", "strides", "dilations")
        if per_stage and any(isinstance(entry, list | tuple) for entry in value):
            ok = all(isinstance(entry, list | tuple) and len(entry) == len(pathways) for entry in value)
            require(ok, name, f"[{', '.join(pathways)}] for each of res2..res5", value)
            return {path: tuple(entry[i] for entry in value) for i, path in enumerate(pathways)}
    return {path: value for path in pathways}
