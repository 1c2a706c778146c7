"""The SlowFast network and its single-pathway relatives (Slow-only, Fast-only, I3D, C2D).

        Slow clip [N, 3, T, H, W]          Fast clip [N, 3, alpha * T, H, W]
                  |                                  |
               stem slow <------ lateral[0] ------ stem fast        beta times the channels,
               res2 slow <------ lateral[1] ------ res2 fast        alpha times the frames
               res3 slow <------ lateral[2] ------ res3 fast
               res4 slow <------ lateral[3] ------ res4 fast
               res5 slow                           res5 fast
                  '------------> head <--------------'

Feichtenhofer, Fan, Malik, He: "SlowFast Networks for Video Recognition", ICCV 2019, arXiv:1812.03982.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels.graph.checks import check
from slowfast_kernels.models.config import STAGES, ModelConfig, PathwayConfig
from slowfast_kernels.nn import BasicBlock, Bottleneck, Head, Lateral, RoIHead, Stage, Stem
from slowfast_kernels.ops._checks import type_name

if TYPE_CHECKING:
    from slowfast_kernels.models.checkpoint import CheckpointInfo

Clips = Tensor | Sequence[Tensor]


class SlowFast(nn.Module):
    """A network of one or two pathways, as its `ModelConfig` (kept as `config`) describes it.

    Two pathways: `model([slow, fast])` with Slow [N, C, T, H, W] and Fast [N, C, alpha * T, H, W]; one
    pathway: `model(clip)`. With a detection head, boxes are the second argument: `model([slow, fast], rois)`,
    rois [K, 5] as clip index, x1, y1, x2, y2 in pixels of the clip.

    What it returns is `config.head.output`: "scores" [N, classes], or [K, classes] of boxes; "features" [N, C], or
    [K, C], in float32 (float64 of a float64 model); "maps", a list of [N, C, T, H, W] per pathway in the model's
    dtype, without boxes.
    """

    checkpoint: "CheckpointInfo | None" = None  # where the weights come from, if from a file

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        paths = config.paths
        self.stem = nn.ModuleDict({name: _stem(path) for name, path in paths.items()})
        self.lateral = nn.ModuleList(_laterals(config) if len(paths) == 2 else [])
        self.res2 = nn.ModuleDict({name: _stage(config, name, 0) for name in paths})
        self.res3 = nn.ModuleDict({name: _stage(config, name, 1) for name in paths})
        self.res4 = nn.ModuleDict({name: _stage(config, name, 2) for name in paths})
        self.res5 = nn.ModuleDict({name: _stage(config, name, 3) for name in paths})
        self.head = _head(config, sum(path.out_channels(3) for path in paths.values()))
        initialise(self, zero_init_final_bn=config.zero_init_final_bn)

    def forward(self, clips: Clips, rois: Tensor | None = None) -> Tensor | list[Tensor]:
        """Class scores (activated in eval mode, logits in training mode), or what else `config.head.output` says;
        see the class for the arguments."""
        check_inputs(self.config, clips, rois)
        maps = self.forward_features(clips)
        output = self.config.head.output
        if output == "maps":
            return maps
        return self.head(maps, *(() if rois is None else (rois,)), output=output)

    def forward_features(self, clips: Clips) -> list[Tensor]:
        """Features of res5, [N, C, T, H/32, W/32] for each pathway (H/16 with res5_stride=1)."""
        check_clips(self.config, clips)
        each = clips if isinstance(clips, list | tuple) else [clips]
        x = {name: self.stem[name](clip) for name, clip in zip(self.config.pathways, each, strict=True)}
        x = self._fuse(0, x)
        x = self._fuse(1, self._each(self.res2, x))
        x = {name: self._pool_frames(name, y) for name, y in x.items()}
        x = self._fuse(2, self._each(self.res3, x))
        x = self._fuse(3, self._each(self.res4, x))
        x = self._each(self.res5, x)
        return [x[name] for name in self.config.pathways]

    def _each(self, stage: nn.ModuleDict, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """A stage of every pathway, the Fast one first: its input is the smaller one to keep in memory meanwhile."""
        return {name: stage[name](x[name]) for name in reversed(self.config.pathways)}

    def example_inputs(self) -> tuple[Any, ...]:
        """Arguments of a call, without memory: what `freeze` traces it with."""
        clips = [
            torch.empty(1, self.config.pathway(p).in_channels, 1, 1, 1, device="meta")
            for p in self.config.pathways
        ]
        boxes = (torch.empty(0, 5, device="meta"),) if self.config.head.takes_rois else ()
        return clips if len(clips) > 1 else clips[0], *boxes

    @property
    def arguments(self) -> Callable[..., tuple[Any, ...]]:
        """What makes those of `example_inputs` of a call's arguments: raises TypeError and ValueError as `forward`
        does."""
        return functools.partial(_arguments, self.config)

    def _fuse(self, index: int, x: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.lateral:
            return x
        return {"slow": self.lateral[index](x["slow"], x["fast"]), "fast": x["fast"]}

    def _pool_frames(self, name: str, x: Tensor) -> Tensor:
        window = self.config.pathway(name).pool_after_res2
        return x if window == 1 else F.max_pool3d(x, (window, 1, 1))


def _arguments(config: ModelConfig, clips: Clips, rois: Tensor | None = None) -> tuple[Any, ...]:
    check_inputs(config, clips, rois)
    alone = isinstance(clips, list | tuple) and len(clips) == 1
    return clips[0] if alone else clips, rois


@check
def check_inputs(config: ModelConfig, clips: Clips, rois: Tensor | None = None) -> None:
    """Raises TypeError or ValueError for arguments that no model of this configuration takes."""
    check_rois(config, rois)
    check_clips(config, clips)


def check_rois(config: ModelConfig, rois: Tensor | None) -> None:
    """Raises ValueError unless there are boxes exactly where the model's head takes them."""
    if (rois is not None) != config.head.takes_rois:
        expected = "rois [K, 5] (detection head)"
        if not config.head.takes_rois:
            expected = f"no rois ({'classification head' if config.head.roi is None else 'output is maps'})"
        raise ValueError(
            f"{config.name or 'model'}: expected {expected}, got {'none' if rois is None else 'some'}"
        )


