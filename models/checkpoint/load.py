"""Weights of a file into a model."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slowfast_kernels.models.checkpoint import files, keys, stored
from slowfast_kernels.models.checkpoint.detect import Found, describe, detect, structure
from slowfast_kernels.models.checkpoint.errors import (
    CheckpointError,
    MismatchError,
    Question,
    UndecidedError,
    some,
)
from slowfast_kernels.models.checkpoint.resolve import Resolved, resolve
from slowfast_kernels.models.checkpoint.stored import Stored
from slowfast_kernels.models.config import ModelConfig
from slowfast_kernels.models.overrides import closest, override
from slowfast_kernels.models.presets import ALIASES, PRESETS
from slowfast_kernels.models.slowfast import SlowFast
from slowfast_kernels.models.support import LIBRARIES, looks_like, unsupported

log = logging.getLogger("slowfast_kernels.checkpoint")

VERSION = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a model's weights come from: `model.checkpoint` of what `load_checkpoint` returns.

    path: the file. format: what kind of file it is, such as "PySlowFast (Caffe2 pickle)". source: the library
    whose semantics the model has ("pyslowfast", "pytorchvideo", "mmaction2"). architecture: one line on it.
    assumed: what neither the file nor the caller said and was taken from the published model that fits.
    """

    path: str
    format: str
    source: str
    architecture: str
    assumed: tuple[str, ...] = ()

    def __str__(self) -> str:
        assumed = f" (assumed: {'; '.join(self.assumed)})" if self.assumed else ""
        return f"{self.path}: {self.format}: {self.architecture}{assumed}"


def load_checkpoint(path: str | Path, model: str | None = None, **overrides: Any) -> SlowFast:
    """The network of a checkpoint with its weights, in eval mode.

    path: a file of PySlowFast (`.pyth`, Caffe2 `.pkl`, or of its wrappers of pytorchvideo networks),
        pytorchvideo, mmaction2, or `save_checkpoint`, recognised by its content whatever its name. Nothing in
        the file is executed.
    model: a preset's name, for what weights cannot tell (alpha, the temporal max-pool of I3D and C2D, strides
        and dilation of detection models) where the file stores no configuration and the library's published
        models with these shapes do not agree. The number of classes and the conventions of the library and
        of the file's format stay the file's.
    overrides: as `create` takes them, for the same purpose (`alpha=8`), or to change the head or the input.

    Returns a trainable `SlowFast`, called as `model([slow, fast])` or `model(clip)`, detection models with
    boxes as the second argument. It has the head semantics of the library the file is from (`config.head`),
    and the preset, normalisation, rule for the Slow frames and channel order that go with the weights
    (`config.input`). The head of a file of PySlowFast or pytorchvideo has a window over `config.input.frames`
    frames, and clips of another length are refused (`fixed_frames=False` averages whatever comes).
    `model.checkpoint` is a `CheckpointInfo`; the same line is logged, at level WARNING if
    something that changes the network's function was assumed, else at INFO.

    Raises FileNotFoundError, and CheckpointError (a ValueError, its message begins with the file): not a
    checkpoint, damaged, refused because it asks for more than plain data, or an architecture this library
    lacks. UndecidedError asks for what the file leaves open and lists the candidates. MismatchError lists
    weights that do not fit key by key.
    """
    contents = files.read(path)
    preset = _preset(model)
    names = keys.read(contents.tensors)
    shapes = {key: tuple(value.shape) for key, value in contents.tensors.items()}
    if names is None:
        found = some(list(contents.tensors)) or "none"
        raise CheckpointError(f"{path}: unknown weights, {unsupported(shapes)}; got the keys {found}")
    try:
        result, state = _configure(contents, names, preset, overrides)
    except (ValueError, TypeError) as error:
        if looks_like(shapes):  # a key by key comparison with another kind of network tells nobody anything
            raise CheckpointError(f"{path}: not supported, {unsupported(shapes)}") from error
        if isinstance(error, UndecidedError):
            raise UndecidedError(str(path), error.questions) from None
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    config = result.config
    network = build_with(config, state)
    marker = contents.rest.get(files.FORMAT)
    if isinstance(marker, Mapping):
        set_norms(network, marker.get("batch_norm") or {})
    for path, norm in result.norms.items():
        set_norms(network, {name: norm for name in norms(network) if _pathway_of(name) == path})
    info = CheckpointInfo(
        str(path), _format(contents, names, config), config.source, describe(config), result.assumed
    )
    network.checkpoint = info  # type: ignore[assignment]  # torch declares parameters and modules only
    log.log(logging.WARNING if result.decisive else logging.INFO, "%s", info)
    return network


