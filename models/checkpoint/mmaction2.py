"""mmaction2's files: names, the configuration in their `meta`, and the networks it builds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from slowfast_kernels.models.checkpoint import python_config
from slowfast_kernels.models.checkpoint.rules import Rule, joined
from slowfast_kernels.models.checkpoint.stored import Stored
from slowfast_kernels.models.checkpoint.templates import Layout, Table, paths
from slowfast_kernels.models.config import HeadConfig, ModelConfig, PathwayConfig, RoIConfig


def layout(keys: Sequence[str]) -> Layout:
    """What the keys show."""
    detects = any(key.startswith("roi_head.") for key in keys)
    return Layout(two=any(".fast_path." in key for key in keys), detects=detects)


def table(layout: Layout) -> Table:
    """Its names."""
    head = "roi_head.bbox_head" if layout.detects else "cls_head"
    return Table(
        {
            "stem.{path}.{kind}.{leaf}": "backbone.{path}conv1.{kind}.{leaf}",
            "lateral.0.{kind}.{leaf}": "backbone.slow_path.conv1_lateral.{kind}.{leaf}",
            "lateral.{k}.{kind}.{leaf}": "backbone.slow_path.layer{k}_lateral.{kind}.{leaf}",
            "res{n}.{path}.{i}.{layer}.{kind}.{leaf}": "backbone.{path}layer{n}.{i}.{layer}.{kind}.{leaf}",
            "head.proj.{param}": head + ".fc_cls.{param}",
        },
        path=paths(layout, "slow_path.", "fast_path."),
        n=dict(zip("2345", "1234", strict=True)),
        layer={"a": "conv1", "b": "conv2", "c": "conv3", "shortcut": "downsample"},
    )


# -- reading its configuration --

_BACKBONES = {
    # type -> values of ResNet3d's arguments where they are left out
    "ResNet3d": {"conv1_stride_t": 1, "pool1_stride_t": 1, "with_pool2": True},
    "ResNet3dSlowOnly": {"conv1_stride_t": 1, "pool1_stride_t": 1, "with_pool2": False},
    "ResNet3dSlowFast": {},
}


def stored(settings: Mapping[str, Any]) -> Stored:
    """A configuration as mmaction2 0.x and 1.x write it into the `meta` of their files."""
    model = settings["model"]
    backbone = model["backbone"]
    kind = str(backbone.get("type", "")).removeprefix("mmaction.")
    said = Stored("mmaction2 config", detects="roi_head" in model)
    if kind not in _BACKBONES:
        said.refused.append(f"backbone {kind or 'without a type'}")
        return said
    every = 1  # the model itself thins out its clip by this much for the denser pathway
    if kind == "ResNet3dSlowFast":
        resample, alpha = int(backbone.get("resample_rate", 8)), int(backbone.get("speed_ratio", 8))
        every = max(1, resample // alpha)
        said.input["alpha"] = alpha
        for name in ("slow", "fast"):
            part = {"conv1_stride_t": 1, "pool1_stride_t": 1, **(backbone.get(f"{name}_pathway") or {})}
            said.pathways[name] = {**_read_path(name, part, said), "pool_after_res2": 1}
            if name == "slow" and 0 in tuple(part.get("lateral_activate", ())):
                said.refused.append("lateral_activate with stages left out")
            if part.get("lateral_inv"):
                said.refused.append("lateral_inv (connections by deconvolution)")
    else:
        part = {**_BACKBONES[kind], **backbone}
        said.pathways["slow"] = _read_path("slow", part, said)
        said.pathways["slow"]["pool_after_res2"] = 2 if part["with_pool2"] else 1
        if part.get("with_pool1") is False:
            said.refused.append("with_pool1=False (no max-pool in the stem)")
    _read_input(settings, model, said, every)
    _read_head(model, said)
    return said


# ResNet3d's arguments that change what it computes in a way this library does not, and their usual values.
_USUAL = {"temporal_strides": (1, 1, 1, 1), "conv1_stride_s": 2, "pool1_stride_s": 2, "style": "pytorch"}
_USUAL |= {"inflate_style": "3x1x1", "out_indices": (3,)}
_BATCH_NORMS = ("BN", "BN3d", "SyncBN", "MMSyncBN")  # the same in evaluation


def _read_path(pathway: str, part: Mapping[str, Any], said: Stored) -> dict[str, Any]:
    for name, usual in _USUAL.items():
        value = part.get(name, usual)
        if (tuple(value) if isinstance(value, list | tuple) else value) != usual:
            said.refused.append(f"{name}={value}")
    for name, kinds in (("conv_cfg", ("Conv3d",)), ("norm_cfg", _BATCH_NORMS), ("act_cfg", ("ReLU",))):
        layer = part.get(name, {"type": kinds[0]})
        if not isinstance(layer, Mapping) or layer.get("type") not in kinds:
            said.refused.append(f"{name}={layer} (expected {' or '.join(kinds)})")
        elif name == "norm_cfg":
            norm = float(layer.get("eps", 1e-5)), layer.get("momentum", 0.1)
            if norm != (1e-5, 0.1):
                said.norms[pathway] = norm
    return {
        "strides": tuple(part.get("spatial_strides", (1, 2, 2, 2))),
        "dilations": tuple(part.get("dilations", (1, 1, 1, 1))),
        "stem_stride": int(part["conv1_stride_t"]),
        "stem_pool_stride": int(part["pool1_stride_t"]),
    }


def _read_input(settings: Mapping[str, Any], model: Mapping[str, Any], said: Stored, every: int) -> None:
    norm = model.get("data_preprocessor") or settings.get("img_norm_cfg") or {}
    if len(norm.get("mean") or ()) == 3:
        said.input["mean"] = tuple(round(float(x) / 255, 9) for x in norm["mean"])
        said.input["std"] = tuple(round(float(x) / 255, 9) for x in norm["std"])
        # frames are decoded as R, G, B; either flag, whatever it is called, turns them round
        said.input["reverse_channels"] = bool(norm.get("to_bgr") or norm.get("to_rgb"))
    train, test = (list(_pipeline(settings, which)) for which in ("train", "test"))
    for step in train + test:
        if "clip_len" in step:
            said.input["frames"] = int(step["clip_len"]) // every
            said.input["tau"] = int(step.get("frame_interval", 1)) * every
            break
    sizes = [step.get("scale") for step in train if step.get("type") == "Resize"]
    if sizes and isinstance(sizes[-1], tuple) and sizes[-1][0] == sizes[-1][1] > 0:
        said.input["crop"] = int(sizes[-1][0])
    clips = next((int(step.get("num_clips", 1)) for step in test if "clip_len" in step), None)
    crops = [step for step in test if step.get("type") in ("ThreeCrop", "CenterCrop")]
    if clips and crops:
        size = crops[-1].get("crop_size", 256)
        said.input["test_crop"] = int(size[0] if isinstance(size, tuple) else size)
        said.input["views"] = (clips, 3 if crops[-1]["type"] == "ThreeCrop" else 1)
    elif said.detects:
        said.input["views"] = (1, 1)


def _pipeline(settings: Mapping[str, Any], which: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a data pipeline, whichever of the places they are kept in."""
    loader = (settings.get(f"{which}_dataloader") or {}).get("dataset")
    for place in (settings, (settings.get("data") or {}).get(which), loader):
        steps = place.get(f"{which}_pipeline" if place is settings else "pipeline") if place else None
        if steps:
            yield from (step for step in steps if isinstance(step, Mapping))
            return


