"""Architecture from the shapes of the weights."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from slowfast_kernels.models.config import STAGE_BLOCKS, LateralConfig, ModelConfig, PathwayConfig
from slowfast_kernels.models.families import family_of
from slowfast_kernels.models.families.resnet3d import is_fast_only

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """What shapes tell. paths and lateral lack what they do not: strides, dilations, pools, alpha.

    visible_pool: whether there is a max-pool after res2, where the keys tell (pytorchvideo's one-pathway
    networks), else None.
    """

    paths: dict[str, PathwayConfig]
    lateral: LateralConfig
    classes: int
    visible_pool: bool | None = None

    @property
    def two(self) -> bool:
        return len(self.paths) == 2


def structure(network: ModelConfig | Found) -> tuple[object, ...]:
    """Everything of a configuration that shapes tell, the number of classes aside. The lateral connection's
    norm is left out as well: it differs between libraries, not between presets of one name."""
    lateral = network.lateral
    paths = [
        (name, path.width, path.in_channels, path.block, path.stem_kernel, path.kernels)
        for name, path in network.paths.items()
    ]
    return paths, (lateral.kind, lateral.kernel, lateral.ratio) if len(paths) == 2 else None


def detect(shapes: Mapping[str, Shape], visible_pool: bool | None = None) -> Found:
    """Read the architecture off shapes under our keys. Tolerates missing keys: whoever compares names them.

    Other libraries have no name for a Fast pathway on its own; one that comes as "slow" is called "fast" here.

    Raises ValueError where no network of the family has such weights.
    """
    names = [name for name in ("slow", "fast") if f"stem.{name}.conv.weight" in shapes]
    if not names:
        raise ValueError("no stem convolution among the weights")
    pathways = {name: _pathway(shapes, name) for name in names}
    classes = shapes.get("head.proj.weight", shapes.get("head.proj.bias", (400,)))[0]
    lateral = _lateral(shapes, pathways) if len(names) == 2 else LateralConfig()
    if names == ["slow"] and is_fast_only(pathways["slow"]):
        pathways = {"fast": pathways["slow"]}
    return Found(pathways, lateral, classes, visible_pool)


def _pathway(shapes: Mapping[str, Shape], name: str) -> PathwayConfig:
    stem = shapes[f"stem.{name}.conv.weight"]
    if len(stem) != 5:
        what = "expected a 3-D one [width, channels, frames, 7, 7]"
        raise ValueError(f"the stem's weight has shape {[*stem]}, {what}")
    kernels = [_stage_kernels(shapes, f"res{stage}.{name}.") for stage in (2, 3, 4, 5)]
    if not all(kernels):
        raise ValueError(f"the {name} pathway has no blocks in one of res2..res5")
    counts = tuple(len(stage) for stage in kernels)
    width = stem[0]
    block = _block(shapes, name, width)
    depth = _depth(counts, block)
    patterns, limits = zip(*(_pattern(stage) for stage in kernels), strict=True)
    temporal = tuple(count if limit is None else limit for limit, count in zip(limits, counts, strict=True))
    return PathwayConfig(
        depth=depth or 50,
        width=width,
        in_channels=stem[1],
        block=block,
        blocks=None if depth else counts,  # type: ignore[arg-type]
        stem_kernel=stem[2],
        temporal_kernels=patterns,
        temporal_blocks=None if all(limit is None for limit in limits) else temporal,  # type: ignore[arg-type]
    )


def _stage_kernels(shapes: Mapping[str, Shape], prefix: str) -> list[int]:
    """Frames that the first convolution of every block of a stage spans."""
    blocks = {int(key.removeprefix(prefix).split(".")[0]) for key in shapes if key.startswith(prefix)}
    found = {
        i: shapes[f"{prefix}{i}.a.conv.weight"][2:3] for i in blocks if f"{prefix}{i}.a.conv.weight" in shapes
    }
    spans = {i: kernel[0] for i, kernel in found.items() if kernel}
    usual = Counter(spans.values()).most_common(1)[0][0] if spans else 1
    return [spans.get(i, usual) for i in range(max(blocks) + 1)] if blocks else []


def _block(shapes: Mapping[str, Shape], name: str, width: int) -> str:
    stages = [key for key in shapes if key.startswith("res") and f".{name}." in key]
    if any(".c." in key for key in stages):
        return "bottleneck"
    a = next((shapes[key] for key in sorted(stages) if key.endswith(".a.conv.weight")), (width,))
    return "basic" if a[0] == width else "basic_transform"


def _depth(counts: tuple[int, ...], block: str) -> int | None:
    """The usual depth with these block counts. 34 and 50 layers have the same; the block tells them apart."""
    for depth, blocks in STAGE_BLOCKS.items():
        if blocks == counts and (depth != 34 or block == "basic") and (depth != 50 or block != "basic"):
            return depth
    return None


def _pattern(kernels: list[int]) -> tuple[tuple[int, ...], int | None]:
    """Shortest description of a stage: a repeated pattern, and how many blocks follow it (None = all)."""
    n = len(kernels)
    for period in (1, 2):
        if all(kernels[i] == kernels[i % period] for i in range(n)):
            return tuple(kernels[:period]), None
    first = next((i for i, kernel in enumerate(kernels) if kernel != kernels[0]), n)
    if all(kernel == 1 for kernel in kernels[first:]):
        return (kernels[0],), first
    return tuple(kernels), None


def _lateral(shapes: Mapping[str, Shape], pathways: Mapping[str, PathwayConfig]) -> LateralConfig:
    slow, fast = pathways["slow"], pathways["fast"]
    weights = [shapes[key] for k in range(4) if (key := f"lateral.{k}.conv.weight") in shapes]
    if weights:
        (out, channels, kernel, *_), *_ = weights
        norm = any(key.startswith("lateral.") and ".bn." in key for key in shapes)
        ratio = max(1, out // channels) if channels else 2
        return LateralConfig(kernel=kernel, ratio=ratio, norm=norm, relu=norm)
    # no weights: the Slow stages' inputs tell how many channels were appended
    entry = shapes.get("res2.slow.0.a.conv.weight")
    added = entry[1] - slow.width if entry else 0
    if added <= 0:
        return LateralConfig(kind="none")  # or time_to_channel_sum, which adds instead of appending
    return LateralConfig(kind="time_sample" if added == fast.width else "time_to_channel_concat")


def describe(config: ModelConfig) -> str:
    """One line on an architecture: "SlowFast-R50, alpha 4, beta 1/8, lateral kernel 7, 400 classes"."""
    paths, family = list(config.paths.values()), family_of(config)
    depth = "/".join(dict.fromkeys(_depth_name(path) for path in paths))
    words = list(family.traits(config))
    if any(path.temporal_blocks for path in paths):
        counts = [path.temporal_blocks[2] if path.temporal_blocks else path.stage_blocks[2] for path in paths]
        words.append(f"temporal blocks in res4 {'/'.join(map(str, counts))}")
    task = "detection" if config.head.roi else "classification"
    return ", ".join([f"{family.kind(config)}-{depth}", *words, f"{task} with {config.head.classes} classes"])


def _depth_name(path: PathwayConfig) -> str:
    return f"R{path.depth}" if path.blocks is None else f"R({','.join(map(str, path.blocks))})"
