"""Which library's names the keys of a state dict are, and what they are here."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from slowfast_kernels.models.checkpoint import caffe2, mmaction2, pyslowfast, pytorchvideo
from slowfast_kernels.models.checkpoint.templates import PATHS, Layout, Table

_ROWS = (
    "stem.{path}.{kind}.{leaf}",
    "lateral.{k}.{kind}.{leaf}",
    "res{n}.{path}.{i}.{layer}.{kind}.{leaf}",
    "res{n}.{path}.{i}.shortcut.{kind}.{leaf}",
    "head.proj.{param}",
)
_OURS = Table({row: row for row in _ROWS})


def _layout(keys: Sequence[str]) -> Layout:
    return Layout(two=all(any(key.startswith(f"stem.{path}.") for key in keys) for path in PATHS))


# The layout that keys show, and the table of a layout. Of libraries that explain as many keys the first is meant.
_LIBRARIES: dict[str, tuple[Callable[[Sequence[str]], Layout], Callable[[Layout], Table]]] = {
    "slowfast": (_layout, lambda _: _OURS),
    "pyslowfast": (pyslowfast.layout, pyslowfast.table),
    "pytorchvideo": (pytorchvideo.layout, pytorchvideo.table),
    "mmaction2": (mmaction2.layout, mmaction2.table),
    "caffe2": (caffe2.layout, caffe2.table),
}
_NONLOCAL = re.compile(r"nonlocal|non_local|\.conv_(theta|phi|g|out)\.")
# Buffers of mmaction2's preprocessing and losses: constants that the configuration repeats.
_IGNORED = re.compile(r"data_preprocessor\.|(cls_head|roi_head)\.(\w+\.)?loss")


@dataclass(frozen=True)
class Names:
    """How the keys of a file or module read, library: also "caffe2" and "slowfast". `ours` maps its key ->
    our key; `other` is what maps to nothing."""

    library: str
    layout: Layout
    ours: dict[str, str]
    other: tuple[str, ...]
    nonlocals: tuple[str, ...] = ()

    def theirs(self, key: str) -> str:
        """The file's name for our key, whether the file has it or not."""
        return name(self.library, key, self.layout)

    def called(self, pathway: str) -> "Names":
        """The same of a network of one pathway that is called so here."""
        rename = partial(re.sub, r"^(stem|res\d)\.slow\.", rf"\1.{pathway}.")
        return replace(self, ours={key: rename(ours) for key, ours in self.ours.items()})


@cache
def table(library: str, layout: Layout) -> Table:
    """The names of "pyslowfast", "pytorchvideo", "mmaction2", "caffe2" or "slowfast" for a network's tensors."""
    return _LIBRARIES[library][1](layout)


def name(library: str, key: str, layout: Layout) -> str:
    """The name that a library gives to our key (our own where it has none)."""
    return table(library, layout).theirs(key) or key


def read(keys: Iterable[str]) -> Names | None:
    """Recognise a library by the keys of its state dict; None if no library's names are among them."""
    keys = [key for key in keys if not _IGNORED.match(key)]
    best = max((_read(library, keys) for library in _LIBRARIES), key=lambda names: len(names.ours))
    # a classifier alone would fit many networks
    return best if any(key.startswith("stem.") for key in best.ours.values()) else None


def _read(library: str, keys: list[str]) -> Names:
    layout = _LIBRARIES[library][0](keys)
    known = table(library, layout)
    ours = {key: found for key in keys if (found := known.ours(key)) is not None}
    other = tuple(key for key in keys if key not in ours)
    return Names(library, layout, ours, other, tuple(key for key in other if _NONLOCAL.search(key)))
