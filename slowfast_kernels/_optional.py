"""Packages that only parts of the library need: where one is missing, one line says which extra brings it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: What people call a package that is imported under another name.
_NAMES = {"av": "PyAV"}


class MissingExtra(ImportError):
    """An optional package is not installed, or does not load; one line says what to install."""


@contextlib.contextmanager
def needs(what: str, *, extra: str, raising: type[Exception] = MissingExtra) -> Iterator[None]:
    """Turn an ImportError of the imports inside into one line.

    what: who needs them, the line's first words. extra: of pyproject.toml, which brings them. raising: the error.
    Around each other, the outer one speaks: it knows better what was asked for.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        missing = isinstance(error, (ModuleNotFoundError, MissingExtra))
        why = "" if missing else f", which does not load ({' '.join(str(error).split())})"
        line = f"{what} needs {_NAMES.get(package, package) or 'more packages'}{why}"
        found = raising(f"{line}: pip install 'slowfast-kernels[{extra}]'")
        if isinstance(found, ImportError):
            found.name = error.name
        raise found from error
