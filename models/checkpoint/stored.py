"""What the configuration inside a file says: PySlowFast's `cfg`, mmaction2's `meta`, our own."""

import ast
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from slowfast_kernels.models.checkpoint.files import FORMAT, Contents
from slowfast_kernels.models.config import ModelConfig, RoIConfig

log = logging.getLogger("slowfast_kernels.checkpoint")


@dataclass
class Stored:
    """Fields of a `ModelConfig` that a stored configuration fixes.

    origin: what it is, for messages. input, head: fields of `InputSpec` and `HeadConfig`. pathways: per
    pathway, fields of `PathwayConfig`. detects: whether there is a detection head. refused: what the
    configuration asks for and this library does not do. wrapper: a PySlowFast wrapper around a pytorchvideo
    network. norms: per pathway, (eps, momentum) of its batch norms where they are not the usual 1e-5 and 0.1.
    """

    origin: str
    input: dict[str, Any] = field(default_factory=dict)
    pathways: dict[str, dict[str, Any]] = field(default_factory=dict)
    lateral: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    detects: bool | None = None
    refused: list[str] = field(default_factory=list)
    wrapper: bool = False
    norms: dict[str, tuple[float, float | None]] = field(default_factory=dict)


def read(contents: Contents) -> Stored | None:
    """What a file's configuration or its format says, or None where neither can be read."""
    if contents.caffe2:  # older than the aligned option of RoIAlign
        return Stored("Caffe2 format", head={"roi": RoIConfig(aligned=False)})
    rest = contents.rest
    ours = rest.get(FORMAT)
    if isinstance(ours, Mapping) and isinstance(ours.get("config"), Mapping):
        return from_ours(ModelConfig.from_dict(ours["config"]))
    cfg, meta = rest.get("cfg"), rest.get("meta")
    try:
        if cfg is not None:
            return from_pyslowfast(_yaml(cfg))
        if isinstance(meta, Mapping):
            text = meta.get("config") or meta.get("cfg")
            settings = (
                text if isinstance(text, Mapping) else assignments(text) if isinstance(text, str) else {}
            )
            return from_mmaction2(settings) if isinstance(settings.get("model"), Mapping) else None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        log.warning(
            "%s: the stored configuration cannot be read (%s), going on without", contents.path, error
        )
    return None


def from_ours(config: ModelConfig) -> Stored:
    """Everything of one of our configurations."""
    per_path = ("strides", "dilations", "pool_after_res2", "stem_stride", "stem_pool_stride")
    head = {
        key: getattr(config.head, key)
        for key in ("activation", "multi_label", "background", "pool", "dropout")
    }
    return Stored(
        "slowfast-kernels configuration",
        input=asdict(config.input),
        pathways={
            name: {key: getattr(config.pathway(name), key) for key in per_path} for name in config.pathways
        },
        lateral={"relu": config.lateral.relu},
        head={**head, "roi": config.head.roi},
        detects=config.head.roi is not None,
    )


# -- PySlowFast --

_DEFAULTS: dict[str, dict[str, Any]] = {  # of PySlowFast, for configurations that leave something out
    "DATA": {
        "NUM_FRAMES": 8,
        "SAMPLING_RATE": 8,
        "TRAIN_CROP_SIZE": 224,
        "TEST_CROP_SIZE": 256,
        "MEAN": [0.45] * 3,
        "STD": [0.225] * 3,
        "REVERSE_INPUT_CHANNEL": False,
        "MULTI_LABEL": False,
        "ENSEMBLE_METHOD": "sum",
    },
    "MODEL": {"ARCH": None, "MODEL_NAME": "", "HEAD_ACT": "softmax", "DROPOUT_RATE": 0.5},
    "RESNET": {
        "SPATIAL_STRIDES": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "SPATIAL_DILATIONS": [[1, 1], [1, 1], [1, 1], [1, 1]],
        "STRIDE_1X1": False,
        "NUM_GROUPS": 1,
    },
    "SLOWFAST": {"ALPHA": None},
    "DETECTION": {"ENABLE": False, "ALIGNED": True, "SPATIAL_SCALE_FACTOR": 16, "ROI_XFORM_RESOLUTION": 7},
    "TEST": {"NUM_ENSEMBLE_VIEWS": 10, "NUM_SPATIAL_CROPS": 3},
    "MULTIGRID": {"SHORT_CYCLE": False, "LONG_CYCLE": False, "DEFAULT_T": 0, "DEFAULT_S": 0},
    "AVA": {"BGR": False},
    "TRAIN": {"DATASET": "kinetics"},
}
_POOLING = {"c2d": 2, "i3d": 2}  # frames that PySlowFast's max-pool after res2 spans; 1 in its other networks


