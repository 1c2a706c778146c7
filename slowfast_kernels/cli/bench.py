"""Measure ops and models against the machine's ceilings and other runtimes."""

import argparse

from slowfast_kernels._optional import needs

# The benchmark has its own options and its own --help.
FORWARDS_HELP = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rest", nargs=argparse.REMAINDER)


def execute(args: argparse.Namespace) -> int:
    with needs("bench", extra="bench"):
        from slowfast_kernels import bench
    return int(bench.main(args.rest) or 0)
