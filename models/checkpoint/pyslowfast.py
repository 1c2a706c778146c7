"""PySlowFast's files: names, the configuration (`cfg`) in them, and the networks it builds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from slowfast_kernels.models.checkpoint.rules import Rule, joined
from slowfast_kernels.models.checkpoint.stored import Stored
from slowfast_kernels.models.checkpoint.templates import Layout, Table, paths
from slowfast_kernels.models.config import HeadConfig, ModelConfig, PathwayConfig, RoIConfig
from slowfast_kernels.models.families import family_of


def layout(keys: Sequence[str]) -> Layout:
    """What the keys show: both heads have the same names."""
    return Layout(two=any(".pathway1_" in key for key in keys))


def table(layout: Layout) -> Table:
    """Its names."""
    block = "s{n}.pathway{path}_res{i}"
    return Table(
        {
            "stem.{path}.{kind}.{leaf}": "s1.pathway{path}_stem.{kind}.{leaf}",
            "lateral.{k}.conv.{leaf}": "s{k}_fuse.conv_f2s.{leaf}",
            "lateral.{k}.bn.{leaf}": "s{k}_fuse.bn.{leaf}",
            "res{n}.{path}.{i}.shortcut.{_bn}.{leaf}": block + ".branch1{_bn}.{leaf}",
            "res{n}.{path}.{i}.{layer}.{_bn}.{leaf}": block + ".branch2.{layer}{_bn}.{leaf}",
            "head.proj.{param}": "head.projection.{param}",
        },
        path=paths(layout, "0", "1", alone="0"),
        k=dict(zip("0123", "1234", strict=True)),
        _bn={"conv": "", "bn": "_bn"},
    )


# -- reading its configuration --

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
_POOLING = {"c2d": 2, "i3d": 2}  # frames that its max-pool after res2 spans; 1 in its other networks


def _yaml(cfg: object) -> Mapping[str, Any]:
    if isinstance(cfg, str):
        import yaml

        try:
            cfg = yaml.safe_load(cfg)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"not plain YAML: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(cfg, Mapping):
        raise ValueError(f"expected YAML with sections, got {type(cfg).__name__}")
    return cfg


def stored(cfg: Mapping[str, Any] | str) -> Stored:
    """A configuration as `cfg.dump()` writes it into PySlowFast's files."""
    cfg = _yaml(cfg)
    c = {
        section: {**defaults, **{k: v for k, v in (cfg.get(section) or {}).items() if v is not None}}
        for section, defaults in _DEFAULTS.items()
    }
    data, model, resnet, detection = c["DATA"], c["MODEL"], c["RESNET"], c["DETECTION"]
    arch = model["ARCH"]
    two = arch == "slowfast" or (arch is None and "SLOWFAST" in cfg)
    wrapper = str(model["MODEL_NAME"]).startswith("PTV")
    said = Stored("PySlowFast cfg", detects=bool(detection["ENABLE"]), wrapper=wrapper)

    # a long cycle changes frames and crop during training, and keeps the real ones here
    long_cycle = c["MULTIGRID"]["LONG_CYCLE"]
    frames = long_cycle and c["MULTIGRID"]["DEFAULT_T"] or data["NUM_FRAMES"]
    crop = long_cycle and c["MULTIGRID"]["DEFAULT_S"] or data["TRAIN_CROP_SIZE"]
    views = int(c["TEST"]["NUM_ENSEMBLE_VIEWS"]), int(c["TEST"]["NUM_SPATIAL_CROPS"])
    said.input = {
        "frames": int(frames),
        "tau": int(data["SAMPLING_RATE"]),
        "crop": int(crop),
        "test_crop": int(data["TEST_CROP_SIZE"]),
        "mean": tuple(float(x) for x in data["MEAN"]),
        "std": tuple(float(x) for x in data["STD"]),
        "reverse_channels": bool(c["AVA"]["BGR"] if said.detects else data["REVERSE_INPUT_CHANNEL"]),
        "views": (1, 1) if said.detects else views,
        "ensemble": "max" if data["ENSEMBLE_METHOD"] == "max" else "mean",
    }
    if str(c["TRAIN"]["DATASET"]).lower() == "ssv2":
        said.input |= {"sampling": "segments", "views": (1, said.input["views"][1])}
    if two and c["SLOWFAST"]["ALPHA"] is not None:
        said.input["alpha"] = int(c["SLOWFAST"]["ALPHA"])

    for i, name in enumerate(("slow", "fast") if two else ("slow",)):
        dilations = [int(stage[min(i, len(stage) - 1)]) for stage in resnet["SPATIAL_DILATIONS"]]
        if wrapper and two and i == 1:  # PTVSlowFast reads res3's entry for res4 and res5 as well
            dilations[2:] = [dilations[1]] * 2
        said.pathways[name] = {
            "strides": tuple(int(stage[min(i, len(stage) - 1)]) for stage in resnet["SPATIAL_STRIDES"]),
            "dilations": tuple(dilations),
            "stem_stride": 1,
            "stem_pool_stride": 1,
        }
        if arch is not None:
            # the zoo has a C2D without pooling, told apart by the name alone
            nopool = "nopool" in f"{arch} {model['MODEL_NAME']}".lower()
            said.pathways[name]["pool_after_res2"] = 1 if nopool else _POOLING.get(arch, 1)

    said.head = {
        "activation": model["HEAD_ACT"],
        "multi_label": bool(data["MULTI_LABEL"] or said.detects or model["HEAD_ACT"] == "sigmoid"),
        "dropout": float(model["DROPOUT_RATE"]),
        "pool": None if said.detects or c["MULTIGRID"]["SHORT_CYCLE"] else max(1, int(crop) // 32),
    }
    if said.detects:
        said.head["roi"] = RoIConfig(
            resolution=int(detection["ROI_XFORM_RESOLUTION"]),
            scale=1 / float(detection["SPATIAL_SCALE_FACTOR"]),
            aligned=True if wrapper else bool(detection["ALIGNED"]),  # the wrapper keeps detectron2's default
        )
    if resnet["STRIDE_1X1"] and not two:
        said.refused.append("RESNET.STRIDE_1X1 (the spatial stride in the first convolution of a block)")
    if arch in ("x3d", "mvit", "maskmvit"):
        said.refused.append(f"MODEL.ARCH {arch}")
    return said


# -- writing --

# Temporal kernels of its architectures: stem, then a pattern for each stage (Slow before Fast).
_ARCHS: dict[str, tuple[tuple[tuple[int, ...], ...], ...]] = {
    "slowfast": (((1,), (1,), (1,), (3,), (3,)), ((5,), (3,), (3,), (3,), (3,))),
    "slow": (((1,), (1,), (1,), (3,), (3,)),),
    "c2d": (((1,),) * 5,),
    "i3d": (((5,), (3,), (3, 1), (3, 1), (1, 3)),),
    "2d": (((1,),) * 5,),
    "slow_c2d": (((1,),) * 5,),
    "slow_i3d": (((5,), (3,), (3, 1), (3, 1), (1, 3)),),
}


def head(config: ModelConfig) -> HeadConfig:
    """The head as its user will have it."""
    head = config.head
    activation, pool = head.activation, head.pool
    if activation == "none" if head.roi is not None else head.semantics != "pyslowfast":
        activation = replace(head, semantics="pyslowfast").usual_activation
    if head.roi is not None:
        pool = None
    elif head.semantics != "pyslowfast":
        pool = pool or max(1, config.input.crop // 32)
    return replace(head, activation=activation, pool=pool, background=False)


def rules(config: ModelConfig) -> Iterator[Rule]:
    """What it can express."""
    paths, roi, cells = config.paths, config.head.roi, config.input.crop // 32
    for name, path in paths.items():
        where, stem = f"in the {name} pathway", (path.stem_stride, path.stem_pool_stride)
        kinds = ("bottleneck", "basic_transform")
        yield path.block in kinds, f"blocks of kind {' or '.join(kinds)}", f"{path.block} {where}"
        yield stem == (1, 1), "a stem without strides in time", f"{stem[0]}x{stem[1]}"
        usual = path.blocks is None and path.depth in (18, 50, 101)
        yield usual, "18, 50 or 101 layers", f"{path.stage_blocks} blocks {where}"
    yield from joined(config)
    if len(paths) == 2:
        (slow, fast), what = config.paths.values(), "a Slow width that is a multiple of the Fast one"
        yield slow.width // fast.width % config.lateral.ratio == 0, what, f"{slow.width} and {fast.width}"
    yield (
        _arch(config) is not None,
        "the temporal kernels and pooling of its slowfast, slow, c2d or i3d architecture",
        f"a {family_of(config).kind(config)} network with others",
    )
    if roi is not None:
        yield roi.temporal == "mean", "the mean over the frames before RoIAlign", f"their {roi.temporal}imum"
        whole = not roi.sampling_ratio and round(1 / roi.scale) * roi.scale == 1
        yield whole, "RoIAlign with sampling ratio 0 and a whole stride", roi
    elif config.head.pool is not None:
        yield config.head.pool == cells, f"a pooling window of crop / 32 = {cells} cells", config.head.pool


def _arch(config: ModelConfig) -> tuple[str, list[list[int]]] | None:
    """MODEL.ARCH and RESNET.NUM_BLOCK_TEMP_KERNEL of a network, None if it has no such architecture."""
    paths = list(config.paths.values())
    for arch, kernels in _ARCHS.items():
        if len(kernels) != len(paths) or any(p.pool_after_res2 != _POOLING.get(arch, 1) for p in paths):
            continue
        counts = [_temporal_blocks(path, basis) for path, basis in zip(paths, kernels, strict=True)]
        known = [per_stage for per_stage in counts if per_stage is not None]
        if len(known) == len(paths):
            return arch, [list(stage) for stage in zip(*known, strict=True)]
    return None


def _temporal_blocks(path: PathwayConfig, basis: tuple[tuple[int, ...], ...]) -> list[int] | None:
    """How many blocks of each stage follow a basis before the rest has kernel 1, or None if they do not."""
    counts: list[int] = []
    for kernels, pattern in zip(path.kernels, basis[1:], strict=True):
        n = len(kernels)
        followed = [pattern[i % len(pattern)] for i in range(n)]
        counts += [k for k in range(n, -1, -1) if kernels == (*followed[:k], *[1] * (n - k))][:1]
    return counts if (path.stem_kernel,) == basis[0] and len(counts) == 4 else None


def contents(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """As PySlowFast's save_checkpoint writes it, without the state of a training run."""
    import yaml

    spec, head, paths = config.input, config.head, list(config.paths.values())
    arch, temporal = _arch(config) or ("", [])
    first = paths[0]
    cfg: dict[str, Any] = {
        "MODEL": {
            "ARCH": arch,
            "MODEL_NAME": "SlowFast" if len(paths) == 2 else "ResNet",
            "NUM_CLASSES": head.classes,
            "HEAD_ACT": head.activation,
            "DROPOUT_RATE": head.dropout,
            "LOSS_FUNC": _loss(head),
        },
        "DATA": {
            "NUM_FRAMES": spec.frames,
            "SAMPLING_RATE": spec.tau,
            "TRAIN_CROP_SIZE": spec.crop,
            "TEST_CROP_SIZE": spec.test_crop,
            "MEAN": list(spec.mean),
            "STD": list(spec.std),
            "INPUT_CHANNEL_NUM": [path.in_channels for path in paths],
            "REVERSE_INPUT_CHANNEL": spec.reverse_channels,
            "MULTI_LABEL": head.multi_label,
            "ENSEMBLE_METHOD": "max" if spec.ensemble == "max" else "sum",
        },
        "RESNET": {
            "DEPTH": first.depth,
            "WIDTH_PER_GROUP": first.width,
            "NUM_GROUPS": 1,
            "TRANS_FUNC": "bottleneck_transform" if first.block == "bottleneck" else "basic_transform",
            "STRIDE_1X1": False,
            "ZERO_INIT_FINAL_BN": config.zero_init_final_bn,
            "NUM_BLOCK_TEMP_KERNEL": temporal,
            "SPATIAL_STRIDES": [[path.strides[stage] for path in paths] for stage in range(4)],
            "SPATIAL_DILATIONS": [[path.dilations[stage] for path in paths] for stage in range(4)],
        },
        "NONLOCAL": {
            "LOCATION": [[[] for _ in paths] for _ in range(4)],
            "GROUP": [[1 for _ in paths] for _ in range(4)],
            "POOL": [[[1, 2, 2] for _ in paths] for _ in range(4)],
        },
        "DETECTION": {"ENABLE": head.roi is not None},
        "TEST": {"NUM_ENSEMBLE_VIEWS": spec.views[0], "NUM_SPATIAL_CROPS": spec.views[1]},
    }
    if spec.sampling == "segments":
        cfg["TRAIN"] = {"DATASET": "ssv2"}
    if len(paths) == 2:
        cfg["SLOWFAST"] = {
            "ALPHA": spec.alpha,
            "BETA_INV": first.width // paths[1].width,
            "FUSION_CONV_CHANNEL_RATIO": config.lateral.ratio,
            "FUSION_KERNEL_SZ": config.lateral.kernel,
        }
    if head.roi is not None:
        cfg["DETECTION"].update(
            ALIGNED=head.roi.aligned,
            SPATIAL_SCALE_FACTOR=round(1 / head.roi.scale),
            ROI_XFORM_RESOLUTION=head.roi.resolution,
        )
        cfg["AVA"] = {"BGR": spec.reverse_channels}
    elif head.pool is None:  # the whole map is averaged, as multigrid training with short cycles has it
        cfg["MULTIGRID"] = {"SHORT_CYCLE": True}
    return {"model_state": dict(weights), "cfg": yaml.safe_dump(cfg, default_flow_style=None)}


def _loss(head: HeadConfig) -> str:
    """A head of clips gives logits in training, one of boxes has its sigmoid there as well."""
    if not head.multi_label:
        return "cross_entropy"
    return "bce" if head.roi is not None else "bce_logit"
