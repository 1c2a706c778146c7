"""What libraries can express, as rules: whether a network keeps one, what is expected, and what it has."""

from collections.abc import Iterator

from slowfast_kernels.models.config import ModelConfig

Rule = tuple[bool, str, object]


def joined(config: ModelConfig, *, loose: bool = False) -> Iterator[Rule]:
    """How two pathways go together. loose: they may be of different depths, and their connections bare or missing."""
    if len(config.paths) == 1:
        return
    lateral, (slow, fast) = config.lateral, config.paths.values()
    conv = lateral.kind == "conv"
    plain = conv and not lateral.norm and not lateral.relu
    got = f"norm={lateral.norm}, relu={lateral.relu}" if conv else f"kind {lateral.kind!r}"
    yield (
        (conv and lateral.norm and lateral.relu) or (loose and (plain or lateral.kind == "none")),
        "lateral connections by convolution, batch norm and ReLU",
        "a bare convolution" if plain else got,
    )
    widths = f"{slow.width} and {fast.width}"
    yield slow.width % fast.width == 0, "a Slow width that is a multiple of the Fast one", widths
    blocks = slow.stage_blocks, fast.stage_blocks
    yield loose or blocks[0] == blocks[1], "as many blocks in both pathways", " and ".join(map(str, blocks))