def _yaml(cfg: Any) -> Mapping[str, Any]:
    if isinstance(cfg, str):
        import yaml

        try:
            cfg = yaml.safe_load(cfg)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"not plain YAML: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(cfg, Mapping):
        raise ValueError(f"expected YAML with sections, got {type(cfg).__name__}")
    return cfg


def from_pyslowfast(cfg: Mapping[str, Any]) -> Stored:
    """A configuration as `cfg.dump()` writes it into PySlowFast's files."""
    c = {
        section: {**defaults, **{k: v for k, v in (cfg.get(section) or {}).items() if v is not None}}
        for section, defaults in _DEFAULTS.items()
    }
    data, model, resnet, detection = c["DATA"], c["MODEL"], c["RESNET"], c["DETECTION"]
    arch = model["ARCH"]
    two = arch == "slowfast" or (arch is None and "SLOWFAST" in cfg)
    wrapper = str(model["MODEL_NAME"]).startswith("PTV")
    stored = Stored("PySlowFast cfg", detects=bool(detection["ENABLE"]), wrapper=wrapper)

    multigrid = c["MULTIGRID"]
    # a long cycle changes frames and crop during training, and keeps the real ones here
    long_cycle = multigrid["LONG_CYCLE"]
    frames = long_cycle and multigrid["DEFAULT_T"] or data["NUM_FRAMES"]
    crop = long_cycle and multigrid["DEFAULT_S"] or data["TRAIN_CROP_SIZE"]
    stored.input = {
        "frames": int(frames),
        "tau": int(data["SAMPLING_RATE"]),
        "crop": int(crop),
        "test_crop": int(data["TEST_CROP_SIZE"]),
        "mean": tuple(float(x) for x in data["MEAN"]),
        "std": tuple(float(x) for x in data["STD"]),
        "reverse_channels": bool(c["AVA"]["BGR"] if stored.detects else data["REVERSE_INPUT_CHANNEL"]),
        "views": (1, 1)
        if stored.detects
        else (int(c["TEST"]["NUM_ENSEMBLE_VIEWS"]), int(c["TEST"]["NUM_SPATIAL_CROPS"])),
        "ensemble": "max" if data["ENSEMBLE_METHOD"] == "max" else "mean",
    }
    if str(c["TRAIN"]["DATASET"]).lower() == "ssv2":
        stored.input |= {"sampling": "segments", "views": (1, stored.input["views"][1])}
    if two and c["SLOWFAST"]["ALPHA"] is not None:
        stored.input["alpha"] = int(c["SLOWFAST"]["ALPHA"])

    for i, name in enumerate(("slow", "fast") if two else ("slow",)):
        dilations = [int(stage[min(i, len(stage) - 1)]) for stage in resnet["SPATIAL_DILATIONS"]]
        if wrapper and two and i == 1:  # PTVSlowFast reads res3's entry for res4 and res5 as well
            dilations[2:] = [dilations[1]] * 2
        stored.pathways[name] = {
            "strides": tuple(int(stage[min(i, len(stage) - 1)]) for stage in resnet["SPATIAL_STRIDES"]),
            "dilations": tuple(dilations),
            "stem_stride": 1,
            "stem_pool_stride": 1,
        }
        if arch is not None:
            # the zoo has a C2D without pooling, told apart by the name alone
            nopool = "nopool" in f"{arch} {model['MODEL_NAME']}".lower()
            stored.pathways[name]["pool_after_res2"] = 1 if nopool else _POOLING.get(arch, 1)

    multi_label = bool(data["MULTI_LABEL"] or stored.detects or model["HEAD_ACT"] == "sigmoid")
    stored.head = {
        "activation": model["HEAD_ACT"],
        "multi_label": multi_label,
        "dropout": float(model["DROPOUT_RATE"]),
        "pool": None if stored.detects or multigrid["SHORT_CYCLE"] else max(1, int(crop) // 32),
    }
    if stored.detects:
        stored.head["roi"] = RoIConfig(
            resolution=int(detection["ROI_XFORM_RESOLUTION"]),
            scale=1 / float(detection["SPATIAL_SCALE_FACTOR"]),
            aligned=True if wrapper else bool(detection["ALIGNED"]),  # the wrapper keeps detectron2's default
        )
    if resnet["STRIDE_1X1"] and not two:
        stored.refused.append("RESNET.STRIDE_1X1 (the spatial stride in the first convolution of a block)")
    if arch in ("x3d", "mvit", "maskmvit"):
        stored.refused.append(f"MODEL.ARCH {arch}")
    return stored


# -- mmaction2 --


def assignments(text: str) -> dict[str, Any]:
    """The plain values that a mmaction2 configuration in Python assigns. Nothing is executed.

    Understood are constants, tuples, lists, dictionaries, dict(key=value) and names assigned before; anything
    else is left out.
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not plain assignments: {' '.join(str(error).split())[:120]}") from error
    for statement in statements:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                value = _value(statement.value, values)
                if value is not _UNKNOWN:
                    values[target.id] = value
    return values


_UNKNOWN = object()


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNKNOWN)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(item, names) for item in node.elts)
    if isinstance(node, ast.Dict):
        pairs = [
            (k.value, v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)
        ]
        return _dict(pairs, names)
    if isinstance(node, ast.Call):
        plain = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        return _dict([(k.arg, k.value) for k in node.keywords if k.arg], names) if plain else _UNKNOWN
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return _UNKNOWN


def _dict(pairs: Sequence[tuple[Any, ast.expr]], names: Mapping[str, Any]) -> dict[Any, Any]:
    values = {key: _value(node, names) for key, node in pairs}
    return {key: value for key, value in values.items() if value is not _UNKNOWN}


_BACKBONES = {
    # type -> values of ResNet3d's arguments where they are left out
    "ResNet3d": {"conv1_stride_t": 1, "pool1_stride_t": 1, "with_pool2": True},
    "ResNet3dSlowOnly": {"conv1_stride_t": 1, "pool1_stride_t": 1, "with_pool2": False},
    "ResNet3dSlowFast": {},
}


def from_mmaction2(settings: Mapping[str, Any]) -> Stored:
    """A configuration as mmaction2 0.x and 1.x write it into the `meta` of their files."""
    model = settings["model"]
    backbone = model["backbone"]
    kind = str(backbone.get("type", "")).removeprefix("mmaction.")
    stored = Stored("mmaction2 config", detects="roi_head" in model)
    if kind not in _BACKBONES:
        stored.refused.append(f"backbone {kind or 'without a type'}")
        return stored
    every = 1  # the model itself thins out its clip by this much for the denser pathway
    if kind == "ResNet3dSlowFast":
        resample, alpha = int(backbone.get("resample_rate", 8)), int(backbone.get("speed_ratio", 8))
        every = max(1, resample // alpha)
        stored.input["alpha"] = alpha
        for name in ("slow", "fast"):
            part = {"conv1_stride_t": 1, "pool1_stride_t": 1, **(backbone.get(f"{name}_pathway") or {})}
            stored.pathways[name] = {**_mmaction2_path(name, part, stored), "pool_after_res2": 1}
            if name == "slow" and 0 in tuple(part.get("lateral_activate", ())):
                stored.refused.append("lateral_activate with stages left out")
            if part.get("lateral_inv"):
                stored.refused.append("lateral_inv (connections by deconvolution)")
    else:
        part = {**_BACKBONES[kind], **backbone}
        stored.pathways["slow"] = _mmaction2_path("slow", part, stored)
        stored.pathways["slow"]["pool_after_res2"] = 2 if part["with_pool2"] else 1
        if part.get("with_pool1") is False:
            stored.refused.append("with_pool1=False (no max-pool in the stem)")
    _mmaction2_input(settings, model, stored, every)
    _mmaction2_head(model, stored)
    return stored


_BATCH_NORMS = ("BN", "BN3d", "SyncBN", "MMSyncBN")  # the same in evaluation


def _mmaction2_path(pathway: str, part: Mapping[str, Any], stored: Stored) -> dict[str, Any]:
    for name, usual in (
        ("temporal_strides", (1, 1, 1, 1)),
        ("conv1_stride_s", 2),
        ("pool1_stride_s", 2),
        ("style", "pytorch"),
        ("inflate_style", "3x1x1"),
        ("out_indices", (3,)),
    ):
        value = part.get(name, usual)
        if (tuple(value) if isinstance(value, list | tuple) else value) != usual:
            stored.refused.append(f"{name}={value}")
    for name, kinds in (("conv_cfg", ("Conv3d",)), ("norm_cfg", _BATCH_NORMS), ("act_cfg", ("ReLU",))):
        layer = part.get(name, {"type": kinds[0]})
        if not isinstance(layer, Mapping) or layer.get("type") not in kinds:
            stored.refused.append(f"{name}={layer} (expected {' or '.join(kinds)})")
        elif name == "norm_cfg":
            norm = float(layer.get("eps", 1e-5)), layer.get("momentum", 0.1)
            if norm != (1e-5, 0.1):
                stored.norms[pathway] = norm
    return {
        "strides": tuple(part.get("spatial_strides", (1, 2, 2, 2))),
        "dilations": tuple(part.get("dilations", (1, 1, 1, 1))),
        "stem_stride": int(part["conv1_stride_t"]),
        "stem_pool_stride": int(part["pool1_stride_t"]),
    }


def _mmaction2_input(
    settings: Mapping[str, Any], model: Mapping[str, Any], stored: Stored, every: int
) -> None:
    norm = model.get("data_preprocessor") or settings.get("img_norm_cfg") or {}
    if len(norm.get("mean") or ()) == 3:
        stored.input["mean"] = tuple(round(float(x) / 255, 9) for x in norm["mean"])
        stored.input["std"] = tuple(round(float(x) / 255, 9) for x in norm["std"])
        # frames are decoded as R, G, B; either flag, whatever it is called, turns them round
        stored.input["reverse_channels"] = bool(norm.get("to_bgr") or norm.get("to_rgb"))
    train, test = (list(_pipeline(settings, which)) for which in ("train", "test"))
    for step in train + test:
        if "clip_len" in step:
            stored.input["frames"] = int(step["clip_len"]) // every
            stored.input["tau"] = int(step.get("frame_interval", 1)) * every
            break
    sizes = [step.get("scale") for step in train if step.get("type") == "Resize"]
    if sizes and isinstance(sizes[-1], tuple) and sizes[-1][0] == sizes[-1][1] > 0:
        stored.input["crop"] = int(sizes[-1][0])
    clips = next((int(step.get("num_clips", 1)) for step in test if "clip_len" in step), None)
    crops = [step for step in test if step.get("type") in ("ThreeCrop", "CenterCrop")]
    if clips and crops:
        size = crops[-1].get("crop_size", 256)
        stored.input["test_crop"] = int(size[0] if isinstance(size, tuple) else size)
        stored.input["views"] = (clips, 3 if crops[-1]["type"] == "ThreeCrop" else 1)
    elif stored.detects:
        stored.input["views"] = (1, 1)


def _pipeline(settings: Mapping[str, Any], which: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a data pipeline, whichever of the places they are kept in."""
    loader = (settings.get(f"{which}_dataloader") or {}).get("dataset")
    for place in (settings, (settings.get("data") or {}).get(which), loader):
        steps = place.get(f"{which}_pipeline" if place is settings else "pipeline") if place else None
        if steps:
            yield from (step for step in steps if isinstance(step, Mapping))
            return


def _mmaction2_head(model: Mapping[str, Any], stored: Stored) -> None:
    stored.head = {"activation": "none", "pool": None}
    if not stored.detects:
        head = model.get("cls_head") or {}
        stored.head["dropout"] = float(head.get("dropout_ratio", 0.8 if "alpha" in stored.input else 0.5))
        stored.head["multi_label"] = bool(head.get("multi_class", False))
        if head.get("spatial_type", "avg") != "avg":
            stored.refused.append(f"cls_head spatial_type={head['spatial_type']}")
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
            stored.refused.append(f"roi_head {name}={value}")
    size = extractor.get("output_size", 16)
    stored.head.update(
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
