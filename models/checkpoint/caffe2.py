"""Caffe2 checkpoints (`.pkl`): a pickle of numpy arrays under the key "blobs".

A pickle is a program. `load` runs it with an unpickler that knows the few names which a dictionary of numpy
arrays needs, as stand-ins that take what numpy writes and nothing else; any other name is refused before it
is looked up, and numpy's own reading of pickled state is never reached.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

_KINDS = "biufSU"  # dtypes of a checkpoint: bool, integers, floats, text


class _DType:
    """A dtype while its pickle is read; only the byte order of one that numpy knows by name may be set."""

    def __init__(self, spec: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(spec, str | bytes):
            raise pickle.UnpicklingError(f"a dtype made from {type(spec).__name__}, expected its name")
        self.value = np.dtype(spec.decode("latin1") if isinstance(spec, bytes) else spec)
        if self.value.kind not in _KINDS:
            raise pickle.UnpicklingError(f"an array of dtype {self.value}, expected numbers")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if any(part is not None for part in state[2:5]) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a dtype with fields, expected a plain one")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array while its pickle is read: numpy writes an empty one first, then shape, dtype and bytes."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = _from_buffer(data, dtype, shape, "F" if fortran else "C")


class _NdArray:
    """Stands for the class numpy.ndarray, which is named but never called."""

    def __init__(self, *_: Any) -> None:
        raise pickle.UnpicklingError("a call of numpy.ndarray, expected the arrays numpy writes")


def _empty_array(kind: Any, *_: Any) -> _Array:
    if kind is not _NdArray:
        raise pickle.UnpicklingError("a subclass of numpy.ndarray, expected numpy.ndarray itself")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(data, str | bytes | bytearray | pickle.PickleBuffer):
        raise pickle.UnpicklingError(f"an array of {type(data).__name__}, expected numbers")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(raw, dtype.value).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _from_buffer(data, dtype, (-1,))[0]


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"an encoding by {codec!r}, expected latin1")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core", "numpy._core"):
    _ADMITTED[_module + ".multiarray", "_reconstruct"] = _empty_array
    _ADMITTED[_module + ".multiarray", "scalar"] = _scalar
    _ADMITTED[_module + ".numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, expected nothing but numpy arrays, numbers, text and "
                "containers"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the pickle refers to an object outside the file, expected numpy arrays")


def load(file: BinaryIO) -> Any:
    """The object in a pickle of plain data. Raises pickle.UnpicklingError naming what else it asks for.

    Text of Python 2 is read as latin1, as its numpy arrays need. `array` gets the arrays out of the result.
    """
    return _Unpickler(file, encoding="latin1").load()


def array(value: Any) -> np.ndarray | None:
    """The array that an entry of `load`'s result is, or None."""
    value = value.value if isinstance(value, _Array) else value
    return value if isinstance(value, np.ndarray) else None


_BATCH_NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
_NAMES = (
    (r"(t_)?conv1_w", "stem.{path}.conv.weight"),
    (r"(t_)?res_conv1_bn_(\w+)", "stem.{path}.bn.{1}"),
    (r"(t_)pool1_subsample_w", "lateral.0.conv.weight"),
    (r"(t_)pool1_subsample_bn_(\w+)", "lateral.0.bn.{1}"),
    (r"(t_)res(\d)_\d+_branch2c_bn_subsample_w", "lateral.{lateral}.conv.weight"),
    (r"(t_)res(\d)_\d+_branch2c_bn_subsample_bn_(\w+)", "lateral.{lateral}.bn.{2}"),
    (r"(t_)?res(\d)_(\d+)_branch1_w", "res{1}.{path}.{2}.shortcut.conv.weight"),
    (r"(t_)?res(\d)_(\d+)_branch1_bn_(\w+)", "res{1}.{path}.{2}.shortcut.bn.{3}"),
    (r"(t_)?res(\d)_(\d+)_branch2([abc])_w", "res{1}.{path}.{2}.{3}.conv.weight"),
    (r"(t_)?res(\d)_(\d+)_branch2([abc])_bn_(\w+)", "res{1}.{path}.{2}.{3}.bn.{4}"),
    (r"pred_w", "head.proj.weight"),
    (r"pred_b", "head.proj.bias"),
)


def to_ours(blob: str) -> str | None:
    """Our key for a blob's name (t_ marks the Fast pathway), or None."""
    for pattern, template in _NAMES:
        match = re.fullmatch(pattern, blob)
        if match is None:
            continue
        groups = list(match.groups())
        path = "fast" if groups and groups[0] else "slow"
        if "bn." in template:
            if groups[-1] not in _BATCH_NORM:
                continue
            groups[-1] = _BATCH_NORM[groups[-1]]
        lateral = int(groups[1]) - 1 if "{lateral}" in template else None
        return template.format(*groups, path=path, lateral=lateral)
    return None


def name(key: str, *_: Any) -> str:
    """The blob's name for our key (the number of the block before a lateral connection is left open)."""
    parts = key.split(".")
    fast = "t_" if parts[0] == "lateral" or "fast" in parts else ""
    leaf = next((short for short, long in _BATCH_NORM.items() if parts[-2:] == ["bn", long]), "w")
    bn = "bn_" if parts[-2] == "bn" else ""
    if parts[0] == "head":
        return f"pred_{parts[-1][0]}"
    if parts[0] == "stem":
        return f"{fast}res_conv1_bn_{leaf}" if bn else f"{fast}conv1_w"
    if parts[0] == "lateral":
        stage = int(parts[1]) + 1
        return f"t_{'pool1' if stage == 1 else f'res{stage}_*_branch2c_bn'}_subsample_{bn}{leaf}"
    branch = "branch1" if parts[3] == "shortcut" else f"branch2{parts[3]}"
    return f"{fast}{parts[0]}_{parts[2]}_{branch}_{bn}{leaf}"


def is_bookkeeping(blob: str) -> bool:
    """Solver state beside the weights: momentum of each blob, learning rate, iteration."""
    return blob.endswith("_momentum") or blob in ("lr", "model_iter", "momentum")
