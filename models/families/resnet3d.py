"""3-D ResNets of one pathway: Slow-only, Fast-only, I3D, C2D. They differ in where they look at several frames."""

from collections.abc import Iterator
from dataclasses import replace

from slowfast_kernels.models.config import InputSpec, ModelConfig, PathwayConfig
from slowfast_kernels.models.families.family import Family
from slowfast_kernels.models.families.slowfast import FAST, SLOW, SLOW_50
from slowfast_kernels.models.families.variants import ava, charades, mmaction2, pytorchvideo, ssv2
from slowfast_kernels.models.slowfast import SlowFast

# PySlowFast's and pytorchvideo's pattern; every second block of res3..res5 looks at three frames.
I3D = PathwayConfig(stem_kernel=5, temporal_kernels=((3,), (3, 1), (3, 1), (1, 3)), pool_after_res2=2)
C2D = PathwayConfig(temporal_kernels=((1,),) * 4, pool_after_res2=2)


def _single(frames: int, tau: int, path: PathwayConfig) -> ModelConfig:
    """It is called "slow" whatever its temporal kernels; the half of a SlowFast network alone is called "fast"."""
    spec = InputSpec(frames=frames, alpha=1, tau=tau, call="clip")
    return ModelConfig(input=spec, **{"slow": None, "fast": path} if path is FAST else {"slow": path})


def path_kind(path: PathwayConfig) -> str:
    """ "Slow", "C2D", "I3D", "Fast-only" or, for any other pattern of temporal kernels, "3-D ResNet"."""
    inflated = [any(k > 1 for k in stage) for stage in path.kernels]
    if not any(inflated):
        return "C2D" if path.stem_kernel == 1 else "3-D ResNet"
    if is_fast_only(path):
        return "Fast-only"
    if inflated == [False, False, True, True] and path.stem_kernel == 1:
        return "Slow"
    mixed = any(len(set(stage)) > 1 for stage in path.kernels[1:]) and path.temporal_blocks is None
    return "I3D" if all(inflated) and mixed else "3-D ResNet"


def is_fast_only(path: PathwayConfig) -> bool:
    """A Fast pathway on its own: every block looks at three frames, the stem at five, and it is thin."""
    return path.stem_kernel == 5 and {k for stage in path.kernels for k in stage} == {3} and path.width < 64


def _traits(config: ModelConfig) -> Iterator[str]:
    (path,) = config.paths.values()
    if path.pool_after_res2 > 1:
        yield f"max-pool of {path.pool_after_res2} frames after res2"


_SLOW_4x16, _SLOW_8x8, _I3D_8x8 = _single(4, 16, SLOW), _single(8, 8, SLOW), _single(8, 8, I3D)
_C2D_8x8 = _single(8, 8, C2D)

FAMILY = Family(
    name="3-D ResNet",
    presets={
        # PySlowFast: Kinetics-400
        "slow_4x16_r50": _SLOW_4x16,
        "slow_8x8_r50": _SLOW_8x8,
        "slow_8x8_r18": _single(8, 8, replace(SLOW, depth=18)),
        "slow_16x8_r101_50_50": _single(16, 8, replace(SLOW_50, depth=101)),
        "fast_only": _single(32, 2, FAST),
        "i3d_8x8_r50": _I3D_8x8,
        "i3d_8x8_r101": _single(8, 8, replace(I3D, depth=101)),
        "c2d_8x8_r50": _C2D_8x8,
        "c2d_nopool_8x8_r50": _single(8, 8, replace(C2D, pool_after_res2=1)),
        # PySlowFast: other datasets
        "slow_4x16_r50_ava": ava(_SLOW_4x16, aligned=False),
        # pytorchvideo
        "slow_4x16_r50_pytorchvideo": pytorchvideo(_SLOW_4x16),
        "slow_8x8_r50_pytorchvideo": pytorchvideo(_SLOW_8x8),
        "i3d_8x8_r50_pytorchvideo": pytorchvideo(_I3D_8x8),
        "c2d_8x8_r50_pytorchvideo": pytorchvideo(_C2D_8x8),
        "slow_8x8_r50_charades_pytorchvideo": pytorchvideo(charades(_SLOW_8x8)),
        "slow_8x8_r50_ssv2_pytorchvideo": pytorchvideo(ssv2(_SLOW_8x8, (1, 3))),
        "slow_4x16_r50_ava_pytorchvideo": pytorchvideo(ava(_SLOW_4x16, aligned=False)),
        # mmaction2, whose I3D takes 32 frames; its stem keeps a quarter of them
        "slow_4x16_r50_mmaction2": mmaction2(_SLOW_4x16),
        "slow_8x8_r50_mmaction2": mmaction2(_SLOW_8x8),
        "slow_8x8_r101_mmaction2": mmaction2(_single(8, 8, replace(SLOW, depth=101))),
        "i3d_32x2_r50_mmaction2": mmaction2(_single(32, 2, replace(I3D, stem_stride=2, stem_pool_stride=2))),
        "slow_4x16_r50_ava_mmaction2": mmaction2(ava(_SLOW_4x16, aligned=True)),
    },
    aliases={"fast_32x2_r50": "fast_only"},
    networks={
        "Slow": "slow_8x8_r50",
        "Slow, boxes": "slow_4x16_r50_ava",
        "I3D": "i3d_8x8_r50",
        "C2D": "c2d_8x8_r50",
        "Fast-only": "fast_only",
    },
    has=lambda config: len(config.paths) == 1,
    build=SlowFast,  # which leaves out the other pathway
    kind=lambda config: path_kind(*config.paths.values()),
    traits=_traits,
)
