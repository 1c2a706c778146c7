"""Writing the other libraries' files.

A network is written only if the library can build it; what changes around the network (head rule, choice of
Slow frames, colours) is reported. Every file is read back and compared bit by bit before it takes its name.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slowfast_kernels.models.checkpoint import files, keys
from slowfast_kernels.models.checkpoint.detect import describe, single_kind
from slowfast_kernels.models.checkpoint.errors import CheckpointError, some
from slowfast_kernels.models.checkpoint.load import (
    VERSION,
    load_checkpoint,
    save_checkpoint,
    unusual_norms,
    with_window,
)
from slowfast_kernels.models.config import HeadConfig, ModelConfig, PathwayConfig, RoIConfig
from slowfast_kernels.models.slowfast import SlowFast
from slowfast_kernels.models.support import LIBRARIES

log = logging.getLogger("slowfast_kernels.checkpoint")

TARGETS = tuple(LIBRARIES)


@dataclass(frozen=True)
class Written:
    """What `convert` wrote: path, library, keys, the configuration the file reads back as, and what is
    different for the user of the new file."""

    path: str
    library: str
    keys: int
    config: ModelConfig
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"wrote {self.path}: {LIBRARIES[self.library]}, {describe(self.config)}, {self.keys} keys"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def convert(
    source: str | Path, target: str | Path, *, to: str, model: str | None = None, **overrides: Any
) -> Written:
    """Read a checkpoint of any supported library and write it for another one (or in our own format).

    to: "pyslowfast", "pytorchvideo", "mmaction2" or "slowfast". model, overrides: as in `load_checkpoint`.
    The weights are carried over bit for bit, renamed, with the classifier's columns reordered and AVA's
    background class inserted or dropped as the library wants it. Raises CheckpointError where the library
    cannot express the network, and what `load_checkpoint` raises.
    """
    network = load_checkpoint(source, model, **overrides)
    try:
        written = write(network, target, to=to)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    info: Any = network.checkpoint
    assumed = (f"assumed: {what}" for what in info.assumed)
    return replace(written, notes=(*assumed, *written.notes))


def write(network: SlowFast, target: str | Path, *, to: str) -> Written:
    """Write a model of this library as a file of another one; see `convert`."""
    if to not in TARGETS:
        raise CheckpointError(f"to: expected one of {', '.join(TARGETS)}, got {to!r}")
    target = Path(target)
    if to == "slowfast":
        _replace(target, lambda path: save_checkpoint(network, path))
        state = network.state_dict()
        return Written(str(target), to, len(state), network.config, tuple(_not_finite(state)))

    config, notes = _adapt(network, to)
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    state = _head_for(network.config, config, state)
    layout = keys.Layout(
        two=len(config.pathways) == 2,
        detects=config.head.roi is not None,
        pool=to == "pytorchvideo" and next(iter(_paths(config).values())).pool_after_res2 > 1,
    )
    renamed = {keys.name(to, key, layout): value.contiguous() for key, value in state.items()}
    content = _CONTENTS[to](config, renamed)

    def save_and_compare(path: Path) -> None:
        torch.save(content, path)
        back = load_checkpoint(path)
        _compare(back, state, config)

    _replace(target, save_and_compare)
    return Written(str(target), to, len(renamed), config, (*notes, *_not_finite(renamed)))


def _replace(target: Path, save: Callable[[Path], None]) -> None:
    """Write beside the target and rename: no half a file, and none at all if the check fails."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.resolve().parent)
    os.close(handle)
    try:
        save(Path(name))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _compare(back: SlowFast, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Raise unless a file reads back as the same weights and the same network."""
    got = back.state_dict()
    wrong = [key for key in state.keys() | got.keys() if key not in got or key not in state]
    wrong += [key for key in state if key in got and not torch.equal(_bits(state[key]), _bits(got[key]))]
    different = [
        name
        for name in ("slow", "fast", "lateral", "head")
        if getattr(back.config, name) != getattr(config, name)
        and not _same_function(back.config, config, name)
    ]
    spec = (
        "frames",
        "fixed_frames",
        "alpha",
        "tau",
        "mean",
        "std",
        "slow_index",
        "reverse_channels",
        "fast_input",
    )
    different += [name for name in spec if getattr(back.config.input, name) != getattr(config.input, name)]
    if wrong or different:
        raise CheckpointError(
            f"the file written reads back differently (keys {wrong[:3]}, settings {different}); removed"
        )


def _bits(x: Tensor) -> Tensor:
    """Bytes of a tensor; as numbers a NaN is not equal to itself."""
    return x.contiguous().reshape(-1).view(torch.uint8)


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """A note on weights that are no numbers."""
    keys = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    return [f"weights are NaN or infinite, and are written as they are: {some(keys)}"] if keys else []


def _same_function(a: ModelConfig, b: ModelConfig, part: str) -> bool:
    """Two descriptions of one pathway: the same temporal kernels may be written as different patterns."""
    x, y = getattr(a, part), getattr(b, part)
    if not isinstance(x, PathwayConfig) or not isinstance(y, PathwayConfig):
        return part == "lateral" and len(a.pathways) == 1
    kernels = [[p.block_kernels(stage) for stage in range(4)] for p in (x, y)]
    blank: dict[str, Any] = {
        "depth": 50,
        "blocks": (1, 1, 1, 1),
        "temporal_kernels": ((1,),) * 4,
        "temporal_blocks": None,
    }
    return kernels[0] == kernels[1] and replace(x, **blank) == replace(y, **blank)


# -- what a library can express --


def _paths(config: ModelConfig) -> dict[str, PathwayConfig]:
    return {name: config.pathway(name) for name in config.pathways}


def _refuse(library: str, what: str, got: object) -> CheckpointError:
    return CheckpointError(f"{LIBRARIES[library]} cannot express this network: expected {what}, got {got}")


def _adapt(network: SlowFast, to: str) -> tuple[ModelConfig, list[str]]:
    """The configuration as the library's user will have it, and what that changes."""
    config = network.config
    notes: list[str] = []
    unusual = unusual_norms(network)
    if unusual:
        raise _refuse(to, "batch norms with eps 1e-5 and momentum 0.1", f"others in {next(iter(unusual))}")
    if config.input.fast_input != "rgb":
        raise _refuse(to, "R, G, B frames in the Fast pathway", f"fast_input={config.input.fast_input!r}")
    lateral = config.lateral
    if len(config.pathways) == 2:
        plain = lateral.kind == "conv" and not lateral.norm and not lateral.relu
        usual = lateral.kind == "conv" and lateral.norm and lateral.relu
        mmaction2 = plain or lateral.kind == "none"
        if not usual and not (to == "mmaction2" and mmaction2):
            got = "a bare convolution" if plain else f"kind {lateral.kind!r}"
            if lateral.kind == "conv" and not plain:
                got = f"norm={lateral.norm}, relu={lateral.relu}"
            raise _refuse(to, "lateral connections by convolution, batch norm and ReLU", got)
    _check_pathways(config, to)

    head, spec = config.head, config.input
    detects = head.roi is not None
    if to == "mmaction2":
        activation, pool = "none", None
    elif detects:
        activation, pool = "sigmoid" if head.multi_label else "softmax", None
        if to == "pytorchvideo" or head.activation != "none":
            activation = "sigmoid" if head.activation == "none" else head.activation
    elif to == "pytorchvideo":
        activation, pool = "none", head.pool or max(1, spec.crop // 32)
    else:
        activation = head.activation
        if head.semantics != "pyslowfast":
            activation = "sigmoid" if head.multi_label else "softmax"
        pool = head.pool if head.semantics == "pyslowfast" else head.pool or max(1, spec.crop // 32)
    if head.activation != activation:
        notes.append(f"the head ends with {activation!r} there, not with {head.activation!r}")
    if not detects and head.semantics != to:
        rules = f"{LIBRARIES[to]}'s rule, not {LIBRARIES[head.semantics]}'s"
        notes.append(f"on crops larger than {spec.crop} pixels the head follows {rules}")
    background = detects and to == "mmaction2" and _with_background(head)
    if background != head.background:
        notes.append("the background class is " + ("inserted as class 0" if background else "dropped"))
    classes = head.classes + background - head.background
    if detects and to != "mmaction2" and head.roi is not None and head.roi.temporal != "mean":
        raise _refuse(to, "the mean over the frames before RoIAlign", f"their {head.roi.temporal}imum")
    head = replace(
        head,
        classes=classes,
        semantics=to,
        activation=activation,
        pool=pool,
        background=background,
    )
    index = "stride" if to == "mmaction2" else "linspace"
    if len(config.pathways) == 2 and spec.slow_index != index:
        rule = {"stride": "0, alpha, 2 alpha, ...", "linspace": "linspace(0, T - 1, T / alpha)"}
        notes.append(
            f"{LIBRARIES[to]} feeds the Slow pathway frames {rule[index]}, not {rule[spec.slow_index]}"
        )
    if to == "pytorchvideo":
        colours = f"mean {spec.mean}, std {spec.std}" + (", B, G, R" if spec.reverse_channels else "")
        if (spec.mean, spec.std) != ((0.45,) * 3, (0.225,) * 3) or spec.reverse_channels:
            notes.append(f"normalise the input with {colours}")
    config = with_window(replace(config, head=head, input=replace(spec, slow_index=index), source=to))
    if config.input.fixed_frames and not spec.fixed_frames:
        notes.append(
            f"the head's window spans clips of {spec.frames} frames there and slides along longer ones"
        )
    return config, notes


def _with_background(head: HeadConfig) -> bool:
    """Whether mmaction2's file has a class 0 for the background: where its own has, and where AVA's scores, each
    by its own sigmoid, become its; one more class would change a softmax."""
    return head.background if head.semantics == "mmaction2" else head.multi_label


def expressible(config: ModelConfig, to: str) -> bool:
    """Whether a library can build the pathways of a network (what joins them and the head aside)."""
    try:
        _check_pathways(config, to)
    except CheckpointError:
        return False
    return True


def _check_pathways(config: ModelConfig, to: str) -> None:
    paths = _paths(config)
    for name, path in paths.items():
        where = f"in the {name} pathway"
        if to == "mmaction2":
            kernels = {k for stage in range(4) for k in path.block_kernels(stage)}
            if not kernels <= {1, 3}:
                raise _refuse(to, "temporal kernels of 1 or 3", f"{max(kernels)} {where}")
            if path.block == "basic_transform" or (path.block == "basic" and path.depth >= 50):
                raise _refuse(
                    to, "bottleneck blocks, or basic ones in 18 or 34 layers", f"{path.block} {where}"
                )
            if path.pool_after_res2 > 2 or (len(paths) == 2 and path.pool_after_res2 > 1):
                raise _refuse(
                    to, "a max-pool of 2 frames after res2 or none", f"{path.pool_after_res2} {where}"
                )
            continue
        allowed = {"pyslowfast": ("bottleneck", "basic_transform"), "pytorchvideo": ("bottleneck",)}[to]
        if path.block not in allowed:
            raise _refuse(to, f"blocks of kind {' or '.join(allowed)}", f"{path.block} {where}")
        if to == "pyslowfast":
            if path.stem_stride > 1 or path.stem_pool_stride > 1:
                raise _refuse(
                    to, "a stem without strides in time", f"{path.stem_stride}x{path.stem_pool_stride}"
                )
            if path.blocks is not None or path.depth not in (18, 50, 101):
                raise _refuse(to, "18, 50 or 101 layers", f"{path.stage_blocks} blocks {where}")
        elif path.stage_blocks not in ((1, 1, 1, 1), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)):
            raise _refuse(to, "the blocks of 50, 101 or 152 layers", f"{path.stage_blocks} {where}")
        if to == "pytorchvideo" and len(paths) == 2 and path.pool_after_res2 > 1:
            raise _refuse(
                to, "no max-pool after res2 in a network of two pathways", f"{path.pool_after_res2} frames"
            )
    if len(paths) == 2:
        slow, fast = paths["slow"], paths["fast"]
        if slow.width % fast.width or (
            to == "pyslowfast" and (slow.width // fast.width) % config.lateral.ratio
        ):
            raise _refuse(
                to, "a Slow width that is a multiple of the Fast one", f"{slow.width} and {fast.width}"
            )
        if to != "mmaction2" and slow.stage_blocks != fast.stage_blocks:
            raise _refuse(
                to, "as many blocks in both pathways", f"{slow.stage_blocks} and {fast.stage_blocks}"
            )
    if to == "pyslowfast":
        _pyslowfast_arch(config)


def _head_for(old: ModelConfig, new: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The classifier with its columns in the library's order, with or without a background class."""
    state = dict(state)
    weight, bias = state["head.proj.weight"], state["head.proj.bias"]
    if old.head.column_order != new.head.column_order and len(old.pathways) == 2:
        width = old.pathway(old.head.column_order[0]).out_channels(3)
        weight = torch.cat([weight[:, width:], weight[:, :width]], dim=1)
    if new.head.background and not old.head.background:
        # mmaction2 ignores what class 0 says; zeros say nothing
        weight, bias = (torch.cat([x.new_zeros(1, *x.shape[1:]), x]) for x in (weight, bias))
    elif old.head.background and not new.head.background:
        weight, bias = weight[1:], bias[1:]
    state["head.proj.weight"], state["head.proj.bias"] = weight, bias
    return state


# -- PySlowFast --

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
_POOLS = {"c2d": 2, "i3d": 2}


def _pyslowfast_arch(config: ModelConfig) -> tuple[str, list[list[int]]]:
    """MODEL.ARCH and RESNET.NUM_BLOCK_TEMP_KERNEL of a network."""
    paths = list(_paths(config).values())
    for arch, kernels in _ARCHS.items():
        if len(kernels) != len(paths) or any(p.pool_after_res2 != _POOLS.get(arch, 1) for p in paths):
            continue
        per_path = [_temporal_blocks(path, basis) for path, basis in zip(paths, kernels, strict=True)]
        if all(counts is not None for counts in per_path):
            return arch, [[counts[stage] for counts in per_path if counts] for stage in range(4)]
    kind = "SlowFast" if len(paths) == 2 else single_kind(paths[0])
    raise _refuse(
        "pyslowfast",
        "the temporal kernels and pooling of its slowfast, slow, c2d or i3d architecture",
        f"a {kind} network with others",
    )


def _temporal_blocks(path: PathwayConfig, basis: tuple[tuple[int, ...], ...]) -> list[int] | None:
    """How many blocks of each stage follow a basis before the rest has kernel 1, or None if they do not."""
    if (path.stem_kernel,) != basis[0]:
        return None
    counts = []
    for stage in range(4):
        kernels, pattern = path.block_kernels(stage), basis[stage + 1]
        n = len(kernels)
        fits = (
            count
            for count in range(n, -1, -1)
            if kernels == tuple(pattern[i % len(pattern)] if i < count else 1 for i in range(n))
        )
        count = next(fits, None)
        if count is None:
            return None
        counts.append(count)
    return counts


def _pyslowfast(config: ModelConfig, renamed: Mapping[str, Tensor]) -> dict[str, Any]:
    """As PySlowFast's save_checkpoint writes it, without the state of a training run."""
    import yaml

    spec, head, paths = config.input, config.head, list(_paths(config).values())
    arch, temporal = _pyslowfast_arch(config)
    first = paths[0]
    cfg: dict[str, Any] = {
        "MODEL": {
            "ARCH": arch,
            "MODEL_NAME": "SlowFast" if len(paths) == 2 else "ResNet",
            "NUM_CLASSES": head.classes,
            "HEAD_ACT": head.activation,
            "DROPOUT_RATE": head.dropout,
            "LOSS_FUNC": _pyslowfast_loss(head),
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
        roi = head.roi
        if roi.sampling_ratio or round(1 / roi.scale) * roi.scale != 1:
            raise _refuse("pyslowfast", "RoIAlign with sampling ratio 0 and a whole stride", roi)
        cfg["DETECTION"].update(
            ALIGNED=roi.aligned,
            SPATIAL_SCALE_FACTOR=round(1 / roi.scale),
            ROI_XFORM_RESOLUTION=roi.resolution,
        )
        cfg["AVA"] = {"BGR": spec.reverse_channels}
    elif head.pool is None:  # the whole map is averaged, as multigrid training with short cycles has it
        cfg["MULTIGRID"] = {"SHORT_CYCLE": True}
    elif head.pool != spec.crop // 32:
        raise _refuse("pyslowfast", f"a pooling window of crop / 32 = {spec.crop // 32} cells", head.pool)
    return {"model_state": dict(renamed), "cfg": yaml.safe_dump(cfg, default_flow_style=None)}


def _pyslowfast_loss(head: HeadConfig) -> str:
    """A head of clips gives logits in training, one of boxes has its sigmoid there as well."""
    if not head.multi_label:
        return "cross_entropy"
    return "bce" if head.roi is not None else "bce_logit"


# -- pytorchvideo --


def _pytorchvideo(config: ModelConfig, renamed: Mapping[str, Tensor]) -> dict[str, Any]:
    """pytorchvideo stores no configuration; ours beside the weights lets the file be read without help."""
    return {
        "model_state": dict(renamed),
        files.FORMAT: {"version": VERSION, "config": config.to_dict()},
    }


# -- mmaction2 --


def _mmaction2(config: ModelConfig, renamed: Mapping[str, Tensor]) -> dict[str, Any]:
    """Weights, and a configuration in `meta` as mmengine's `cfg.pretty_text` writes it."""
    spec, head, paths = config.input, config.head, _paths(config)
    if len(paths) == 2:
        backbone: dict[str, Any] = {
            "type": "ResNet3dSlowFast",
            "pretrained": None,
            "resample_rate": spec.alpha,
            "speed_ratio": spec.alpha,
            "channel_ratio": paths["slow"].width // paths["fast"].width,
            "slow_pathway": {
                "type": "resnet3d",
                **_mmaction2_path_config(paths["slow"]),
                "lateral": config.lateral.kind == "conv",
                "lateral_norm": config.lateral.kind == "conv" and config.lateral.norm,
                "lateral_infl": config.lateral.ratio,
                "fusion_kernel": config.lateral.kernel,
            },
            "fast_pathway": {"type": "resnet3d", **_mmaction2_path_config(paths["fast"]), "lateral": False},
        }
    else:
        (path,) = paths.values()
        backbone = {
            "type": "ResNet3d",
            **_mmaction2_path_config(path),
            "with_pool2": path.pool_after_res2 == 2,
        }
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
        model = _mmaction2_detector(model, head, head.roi, features)
    kind = "SampleAVAFrames" if head.roi else "SampleFrames"
    sample: dict[str, Any] = {"type": kind, "clip_len": spec.frames, "frame_interval": spec.tau}
    test: list[dict[str, Any]] = [
        {**sample, "test_mode": True},
        {"type": "Resize", "scale": (-1, spec.test_crop)},
    ]
    if head.roi is None:
        crop = {1: "CenterCrop", 3: "ThreeCrop"}.get(spec.views[1], "ThreeCrop")
        test[0]["num_clips"] = spec.views[0]
        test.append({"type": crop, "crop_size": spec.test_crop})
    settings = {
        "model": model,
        "train_pipeline": [sample, {"type": "Resize", "scale": (spec.crop, spec.crop), "keep_ratio": False}],
        "test_pipeline": test,
    }
    text = "".join(f"{name} = {_python(value)}\n" for name, value in settings.items())
    return {"meta": {"cfg": text, "config": text}, "state_dict": dict(renamed)}


def _mmaction2_detector(
    model: dict[str, Any], head: HeadConfig, roi: RoIConfig, features: int
) -> dict[str, Any]:
    """A detector is a network of mmdet, which finds mmaction2's parts by their prefix."""
    own = {
        name: {**model[name], "type": f"mmaction.{model[name]['type']}"} for name in model if name != "type"
    }
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
    boxes = {  # mmaction2's choice of boxes to train on
        "assigner": {"type": "MaxIoUAssignerAVA", "pos_iou_thr": 0.9, "neg_iou_thr": 0.9, "min_pos_iou": 0.9},
        "sampler": {
            "type": "RandomSampler",
            "num": 32,
            "pos_fraction": 1,
            "neg_pos_ub": -1,
            "add_gt_as_proposals": True,
        },
        "pos_weight": 1.0,
    }
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
        "train_cfg": {"rcnn": boxes},
        "test_cfg": {"rcnn": None},
    }


def _mmaction2_path_config(path: PathwayConfig) -> dict[str, Any]:
    inflate = []
    for stage in range(4):
        flags = tuple(int(kernel == 3) for kernel in path.block_kernels(stage))
        inflate.append(flags[0] if len(set(flags)) == 1 else flags)
    result: dict[str, Any] = {
        "depth": path.depth if path.block == "basic" or path.depth >= 50 else 50,
        "pretrained": None,
        "base_channels": path.width,
        "in_channels": path.in_channels,
        "conv1_kernel": (path.stem_kernel, 7, 7),
        "conv1_stride_t": path.stem_stride,
        "pool1_stride_t": path.stem_pool_stride,
        "inflate": tuple(inflate),
        "spatial_strides": path.strides,
        "dilations": path.dilations,
    }
    if path.blocks is not None or result["depth"] != path.depth:
        result["stage_blocks"] = path.stage_blocks
    return result


def _python(value: Any) -> str:
    """A value as Python source, dictionaries as dict(key=value)."""
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={_python(item)}' for key, item in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    return repr(value)


_CONTENTS: dict[str, Callable[[ModelConfig, Mapping[str, Tensor]], dict[str, Any]]] = {
    "pyslowfast": _pyslowfast,
    "pytorchvideo": _pytorchvideo,
    "mmaction2": _mmaction2,
}