def _read_head(model: Mapping[str, Any], said: Stored) -> None:
    said.head = {"activation": "none", "pool": None}
    if not said.detects:
        head = model.get("cls_head") or {}
        said.head["dropout"] = float(head.get("dropout_ratio", 0.8 if "alpha" in said.input else 0.5))
        said.head["multi_label"] = bool(head.get("multi_class", False))
        if head.get("spatial_type", "avg") != "avg":
            said.refused.append(f"cls_head spatial_type={head['spatial_type']}")
        return
    extractor = model["roi_head"].get("bbox_roi_extractor") or {}
    head = model["roi_head"].get("bbox_head") or {}
    for name, value, usual in (
        ("roi_layer_type", extractor.get("roi_layer_type", "RoIAlign"), "RoIAlign"),
        ("pool_mode", extractor.get("pool_mode", "avg"), "avg"),
        ("with_temporal_pool", extractor.get("with_temporal_pool", True), True),
        ("with_global", extractor.get("with_global", False), False),
        ("spatial_pool_type", head.get("spatial_pool_type", "max"), "max"),
        ("shared_head", bool(model["roi_head"].get("shared_head")), False),
    ):
        if value != usual:
            said.refused.append(f"roi_head {name}={value}")
    size = extractor.get("output_size", 16)
    said.head.update(
        dropout=float(head.get("dropout_ratio", 0)),
        multi_label=bool(head.get("multilabel", True)),
        background=bool(head.get("background_class", True)),
        roi=RoIConfig(
            resolution=int(size[0] if isinstance(size, tuple) else size),
            scale=1 / float(extractor.get("featmap_stride", 16)),
            sampling_ratio=int(extractor.get("sampling_ratio", 0)),
            aligned=bool(extractor.get("aligned", True)),
            temporal="max" if extractor.get("temporal_pool_mode", "avg") == "max" else "mean",
        ),
    )


