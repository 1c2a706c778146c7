"""Reading a file by its content: torch archives (weights only) and Caffe2 pickles."""

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slowfast_kernels.models.checkpoint import caffe2
from slowfast_kernels.models.checkpoint.errors import CheckpointError, some

FORMAT = "slowfast_kernels"  # top-level key of our own files, and of what we add to pytorchvideo's
VERSION = 1

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch < 1.6 pickled first
_UNKNOWN = (
    "not a checkpoint (expected a file of PySlowFast, pytorchvideo, mmaction2 or slowfast-kernels: a torch archive or "
    "a Caffe2 pickle)"
)
_WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model")


@dataclass
class Contents:
    """What a file holds. tensors: its state dict under the file's own keys. wrapper: the top-level key they
    were under. rest: what else is at the top level. caffe2: from a Caffe2 pickle."""

    path: str
    tensors: dict[str, Tensor]
    wrapper: str = ""
    rest: dict[str, Any] = field(default_factory=dict)
    caffe2: bool = False


def read(path: str | Path) -> Contents:
    """Read a checkpoint without running any code of it. Raises CheckpointError, FileNotFoundError."""
    shown = str(path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{shown}: no such file (expected a checkpoint)")
    if not path.is_file():
        raise CheckpointError(f"{shown}: not a file (expected a checkpoint)")
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(_ZIP) or _LEGACY in head:
        return _unwrap(shown, _load_torch(shown, path))
    return _load_caffe2(shown, path)


def _load_torch(shown: str, path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not _refused(error).startswith(("mmengine.", "numpy.")):
                raise
            with _inert_names():
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = _refused(error)
        raise CheckpointError(
            f"{shown}: refused: the file asks for {what}, expected tensors, numbers, text and containers only"
            if what
            else f"{shown}: refused: the file holds more than tensors, numbers, text and containers"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{shown}: not a whole torch file, truncated or damaged ({reason})") from error


def _refused(error: pickle.UnpicklingError) -> str:
    """The name that torch's weights-only unpickler would not look up."""
    asked = re.search(
        r"GLOBAL ([\w.]+)|(?:instantiate|call|find|import of) (?:class |type )?([\w.]+)", str(error)
    )
    return next((name for name in asked.groups() if name), "") if asked else ""


class _Inert:
    """Stands in for an object of a training log, which is read over."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


@contextmanager
def _inert_names() -> Iterator[None]:
    """mmengine's training files keep a log beside the weights, as objects of their own class over numpy arrays.

    torch's weights-only unpickler refuses the names; under stand-ins that do nothing the rest can be read.
    """
    log = ["mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"]
    arrays = [
        f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")
    ] + ["numpy.ndarray", "numpy.dtype"]
    # a type of its own for every name: torch tells admitted objects apart by identity
    stand_ins: list[Any] = [(type("_Inert", (_Inert,), {}), name) for name in (*log, *arrays)]
    with torch.serialization.safe_globals(stand_ins):
        yield


def _load_caffe2(shown: str, path: Path) -> Contents:
    try:
        with path.open("rb") as file:
            data = caffe2.load(file)
    except Exception as error:  # a pickle of nonsense can raise anything
        refused = isinstance(error, pickle.UnpicklingError) and "expected" in str(error)
        raise CheckpointError(f"{shown}: {f'refused: {error}' if refused else _UNKNOWN}") from error
    if isinstance(data, Mapping) and isinstance(data.get("blobs"), Mapping):
        blobs, rest = data["blobs"], {str(key): value for key, value in data.items() if key != "blobs"}
    elif isinstance(data, Mapping) and any(caffe2.array(value) is not None for value in data.values()):
        blobs, rest = data, {}
    else:
        raise CheckpointError(f'{shown}: a pickle without weights (expected a dictionary with "blobs")')
    arrays = {str(blob): caffe2.array(value) for blob, value in blobs.items()}
    tensors = {
        blob: torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        for blob, value in arrays.items()
        if value is not None and value.dtype.kind in "biuf" and not caffe2.is_bookkeeping(blob)
    }
    return Contents(shown, tensors, "blobs", rest, caffe2=True)


def _unwrap(shown: str, data: object) -> Contents:
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{shown}: holds {type(data).__name__} (expected a dictionary of weights)")
    if data and all(isinstance(value, Tensor) for value in data.values()):
        return Contents(shown, _tensors(data))
    for wrapper in _WRAPPERS:
        inside = data.get(wrapper)
        if isinstance(inside, Mapping) and any(isinstance(value, Tensor) for value in inside.values()):
            rest = {str(key): value for key, value in data.items() if key != wrapper}
            return Contents(shown, _tensors(inside), wrapper, rest)
    keys = [str(key) for key in data]
    raise CheckpointError(
        f"{shown}: no weights found (expected them at the top level or under {', '.join(_WRAPPERS)}), "
        f"got the keys {some(keys) or 'of an empty dictionary'}"
    )


def _tensors(data: Mapping[Any, object]) -> dict[str, Tensor]:
    """The tensors of a state dict, without the prefix that a parallel wrapper put before every key."""
    tensors = {str(key): value for key, value in data.items() if isinstance(value, Tensor)}
    prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
    return {key.removeprefix(prefix): value for key, value in tensors.items()}
