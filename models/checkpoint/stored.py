"""What the configuration inside a file says of a network, whichever library wrote it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from slowfast_kernels.models.config import ModelConfig

# Fields of a `PathwayConfig` that no shape tells.
UNSEEN = ("strides", "dilations", "pool_after_res2", "stem_stride", "stem_pool_stride")


@dataclass
class Stored:
    """Fields of a `ModelConfig` that a stored configuration fixes.

    origin: what it is, for messages. input, head: fields of `InputSpec` and `HeadConfig`. pathways: per
    pathway, fields of `PathwayConfig`. detects: whether there is a detection head. refused: what the
    configuration asks for and this library does not do. wrapper: a PySlowFast wrapper around a pytorchvideo
    network. norms: per pathway, (eps, momentum) of its batch norms where they are not the usual 1e-5 and 0.1.
    """

    origin: str
    input: dict[str, Any] = field(default_factory=dict)
    pathways: dict[str, dict[str, Any]] = field(default_factory=dict)
    lateral: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    detects: bool | None = None
    refused: list[str] = field(default_factory=list)
    wrapper: bool = False
    norms: dict[str, tuple[float, float | None]] = field(default_factory=dict)


def from_ours(config: ModelConfig) -> Stored:
    """Everything of one of our configurations."""
    head = ("activation", "multi_label", "background", "pool", "dropout", "roi")
    return Stored(
        "slowfast-kernels configuration",
        input=asdict(config.input),
        pathways={n: {key: getattr(path, key) for key in UNSEEN} for n, path in config.paths.items()},
        lateral={"relu": config.lateral.relu},
        head={key: getattr(config.head, key) for key in head},
        detects=config.head.roi is not None,
    )
