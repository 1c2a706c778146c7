"""SlowFast: a Slow and a Fast pathway with lateral connections."""

from collections.abc import Iterator
from dataclasses import replace

from slowfast_kernels.models.config import InputSpec, LateralConfig, ModelConfig, PathwayConfig
from slowfast_kernels.models.families.family import Family
from slowfast_kernels.models.families.variants import ava, charades, mmaction2, pytorchvideo, ssv2
from slowfast_kernels.models.slowfast import SlowFast

R50_IN_R101 = (3, 4, 6, 3)  # temporal blocks per stage of the "50" halves of r101_50_50
SLOW, SLOW_50 = PathwayConfig(), PathwayConfig(temporal_blocks=R50_IN_R101)
FAST = PathwayConfig(width=8, stem_kernel=5, temporal_kernels=((3,),) * 4)


def _slowfast(
    frames: int, alpha: int, kernel: int, slow: PathwayConfig = SLOW, depth: int = 50
) -> ModelConfig:
    """On `frames` Fast frames, 2 raw frames apart; kernel: frames a lateral convolution spans."""
    spec = InputSpec(frames=frames, alpha=alpha, tau=2)
    slow, fast = replace(slow, depth=depth), replace(FAST, depth=depth)
    return ModelConfig(spec, slow, fast, LateralConfig(kernel=kernel))


def _r101_50_50(frames: int) -> ModelConfig:
    config = _slowfast(frames, 4, 5, SLOW_50, 101)
    return replace(config, fast=replace(FAST, depth=101, temporal_blocks=R50_IN_R101))


def _traits(config: ModelConfig) -> Iterator[str]:
    slow, fast = config.paths.values()
    lateral = config.lateral
    conv = lateral.kind == "conv"
    yield f"alpha {config.input.alpha}"
    yield f"beta 1/{slow.width / fast.width:g}"
    yield f"lateral kernel {lateral.kernel}" if conv else f"lateral {lateral.kind}"
    if conv and not lateral.norm:
        yield "without batch norm"


_4x16, _8x8, _16x8 = _slowfast(32, 8, 5), _slowfast(32, 4, 7), _slowfast(64, 4, 7)
_8x8_MMACTION2 = mmaction2(_8x8)

FAMILY = Family(
    name="SlowFast",
    presets={
        # PySlowFast: Kinetics-400
        "slowfast_4x16_r50": _4x16,
        "slowfast_8x8_r50": _8x8,
        "slowfast_8x8_r101": _slowfast(32, 4, 5, depth=101),
        "slowfast_8x8_r101_50_101": _slowfast(32, 4, 5, SLOW_50, 101),
        "slowfast_8x8_r101_50_50": _r101_50_50(32),
        "slowfast_16x8_r101_50_50_k400": _r101_50_50(64),
        "slowfast_4x16_r18": _slowfast(32, 8, 5, depth=18),
        "slowfast_8x8_r18": _slowfast(32, 4, 7, depth=18),
        # PySlowFast: other datasets
        "slowfast_16x8_r50_charades": charades(_16x8),
        "slowfast_16x8_r101_50_50": charades(_r101_50_50(64)),
        "slowfast_16x8_r50_ssv2": ssv2(_16x8),
        "slowfast_8x8_r50_ava": ava(_8x8, aligned=True),
        # pytorchvideo
        "slowfast_4x16_r50_pytorchvideo": pytorchvideo(_4x16),
        "slowfast_8x8_r50_pytorchvideo": pytorchvideo(_8x8),
        "slowfast_8x8_r101_pytorchvideo": pytorchvideo(_slowfast(32, 4, 5, depth=101)),
        "slowfast_16x8_r101_50_50_pytorchvideo": pytorchvideo(_r101_50_50(64)),
        "slowfast_8x8_r50_charades_pytorchvideo": pytorchvideo(charades(_8x8)),
        "slowfast_8x8_r50_ssv2_pytorchvideo": pytorchvideo(ssv2(_8x8, (1, 3))),
        "slowfast_8x8_r50_ava_pytorchvideo": pytorchvideo(ava(_8x8, aligned=False)),
        # mmaction2
        "slowfast_4x16_r50_mmaction2": mmaction2(_4x16),
        "slowfast_8x8_r50_mmaction2": _8x8_MMACTION2,
        "slowfast_8x8_r50_steplr_mmaction2": replace(_8x8_MMACTION2, lateral=_8x8.lateral),
        "slowfast_8x8_r101_mmaction2": mmaction2(_slowfast(32, 4, 7, depth=101)),
        "slowfast_4x16_r101_r50_mmaction2": mmaction2(replace(_4x16, slow=replace(SLOW, depth=101))),
        "slowfast_4x16_r50_ava_mmaction2": mmaction2(ava(_4x16, aligned=True)),
        "slowfast_8x8_r50_ava_mmaction2": mmaction2(ava(_8x8, aligned=True)),
        "slowfast_8x8_r50_ava_temporal_max_mmaction2": mmaction2(ava(_8x8, aligned=True, temporal="max")),
    },
    aliases={
        "slowfast_8x8_r101_101_101": "slowfast_8x8_r101",
        "slowfast_16x8_r101_50_50_charades": "slowfast_16x8_r101_50_50",
    },
    networks={"SlowFast": "slowfast_8x8_r50", "SlowFast, boxes": "slowfast_8x8_r50_ava"},
    has=lambda config: len(config.paths) == 2,
    build=SlowFast,
    kind=lambda config: "SlowFast",
    traits=_traits,
)
