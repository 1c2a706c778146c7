"""Files that are there as a whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace(target: Path, save: Callable[[Path], None]) -> None:
    """Write beside the target and rename: no half a file, and none at all if the check fails."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.resolve().parent)
    os.close(handle)
    try:
        save(Path(name))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