def _preset(name: str | None) -> ModelConfig | None:
    if name is None:
        return None
    preset = PRESETS.get(ALIASES.get(name, name))
    if preset is None:
        raise CheckpointError(closest("model", name, (*sorted(PRESETS), *ALIASES)))
    return preset


def _format(contents: files.Contents, names: keys.Names, config: ModelConfig) -> str:
    if names.library == "caffe2":
        return "PySlowFast (Caffe2 pickle)"
    if names.library == "pytorchvideo" and config.source == "pyslowfast":
        return "PySlowFast (its wrapper of a pytorchvideo network)"
    return LIBRARIES[names.library]


def _configure(
    contents: files.Contents, names: keys.Names, preset: ModelConfig | None, overrides: Mapping[str, Any]
) -> tuple[Resolved, dict[str, Tensor]]:
    """The file's configuration and its weights under our keys, checked against each other."""
    path, tensors = contents.path, contents.tensors
    if names.nonlocals:
        raise CheckpointError(
            f"{path}: non-local blocks are not supported yet (expected a network without), got "
            f"{some(names.nonlocals)}"
        )
    if names.library == "slowfast":
        config = _own(contents, preset, overrides)
        found = detect(shapes_of(names, tensors))
        state = collect(names, tensors, next(iter(found.pathways)) if not found.two else None)
        check(path, config, state, names, found)
        return Resolved(config, ()), state

    said = stored.read(contents)
    if said is not None and said.refused:
        raise CheckpointError(f"{path}: not supported: its {said.origin} has {'; '.join(said.refused)}")
    library, semantics = _library(contents, names, said)
    found = detect(shapes_of(names, tensors), visible_pool(names))
    state = collect(names, tensors, next(iter(found.pathways)) if not found.two else None)
    if preset is not None and structure(preset) != found.structure():
        wanted = _as_in_file(preset, found, library)
        check(path, wanted, state, names, found)
    # PySlowFast gives the same names to both heads
    detects = names.layout.detects if names.library in ("pytorchvideo", "mmaction2") else None
    if detects and preset is not None and preset.head.roi is None:
        raise CheckpointError(
            f"{path}: holds a detection head (expected one of clips, as {preset.name} has it)"
        )
    if detects is False and preset is not None and preset.head.roi is not None:
        raise CheckpointError(
            f"{path}: holds a classifier of clips (expected a detection head, as {preset.name} has)"
        )
    result = resolve(found, library, said, preset, overrides, detects=detects, semantics=semantics)
    told = "fixed_frames" in overrides or (said is not None and "fixed_frames" in said.input)
    if not told and result.length_known:
        result = replace(result, config=with_window(result.config))
    check(path, result.config, state, names, found)
    return result, state


def with_window(config: ModelConfig) -> ModelConfig:
    """The configuration with the length of its clips fixed where the library's head has a window over all
    frames of a training clip, which it would slide along a longer one; mmaction2's averages whatever comes."""
    head = config.head
    window = head.semantics != "mmaction2" and (head.roi is not None or head.pool is not None)
    return replace(config, input=replace(config.input, fixed_frames=window))


