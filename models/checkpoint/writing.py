"""Writing the other libraries' files.

A network is written only if the library can build it; what changes around the network (head rule, choice of
Slow frames, colours) is reported. Every file is read back and compared bit by bit before it takes its name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from slowfast_kernels.models.checkpoint import keys, mmaction2, pyslowfast, pytorchvideo
from slowfast_kernels.models.checkpoint.assemble import unusual_norms
from slowfast_kernels.models.checkpoint.atomic import replace as replace_file
from slowfast_kernels.models.checkpoint.detect import describe, structure
from slowfast_kernels.models.checkpoint.errors import CheckpointError, some
from slowfast_kernels.models.checkpoint.load import load_checkpoint, save_checkpoint
from slowfast_kernels.models.checkpoint.resolve import with_window
from slowfast_kernels.models.checkpoint.rules import Rule
from slowfast_kernels.models.checkpoint.stored import UNSEEN
from slowfast_kernels.models.checkpoint.templates import Layout
from slowfast_kernels.models.config import HeadConfig, ModelConfig
from slowfast_kernels.models.slowfast import SlowFast
from slowfast_kernels.models.support import LIBRARIES


class Library(Protocol):
    """What the module of a library says of the files that it writes."""

    def head(self, config: ModelConfig) -> HeadConfig:
        """The head as the library's user will have it."""

    def rules(self, config: ModelConfig) -> Iterator[Rule]:
        """What the library can express."""

    def contents(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """A file with these weights, under the library's names, and what else the library keeps in it."""


_LIBRARIES: dict[str, Library] = {
    "pyslowfast": pyslowfast,
    "pytorchvideo": pytorchvideo,
    "mmaction2": mmaction2,
}
TARGETS = tuple(LIBRARIES)


@dataclass(frozen=True)
class Written:
    """What `convert` wrote: path, library, keys, the configuration the file reads back as, and what is
    different for the user of the new file."""

    path: str
    library: str
    keys: int
    config: ModelConfig
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"wrote {self.path}: {LIBRARIES[self.library]}, {describe(self.config)}, {self.keys} keys"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def convert(
    source: str | Path, target: str | Path, *, to: str, model: str | None = None, **overrides: Any
) -> Written:
    """Read a checkpoint of any supported library and write it for another one (or in our own format).

    to: "pyslowfast", "pytorchvideo", "mmaction2" or "slowfast". model, overrides: as in `load_checkpoint`.
    The weights are carried over bit for bit, renamed, with the classifier's columns reordered and AVA's
    background class inserted or dropped as the library wants it. Raises CheckpointError where the library
    cannot express the network, and what `load_checkpoint` raises.
    """
    network = load_checkpoint(source, model, **overrides)
    try:
        written = write(network, target, to=to)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    assumed = (f"assumed: {what}" for what in (network.checkpoint.assumed if network.checkpoint else ()))
    return replace(written, notes=(*assumed, *written.notes))


def write(network: SlowFast, target: str | Path, *, to: str) -> Written:
    """Write a model of this library as a file of another one; see `convert`."""
    if to not in TARGETS:
        raise CheckpointError(f"to: expected one of {', '.join(TARGETS)}, got {to!r}")
    target = Path(target)
    if to == "slowfast":
        replace_file(target, lambda path: save_checkpoint(network, path))
        state = network.state_dict()
        return Written(str(target), to, len(state), network.config, tuple(_not_finite(state)))

    config, notes = _adapt(network, to)
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    state = _head_for(network.config, config, state)
    layout = _layout(config, to)
    renamed = {keys.name(to, key, layout): value.contiguous() for key, value in state.items()}
    content = _LIBRARIES[to].contents(config, renamed)

    def save_and_compare(path: Path) -> None:
        torch.save(content, path)
        back = load_checkpoint(path)
        _compare(back, state, config)

    replace_file(target, save_and_compare)
    return Written(str(target), to, len(renamed), config, (*notes, *_not_finite(renamed)))


def _layout(config: ModelConfig, to: str) -> Layout:
    detects, theirs = config.head.roi is not None, to == "pytorchvideo"
    return Layout(
        two=len(config.paths) == 2,
        detects=detects,
        pool=theirs and next(iter(config.paths.values())).pool_after_res2 > 1,
        prefix="model." if theirs and detects else "",
    )


def _compare(back: SlowFast, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Raise unless a file reads back as the same weights and the same network."""
    got = back.state_dict()
    wrong = [key for key in state.keys() | got.keys() if key not in got or key not in state]
    wrong += [key for key in state if key in got and not torch.equal(_bits(state[key]), _bits(got[key]))]
    facts, wanted = _facts(back.config), _facts(config)
    different = [name for name in wanted if facts[name] != wanted[name]]
    if wrong or different:
        raise CheckpointError(
            f"the file written reads back differently (keys {wrong[:3]}, settings {different}); removed"
        )


def _bits(x: Tensor) -> Tensor:
    """Bytes of a tensor; as numbers a NaN is not equal to itself."""
    return x.contiguous().reshape(-1).view(torch.uint8)


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """A note on weights that are no numbers."""
    keys = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    return [f"weights are NaN or infinite, and are written as they are: {some(keys)}"] if keys else []


def _facts(config: ModelConfig) -> dict[str, object]:
    """What makes up a network and its clips, however it is described; how it was trained and tested is left out."""
    left = ("crop", "call", "sampling", "test_crop", "views", "ensemble")
    return {
        "pathways": (structure(config), [[getattr(p, key) for key in UNSEEN] for p in config.paths.values()]),
        "lateral": config.lateral if len(config.paths) == 2 else None,
        "head": config.head,
        **{name: value for name, value in vars(config.input).items() if name not in left},
    }


def _adapt(network: SlowFast, to: str) -> tuple[ModelConfig, list[str]]:
    """The configuration as the library's user will have it, and what that changes."""
    old, library = network.config, _LIBRARIES[to]
    spec, title = old.input, LIBRARIES[to]
    head = library.head(old)
    head = replace(head, semantics=to, classes=old.head.classes + head.background - old.head.background)
    index = "stride" if to == "mmaction2" else "linspace"
    config = with_window(replace(old, head=head, input=replace(spec, slow_index=index), source=to))
    unusual = next(iter(unusual_norms(network)), None)
    norms = (unusual is None, "batch norms with eps 1e-5 and momentum 0.1", f"others in {unusual}")
    for holds, expected, got in (norms, *_rules(config, to)):
        if not holds:
            raise CheckpointError(f"{title} cannot express this network: expected {expected}, got {got}")

    notes: list[str] = []
    if head.activation != old.head.activation:
        notes.append(f"the head ends with {head.activation!r} there, not with {old.head.activation!r}")
    if head.roi is None and old.head.semantics != to:
        whose = f"{title}'s rule, not {LIBRARIES[old.head.semantics]}'s"
        notes.append(f"on crops larger than {spec.crop} pixels the head follows {whose}")
    if head.background != old.head.background:
        notes.append("the background class is " + ("inserted as class 0" if head.background else "dropped"))
    if len(config.paths) == 2 and spec.slow_index != index:
        rule = {"stride": "0, alpha, 2 alpha, ...", "linspace": "linspace(0, T - 1, T / alpha)"}
        notes.append(f"{title} feeds the Slow pathway frames {rule[index]}, not {rule[spec.slow_index]}")
    if to == "pytorchvideo":
        colours = f"mean {spec.mean}, std {spec.std}" + (", B, G, R" if spec.reverse_channels else "")
        if (spec.mean, spec.std) != ((0.45,) * 3, (0.225,) * 3) or spec.reverse_channels:
            notes.append(f"normalise the input with {colours}")
    if config.input.fixed_frames and not spec.fixed_frames:
        notes.append(
            f"the head's window spans clips of {spec.frames} frames there and slides along longer ones"
        )
    return config, notes


def _rules(config: ModelConfig, to: str) -> Iterator[Rule]:
    colour = config.input.fast_input
    yield colour == "rgb", "R, G, B frames in the Fast pathway", f"fast_input={colour!r}"
    yield from _LIBRARIES[to].rules(config)


def expressible(config: ModelConfig, to: str) -> bool:
    """Whether a library can build a network (its batch norms aside)."""
    return all(holds for holds, *_ in _rules(config, to))


def _head_for(old: ModelConfig, new: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The classifier with its columns in the library's order, with or without a background class."""
    state = dict(state)
    weight, bias = state["head.proj.weight"], state["head.proj.bias"]
    if old.head.column_order != new.head.column_order and len(old.pathways) == 2:
        width = old.pathway(old.head.column_order[0]).out_channels(3)
        weight = torch.cat([weight[:, width:], weight[:, :width]], dim=1)
    if new.head.background and not old.head.background:
        # mmaction2 ignores what class 0 says; zeros say nothing
        weight, bias = (torch.cat([x.new_zeros(1, *x.shape[1:]), x]) for x in (weight, bias))
    elif old.head.background and not new.head.background:
        weight, bias = weight[1:], bias[1:]
    state["head.proj.weight"], state["head.proj.bias"] = weight, bias
    return state
