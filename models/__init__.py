"""SlowFast, Slow-only, Fast-only, I3D and C2D networks: presets, builders, cost."""

import importlib
from typing import TYPE_CHECKING, Any

from slowfast_kernels.models.config import (
    HeadConfig,
    InputSpec,
    LateralConfig,
    ModelConfig,
    PathwayConfig,
    RoIConfig,
    fast_width,
)
from slowfast_kernels.models.families import family_of
from slowfast_kernels.models.macs import macs
from slowfast_kernels.models.overrides import override
from slowfast_kernels.models.presets import PRESETS, preset
from slowfast_kernels.models.slowfast import SlowFast

if TYPE_CHECKING:
    from slowfast_kernels.models.checkpoint import (
        CheckpointError,
        CheckpointInfo,
        MismatchError,
        UndecidedError,
        convert,
        load_checkpoint,
        save_checkpoint,
    )
    from slowfast_kernels.models.interop import UnrecognisedModule, from_module

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "HeadConfig",
    "InputSpec",
    "LateralConfig",
    "MismatchError",
    "ModelConfig",
    "PathwayConfig",
    "RoIConfig",
    "SlowFast",
    "UndecidedError",
    "UnrecognisedModule",
    "build",
    "configure",
    "convert",
    "create",
    "fast_width",
    "from_module",
    "load_checkpoint",
    "macs",
    "names",
    "save_checkpoint",
]


#: Where names come from that are imported when they are asked for: the readers and writers of files and of other
#: libraries' modules.
_LATER = {
    "CheckpointError": "checkpoint",
    "CheckpointInfo": "checkpoint",
    "MismatchError": "checkpoint",
    "UndecidedError": "checkpoint",
    "UnrecognisedModule": "interop",
    "convert": "checkpoint",
    "from_module": "interop",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _LATER.values():
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(PRESETS)


def configure(name: str, **overrides: Any) -> ModelConfig:
    """The configuration that `create(name, **overrides)` builds."""
    return override(preset(name), overrides)


def build(config: ModelConfig) -> SlowFast:
    """The network that a configuration describes, with random weights, in training mode."""
    return family_of(config).build(config)


def create(name: str, **overrides: Any) -> SlowFast:
    """A network by the name of its preset, with random weights, in training mode.

    Overrides, with the fields of the configuration they set where that is not plain:
      input     frames, alpha, tau, crop (also sets test_crop and the head's window, crop // 32 cells),
                test_crop, mean, std, slow_index, reverse_channels, views, ensemble, fixed_frames,
                fast_input = "rgb" | "gray" | "time_diff"
      pathways  beta = 1/8, 1/6, ... (`fast_width` has the rounding), depth = 18 | 34 | 50 | 101 | 152,
                block = "bottleneck" | "basic" | "basic_transform", blocks, strides, dilations, res5_stride,
                res5_dilation, stem_stride, stem_pool_stride, pool_after_res2, temporal_blocks,
                temporal_kernels (five entries, stem and stages, each a number or a pattern)
      lateral   lateral = "conv" | "conv_plain" (no batch norm, no ReLU) | "time_to_channel_concat" |
                "time_to_channel_sum" | "time_sample" | "none", fusion_kernel, lateral_ratio,
                lateral_norm (and lateral_relu with it), lateral_relu
      head      classes, head = "pyslowfast" | "pytorchvideo" | "mmaction2" (and that library's activation),
                activation = "softmax" | "sigmoid" | "none", pool, dropout, multi_label, background,
                roi = None | True | RoIConfig | some of its fields (makes a detection head),
                output = "scores" | "features" | "maps" (what a call returns; `HeadConfig` says it)
      weights   zero_init_final_bn
    A pathway override holds for both pathways; {"slow": ..., "fast": ...} names them, and a pair (slow, fast) does
    where a single number is meant. A new depth makes all blocks temporal unless temporal_blocks says otherwise.

    Raises ValueError, in one line and with the nearest names, for an unknown preset or override, and for
    values that do not make a network.
    """
    return build(configure(name, **overrides))
