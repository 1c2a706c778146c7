"""Configurations: frozen dataclasses that describe every SlowFast-family network this library builds.

A `ModelConfig` is complete: two equal configurations build networks with the same parameters and the same
function. It says nothing about weights. The pieces follow the paper (Feichtenhofer et al., "SlowFast Networks
for Video Recognition", ICCV 2019, arXiv:1812.03982): two pathways (section 3.1 and 3.2, table 1), the lateral
connections between them (section 3.3), the head, and the clip they are fed with.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

STAGES = ("res2", "res3", "res4", "res5")

# Residual blocks in res2..res5. 18 has two blocks per stage, as in He et al. 2016, PySlowFast and mmaction2
# (pytorchvideo counts one, which makes an 11-layer network).
STAGE_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

BLOCKS = ("bottleneck", "basic", "basic_transform")
LATERAL_KINDS = ("conv", "time_to_channel_concat", "time_to_channel_sum", "time_sample", "none")
SEMANTICS = ("pyslowfast", "pytorchvideo", "mmaction2")
ACTIVATIONS = ("softmax", "sigmoid", "none")
OUTPUTS = ("scores", "features", "maps")
FAST_INPUTS = ("rgb", "gray", "time_diff")
SLOW_INDICES = ("linspace", "stride")


def require(condition: bool, what: str, expected: object, got: object) -> None:
    """Raise a one-line ValueError `what: expected ..., got ...` unless the condition holds."""
    if not condition:
        raise ValueError(f"{what}: expected {expected}, got {got!r}")


def require_one_of(what: str, choices: tuple, got: object) -> None:
    """Raise a one-line ValueError unless `got` is one of `choices`."""
    require(got in choices, what, f"one of {', '.join(map(str, choices))}", got)


def require_positive(what: str, *values: object) -> None:
    """Raise a one-line ValueError unless every value is an int of at least 1."""
    for value in values:
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(ok, what, "a whole number of at least 1", value)


def fast_width(slow_width: int, beta: float | Fraction) -> int:
    """Channels of the Fast stem for the channel ratio beta (table 5b of the paper sweeps 1/4 to 1/32).

    Rounding happens here and nowhere else: beta times the Slow stem's width, rounded up. Every later width of
    the Fast pathway and of the lateral connections is a multiple of it, so each stage's input fits the stage
    before for any beta; flooring each width on its own, as PySlowFast does, breaks at 1/6 and 1/12. With 64
    channels 1/4, 1/8, 1/16 and 1/32 are exact, 1/6 gives 11 and 1/12 gives 6, which comes nearest to the
    multiply-adds that the paper prints for those two (31.9 and 25.3 against 32.0 and 25.1).
    """
    ratio = Fraction(beta).limit_denominator(1024)
    require(0 < ratio <= 1, "beta (Fast channels / Slow channels)", "a number in (0, 1], such as 1/8", beta)
    return math.ceil(slow_width * ratio)


@dataclass(frozen=True)
class InputSpec:
    """How a clip is made from a video for this model.

    frames            frames of the densest pathway
    alpha             its frame rate over the Slow pathway's; 1 with one pathway
    tau               its stride in raw frames, at 30 frames/s
    crop              side of the square training crop in pixels; it fixed the head's pooling window
    mean, std         per channel, for images in 0..1: (image - mean) / std
    slow_index        the frames the Slow pathway takes: "linspace" = linspace(0, T - 1, T // alpha).long()
                      (PySlowFast, pytorchvideo), "stride" = 0, alpha, 2 alpha, ... (mmaction2)
    reverse_channels  feed B, G, R
    fast_input        "rgb", or the one-channel "gray" or "time_diff" (table 5c of the paper)
    call              "pathways": model([slow, fast]); "clip": model(clip)
    sampling          "dense": frames `tau` apart; "segments": one frame of each of `frames` equal parts of the video
                      (Something-Something)
    test_crop         side of the crops in multi-view testing
    views             temporal x spatial views of the test protocol
    ensemble          "mean" or "max" of the views' scores
    fixed_frames      clips have `frames` frames and no others: the library's head has a window of that length, and
                      would slide it along a longer clip. False: the head averages over all frames there are
    """

    frames: int = 32
    alpha: int = 4
    tau: int = 2
    crop: int = 224
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    slow_index: str = "linspace"
    reverse_channels: bool = False
    fast_input: str = "rgb"
    call: str = "pathways"
    sampling: str = "dense"
    test_crop: int = 256
    views: tuple[int, int] = (10, 3)
    ensemble: str = "mean"
    fixed_frames: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "alpha", "tau", "crop", "test_crop"):
            require_positive(name, getattr(self, name))
        require_positive("views", *self.views)
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(len(values) == 3, name, "three numbers in 0..1 units", values)
        require(all(s > 0 for s in self.std), "std", "positive numbers", self.std)
        require_one_of("slow_index", SLOW_INDICES, self.slow_index)
        require_one_of("fast_input", FAST_INPUTS, self.fast_input)
        require_one_of("call", ("pathways", "clip"), self.call)
        require_one_of("sampling", ("dense", "segments"), self.sampling)
        what, clips = 'views in time with sampling="segments" (a clip spans the video)', self.views[0]
        require(self.sampling == "dense" or clips == 1, what, 1, clips)
        require_one_of("ensemble", ("mean", "max"), self.ensemble)
        what = f"frames for alpha={self.alpha}"
        require(self.frames % self.alpha == 0, what, f"a multiple of {self.alpha}", self.frames)


@dataclass(frozen=True)
class PathwayConfig:
    """One ResNet pathway (table 1 of the paper). Tuples of four are for res2, res3, res4, res5.

    depth             18, 34, 50, 101 or 152
    width             channels of the stem; stage k = 0..3 has width * 2**k inner channels
    in_channels       channels of the clip
    block             "bottleneck": Tx1x1, 1x3x3, 1x1x1, four times as many outputs as inner channels;
                      "basic": Tx3x3, Tx3x3, as many outputs as inner channels (mmaction2's BasicBlock3d);
                      "basic_transform": Tx3x3, 1x3x3, four times as many (PySlowFast)
    blocks            number of blocks, where it is not the depth's
    stem_kernel       frames that the 7x7 stem convolution spans
    stem_stride       stride in time of that convolution
    stem_pool_stride  stride in time of the max-pool after it
    temporal_kernels  pattern of T over a stage's blocks, repeated as needed: (3, 1) = 3, 1, 3, 1, ...
    temporal_blocks   how many of the first blocks follow the pattern, the others have T = 1; None = all
    strides           spatial stride of each stage
    dilations         spatial dilation of each stage
    pool_after_res2   window and stride in time of a max-pool after res2 (2 in I3D and C2D)
    """

    depth: int = 50
    width: int = 64
    in_channels: int = 3
    block: str = "bottleneck"
    blocks: tuple[int, int, int, int] | None = None
    stem_kernel: int = 1
    stem_stride: int = 1
    stem_pool_stride: int = 1
    temporal_kernels: tuple[tuple[int, ...], ...] = ((1,), (1,), (3,), (3,))
    temporal_blocks: tuple[int, int, int, int] | None = None
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1)
    pool_after_res2: int = 1

    def __post_init__(self) -> None:
        require_one_of("block", BLOCKS, self.block)
        if self.blocks is None:
            require_one_of("depth", tuple(STAGE_BLOCKS), self.depth)
            expected = "block='basic' (the 34-layer ResNet has no bottleneck form)"
            require(self.depth != 34 or self.block != "bottleneck", "depth 34", expected, self.block)
        per_stage = ("blocks", "temporal_kernels", "temporal_blocks", "strides", "dilations")
        for name in per_stage:
            values = getattr(self, name)
            ok = values is None or len(values) == len(STAGES)
            require(ok, name, "one entry for each of res2..res5", values)
        for name in ("width", "in_channels", "stem_stride", "stem_pool_stride", "pool_after_res2"):
            require_positive(name, getattr(self, name))
        require_positive("strides", *self.strides)
        require_positive("dilations", *self.dilations)
        require_positive("blocks", *self.stage_blocks)
        for kernel in (self.stem_kernel, *(k for pattern in self.temporal_kernels for k in pattern)):
            ok = isinstance(kernel, int) and kernel >= 1 and kernel % 2 == 1
            require(ok, "temporal kernel", "an odd number of frames", kernel)
        for stage, limit, blocks in zip(STAGES, self.temporal_blocks or (), self.stage_blocks, strict=False):
            ok = isinstance(limit, int) and 0 <= limit <= blocks
            require(ok, f"temporal_blocks of {stage}", f"0 to {blocks} (its number of blocks)", limit)
        ok = self.block == "bottleneck" or set(self.dilations) == {1}
        require(ok, "dilations", "dilation 1 in every stage (basic blocks)", self.dilations)

    @property
    def stage_blocks(self) -> tuple[int, ...]:
        """Number of blocks in res2..res5."""
        return self.blocks or STAGE_BLOCKS[self.depth]

    @property
    def expansion(self) -> int:
        """Output channels of a block over its inner channels."""
        return 1 if self.block == "basic" else 4

    def inner_channels(self, stage: int) -> int:
        """Inner channels of the blocks of stage 0..3 (res2..res5)."""
        return self.width * 2**stage

    def out_channels(self, stage: int) -> int:
        """Output channels of stage 0..3 (res2..res5)."""
        return self.inner_channels(stage) * self.expansion

    @property
    def kernels(self) -> tuple[tuple[int, ...], ...]:
        """`block_kernels` of every stage."""
        return tuple(map(self.block_kernels, range(len(STAGES))))

    def block_kernels(self, stage: int) -> tuple[int, ...]:
        """Temporal kernel of every block of stage 0..3 (res2..res5)."""
        blocks, pattern = self.stage_blocks[stage], self.temporal_kernels[stage]
        temporal = blocks if self.temporal_blocks is None else self.temporal_blocks[stage]
        return tuple(pattern[i % len(pattern)] if i < temporal else 1 for i in range(blocks))


@dataclass(frozen=True)
class LateralConfig:
    """Connections from Fast to Slow after the stem, res2, res3 and res4 (sections 3.3 and 3.4 of the paper).

    kind    "conv": T-conv, kernel x 1 x 1 with stride alpha;
            "time_to_channel_concat", "time_to_channel_sum": alpha frames packed into channels, concatenated
            or added (the sum needs alpha * beta = 1);
            "time_sample": every alpha-th frame; "none": the pathways meet at the head only
    kernel  frames that the convolution spans
    ratio   its output channels over the Fast channels
    norm    batch norm after it (PySlowFast, pytorchvideo; mmaction2 only with its lateral_norm)
    relu    ReLU after it (the same libraries)
    """

    kind: str = "conv"
    kernel: int = 5
    ratio: int = 2
    norm: bool = True
    relu: bool = True

    def __post_init__(self) -> None:
        require_one_of("lateral", LATERAL_KINDS, self.kind)
        ok = isinstance(self.kernel, int) and self.kernel >= 1 and self.kernel % 2 == 1
        require(ok, "fusion_kernel", "an odd number of frames", self.kernel)
        require_positive("lateral_ratio", self.ratio)

    def added_channels(self, fast_channels: int, alpha: int) -> int:
        """Channels that the connection appends to the Slow pathway."""
        per_kind = {"conv": self.ratio, "time_to_channel_concat": alpha, "time_sample": 1}
        return per_kind.get(self.kind, 0) * fast_channels


@dataclass(frozen=True)
class RoIConfig:
    """Region-of-interest part of a detection head.

    resolution      bins along each side of a box
    scale           feature cells per pixel (res5 of a detection model keeps stride 16)
    sampling_ratio  samples per bin and axis; 0 = adaptive
    aligned         half-pixel shift of RoIAlign
    temporal        "mean" or "max" over the frames
    """

    resolution: int = 7
    scale: float = 1 / 16
    sampling_ratio: int = 0
    aligned: bool = True
    temporal: str = "mean"

    def __post_init__(self) -> None:
        require_positive("roi resolution", self.resolution)
        require(self.scale > 0, "roi scale", "a positive number", self.scale)
        require(self.sampling_ratio >= 0, "roi sampling_ratio", "0 (adaptive) or more", self.sampling_ratio)
        require_one_of("roi temporal", ("mean", "max"), self.temporal)


@dataclass(frozen=True)
class HeadConfig:
    """Classification head, or a detection head when `roi` is given.

    classes      number of outputs
    semantics    whose rule turns a map larger than the pooling window into outputs:
                 "pyslowfast": the window (all frames, pool x pool cells) slides by one cell, classifier and
                 activation are applied at each position, positions are averaged;
                 "pytorchvideo": logits are averaged over the positions, then activated (by default not;
                 a pytorchvideo head with an activation of its own has the "pyslowfast" order);
                 "mmaction2": global average
    activation   "softmax", "sigmoid" or "none", applied to the outputs in eval mode
    pool         side of the window in cells, crop // 32 at training; None = the whole map
    dropout      probability, before the classifier
    multi_label  classes may hold together; with activation "none" scores are made by a sigmoid, else softmax
    background   class 0 is "background" (mmaction2's detection heads)
    roi          region-of-interest part of a detection head
    output       what the network returns. "scores": of the classes; "features": what the classifier would get,
                 pooled and concatenated (`column_order`), the mean over the window's positions, before dropout;
                 "maps": the res5 maps of every pathway, before any head. The parameters are the same.
    """

    classes: int = 400
    semantics: str = "pyslowfast"
    activation: str = "softmax"
    pool: int | None = 7
    dropout: float = 0.5
    multi_label: bool = False
    background: bool = False
    roi: RoIConfig | None = None
    output: str = "scores"

    def __post_init__(self) -> None:
        require_positive("classes", self.classes)
        require_one_of("head", SEMANTICS, self.semantics)
        require_one_of("activation", ACTIVATIONS, self.activation)
        require_one_of("output", OUTPUTS, self.output)
        require(0 <= self.dropout < 1, "dropout", "a probability in [0, 1)", self.dropout)
        if self.pool is not None:
            require_positive("head pool", self.pool)

    @property
    def column_order(self) -> tuple[str, ...]:
        """Order in which the pathways' channels meet the classifier's columns."""
        swapped = self.semantics == "mmaction2" and self.roi is None
        return ("fast", "slow") if swapped else ("slow", "fast")

    @property
    def usual_activation(self) -> str:
        """What the library whose semantics the head has applies in eval mode."""
        if self.semantics == "mmaction2" or (self.semantics == "pytorchvideo" and self.roi is None):
            return "none"
        return "sigmoid" if self.multi_label else "softmax"

    @property
    def takes_rois(self) -> bool:
        """Whether a call comes with boxes."""
        return self.roi is not None and self.output != "maps"


@dataclass(frozen=True)
class ModelConfig:
    """A whole network: `slow` and `fast` pathway (None when absent), lateral connections, head and input.

    source: the library whose model this is. zero_init_final_bn: start each residual branch at zero
    (batch-norm weight after its last convolution; Goyal et al. 2017).
    """

    input: InputSpec
    slow: PathwayConfig | None
    fast: PathwayConfig | None = None
    lateral: LateralConfig = field(default_factory=LateralConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    name: str = ""
    source: str = "pyslowfast"
    zero_init_final_bn: bool = True

    def __post_init__(self) -> None:
        require_one_of("source", SEMANTICS, self.source)
        require(bool(self.pathways), "pathways", "slow, fast or both", self.pathways)
        both, given = len(self.pathways) == 2, self.input.call
        call = "pathways" if both else "clip"
        require(given == call, f"input.call with {len(self.pathways)} pathway(s)", call, given)
        require(both or self.input.alpha == 1, "alpha with one pathway", 1, self.input.alpha)
        channels = 3 if self.input.fast_input == "rgb" else 1
        if self.fast:
            what = f"channels of the {self.input.fast_input} Fast input"
            require(self.fast.in_channels == channels, what, channels, self.fast.in_channels)
        else:
            what = "fast_input of a model without a Fast pathway"
            require(channels == 3, what, "rgb", self.input.fast_input)
        if self.slow and self.fast and self.lateral.kind == "time_to_channel_sum":
            what = "time_to_channel_sum, Slow channels of the stem"
            expected = f"alpha * Fast channels = {self.input.alpha} * {self.fast.width} (alpha * beta = 1)"
            require(self.slow.width == self.input.alpha * self.fast.width, what, expected, self.slow.width)
            same = self.slow.expansion == self.fast.expansion
            require(same, "time_to_channel_sum", "the same kind of block in both pathways", self.fast.block)

    @property
    def pathways(self) -> tuple[str, ...]:
        """Names of the pathways that exist, in the order of the model's inputs."""
        return tuple(self.paths)

    @property
    def paths(self) -> dict[str, PathwayConfig]:
        """The pathways that exist, in the order of the model's inputs."""
        both = {"slow": self.slow, "fast": self.fast}
        return {name: path for name, path in both.items() if path is not None}

    def pathway(self, name: str) -> PathwayConfig:
        """The configuration of pathway "slow" or "fast"."""
        require_one_of("pathway", self.pathways, name)
        return self.paths[name]

    def frames_of(self, name: str) -> int:
        """Frames that a pathway is fed with."""
        return self.input.frames // self.input.alpha if name == "slow" else self.input.frames

    def frames_within(self, name: str, frames: int) -> tuple[int, int]:
        """Frames behind the stem, and from res3 on, of a pathway that is fed with `frames`."""
        path = self.pathway(name)
        stem = -(-frames // (path.stem_stride * path.stem_pool_stride))
        return stem, stem // path.pool_after_res2

    def check_frames(self, *frames: int) -> None:
        """Raises ValueError where the network cannot take clips of these lengths, one per pathway."""
        model, paths = self.name or "model", self.pathways
        got = " and ".join(map(str, frames))
        within = [self.frames_within(name, t) for name, t in zip(paths, frames, strict=True)]
        for name, t, (_, last) in zip(paths, frames, within, strict=True):
            path = self.pathway(name)
            fewest = (path.pool_after_res2 - 1) * path.stem_stride * path.stem_pool_stride + 1
            require(last >= 1, f"{model}: frames of the {name} clip", f"at least {fewest}", t)
        if len(paths) == 2:
            alpha = self.input.alpha
            for where, s, f in zip(("the stem", "res2"), *within, strict=True):
                if f != alpha * s and self.lateral.kind != "none":
                    raise ValueError(
                        f"{model}: expected clips whose frames the strides in time divide: of {got} frames {s} and {f} "
                        f"are left behind {where}, where the lateral connections need alpha={alpha} times as many"
                    )
        usual = [self.frames_of(name) for name in paths]
        fixed = [self.frames_within(name, t) for name, t in zip(paths, usual, strict=True)]
        if self.input.fixed_frames and [w[1] for w in within] != [w[1] for w in fixed]:
            raise ValueError(
                f"{model}: expected clips of {' and '.join(map(str, usual))} frames (the window of the head), got "
                f"{got}; frames= gives the model another window, fixed_frames=False a mean over all frames"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, for files; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that `to_dict` wrote (lists, as JSON makes them, are accepted for tuples)."""
        parts = {"input": InputSpec, "slow": PathwayConfig, "fast": PathwayConfig}
        parts |= {"lateral": LateralConfig, "head": HeadConfig, "roi": RoIConfig}

        def read(value: Any, part: type | None = None) -> Any:
            if part is not None and value is not None:
                return part(**{key: read(item, parts.get(key)) for key, item in value.items()})
            return tuple(map(read, value)) if isinstance(value, list | tuple) else value

        return read(data, cls)