@check
def check_clips(config: ModelConfig, clips: Clips) -> dict[str, Tensor]:
    """The clips by pathway. The caller's list is only read.

    Raises TypeError for what is no tensor, ValueError where number, channels, frames or type are not the model's.
    """
    names, model = config.pathways, config.name or "model"
    tensors: list[Any] = list(clips) if isinstance(clips, list | tuple) else [clips]
    for clip in tensors:
        if not isinstance(clip, Tensor):
            raise TypeError(
                f"{model}: expected tensors [N, C, T, H, W] ({', '.join(names)}), got {type_name(clip)}"
            )
    if len(tensors) != len(names):
        raise ValueError(f"{model}: expected {len(names)} clip(s) ({', '.join(names)}), got {len(tensors)}")
    for name, clip in zip(names, tensors, strict=True):
        channels = config.pathway(name).in_channels
        if clip.ndim != 5 or clip.shape[1] != channels:
            raise ValueError(
                f"{model}: expected the {name} clip as [N, {channels}, T, H, W], got {list(clip.shape)}"
            )
        if min(clip.shape[2:]) < 1:
            raise ValueError(
                f"{model}: expected at least one frame, row and column in the {name} clip, got {list(clip.shape)}"
            )
        if not clip.is_floating_point():
            raise ValueError(
                f"{model}: expected the {name} clip normalised, in floating point (ops.pack_pathways makes clips of "
                f"uint8 frames), got {clip.dtype}"
            )
    if len(tensors) == 2:
        (n, _, t, h, w), alpha, got = tensors[0].shape, config.input.alpha, [*tensors[1].shape]
        expected = [n, got[1], alpha * t, h, w]
        if got != expected:
            raise ValueError(
                f"{model}: expected the fast clip as {expected} (alpha={alpha} times the slow clip's {t} "
                f"frames), got {got}"
            )
    config.check_frames(*(clip.shape[2] for clip in tensors))
    return dict(zip(names, tensors, strict=True))


def _stem(path: PathwayConfig) -> Stem:
    strides = {"stride": path.stem_stride, "pool_stride": path.stem_pool_stride}
    return Stem(path.in_channels, path.width, path.stem_kernel, **strides)


def _widths(path: PathwayConfig) -> list[int]:
    """Channels after the stem, res2, res3, res4 (and res5): what the next stage and the laterals start from."""
    return [path.width, *(path.out_channels(i) for i in range(len(STAGES)))]


def _laterals(config: ModelConfig) -> list[Lateral]:
    widths, settings = _widths(config.pathway("fast"))[:4], dict(vars(config.lateral))
    settings["activation"] = "relu" if settings.pop("relu") else "none"
    return [Lateral(channels, config.input.alpha, **settings) for channels in widths]


def _stage(config: ModelConfig, name: str, index: int) -> Stage:
    """Stage 0..3 (res2..res5) of a pathway; the Slow one also takes in what the lateral connection appended."""
    path = config.pathway(name)
    channels = _widths(path)[index]
    if name == "slow" and config.fast is not None:
        channels += config.lateral.added_channels(_widths(config.fast)[index], config.input.alpha)
    widths = channels, path.inner_channels(index), path.out_channels(index)
    stride, dilation = path.strides[index], path.dilations[index]
    return Stage(*widths, path.kernels[index], stride=stride, dilation=dilation, block=path.block)


def _head(config: ModelConfig, channels: int) -> Head | RoIHead:
    head = config.head
    usual: dict[str, Any] = {
        "semantics": head.semantics,
        "activation": head.activation,
        "dropout": head.dropout,
    }
    if head.roi is None:
        return Head(channels, head.classes, pool=head.pool, **usual)
    return RoIHead(channels, head.classes, **vars(head.roi), **usual)


def initialise(model: nn.Module, *, zero_init_final_bn: bool = True) -> None:
    """Random weights as the field starts from them (PySlowFast's init_weights, the paper's section 4).

    Convolutions: He et al. 2015, normal with fan-out. Batch norm: identity, or zero after the last
    convolution of each residual block. Classifier: normal with deviation 0.01, bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    if zero_init_final_bn:
        for module in model.modules():
            if isinstance(module, Bottleneck | BasicBlock) and module.last.bn is not None:
                nn.init.zeros_(module.last.bn.weight)
