"""Live networks as other libraries have them, for tests: same structure, same names, same answers.

pytorchvideo's own models are used where it can be imported; PySlowFast and mmaction2 do not install without
their whole training stacks, so small networks stand for theirs, written after their definitions.
"""

import math
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (1, 2, 1, 1)
SLOW, FAST = ((1,), (1,), (3,), (3,)), ((3,),) * 4
I3D = ((3,), (3, 1), (3, 1), (1, 3))


AModule = TypeVar("AModule", bound=nn.Module)


def randomise(model: AModule, seed: int = 0) -> AModule:
    """Batch norms with statistics of their own and a classifier that separates, in eval mode."""
    g = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm3d) and layer.affine:
            layer.weight.data.uniform_(0.5, 1, generator=g)
            layer.bias.data.normal_(0, 0.1, generator=g)
            layer.running_mean.normal_(0, 0.1, generator=g)
            layer.running_var.uniform_(0.5, 1.5, generator=g)
        elif isinstance(layer, nn.Conv3d):
            layer.weight.data.normal_(0, math.sqrt(2 / layer.weight[0].numel()), generator=g)
        elif isinstance(layer, nn.Linear):
            layer.weight.data.normal_(0, 4 / math.sqrt(layer.in_features), generator=g)
            layer.bias.data.normal_(0, 0.1, generator=g)
    return model.eval()


class RoIAlign(nn.Module):
    """RoIAlign as torchvision documents it, on [N, C, H, W] with boxes [K, 5]: means of bilinear samples."""

    def __init__(self, output_size, spatial_scale, sampling_ratio=0, aligned=False) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        side = self.output_size
        bins = (side, side) if isinstance(side, int) else tuple(side)
        return torch.stack([self._box(x[int(box[0])], box[1:].tolist(), bins) for box in boxes])

    def _box(self, x: Tensor, box: list[float], bins: tuple[int, int]) -> Tensor:
        shift = 0.5 if self.aligned else 0.0
        x1, y1, x2, y2 = (edge * self.spatial_scale - shift for edge in box)
        rows = self._samples(y1, y2, bins[0], x.shape[1])
        columns = self._samples(x1, x2, bins[1], x.shape[2])
        return torch.einsum("ph,chw,qw->cpq", rows, x, columns)

    def _samples(self, start: float, end: float, bins: int, cells: int) -> Tensor:
        """[bins, cells]: weights of the cells in the mean of each bin's samples."""
        length = end - start if self.aligned else max(end - start, 1.0)
        count = self.sampling_ratio or math.ceil(length / bins)
        weights = torch.zeros(bins, cells)
        for i in range(bins):
            for k in range(count):
                at = start + (i + (k + 0.5) / count) * length / bins
                if not -1 <= at <= cells:
                    continue
                at = min(max(at, 0.0), cells - 1)
                low = int(at)
                high = min(low + 1, cells - 1)
                weights[i, low] += (low + 1 - at) / count
                weights[i, high] += (at - low) / count
        return weights


def pytorchvideo():
    """Modules pytorchvideo.models.{slowfast,resnet,hub}, which import torchvision for its RoIAlign only."""
    if "torchvision" not in sys.modules:
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):
            stand_in: Any = types.ModuleType("torchvision")
            stand_in.ops = types.ModuleType("torchvision.ops")
            stand_in.ops.RoIAlign = RoIAlign
            sys.modules.update({"torchvision": stand_in, "torchvision.ops": stand_in.ops})
    from pytorchvideo.models import hub, resnet, slowfast

    return slowfast, resnet, hub


