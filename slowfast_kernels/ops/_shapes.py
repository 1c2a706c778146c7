"""The layers of SlowFast, from the architecture's arithmetic: one table for tests, benchmarks and roofline.

SlowFast paper (arXiv:1812.03982), section 3 and table 1; where the paper leaves a choice, PySlowFast's
``SLOWFAST_8x8_R50``: the spatial stride of a stage is in the 1x3x3 convolution of its first block, the
lateral convolutions span 7 frames and give twice the Fast pathway's channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class Network:
    """What tells one SlowFast network from another. Frames are those of the Fast pathway."""

    frames: int = 32
    crop: int = 224
    alpha: int = 4  # frames of the Fast pathway per frame of the Slow one
    beta_inv: int = 8  # channels of the Slow pathway per channel of the Fast one
    lateral_ratio: int = 2  # channels of a lateral convolution per channel of the Fast pathway
    lateral_kernel: int = 7
    width: int = 64  # inner channels of the Slow pathway's res2
    expansion: int = 4
    classes: int = 400
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    slow_kernels: tuple[int, ...] = (1, 1, 3, 3)  # frames that conv_a of a stage spans
    fast_kernels: tuple[int, ...] = (3, 3, 3, 3)


SLOWFAST_8X8_R50 = Network()
#: The AVA detector: res5 keeps stride 16 and is dilated instead.
SLOWFAST_8X8_R50_AVA = Network(classes=80, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))


@dataclass(frozen=True)
class Conv:
    """A convolution with its affine, on [N, cin, frames, size, size]."""

    name: str
    cin: int
    cout: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    frames: int
    size: int
    relu: bool
    residual: bool
    count: int = 1


@dataclass(frozen=True)
class Stem:
    """Stem of a pathway, on [N, cin, frames, size, size]: stride (1, 2, 2), then the 1x3x3 max-pool."""

    name: str
    cin: int
    cout: int
    kernel: tuple[int, int, int]
    frames: int
    size: int
    count: int = 1


@dataclass(frozen=True)
class Block:
    """A bottleneck block, on [N, cin, frames, size, size]."""

    name: str
    cin: int
    inner: int
    cout: int
    temporal_kernel: int
    stride: int
    dilation: int
    frames: int
    size: int
    count: int = 1

    @property
    def has_shortcut(self) -> bool:
        """Whether the shortcut is a convolution."""
        return self.cin != self.cout or self.stride != 1


@dataclass(frozen=True)
class Lateral:
    """A lateral connection: [N, fast, alpha * frames, size, size] to [N, slow + out, frames, size, size]."""

    name: str
    slow: int
    fast: int
    out: int
    kernel: int
    alpha: int
    frames: int
    size: int
    count: int = 1


@dataclass(frozen=True)
class Head:
    """Classifier on the maps of both pathways."""

    name: str
    slow: int
    fast: int
    alpha: int
    frames: int
    size: int
    classes: int
    count: int = 1


def strided(n: int, stride: int) -> int:
    """Extent after a convolution or pool of odd kernel k, padding k // 2."""
    return (n - 1) // stride + 1


