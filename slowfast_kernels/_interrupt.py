"""Ctrl-C while the command is still importing: one line instead of a traceback.

Importing PyTorch takes a second, in which no code of the command runs yet that could catch the interrupt.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

#: What a shell expects of a command that Ctrl-C ended, and what is said then.
STATUS, TEXT = 130, "\nslowfast-kernels: interrupted\n"


def is_command() -> bool:
    """Whether this process is the command: its script, or `python -m slowfast_kernels`, which names itself "-m" until
    the package is imported."""
    return bool(sys.argv) and Path(sys.argv[0]).stem in ("slowfast-kernels", "-m")


def quietly() -> None:
    """End the process on Ctrl-C from now on, if it is the command; `restore` undoes it.

    Whoever started it with Ctrl-C ignored, as a shell does in the background, wants it to go on.
    """
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard and is_command() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end)


def restore() -> None:
    """KeyboardInterrupt again: the command has its own way to end."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    sys.stderr.write(TEXT)
    sys.stderr.flush()
    os._exit(STATUS)