# -- writing --


def head(config: ModelConfig) -> HeadConfig:
    """The head as its user will have it. Its detection heads have a class 0 for the background where their own
    have, and where AVA's scores, each by its own sigmoid, become theirs; one more class would change a softmax."""
    head = config.head
    background = head.background if head.semantics == "mmaction2" else head.multi_label
    return replace(head, activation="none", pool=None, background=head.roi is not None and background)


def rules(config: ModelConfig) -> Iterator[Rule]:
    """What it can express."""
    for name, path in config.paths.items():
        where, pool = f"in the {name} pathway", path.pool_after_res2
        longest = max({k for stage in path.kernels for k in stage} - {1, 3}, default=3)
        yield longest == 3, "temporal kernels of 1 or 3", f"{longest} {where}"
        usual = path.block == "bottleneck" or (path.block == "basic" and path.depth < 50)
        yield usual, "bottleneck blocks, or basic ones in 18 or 34 layers", f"{path.block} {where}"
        pooled = pool == 1 or (pool == 2 and len(config.paths) == 1)
        yield pooled, "a max-pool of 2 frames after res2 or none", f"{pool} {where}"
    yield from joined(config, loose=True)


def contents(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Weights, and a configuration in `meta` as mmengine's `cfg.pretty_text` writes it."""
    spec, head, paths = config.input, config.head, config.paths
    if len(paths) == 2:
        backbone: dict[str, Any] = {
            "type": "ResNet3dSlowFast",
            "pretrained": None,
            "resample_rate": spec.alpha,
            "speed_ratio": spec.alpha,
            "channel_ratio": paths["slow"].width // paths["fast"].width,
            "slow_pathway": {
                "type": "resnet3d",
                **_path_config(paths["slow"]),
                "lateral": config.lateral.kind == "conv",
                "lateral_norm": config.lateral.kind == "conv" and config.lateral.norm,
                "lateral_infl": config.lateral.ratio,
                "fusion_kernel": config.lateral.kernel,
            },
            "fast_pathway": {"type": "resnet3d", **_path_config(paths["fast"]), "lateral": False},
        }
    else:
        (path,) = paths.values()
        backbone = {"type": "ResNet3d", **_path_config(path), "with_pool2": path.pool_after_res2 == 2}
    model: dict[str, Any] = {
        "type": "Recognizer3D",
        "backbone": backbone,
        "data_preprocessor": {
            "type": "ActionDataPreprocessor",
            "mean": [round(x * 255, 6) for x in spec.mean],
            "std": [round(x * 255, 6) for x in spec.std],
            "to_rgb": spec.reverse_channels,
            "format_shape": "NCTHW",
        },
    }
    features = sum(path.out_channels(3) for path in paths.values())
    if head.roi is None:
        model["cls_head"] = {
            "type": "SlowFastHead" if len(paths) == 2 else "I3DHead",
            "in_channels": features,
            "num_classes": head.classes,
            "spatial_type": "avg",
            "dropout_ratio": head.dropout,
            "average_clips": "prob",
            "multi_class": head.multi_label,
        }
    else:
        model = _detector(model, head, head.roi, features)
    kind = "SampleAVAFrames" if head.roi else "SampleFrames"
    sample: dict[str, Any] = {"type": kind, "clip_len": spec.frames, "frame_interval": spec.tau}
    resize = {"type": "Resize", "scale": (-1, spec.test_crop)}
    test: list[dict[str, Any]] = [{**sample, "test_mode": True}, resize]
    if head.roi is None:
        crop = {1: "CenterCrop", 3: "ThreeCrop"}.get(spec.views[1], "ThreeCrop")
        test[0]["num_clips"] = spec.views[0]
        test.append({"type": crop, "crop_size": spec.test_crop})
    settings = {
        "model": model,
        "train_pipeline": [sample, {"type": "Resize", "scale": (spec.crop, spec.crop), "keep_ratio": False}],
        "test_pipeline": test,
    }
    text = python_config.source(settings)
    return {"meta": {"cfg": text, "config": text}, "state_dict": dict(weights)}


# mmaction2's choice of boxes to train on
_BOXES = python_config.assignments("""
assigner = dict(type="MaxIoUAssignerAVA", pos_iou_thr=0.9, neg_iou_thr=0.9, min_pos_iou=0.9)
sampler = dict(type="RandomSampler", num=32, pos_fraction=1, neg_pos_ub=-1, add_gt_as_proposals=True)
pos_weight = 1.0
""")


def _detector(model: dict[str, Any], head: HeadConfig, roi: RoIConfig, features: int) -> dict[str, Any]:
    """A detector is a network of mmdet, which finds mmaction2's parts by their prefix."""
    own = {name: {**x, "type": f"mmaction.{x['type']}"} for name, x in model.items() if name != "type"}
    bbox_head = {
        "type": "BBoxHeadAVA",
        "background_class": head.background,
        "in_channels": features,
        "num_classes": head.classes,
        "multilabel": head.multi_label,
        "dropout_ratio": head.dropout,
    }
    if head.classes <= 5:  # it insists on counting fewer best classes than there are
        bbox_head["topk"] = tuple(k for k in (1, 3) if k < head.classes)
    return {
        "type": "FastRCNN",
        "_scope_": "mmdet",
        **own,
        "roi_head": {
            "type": "AVARoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor3D",
                "roi_layer_type": "RoIAlign",
                "output_size": roi.resolution,
                "featmap_stride": round(1 / roi.scale),
                "sampling_ratio": roi.sampling_ratio,
                "aligned": roi.aligned,
                "with_temporal_pool": True,
                "temporal_pool_mode": "avg" if roi.temporal == "mean" else "max",
            },
            "bbox_head": bbox_head,
        },
        "train_cfg": {"rcnn": _BOXES},
        "test_cfg": {"rcnn": None},
    }


def _path_config(path: PathwayConfig) -> dict[str, Any]:
    inflate = [tuple(int(kernel == 3) for kernel in stage) for stage in path.kernels]
    result: dict[str, Any] = {
        "depth": path.depth if path.block == "basic" or path.depth >= 50 else 50,
        "pretrained": None,
        "base_channels": path.width,
        "in_channels": path.in_channels,
        "conv1_kernel": (path.stem_kernel, 7, 7),
        "conv1_stride_t": path.stem_stride,
        "pool1_stride_t": path.stem_pool_stride,
        "inflate": tuple(flags[0] if len(set(flags)) == 1 else flags for flags in inflate),
        "spatial_strides": path.strides,
        "dilations": path.dilations,
    }
    if path.blocks is not None or result["depth"] != path.depth:
        result["stage_blocks"] = path.stage_blocks
    return result
