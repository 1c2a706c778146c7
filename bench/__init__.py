"""Measurements: single ops, whole models, scaling, memory and the project's targets, against the ceilings of
the machine and against other runtimes. ``slowfast-kernels bench --help`` says what there is.

harness.py   machines, and how contenders take turns on one: a new device is a `Machine`
compare.py   contenders made, checked, timed; the record that everything else reads
peers.py     the contenders that are not ours: a new one is a line there
targets.py   which records a target is read from, and the tables of them
gpu/         what is asked of a GPU only; parts run in worker processes
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``slowfast-kernels bench`` with these words (None: none) and return the exit status."""
    # Imported here: `bench.probe` is used where no benchmark is run.
    from slowfast_kernels.bench.command import main as run

    return run(argv)
