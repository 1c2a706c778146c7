"""The ``slowfast-kernels`` command.

Each sub-command is a module with ``add_arguments(parser)`` and ``execute(args) -> int``; modules are imported
only when their command is used, so ``--help`` and ``info`` work on a machine where half of it is missing.
"""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import slowfast_kernels
from slowfast_kernels import _interrupt
from slowfast_kernels._optional import MissingExtra

__all__ = ["Parser", "UserError", "main"]

COMMANDS = {
    "run": "recognise actions in videos, and compare the fused model with the reference",
    "info": "what is installed, which kernels can run here and why others cannot",
    "bench": "measure ops and models against the machine's ceilings and other runtimes",
    "convert": "rewrite a checkpoint for PySlowFast, pytorchvideo, mmaction2 or this library",
}

EPILOG = """\
examples:
  slowfast-kernels run clip.mp4                          what is in this video
  slowfast-kernels run clip.mp4 --compare --plot t.png   the proof: same answers, how much faster, where
  slowfast-kernels info                                  which kernels this machine can run

Every command explains itself: slowfast-kernels run --help
Exit status: 0 done, 2 something given was unusable (one line on the standard error says what;
with SLOWFAST_DEBUG=1 in the environment a traceback as well).
"""


class Parser(argparse.ArgumentParser):
    """Complains in one line; argparse would print the whole usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (try {self.prog} --help)\n")


class UserError(Exception):
    """Something the user gave cannot be used: shown as one line, without a traceback, exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _interrupt.restore()
        return _main(words)
    except KeyboardInterrupt:
        sys.stderr.write(_interrupt.TEXT)
        return _interrupt.STATUS


def _main(words: Sequence[str]) -> int:
    parser = Parser(
        prog="slowfast-kernels",
        description="Fast SlowFast video networks: fused kernels, the same answers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=slowfast_kernels.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the command in use is imported; of the others the name and the line of help suffice.
    asked = next((word for word in words if not word.startswith("-")), None)
    module = None
    for name, summary in COMMANDS.items():
        if name == asked:
            module = importlib.import_module(f"slowfast_kernels.cli.{name}")
            sub = commands.add_parser(
                name,
                help=summary,
                description=module.__doc__,
                epilog=getattr(module, "EPILOG", None),
                formatter_class=argparse.RawDescriptionHelpFormatter,
                add_help=not getattr(module, "FORWARDS_HELP", False),
            )
            module.add_arguments(sub)
        else:
            commands.add_parser(name, help=summary)
    if asked is not None and getattr(module, "FORWARDS_HELP", False):
        args = argparse.Namespace(command=asked, rest=words[words.index(asked) + 1 :])
    else:
        args = parser.parse_args(words)
    assert module is not None  # the parser has refused everything else
    try:
        return int(module.execute(args))
    except (UserError, MissingExtra) as error:
        if os.environ.get("SLOWFAST_DEBUG"):
            traceback.print_exc()
        complain(error)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has left; a second complaint at shutdown helps nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def one_line(problem: object) -> str:
    """A message on one line: runs of white space, line breaks included, become single spaces."""
    return " ".join(str(problem).split())


def complain(problem: object) -> None:
    """One line on the standard error."""
    print(f"slowfast-kernels: error: {one_line(problem)}", file=sys.stderr, flush=True)
