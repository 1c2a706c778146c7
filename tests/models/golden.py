"""Recorded cases of the three reference libraries, and the weights and clips they were recorded with.

Nothing but shapes and outputs is stored: every tensor follows from its name (or a seed) through numpy's
PCG64, whose stream is the same on every machine. `digest` tells whether it was.
"""

import functools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "data" / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


def case(name: str) -> dict[str, Any]:
    """One recorded case: configuration, keys and shapes of its checkpoint, input, outputs, margins."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def weight(key: str, shape: list[int]) -> Tensor:
    """The tensor of a checkpoint's key: He-scaled for convolutions and the classifier, near 1 in batch
    norms."""
    kind = key.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    draw = _generator(zlib.crc32(key.encode()))
    if kind == "weight":
        if len(shape) == 1:
            return _float32(draw.uniform(0.5, 1.0, shape))
        return _float32(draw.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:])))
    if kind == "running_var":
        return _float32(draw.uniform(0.5, 1.5, shape))
    assert kind in ("bias", "running_mean"), key
    return _float32(0.1 * draw.standard_normal(shape))


@functools.cache
def weights(name: str) -> dict[str, Tensor]:
    """The state dict of a case, under the library's own keys. To be read only: every caller gets the same."""
    recorded = case(name)
    state = {key: weight(key, shape) for key, shape, *_ in recorded["checkpoint"]["entries"]}
    for ending, factor in recorded["scale"]:
        for key in state:
            if key.endswith(ending):
                state[key] = state[key] * factor
    return state


def clip(recorded: dict[str, Any]) -> Tensor:
    """The network's input [N, 3, T, H, W], already normalised."""
    given = recorded["input"]
    return _float32(_generator(given["seed"]).standard_normal(given["shape"]))


def digest(tensors: list[Tensor]) -> list[float]:
    """Sum and sum of squares over all tensors, in float64."""
    wide = [tensor.double() for tensor in tensors]
    return [sum(t.sum().item() for t in wide), sum(t.square().sum().item() for t in wide)]
