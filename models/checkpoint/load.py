"""Weights of a file into a model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slowfast_kernels.models.checkpoint import assemble, files, keys, mmaction2, pyslowfast, python_config
from slowfast_kernels.models.checkpoint.detect import Found, describe, structure
from slowfast_kernels.models.checkpoint.errors import CheckpointError, Question, UndecidedError, some
from slowfast_kernels.models.checkpoint.resolve import Resolved, resolve, with_window
from slowfast_kernels.models.checkpoint.stored import Stored, from_ours
from slowfast_kernels.models.config import ModelConfig, RoIConfig
from slowfast_kernels.models.overrides import override
from slowfast_kernels.models.presets import preset
from slowfast_kernels.models.slowfast import SlowFast
from slowfast_kernels.models.support import LIBRARIES, looks_like, unsupported

log = logging.getLogger("slowfast_kernels.checkpoint")


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

    path: a file of PySlowFast (`.pyth`, Caffe2 `.pkl`, or of its wrappers of pytorchvideo networks), pytorchvideo,
        mmaction2, or `save_checkpoint`, recognised by its content whatever its name. Nothing in the file is executed.
    model: a preset's name, for what weights cannot tell (alpha, the temporal max-pool of I3D and C2D, strides
        and dilation of detection models) where the file stores no configuration and the library's published
        models with these shapes do not agree. The number of classes and the conventions of the library and
        of the file's format stay the file's.
    overrides: as `create` takes them, for the same purpose (`alpha=8`), or to change the head or the input.

    Returns a trainable `SlowFast`, called as `model([slow, fast])` or `model(clip)`, detection models with boxes as
    the second argument. It has the head semantics of the library the file is from (`config.head`), and the preset,
    normalisation, rule for the Slow frames and channel order that go with the weights (`config.input`). The head of a
    file of PySlowFast or pytorchvideo has a window over `config.input.frames` frames, and clips of another length are
    refused (`fixed_frames=False` averages whatever comes). `model.checkpoint` is a `CheckpointInfo`; the same line is
    logged, at level WARNING if something that changes the network's function was assumed, else at INFO.

    Raises FileNotFoundError, and CheckpointError (a ValueError, its message begins with the file): not a
    checkpoint, damaged, refused because it asks for more than plain data, or an architecture this library
    lacks. UndecidedError asks for what the file leaves open and lists the candidates. MismatchError lists
    weights that do not fit key by key.
    """
    contents = files.read(path)
    try:
        named = preset(model) if model is not None else None
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    names = keys.read(contents.tensors)
    shapes = {key: tuple(value.shape) for key, value in contents.tensors.items()}
    if names is None:
        found = some(list(contents.tensors)) or "none"
        raise CheckpointError(f"{path}: unknown weights, {unsupported(shapes)}; got the keys {found}")
    try:
        result, state = _configure(contents, names, named, overrides)
    except (ValueError, TypeError) as error:
        if looks_like(shapes):  # a key by key comparison with another kind of network tells nobody anything
            raise CheckpointError(f"{path}: not supported, {unsupported(shapes)}") from error
        if isinstance(error, UndecidedError):
            raise UndecidedError(str(path), error.questions) from None
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    config = result.config
    network = assemble.build_with(config, state)
    marker = contents.rest.get(files.FORMAT)
    if isinstance(marker, Mapping):
        assemble.set_norms(network, marker.get("batch_norm") or {})
    for pathway, norm in result.norms.items():
        assemble.set_norms(network, dict.fromkeys(assemble.norms(network, pathway), norm))
    kind = _format(contents, names, config)
    info = CheckpointInfo(str(path), kind, config.source, describe(config), result.assumed)
    network.checkpoint = info
    log.log(logging.WARNING if result.decisive else logging.INFO, "%s", info)
    return network


def _format(contents: files.Contents, names: keys.Names, config: ModelConfig) -> str:
    if names.library == "caffe2":
        return "PySlowFast (Caffe2 pickle)"
    if names.library == "pytorchvideo" and config.source == "pyslowfast":
        return "PySlowFast (its wrapper of a pytorchvideo network)"
    return LIBRARIES[names.library]


