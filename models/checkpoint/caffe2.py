"""Caffe2 checkpoints of PySlowFast (`.pkl`): a pickle of numpy arrays under the key "blobs", and their names.

A pickle is a program. `load` runs it with an unpickler that knows the few names which a dictionary of numpy
arrays needs, as stand-ins that take what numpy writes and nothing else; any other name is refused before it
is looked up, and numpy's own reading of pickled state is never reached.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from slowfast_kernels.models.checkpoint.templates import Layout, Table

_KINDS = "biufSU"  # dtypes of a checkpoint: bool, integers, floats, text


class _DType:
    """A dtype while its pickle is read; only the byte order of one that numpy knows by name may be set."""

    def __init__(self, spec: object, align: object = False, copy: object = True) -> None:
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

    def __init__(self, *_: object) -> None:
        raise pickle.UnpicklingError("a call of numpy.ndarray, expected the arrays numpy writes")


def _empty_array(kind: object, *_: object) -> _Array:
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


def _encode(text: object, codec: object = "latin1") -> bytes:
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
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, expected nothing but numpy arrays, numbers, text and "
                "containers"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("the pickle refers to an object outside the file, expected numpy arrays")


def load(file: BinaryIO) -> Any:
    """The object in a pickle of plain data. Raises pickle.UnpicklingError naming what else it asks for.

    Text of Python 2 is read as latin1, as its numpy arrays need. `array` gets the arrays out of the result.
    """
    return _Unpickler(file, encoding="latin1").load()


def array(value: object) -> np.ndarray | None:
    """The array that an entry of `load`'s result is, or None."""
    value = value.value if isinstance(value, _Array) else value
    return value if isinstance(value, np.ndarray) else None


def layout(keys: Sequence[str]) -> Layout:
    """What the names show; t_ marks the Fast pathway."""
    return Layout(
        two={key.startswith("t_") for key in keys if "conv1" in key or "branch" in key} == {True, False}
    )


def table(layout: Layout) -> Table:
    """The blobs' names. The number of the block before a lateral connection is left open, counters have none."""
    leaves = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    return Table(
        {
            "stem.{path}.conv.weight": "{path}conv1_w",
            "stem.{path}.bn.{leaf}": "{path}res_conv1_bn_{leaf}",
            "lateral.0.{tensor}": "t_pool1_subsample_{tensor}",
            "lateral.{k}.{tensor}": "t_res{k}_{any}_branch2c_bn_subsample_{tensor}",
            "res{n}.{path}.{i}.{branch}.{tensor}": "{path}res{n}_{i}_branch{branch}_{tensor}",
            "head.proj.weight": "pred_w",
            "head.proj.bias": "pred_b",
        },
        path={"slow": "", "fast": "t_"},
        k=dict(zip("123", "234", strict=True)),
        branch={"shortcut": "1", "a": "2a", "b": "2b", "c": "2c"},
        leaf=leaves,
        tensor={"conv.weight": "w", **{f"bn.{leaf}": f"bn_{short}" for leaf, short in leaves.items()}},
    )


def is_bookkeeping(blob: str) -> bool:
    """Solver state beside the weights: momentum of each blob, learning rate, iteration."""
    return blob.endswith("_momentum") or blob in ("lr", "model_iter", "momentum")
