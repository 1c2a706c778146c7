"""Rewrite a checkpoint for another library.

The source is recognised by its content: PySlowFast (.pyth and Caffe2 .pkl), pytorchvideo, mmaction2 or a file
of this library. What is found and written is printed; what cannot be carried over is an error.
"""

import argparse
import pickle
from pathlib import Path

from slowfast_kernels import report
from slowfast_kernels.cli import UserError, one_line
from slowfast_kernels.cli.run import parse_overrides

EPILOG = """\
examples:
  slowfast-kernels convert SLOWFAST_8x8_R50.pkl slowfast_ptv.pth --to pytorchvideo
  slowfast-kernels convert slowfast_mm.pth slowfast.pyth --to pyslowfast --model slowfast_4x16_r50
  slowfast-kernels convert SLOWFAST_8x8_R50.pkl ours.pth --to slowfast

Exit status: 0 written, 2 the file cannot be read or converted (one line says why).
"""

TARGETS = ("pyslowfast", "pytorchvideo", "mmaction2", "slowfast")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="checkpoint to read")
    parser.add_argument("target", metavar="OUT", help="file to write")
    parser.add_argument("--to", choices=TARGETS, required=True, help="library the written file is for")
    parser.add_argument(
        "--model", metavar="NAME", help="preset, where the file does not tell (alpha, pooling)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="what else the file does not tell, such as alpha=8; repeatable",
    )


def execute(args: argparse.Namespace) -> int:
    if not Path(args.source).is_file():
        raise UserError(f"{args.source}: no such file (expected a checkpoint)")
    folder = Path(args.target).resolve().parent
    if not folder.is_dir():
        raise UserError(f"{args.target}: the folder {folder} does not exist (expected one to write into)")
    overrides = parse_overrides(args.overrides)
    from slowfast_kernels.models import checkpoint

    try:
        said = checkpoint.convert(args.source, args.target, to=args.to, model=args.model, **overrides)
    except (
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
    ) as error:
        message = one_line(error)
        raise UserError(message if args.source in message else f"{args.source}: {message}") from error
    report.say(str(said) if said else f"wrote {args.target}")
    return 0
