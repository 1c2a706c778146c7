"""What a family of networks is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from slowfast_kernels.models.config import ModelConfig
from slowfast_kernels.models.slowfast import SlowFast


@dataclass(frozen=True)
class Family:
    """Networks that are built, described and published alike.

    name      what it is called
    presets   its published models by name (each configuration knows its name)
    networks  the kinds among them, as tables show them, and a preset that stands for each
    has       whether a configuration is one of the family's, and so of no other's
    build     the network of a configuration, with random weights
    kind      what such a network is called: "SlowFast", "I3D"
    traits    what tells it from others of its kind: "alpha 4"
    aliases   other names of its presets, as their papers and configs write them
    """

    name: str
    presets: Mapping[str, ModelConfig]
    networks: Mapping[str, str]
    has: Callable[[ModelConfig], bool]
    build: Callable[[ModelConfig], SlowFast]
    kind: Callable[[ModelConfig], str]
    traits: Callable[[ModelConfig], Iterable[str]]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {name: replace(config, name=name) for name, config in self.presets.items()}
        object.__setattr__(self, "presets", named)
