"""Networks of a configuration and of weights under our names: compared key by key, then put together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from slowfast_kernels.models.checkpoint import keys
from slowfast_kernels.models.checkpoint.detect import Found, describe, detect, structure
from slowfast_kernels.models.checkpoint.errors import MismatchError
from slowfast_kernels.models.config import ModelConfig
from slowfast_kernels.models.families import family_of
from slowfast_kernels.models.slowfast import SlowFast


def read_shapes(names: keys.Names, tensors: Mapping[str, Tensor]) -> tuple[keys.Names, Found]:
    """What shapes tell of a network, and its names with a pathway on its own called what it is."""
    # pytorchvideo counts the max-pool after res2 of a one-pathway network as a block
    pool = names.layout.pool if names.library == "pytorchvideo" and not names.layout.two else None
    found = detect({ours: tuple(tensors[key].shape) for key, ours in names.ours.items()}, pool)
    return (names if found.two else names.called(*found.paths)), found


def collect(names: keys.Names, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our keys, float32 (counters int64)."""
    state = {ours: tensors[key].detach() for key, ours in names.ours.items()}
    return {ours: x.to(torch.float32 if x.is_floating_point() else torch.int64) for ours, x in state.items()}


def check(label: str, config: ModelConfig, state: dict[str, Tensor], names: keys.Names, found: Found) -> None:
    """Compare weights with an architecture key by key; brings shapes that differ by trailing ones only into line.

    Batch counters may be missing (old files have none). Raises MismatchError, in the file's own names.
    """
    expected = {key: tuple(value.shape) for key, value in skeleton(config).state_dict().items()}
    file_name = {ours: key for key, ours in names.ours.items()}
    wanted = replace(names, layout=replace(names.layout, two=len(config.pathways) == 2))
    absent = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    missing, wrong = [file_name.get(key) or wanted.theirs(key) for key in absent], {}
    for key in (key for key in expected if key in state):
        shape, got = expected[key], tuple(state[key].shape)
        if _without_ones(got) != _without_ones(shape):
            wrong[file_name[key]] = (shape, got)
        elif got != shape:
            state[key] = state[key].reshape(shape)
    unexpected = [*(file_name[key] for key in state if key not in expected), *names.other]
    if missing or unexpected or wrong:
        same = structure(config) == structure(found) and config.head.classes == found.classes
        holds = "its weights do not fit" if same else f"holds {_in_file(found)}"
        raise MismatchError(f"{label}: {holds} (expected {describe(config)})", missing, unexpected, wrong)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _without_ones(shape[:-1]) if shape and shape[-1] == 1 else shape


def _in_file(found: Found) -> str:
    """One line on an architecture of which only the shapes are known."""
    paths = []
    for name, path in found.paths.items():
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
        return family_of(config).build(config)


def build_with(config: ModelConfig, state: Mapping[str, Tensor]) -> SlowFast:
    """The network with these weights (checked before), in eval mode. The tensors become its parameters."""
    network = skeleton(config)
    complete = {
        key: state[key] if key in state else torch.zeros(value.shape, dtype=value.dtype)
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(complete, assign=True)
    return network.eval()


def norms(network: nn.Module, pathway: str = "") -> dict[str, _BatchNorm]:
    """The batch norms by name, of one pathway or all. Lateral connections are part of the Slow one, as in mmaction2."""
    found = {name: m for name, m in network.named_modules() if isinstance(m, _BatchNorm)}
    return {n: m for n, m in found.items() if not pathway or (pathway == "fast") == ("fast" in n.split("."))}


def unusual_norms(network: nn.Module) -> dict[str, tuple[float, float | None]]:
    """(eps, momentum) of the batch norms where they are not 1e-5 and 0.1, as in the networks of all libraries."""
    values = {name: (m.eps, m.momentum) for name, m in norms(network).items()}
    return {name: value for name, value in values.items() if value != (1e-5, 0.1)}


def set_norms(network: nn.Module, values: Mapping[str, tuple[float, float | None]]) -> None:
    """Give the named batch norms their (eps, momentum)."""
    known = norms(network)
    for name, value in values.items():
        known[name].eps, known[name].momentum = value