def stems(net: Network = SLOWFAST_8X8_R50) -> list[Stem]:
    """Both stems."""
    return [
        Stem("stem.slow", 3, net.width, (1, 7, 7), net.frames // net.alpha, net.crop),
        Stem("stem.fast", 3, net.width // net.beta_inv, (5, 7, 7), net.frames, net.crop),
    ]


def laterals(net: Network = SLOWFAST_8X8_R50) -> list[Lateral]:
    """The four lateral connections, after the stems, res2, res3 and res4."""
    widths = [net.width, *(net.width * net.expansion << i for i in range(len(STAGES) - 1))]
    size = strided(strided(net.crop, 2), 2)
    found = []
    for i, slow in enumerate(widths):
        size = strided(size, net.strides[i - 1]) if i else size
        fast = slow // net.beta_inv
        found.append(
            Lateral(
                f"lateral.{i}",
                slow,
                fast,
                fast * net.lateral_ratio,
                net.lateral_kernel,
                net.alpha,
                net.frames // net.alpha,
                size,
            )
        )
    return found


def blocks(net: Network = SLOWFAST_8X8_R50) -> list[Block]:
    """Every block, in the order they run: 16 of each pathway."""
    found = []
    for path, (frames, divisor, kernels) in {
        "slow": (net.frames // net.alpha, 1, net.slow_kernels),
        "fast": (net.frames, net.beta_inv, net.fast_kernels),
    }.items():
        size = strided(strided(net.crop, 2), 2)
        for i, (stage, lateral) in enumerate(zip(STAGES, laterals(net), strict=True)):
            inner = (net.width << i) // divisor
            cout = inner * net.expansion
            channels = lateral.slow + lateral.out if path == "slow" else lateral.fast
            for b in range(net.blocks[i]):
                stride = net.strides[i] if b == 0 else 1
                found.append(
                    Block(
                        f"{stage}.{path}.{b}",
                        channels,
                        inner,
                        cout,
                        kernels[i],
                        stride,
                        net.dilations[i],
                        frames,
                        size,
                    )
                )
                channels, size = cout, strided(size, stride)
    return found


def convs_of(block: Block) -> list[Conv]:
    """The three or four convolutions of a block."""
    kt, s, d = block.temporal_kernel, block.stride, block.dilation
    one = (1, 1, 1)
    after = strided(block.size, s)
    a = Conv(
        f"{block.name}.a",
        block.cin,
        block.inner,
        (kt, 1, 1),
        one,
        (kt // 2, 0, 0),
        one,
        block.frames,
        block.size,
        True,
        False,
    )
    b = replace(a, name=f"{block.name}.b", cin=block.inner, kernel=(1, 3, 3), stride=(1, s, s))
    b = replace(b, padding=(0, d, d), dilation=(1, d, d))
    c = replace(a, name=f"{block.name}.c", cin=block.inner, cout=block.cout, kernel=one, padding=(0, 0, 0))
    c = replace(c, size=after, residual=True)
    if not block.has_shortcut:
        return [a, b, c]
    shortcut = replace(a, name=f"{block.name}.shortcut", cout=block.cout, kernel=one, padding=(0, 0, 0))
    return [a, b, c, replace(shortcut, stride=(1, s, s), relu=False)]


def conv_of_lateral(lateral: Lateral) -> Conv:
    """The convolution of a lateral connection."""
    k = lateral.kernel
    return Conv(
        f"{lateral.name}.conv",
        lateral.fast,
        lateral.out,
        (k, 1, 1),
        (lateral.alpha, 1, 1),
        (k // 2, 0, 0),
        (1, 1, 1),
        lateral.frames * lateral.alpha,
        lateral.size,
        True,
        False,
    )


def convs(net: Network = SLOWFAST_8X8_R50) -> list[Conv]:
    """Every convolution of the blocks and the lateral connections (the stems are not among them)."""
    found = [conv for block in blocks(net) for conv in convs_of(block)]
    return found + [conv_of_lateral(lateral) for lateral in laterals(net)]


def head(net: Network = SLOWFAST_8X8_R50) -> Head:
    """The classifier."""
    slow, fast = ([b for b in blocks(net) if f".{path}." in b.name][-1] for path in ("slow", "fast"))
    size = strided(slow.size, slow.stride)
    return Head("head", slow.cout, fast.cout, net.alpha, slow.frames, size, net.classes)


L = TypeVar("L", Conv, Stem, Block, Lateral, Head)


def distinct(layers: Iterable[L]) -> list[L]:
    """Layers of the same geometry put together: the first one's name, and how many there are."""
    found: dict[object, L] = {}
    for layer in layers:
        key = replace(layer, name="", count=0)
        before = found.get(key)
        found[key] = layer if before is None else replace(before, count=before.count + layer.count)
    return list(found.values())


def detection_only() -> list[Block]:
    """Distinct blocks of the detector that the classifier lacks: the dilated ones."""
    have = {replace(b, name="", count=0) for b in blocks(SLOWFAST_8X8_R50)}
    return [b for b in distinct(blocks(SLOWFAST_8X8_R50_AVA)) if replace(b, name="", count=0) not in have]
