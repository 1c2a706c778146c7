"""Measure ops and models against the machine's ceilings and other runtimes."""

import argparse

from slowfast_kernels.cli import UserError

# The benchmark has its own options and its own --help.
FORWARDS_HELP = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rest", nargs=argparse.REMAINDER)


def execute(args: argparse.Namespace) -> int:
    try:
        from slowfast_kernels import bench
    except ImportError as error:
        raise UserError(
            f"bench needs the bench extra: pip install 'slowfast-kernels[bench]' ({error})"
        ) from error
    return int(bench.main(args.rest) or 0)
