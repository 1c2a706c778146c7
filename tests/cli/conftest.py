"""Makes the shared video helpers importable, and runs the command line in this process."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


class Outcome:
    """Exit status and what was printed; the progress bar's line is left out of ``errors``."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err
        self.errors = [line for line in err.replace("\r", "\n").splitlines() if "error:" in line]


@pytest.fixture
def command(capsys):
    """``command("run", "clip.mp4", ...) -> Outcome``."""
    from slowfast_kernels.cli import main

    def call(*words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            status = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return Outcome(status, out, err)

    return call
