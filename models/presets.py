"""Presets: the published models that need no non-local block, by name.

Names: architecture, T x tau of the Slow pathway (frames x raw-frame stride), depth, dataset unless
Kinetics-400, library unless PySlowFast. `r101_50_50` = 101 layers, of which only the first 6 of res4 (as many
as 50 layers have) look at several frames, in the Slow and in the Fast pathway; `r101` = all of them do.

Sources: PySlowFast's model zoo and configs, pytorchvideo's hub and PySlowFast's configs for it, mmaction2's
configs. Depth 18 follows PySlowFast, whose 18-layer networks keep bottleneck blocks, two per stage; for the
basic blocks of mmaction2 (and of the 2-D ResNet-18) pass `block="basic"`.
"""

from dataclasses import replace

from slowfast_kernels.models.config import (
    HeadConfig,
    InputSpec,
    LateralConfig,
    ModelConfig,
    PathwayConfig,
    RoIConfig,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

R50_IN_R101 = (3, 4, 6, 3)  # temporal blocks per stage of the "50" halves of r101_50_50
SLOW = PathwayConfig()
FAST = PathwayConfig(width=8, stem_kernel=5, temporal_kernels=((3,),) * 4)
# PySlowFast's and pytorchvideo's pattern; every second block of res3..res5 looks at three frames.
I3D = PathwayConfig(stem_kernel=5, temporal_kernels=((3,), (3, 1), (3, 1), (1, 3)), pool_after_res2=2)
C2D = PathwayConfig(temporal_kernels=((1,),) * 4, pool_after_res2=2)


def _slowfast(
    frames: int,
    alpha: int,
    kernel: int,
    depth: int = 50,
    slow_temporal: tuple[int, int, int, int] | None = None,
    fast_temporal: tuple[int, int, int, int] | None = None,
) -> ModelConfig:
    """Two pathways on `frames` Fast frames, 2 raw frames apart; kernel: frames a lateral convolution
    spans."""
    return ModelConfig(
        input=InputSpec(frames=frames, alpha=alpha, tau=2),
        slow=replace(SLOW, depth=depth, temporal_blocks=slow_temporal),
        fast=replace(FAST, depth=depth, temporal_blocks=fast_temporal),
        lateral=LateralConfig(kernel=kernel),
    )


def _single(frames: int, tau: int, path: PathwayConfig) -> ModelConfig:
    """One pathway; it is called "slow" whatever its temporal kernels."""
    return ModelConfig(input=InputSpec(frames=frames, alpha=1, tau=tau, call="clip"), slow=path)


def _fast_only() -> ModelConfig:
    spec = InputSpec(frames=32, alpha=1, tau=2, call="clip")
    return ModelConfig(input=spec, slow=None, fast=FAST)


def _charades(config: ModelConfig) -> ModelConfig:
    """157 classes that may hold together; B, G, R input; scores of the views put together by their
    maximum."""
    head = replace(config.head, classes=157, activation="sigmoid", multi_label=True)
    return replace(config, input=replace(config.input, reverse_channels=True, ensemble="max"), head=head)


def _ssv2(config: ModelConfig, views: tuple[int, int] = (1, 1)) -> ModelConfig:
    """Something-Something v2: 174 classes, B, G, R input, one view that spans the video."""
    spec = replace(config.input, reverse_channels=True, views=views, sampling="segments")
    return replace(config, input=spec, head=replace(config.head, classes=174))


def _ava(config: ModelConfig, *, aligned: bool, temporal: str = "mean") -> ModelConfig:
    """Boxes of AVA, 80 classes: res5 keeps stride 16 and is dilated instead; RoI head; one full frame per
    view."""
    config = replace(
        config,
        slow=_detection_strides(config.slow),
        fast=_detection_strides(config.fast),
        input=replace(config.input, views=(1, 1)),
    )
    roi = RoIConfig(aligned=aligned, temporal=temporal)
    return replace(config, head=HeadConfig(80, activation="sigmoid", pool=None, multi_label=True, roi=roi))


def _detection_strides(path: PathwayConfig | None, dilation: int = 2) -> PathwayConfig | None:
    return path and replace(path, strides=(1, 2, 2, 1), dilations=(1, 1, 1, dilation))


def _pytorchvideo(config: ModelConfig) -> ModelConfig:
    """The same network with pytorchvideo's head: logits for clips, torchvision's RoIAlign (not aligned) for
    boxes."""
    head = replace(config.head, semantics="pytorchvideo")
    if head.roi is None:
        head = replace(head, activation="none")
    return replace(config, head=head, source="pytorchvideo")


def _mmaction2(config: ModelConfig) -> ModelConfig:
    """mmaction2's variant: bare lateral convolutions, (fast, slow) classifier, ImageNet colours, every
    alpha-th frame.

    Its detection models do not dilate res5, cut 8x8 bins, and count "background" as class 0.
    """
    head = replace(config.head, semantics="mmaction2", activation="none", pool=None)
    slow, fast = config.slow, config.fast
    if head.roi is not None:
        roi = replace(head.roi, resolution=8, aligned=True)
        head = replace(head, classes=head.classes + 1, background=True, roi=roi)
        slow, fast = _detection_strides(slow, dilation=1), _detection_strides(fast, dilation=1)
    return replace(
        config,
        source="mmaction2",
        input=replace(config.input, mean=IMAGENET_MEAN, std=IMAGENET_STD, slow_index="stride"),
        slow=slow,
        fast=fast,
        lateral=replace(config.lateral, norm=False, relu=False),
        head=head,
    )


def _with_lateral_norm(config: ModelConfig) -> ModelConfig:
    return replace(config, lateral=replace(config.lateral, norm=True, relu=True))


# mmaction2's I3D takes 32 frames and its stem keeps a quarter of them.
_MMACTION2_I3D = replace(I3D, stem_stride=2, stem_pool_stride=2)


def _r101_50_50(frames: int) -> ModelConfig:
    return _slowfast(frames, 4, 5, 101, slow_temporal=R50_IN_R101, fast_temporal=R50_IN_R101)


_PRESETS = {
    # PySlowFast: Kinetics-400
    "slowfast_4x16_r50": _slowfast(32, 8, 5),
    "slowfast_8x8_r50": _slowfast(32, 4, 7),
    "slowfast_8x8_r101": _slowfast(32, 4, 5, 101),
    "slowfast_8x8_r101_50_101": _slowfast(32, 4, 5, 101, slow_temporal=R50_IN_R101),
    "slowfast_8x8_r101_50_50": _r101_50_50(32),
    "slowfast_16x8_r101_50_50_k400": _r101_50_50(64),
    "slowfast_4x16_r18": _slowfast(32, 8, 5, 18),
    "slowfast_8x8_r18": _slowfast(32, 4, 7, 18),
    "slow_4x16_r50": _single(4, 16, SLOW),
    "slow_8x8_r50": _single(8, 8, SLOW),
    "slow_8x8_r18": _single(8, 8, replace(SLOW, depth=18)),
    "slow_16x8_r101_50_50": _single(16, 8, replace(SLOW, depth=101, temporal_blocks=R50_IN_R101)),
    "fast_only": _fast_only(),
    "i3d_8x8_r50": _single(8, 8, I3D),
    "i3d_8x8_r101": _single(8, 8, replace(I3D, depth=101)),
    "c2d_8x8_r50": _single(8, 8, C2D),
    "c2d_nopool_8x8_r50": _single(8, 8, replace(C2D, pool_after_res2=1)),
    # PySlowFast: other datasets
    "slowfast_16x8_r50_charades": _charades(_slowfast(64, 4, 7)),
    "slowfast_16x8_r101_50_50": _charades(_r101_50_50(64)),
    "slowfast_16x8_r50_ssv2": _ssv2(_slowfast(64, 4, 7)),
    "slowfast_8x8_r50_ava": _ava(_slowfast(32, 4, 7), aligned=True),
    "slow_4x16_r50_ava": _ava(_single(4, 16, SLOW), aligned=False),
    # pytorchvideo
    "slowfast_4x16_r50_pytorchvideo": _pytorchvideo(_slowfast(32, 8, 5)),
    "slowfast_8x8_r50_pytorchvideo": _pytorchvideo(_slowfast(32, 4, 7)),
    "slowfast_8x8_r101_pytorchvideo": _pytorchvideo(_slowfast(32, 4, 5, 101)),
    "slowfast_16x8_r101_50_50_pytorchvideo": _pytorchvideo(_r101_50_50(64)),
    "slow_4x16_r50_pytorchvideo": _pytorchvideo(_single(4, 16, SLOW)),
    "slow_8x8_r50_pytorchvideo": _pytorchvideo(_single(8, 8, SLOW)),
    "i3d_8x8_r50_pytorchvideo": _pytorchvideo(_single(8, 8, I3D)),
    "c2d_8x8_r50_pytorchvideo": _pytorchvideo(_single(8, 8, C2D)),
    "slowfast_8x8_r50_charades_pytorchvideo": _pytorchvideo(_charades(_slowfast(32, 4, 7))),
    "slow_8x8_r50_charades_pytorchvideo": _pytorchvideo(_charades(_single(8, 8, SLOW))),
    "slowfast_8x8_r50_ssv2_pytorchvideo": _pytorchvideo(_ssv2(_slowfast(32, 4, 7), (1, 3))),
    "slow_8x8_r50_ssv2_pytorchvideo": _pytorchvideo(_ssv2(_single(8, 8, SLOW), (1, 3))),
    "slowfast_8x8_r50_ava_pytorchvideo": _pytorchvideo(_ava(_slowfast(32, 4, 7), aligned=False)),
    "slow_4x16_r50_ava_pytorchvideo": _pytorchvideo(_ava(_single(4, 16, SLOW), aligned=False)),
    # mmaction2
    "slowfast_4x16_r50_mmaction2": _mmaction2(_slowfast(32, 8, 5)),
    "slowfast_8x8_r50_mmaction2": _mmaction2(_slowfast(32, 4, 7)),
    "slowfast_8x8_r50_steplr_mmaction2": _with_lateral_norm(_mmaction2(_slowfast(32, 4, 7))),
    "slowfast_8x8_r101_mmaction2": _mmaction2(_slowfast(32, 4, 7, 101)),
    "slowfast_4x16_r101_r50_mmaction2": _mmaction2(
        replace(_slowfast(32, 8, 5), slow=replace(SLOW, depth=101))
    ),
    "slow_4x16_r50_mmaction2": _mmaction2(_single(4, 16, SLOW)),
    "slow_8x8_r50_mmaction2": _mmaction2(_single(8, 8, SLOW)),
    "slow_8x8_r101_mmaction2": _mmaction2(_single(8, 8, replace(SLOW, depth=101))),
    "i3d_32x2_r50_mmaction2": _mmaction2(_single(32, 2, _MMACTION2_I3D)),
    "slowfast_4x16_r50_ava_mmaction2": _mmaction2(_ava(_slowfast(32, 8, 5), aligned=True)),
    "slowfast_8x8_r50_ava_mmaction2": _mmaction2(_ava(_slowfast(32, 4, 7), aligned=True)),
    "slowfast_8x8_r50_ava_temporal_max_mmaction2": _mmaction2(
        _ava(_slowfast(32, 4, 7), aligned=True, temporal="max")
    ),
    "slow_4x16_r50_ava_mmaction2": _mmaction2(_ava(_single(4, 16, SLOW), aligned=True)),
}

PRESETS: dict[str, ModelConfig] = {name: replace(config, name=name) for name, config in _PRESETS.items()}

# Other names for the same models, as their papers and configs write them.
ALIASES = {
    "slowfast_8x8_r101_101_101": "slowfast_8x8_r101",
    "slowfast_16x8_r101_50_50_charades": "slowfast_16x8_r101_50_50",
    "fast_32x2_r50": "fast_only",
}
