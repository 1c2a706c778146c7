"""Checkpoints on the command line: what is wrong with one is told in one line, in the command's own options."""

import pickle
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slowfast_kernels.cli import UserError, one_line
from slowfast_kernels.models.checkpoint import UndecidedError

LONGEST = 600  # characters; a mismatch may be listed key by key, a line has room for the first of them


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns whatever may be wrong with the checkpoint at `path` into a UserError that names it."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file (expected a checkpoint)")
    try:
        yield
    except (ValueError, TypeError, LookupError, RuntimeError, OSError, EOFError, pickle.PickleError) as error:
        told = error.told(as_option) if isinstance(error, UndecidedError) else error
        message = one_line(told)
        message = message if path in message else f"{path}: {message}"
        raise UserError(message if len(message) < LONGEST else f"{message[: LONGEST - 10]} ...") from error


def as_option(setting: str) -> str:
    """An argument of `load_checkpoint` as an option: "alpha=4" -> "--set alpha=4", "model=NAME" -> "--model
    NAME"."""
    name, _, value = setting.partition("=")
    return f"--model {value}" if name == "model" else f"--set {shlex.quote(setting)}"