def conv(i: int, o: int, kernel: Sequence[int], stride=(1, 1, 1), dilation: int = 1) -> nn.Conv3d:
    padding = [k // 2 * (dilation if axis else 1) for axis, k in enumerate(kernel)]
    spread = (1, dilation, dilation)
    return nn.Conv3d(i, o, tuple(kernel), stride, tuple(padding), spread, bias=False)


# -- PySlowFast --


class PyStem(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv, self.bn = conv(3, width, (kernel, 7, 7), (1, 2, 2)), nn.BatchNorm3d(width)
        self.relu, self.pool_layer = nn.ReLU(True), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x):
        return self.pool_layer(self.relu(self.bn(self.conv(x))))


class PyTransform(nn.Module):
    def __init__(self, i: int, inner: int, o: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.a, self.a_bn, self.a_relu = conv(i, inner, (kernel, 1, 1)), nn.BatchNorm3d(inner), nn.ReLU(True)
        self.b = conv(inner, inner, (1, 3, 3), (1, stride, stride), dilation)
        self.b_bn, self.b_relu = nn.BatchNorm3d(inner), nn.ReLU(True)
        self.c, self.c_bn = conv(inner, o, (1, 1, 1)), nn.BatchNorm3d(o)

    def forward(self, x):
        x = self.b_relu(self.b_bn(self.b(self.a_relu(self.a_bn(self.a(x))))))
        return self.c_bn(self.c(x))


class PyBlock(nn.Module):
    def __init__(self, i: int, inner: int, o: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        if i != o or stride != 1:
            self.branch1, self.branch1_bn = conv(i, o, (1, 1, 1), (1, stride, stride)), nn.BatchNorm3d(o)
        self.branch2, self.relu = PyTransform(i, inner, o, kernel, stride, dilation), nn.ReLU(True)

    def forward(self, x):
        shortcut = self.branch1_bn(self.branch1(x)) if hasattr(self, "branch1") else x
        return self.relu(shortcut + self.branch2(x))


class PyFuse(nn.Module):
    def __init__(self, channels: int, kernel: int, alpha: int) -> None:
        super().__init__()
        self.conv_f2s = conv(channels, 2 * channels, (kernel, 1, 1), (alpha, 1, 1))
        self.bn, self.relu = nn.BatchNorm3d(2 * channels), nn.ReLU(True)

    def forward(self, x):
        slow, fast = x
        return [torch.cat([slow, self.relu(self.bn(self.conv_f2s(fast)))], 1), fast]


class PyHead(nn.Module):
    def __init__(self, channels, classes, windows, act, dropout=0.5) -> None:
        super().__init__()
        for p, window in enumerate(windows):
            pool = nn.AvgPool3d(window, stride=1) if window else nn.AdaptiveAvgPool3d((1, 1, 1))
            self.add_module(f"pathway{p}_avgpool", pool)
        self.dropout, self.projection = nn.Dropout(dropout), nn.Linear(sum(channels), classes)
        self.act: Any = {"softmax": nn.Softmax(dim=4), "sigmoid": nn.Sigmoid(), "none": None}[act]

    def forward(self, x):
        x = torch.cat([getattr(self, f"pathway{p}_avgpool")(y) for p, y in enumerate(x)], 1)
        x = self.projection(self.dropout(x.permute(0, 2, 3, 4, 1)))
        if not self.training:
            x = self.act(x) if self.act is not None else x
            x = x.mean([1, 2, 3])
        return x.reshape(x.shape[0], -1)


class PyRoIHead(nn.Module):
    def __init__(self, channels, classes, frames, act, aligned) -> None:
        super().__init__()
        for p, t in enumerate(frames):
            self.add_module(f"s{p}_tpool", nn.AvgPool3d([t, 1, 1], stride=1))
            self.add_module(f"s{p}_roi", RoIAlign([7, 7], 1 / 16, 0, aligned))
            self.add_module(f"s{p}_spool", nn.MaxPool2d([7, 7], stride=1))
        self.dropout, self.projection = nn.Dropout(0.5), nn.Linear(sum(channels), classes)
        self.act = nn.Softmax(dim=1) if act == "softmax" else nn.Sigmoid()

    def forward(self, x, boxes):
        pooled = []
        for p, y in enumerate(x):
            y = getattr(self, f"s{p}_roi")(getattr(self, f"s{p}_tpool")(y).squeeze(2), boxes)
            pooled.append(getattr(self, f"s{p}_spool")(y))
        x = self.dropout(torch.cat(pooled, 1))
        return self.act(self.projection(x.view(x.shape[0], -1)))


class PySlowFastNet(nn.Module):
    """A network of PySlowFast with one pathway or two. Call with a list of clips, and boxes for detection."""

    def __init__(
        self,
        paths=((16, 1, SLOW), (4, 5, FAST)),  # width, frames of the stem, temporal kernels
        *,
        alpha: int = 4,
        kernel: int = 7,
        frames: int = 8,
        crop: int = 64,
        classes: int = 11,
        act: str = "softmax",
        pool: int = 1,
        blocks: Sequence[int] = BLOCKS,
        temporal: Sequence[Sequence[int]] | None = None,
        detects: bool = False,
        dilation: int = 1,
        aligned: bool = True,
        window: bool = True,
    ) -> None:
        super().__init__()
        self.paths, self.detects = len(paths), detects
        two = len(paths) == 2
        self.s1 = nn.Module()
        for p, (width, stem, _) in enumerate(paths):
            self.s1.add_module(f"pathway{p}_stem", PyStem(width, stem))
        before = [width for width, *_ in paths]
        for n in range(2, 6):
            if two:
                self.add_module(f"s{n - 1}_fuse", PyFuse(before[1], kernel, alpha))
                before = [before[0] + 2 * before[1], before[1]]
            stage = nn.Module()
            for p, (width, _, kernels) in enumerate(paths):
                inner, channels, pattern = width * 2 ** (n - 2), before[p], kernels[n - 2]
                stride = (1, 2, 2, 1 if detects else 2)[n - 2]
                limit = temporal[p][n - 2] if temporal else blocks[n - 2]
                for i in range(blocks[n - 2]):
                    t = pattern[i % len(pattern)] if i < limit else 1
                    spread = dilation if n == 5 else 1
                    block = PyBlock(channels, inner, 4 * inner, t, stride if i == 0 else 1, spread)
                    stage.add_module(f"pathway{p}_res{i}", block)
                    channels = 4 * inner
                before[p] = channels
            self.add_module(f"s{n}", stage)
        for p in range(len(paths)):
            self.add_module(f"pathway{p}_pool", nn.MaxPool3d((pool, 1, 1), (pool, 1, 1)))
        lengths = [frames // alpha, frames] if two else [frames // pool]
        if detects:
            self.head: Any = PyRoIHead(before, classes, lengths, act, aligned)
        else:
            cells = crop // 32
            self.head = PyHead(before, classes, [[t, cells, cells] if window else None for t in lengths], act)

    def forward(self, x, bboxes=None):
        x = [getattr(self.s1, f"pathway{p}_stem")(x[p]) for p in range(self.paths)]
        for n in range(2, 6):
            if self.paths == 2:
                x = getattr(self, f"s{n - 1}_fuse")(x)
            stage = getattr(self, f"s{n}")
            for p in range(self.paths):
                for i in range(sum(name.startswith(f"pathway{p}_res") for name in stage._modules)):
                    x[p] = getattr(stage, f"pathway{p}_res{i}")(x[p])
                if n == 2:
                    x[p] = getattr(self, f"pathway{p}_pool")(x[p])
        return self.head(x, bboxes) if self.detects else self.head(x)


SHORT = {"running_mean": "rm", "running_var": "riv", "bn_weight": "bn_s", "weight": "w", "bias": "b"}


def zeros(net: Callable[..., nn.Module], *given, **settings) -> nn.Module:
    """A network whose weights are zeros: a published one in full size without the time that random ones
    take."""
    with torch.device("meta"):
        made = net(*given, **settings)
    made.to_empty(device="cpu")
    for value in made.state_dict().values():
        value.zero_()
    return made.eval()


def caffe2_blobs(net: nn.Module, blocks=BLOCKS) -> dict[str, np.ndarray | np.generic]:
    """A PySlowFast network's weights under the names of the Caffe2 files."""
    blobs: dict[str, np.ndarray | np.generic] = {"lr": np.float32(0.1), "model_iter": np.int64(3)}
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        name = key.replace("head.projection", "pred").replace("s1_fuse", "t_pool1_subsample")
        name = re.sub(r"s1\.pathway(\d)_stem\.bn", lambda m: "t_" * int(m[1]) + "res_conv1_bn", name)
        name = re.sub(r"s1\.pathway(\d)_stem\.conv", lambda m: "t_" * int(m[1]) + "conv1", name)
        name = re.sub(
            r"s(\d)_fuse", lambda m: f"t_res{m[1]}_{blocks[int(m[1]) - 2] - 1}_branch2c_bn_subsample", name
        )
        name = re.sub(r"s(\d)\.pathway(\d)_res(\d)", lambda m: "t_" * int(m[2]) + f"res{m[1]}_{m[3]}", name)
        name = name.replace(".conv_f2s", "").replace("branch2.", "branch2").replace(".", "_")
        for long, short in SHORT.items():
            name = name.removesuffix(long) + short if name.endswith(long) else name
        blobs[name] = value.numpy()
        blobs[name + "_momentum"] = np.zeros(3, np.float32)
    return blobs


# -- mmaction2 --


class ConvModule(nn.Module):
    """mmcv's: convolution, then batch norm and ReLU where asked for."""

    def __init__(self, i, o, kernel, stride=(1, 1, 1), norm=True, act=True) -> None:
        super().__init__()
        self.conv = conv(i, o, kernel, stride)
        if norm:
            self.bn = nn.BatchNorm3d(o)
        if act:
            self.activate = nn.ReLU(inplace=True)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class MmBlock(nn.Module):
    def __init__(self, i, planes, inflate, stride, basic) -> None:
        super().__init__()
        t, spatial = 3 if inflate else 1, (1, stride, stride)
        o = planes if basic else 4 * planes
        if basic:
            self.conv1 = ConvModule(i, planes, (t, 3, 3), spatial)
            self.conv2 = ConvModule(planes, o, (t, 3, 3), act=False)
        else:
            self.conv1 = ConvModule(i, planes, (t, 1, 1))
            self.conv2 = ConvModule(planes, planes, (1, 3, 3), spatial)
            self.conv3 = ConvModule(planes, o, (1, 1, 1), act=False)
        self.downsample = ConvModule(i, o, (1, 1, 1), spatial, act=False) if stride > 1 or i != o else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x if self.downsample is None else self.downsample(x)
        for name, layer in self.named_children():
            if name.startswith("conv"):
                x = layer(x)
        return self.relu(x + y)


class MmPath(nn.Module):
    """ResNet3d, a whole backbone or a pathway; `fast`: (its width, alpha, lateral kernel, lateral norm)."""

    def __init__(self, width=16, stem=1, inflate=(0, 0, 1, 1), fast=None, basic=False, stem_strides=(1, 1),
                 with_pool1=True, with_pool2=False) -> None:  # fmt: skip
        super().__init__()
        self.with_pool1, self.with_pool2 = with_pool1, with_pool2
        self.conv1 = ConvModule(3, width, (stem, 7, 7), (stem_strides[0], 2, 2))
        self.maxpool = nn.MaxPool3d((1, 3, 3), (stem_strides[1], 2, 2), (0, 1, 1))
        self.pool2 = nn.MaxPool3d((2, 1, 1), (2, 1, 1))
        channels, expansion = width, 1 if basic else 4
        for n in range(4):
            if fast is not None:
                thin, alpha, kernel, norm = fast
                thin = thin * (expansion * 2 ** (n - 1) if n else 1)
                lateral = ConvModule(thin, 2 * thin, (kernel, 1, 1), (alpha, 1, 1), norm, norm)
                self.add_module("conv1_lateral" if n == 0 else f"layer{n}_lateral", lateral)
                channels += 2 * thin
            flags = inflate[n] if isinstance(inflate[n], tuple) else (inflate[n],) * BLOCKS[n]
            layer = nn.Sequential()
            for i in range(BLOCKS[n]):
                layer.append(MmBlock(channels, width * 2**n, flags[i], 2 if n and i == 0 else 1, basic))
                channels = width * 2**n * expansion
            self.add_module(f"layer{n + 1}", layer)
        self.channels = channels

    def forward(self, x):
        x = self.conv1(x)
        x = self.layer1(self.maxpool(x) if self.with_pool1 else x)
        x = self.pool2(x) if self.with_pool2 else x
        return self.layer4(self.layer3(self.layer2(x)))


class MmSlowFast(nn.Module):
    """Of its clip the Slow pathway takes every `resample_rate`-th frame (None: alpha), the Fast one alpha times as
    many."""

    def __init__(
        self, alpha=4, kernel=5, lateral_norm=False, basic=False, resample_rate=None, lateral=True
    ) -> None:
        super().__init__()
        self.speed_ratio, self.resample_rate, self.lateral = alpha, resample_rate or alpha, lateral
        fast = (4, alpha, kernel, lateral_norm) if lateral else None
        self.slow_path = MmPath(16, 1, (0, 0, 1, 1), fast, basic)
        self.fast_path = MmPath(4, 5, (1, 1, 1, 1), basic=basic)

    def forward(self, x):
        slow, fast = self.slow_path, self.fast_path
        every = (self.resample_rate, self.resample_rate // self.speed_ratio)
        clips = (F.interpolate(x, scale_factor=(1 / n, 1.0, 1.0), mode="nearest") for n in every)
        s, f = (path.maxpool(path.conv1(y)) for path, y in zip((slow, fast), clips, strict=True))
        for n in range(1, 5):
            if self.lateral:
                lateral = slow.conv1_lateral if n == 1 else getattr(slow, f"layer{n - 1}_lateral")
                s = torch.cat([s, lateral(f)], 1)
            s = getattr(slow, f"layer{n}")(s)
            f = getattr(fast, f"layer{n}")(f)
        return s, f


class MmHead(nn.Module):
    def __init__(self, channels, classes) -> None:
        super().__init__()
        self.dropout, self.fc_cls = nn.Dropout(0.5), nn.Linear(channels, classes)
        self.avg_pool = nn.AdaptiveAvgPool3d((1, 1, 1))

    def forward(self, x):
        x = x if isinstance(x, tuple) else (x,)
        x = torch.cat([self.avg_pool(y) for y in reversed(x)], 1)
        return self.fc_cls(self.dropout(x).flatten(1))


class MmRecognizer(nn.Module):
    """A recogniser of mmaction2: call with one clip."""

    def __init__(self, backbone: nn.Module, classes: int = 11) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(backbone, MmSlowFast):
            channels = backbone.slow_path.channels + backbone.fast_path.channels
        else:
            channels = backbone.channels
        self.cls_head = MmHead(channels, classes)

    def forward(self, x):
        return self.cls_head(self.backbone(x))


class MmRecognizer3D(nn.Module):
    """Called as mmaction2's own: with all views of a clip, for the answer of a stage, or for predictions."""

    def __init__(self, backbone: nn.Module, classes: int = 11) -> None:
        super().__init__()
        self.backbone, self.cls_head = backbone, MmRecognizer(backbone, classes).cls_head

    def forward(self, inputs, data_samples=None, mode="tensor", stage="backbone"):
        features = self.backbone(inputs.flatten(0, 1))
        if mode == "predict":
            scores = self.cls_head(features).view(len(inputs), -1, self.cls_head.fc_cls.out_features)
            return list(zip(data_samples, scores.softmax(-1).mean(1), strict=True))
        return self.cls_head(features) if stage == "head" else features


class MmDetector(nn.Module):
    """A detector of mmaction2: the backbone of a recogniser below another head."""

    def __init__(self, backbone: MmSlowFast) -> None:
        super().__init__()
        self.backbone, self.roi_head = backbone, nn.Module()
        self.roi_head.bbox_head = nn.Module()
        channels = backbone.slow_path.channels + backbone.fast_path.channels
        self.roi_head.bbox_head.fc_cls = nn.Linear(channels, 5)
        self.align = RoIAlign(8, 1 / 32, 0, True)

    def forward(self, inputs, rois):
        x = torch.cat([y.mean(2) for y in self.backbone(inputs)], 1)
        return self.roi_head.bbox_head.fc_cls(self.align(x, rois).amax((2, 3)))


class SubBatchNorm3d(nn.Module):
    """PySlowFast's: one batch norm for training, on parts of the batch, and one for inference."""

    def __init__(self, num_features: int, num_splits: int = 2) -> None:
        super().__init__()
        self.num_splits = num_splits
        self.weight, self.bias = (nn.Parameter(torch.empty(num_features).uniform_(0.5, 1)) for _ in range(2))
        self.bn = nn.BatchNorm3d(num_features, eps=1e-3, affine=False)
        self.split_bn = nn.BatchNorm3d(num_features * num_splits, eps=1e-3, affine=False)
        self.bn.running_mean.normal_(0, 0.1), self.bn.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        assert not self.training
        return self.bn(x) * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)
