"""What data sets and libraries change about a network, whichever family it is of."""

from dataclasses import replace
from typing import Any

from slowfast_kernels.models.config import HeadConfig, ModelConfig, RoIConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def charades(config: ModelConfig) -> ModelConfig:
    """157 classes that may hold together; B, G, R input; scores of the views put together by their maximum."""
    head = replace(config.head, classes=157, activation="sigmoid", multi_label=True)
    return replace(config, input=replace(config.input, reverse_channels=True, ensemble="max"), head=head)


def ssv2(config: ModelConfig, views: tuple[int, int] = (1, 1)) -> ModelConfig:
    """Something-Something v2: 174 classes, B, G, R input, one view that spans the video."""
    spec = replace(config.input, reverse_channels=True, views=views, sampling="segments")
    return replace(config, input=spec, head=replace(config.head, classes=174))


def ava(config: ModelConfig, *, aligned: bool, temporal: str = "mean") -> ModelConfig:
    """Boxes of AVA, 80 classes: res5 keeps stride 16 and is dilated instead; RoI head; one full frame per view."""
    roi = RoIConfig(aligned=aligned, temporal=temporal)
    head = HeadConfig(80, activation="sigmoid", pool=None, multi_label=True, roi=roi)
    return replace(_dilated(config, 2), head=head, input=replace(config.input, views=(1, 1)))


def _dilated(config: ModelConfig, dilation: int) -> ModelConfig:
    """With res5 at stride 16."""
    paths: dict[str, Any] = {
        name: replace(path, strides=(1, 2, 2, 1), dilations=(1, 1, 1, dilation))
        for name, path in config.paths.items()
    }
    return replace(config, **paths)


def pytorchvideo(config: ModelConfig) -> ModelConfig:
    """The same network with pytorchvideo's head: logits for clips, torchvision's RoIAlign (not aligned) for boxes."""
    head = replace(config.head, semantics="pytorchvideo")
    if head.roi is None:
        head = replace(head, activation="none")
    return replace(config, head=head, source="pytorchvideo")


def mmaction2(config: ModelConfig) -> ModelConfig:
    """mmaction2's variant: bare lateral convolutions, (fast, slow) classifier, ImageNet colours, every alpha-th frame.

    Its detection models do not dilate res5, cut 8x8 bins, and count "background" as class 0.
    """
    head = replace(config.head, semantics="mmaction2", activation="none", pool=None)
    if head.roi is not None:
        roi = replace(head.roi, resolution=8, aligned=True)
        head = replace(head, classes=head.classes + 1, background=True, roi=roi)
        config = _dilated(config, 1)
    return replace(
        config,
        source="mmaction2",
        input=replace(config.input, mean=IMAGENET_MEAN, std=IMAGENET_STD, slow_index="stride"),
        lateral=replace(config.lateral, norm=False, relu=False),
        head=head,
    )