def visible_pool(names: keys.Names) -> bool | None:
    """pytorchvideo counts the max-pool after res2 of a one-pathway network as a block."""
    return names.layout.pool if names.library == "pytorchvideo" and not names.layout.two else None


def _library(contents: files.Contents, names: keys.Names, said: Stored | None) -> tuple[str, str]:
    """Whose network it is and whose rule its head follows.

    PySlowFast trains pytorchvideo's networks too: such files have its wrapper's prefix "model.", or name the
    wrapper in their cfg, and are read as PySlowFast reads them.
    """
    if names.library == "caffe2":
        return "pyslowfast", "pyslowfast"
    if names.library == "pytorchvideo":
        prefixed = names.layout.prefix == "model." and contents.wrapper != "state_dict"
        if prefixed or (names.layout.detects and said is not None and said.wrapper):
            return "pyslowfast", "pyslowfast"
        if said is not None and said.origin.startswith("PySlowFast") and not names.layout.detects:
            said.head.pop("activation", None)  # pytorchvideo's own models end with logits
    return names.library, names.library


def _own(contents: files.Contents, preset: ModelConfig | None, overrides: Mapping[str, Any]) -> ModelConfig:
    """Configuration of a file of ours, or of a bare state dict of one of our models."""
    marker = contents.rest.get(files.FORMAT)
    if isinstance(marker, Mapping):
        if marker.get("version") != VERSION:
            raise CheckpointError(
                f"{contents.path}: file format {marker.get('version')!r} of this library (expected {VERSION})"
            )
        try:
            config = ModelConfig.from_dict(marker["config"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{contents.path}: its configuration cannot be read ({error})") from error
        if preset is not None and structure(preset) != structure(config):
            config = replace(preset, head=replace(preset.head, classes=config.head.classes))
    elif preset is not None:
        config = preset
    else:
        what = "its configuration (a bare state dict of slowfast-kernels; save_checkpoint writes both)"
        raise UndecidedError(contents.path, [Question(what, ("model=NAME",))])
    return override(config, overrides)


def _as_in_file(preset: ModelConfig, found: Found, library: str) -> ModelConfig:
    """A preset with what differs between files of one architecture taken from the file."""
    lateral = preset.lateral
    if found.two and lateral.kind == found.lateral.kind:
        lateral = replace(lateral, norm=found.lateral.norm, relu=found.lateral.relu)
    return replace(preset, lateral=lateral, head=replace(preset.head, classes=found.classes), source=library)


def shapes_of(names: keys.Names, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {ours: tuple(tensors[key].shape) for key, ours in names.ours.items()}


def collect(names: keys.Names, tensors: Mapping[str, Tensor], single: str | None) -> dict[str, Tensor]:
    """Weights under our keys, float32 (counters int64). single: what the one pathway is called, if there is
    one."""
    state: dict[str, Tensor] = {}
    for key, ours in names.ours.items():
        value = tensors[key].detach()
        if single == "fast":
            ours = keys.rename_pathway(ours, "slow", "fast")
        state[ours] = value.to(torch.float32 if value.is_floating_point() else torch.int64)
    return state


def check(
    label: str,
    config: ModelConfig,
    state: dict[str, Tensor],
    names: keys.Names,
    found: Found,
    ignore: Iterable[str] = (),
) -> None:
    """Compare weights with an architecture key by key; brings shapes that differ by trailing ones only into
    line.

    Batch counters may be missing (old files have none). Raises MismatchError, in the file's own names.
    """
    expected = {key: tuple(value.shape) for key, value in skeleton(config).state_dict().items()}
    file_name = {ours: key for key, ours in names.ours.items()}
    if not found.two and "fast" in found.pathways:
        file_name = {keys.rename_pathway(ours, "slow", "fast"): key for ours, key in file_name.items()}
    wanted = replace(names, layout=replace(names.layout, two=len(config.pathways) == 2))
    missing, wrong = [], {}
    for key, shape in expected.items():
        if key not in state:
            if not key.endswith("num_batches_tracked"):
                missing.append(file_name.get(key) or wanted.theirs(key))
            continue
        got = tuple(state[key].shape)
        if got != shape:
            if _without_ones(got) == _without_ones(shape):
                state[key] = state[key].reshape(shape)
            else:
                wrong[file_name[key]] = (shape, got)
    unexpected = [file_name[key] for key in state if key not in expected]
    unexpected += [key for key in names.other if key not in set(ignore)]
    if missing or unexpected or wrong:
        holds = f"holds {_in_file(found)}" if config_differs(config, found) else "its weights do not fit"
        raise MismatchError(f"{label}: {holds} (expected {describe(config)})", missing, unexpected, wrong)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(shape)
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def config_differs(config: ModelConfig, found: Found) -> bool:
    """Whether an architecture is not the one that the shapes show."""
    return structure(config) != found.structure() or config.head.classes != found.classes


def _in_file(found: Found) -> str:
    """One line on an architecture of which only the shapes are known."""
    paths = []
    for name, path in found.pathways.items():
        depth = f"R{path.depth}" if path.blocks is None else f"blocks {list(path.blocks)}"
        paths.append(f"{name} pathway {depth} of width {path.width}")
    if found.two and found.lateral.kind == "conv":
        paths.append(f"lateral kernel {found.lateral.kernel}")
    return ", ".join([*paths, f"{found.classes} classes"])


class _NoRandomWeights(TorchFunctionMode):
    """Leaves out what fills weights that are about to be replaced."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "fill_", "zero_"):
            return args[0] if args else given["tensor"]  # torch.nn.init passes names
        return func(*args, **given)


def skeleton(config: ModelConfig) -> SlowFast:
    """The network without storage for its weights."""
    with torch.device("meta"), _NoRandomWeights():
        return SlowFast(config)


def build_with(config: ModelConfig, state: Mapping[str, Tensor]) -> SlowFast:
    """The network with these weights (checked before), in eval mode. The tensors become its parameters."""
    network = skeleton(config)
    complete = {
        key: state[key] if key in state else torch.zeros(value.shape, dtype=value.dtype)
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(complete, assign=True)
    return network.eval()


def norms(network: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The batch norms by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def _pathway_of(layer: str) -> str:
    """The pathway a layer belongs to; the lateral connections are part of the Slow one, as in mmaction2."""
    return "fast" if "fast" in layer.split(".") else "slow"


def unusual_norms(network: nn.Module) -> dict[str, tuple[float, float | None]]:
    """(eps, momentum) of the batch norms where they are not 1e-5 and 0.1, as in the networks of all
    libraries."""
    values = {name: (m.eps, m.momentum) for name, m in norms(network).items()}
    return {name: value for name, value in values.items() if value != (1e-5, 0.1)}


def set_norms(network: nn.Module, values: Mapping[str, Any]) -> None:
    """Give the named batch norms their (eps, momentum)."""
    for name, (eps, momentum) in values.items():
        norm: Any = network.get_submodule(name)
        norm.eps, norm.momentum = eps, momentum


def save_checkpoint(model: SlowFast, path: str | Path) -> None:
    """Write a model's weights and its whole configuration; `load_checkpoint` needs nothing else to read it.

    The file is a torch archive: {"slowfast_kernels": {"version", "config", "batch_norm"}, "state_dict": ...},
    all plain data. Raises TypeError for anything but a model of this library.
    """
    if not isinstance(model, SlowFast):
        raise TypeError(
            f"save_checkpoint: expected a model of slowfast_kernels.models, got {type(model).__name__}"
        )
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    marker = {"version": VERSION, "config": model.config.to_dict(), "batch_norm": unusual_norms(model)}
    torch.save({files.FORMAT: marker, "state_dict": state}, path)
