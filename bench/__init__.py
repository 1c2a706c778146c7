"""Measurements: single ops, whole models, scaling, memory and the project's targets, against the ceilings of
the machine and against other runtimes. ``slowfast-kernels bench --help`` says what there is.
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``slowfast-kernels bench`` with these words (None: none) and return the exit status."""
    # Imported here: `bench.probe` is used where no benchmark is run.
    from slowfast_kernels.bench.command import main as run

    return run(argv)