def _configure(
    contents: files.Contents, names: keys.Names, named: ModelConfig | None, overrides: Mapping[str, Any]
) -> tuple[Resolved, dict[str, Tensor]]:
    """The file's configuration and its weights under our keys, checked against each other."""
    path, tensors = contents.path, contents.tensors
    if names.nonlocals:
        what = "non-local blocks are not supported yet (expected a network without)"
        raise CheckpointError(f"{path}: {what}, got {some(names.nonlocals)}")
    if names.library == "slowfast":
        config = _own(contents, named, overrides)
        names, found = assemble.read_shapes(names, tensors)
        state = assemble.collect(names, tensors)
        assemble.check(path, config, state, names, found)
        return Resolved(config, ()), state

    said = _said(contents)
    if said is not None and said.refused:
        raise CheckpointError(f"{path}: not supported: its {said.origin} has {'; '.join(said.refused)}")
    library, semantics = _library(contents, names, said)
    names, found = assemble.read_shapes(names, tensors)
    state = assemble.collect(names, tensors)
    if named is not None and structure(named) != structure(found):
        wanted = _as_in_file(named, found, library)
        assemble.check(path, wanted, state, names, found)
    # PySlowFast gives the same names to both heads
    detects = names.layout.detects if names.library in ("pytorchvideo", "mmaction2") else None
    if named is not None and detects not in (None, named.head.roi is not None):
        clips = f"a classifier of clips (expected a detection head, as {named.name} has)"
        boxes = f"a detection head (expected one of clips, as {named.name} has it)"
        raise CheckpointError(f"{path}: holds {boxes if detects else clips}")
    result = resolve(found, library, said, named, overrides, detects=detects, semantics=semantics)
    told = "fixed_frames" in overrides or (said is not None and "fixed_frames" in said.input)
    if not told and result.length_known:
        result = replace(result, config=with_window(result.config))
    assemble.check(path, result.config, state, names, found)
    return result, state


def _said(contents: files.Contents) -> Stored | None:
    """What a file's configuration or its format says, or None where neither can be read."""
    if contents.caffe2:  # older than the aligned option of RoIAlign
        return Stored("Caffe2 format", head={"roi": RoIConfig(aligned=False)})
    rest = contents.rest
    ours = rest.get(files.FORMAT)
    if isinstance(ours, Mapping) and isinstance(ours.get("config"), Mapping):
        return from_ours(ModelConfig.from_dict(ours["config"]))
    cfg, meta = rest.get("cfg"), rest.get("meta")
    try:
        if cfg is not None:
            return pyslowfast.stored(cfg)
        if isinstance(meta, Mapping):
            text = meta.get("config") or meta.get("cfg")
            settings: Any = python_config.assignments(text) if isinstance(text, str) else text
            known = isinstance(settings, Mapping) and isinstance(settings.get("model"), Mapping)
            return mmaction2.stored(settings) if known else None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        log.warning(
            "%s: the stored configuration cannot be read (%s), going on without", contents.path, error
        )
    return None


def _library(contents: files.Contents, names: keys.Names, said: Stored | None) -> tuple[str, str]:
    """Whose network it is and whose rule its head follows.

    PySlowFast trains pytorchvideo's networks too: such files have its wrapper's prefix "model.", or name the
    wrapper in their cfg, and are read as PySlowFast reads them.
    """
    if names.library == "caffe2":
        return "pyslowfast", "pyslowfast"
    if names.library == "pytorchvideo":
        prefixed = names.layout.prefix and contents.wrapper != "state_dict"
        if said is not None and said.wrapper if names.layout.detects else prefixed:
            return "pyslowfast", "pyslowfast"
        if said is not None and said.origin.startswith("PySlowFast") and not names.layout.detects:
            said.head.pop("activation", None)  # pytorchvideo's own models end with logits
    return names.library, names.library


def _own(contents: files.Contents, named: ModelConfig | None, overrides: Mapping[str, Any]) -> ModelConfig:
    """Configuration of a file of ours, or of a bare state dict of one of our models."""
    marker = contents.rest.get(files.FORMAT)
    if isinstance(marker, Mapping):
        if marker.get("version") != files.VERSION:
            raise CheckpointError(
                f"{contents.path}: file format {marker.get('version')!r} of this library (expected {files.VERSION})"
            )
        try:
            config = ModelConfig.from_dict(marker["config"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{contents.path}: its configuration cannot be read ({error})") from error
        if named is not None and structure(named) != structure(config):
            config = replace(named, head=replace(named.head, classes=config.head.classes))
    elif named is not None:
        config = named
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


def save_checkpoint(model: SlowFast, path: str | Path) -> None:
    """Write a model's weights and its whole configuration; `load_checkpoint` needs nothing else to read it.

    The file is a torch archive: {"slowfast_kernels": {"version", "config", "batch_norm"}, "state_dict": ...},
    all plain data. Raises TypeError for anything but a model of this library.
    """
    if not isinstance(model, SlowFast):
        what = "expected a model of slowfast_kernels.models"
        raise TypeError(f"save_checkpoint: {what}, got {type(model).__name__}")
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    marker = {
        "version": files.VERSION,
        "config": model.config.to_dict(),
        "batch_norm": assemble.unusual_norms(model),
    }
    torch.save({files.FORMAT: marker, "state_dict": state}, path)
