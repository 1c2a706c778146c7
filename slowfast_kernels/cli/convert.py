"""Rewrite a checkpoint for another library.

The source is recognised by its content: PySlowFast (.pyth and Caffe2 .pkl), pytorchvideo, mmaction2 or a file
of this library, with a SlowFast, Slow, Fast-only, I3D or C2D network without non-local blocks. What is found,
assumed and written is printed; what cannot be carried over is an error.
"""

import argparse
from pathlib import Path

from slowfast_kernels import report
from slowfast_kernels.cli import UserError
from slowfast_kernels.cli.checkpoints import reading
from slowfast_kernels.cli.run import parse_overrides

EPILOG = """\
examples:
  slowfast-kernels convert SLOWFAST_8x8_R50.pkl slowfast_ptv.pth --to pytorchvideo
  slowfast-kernels convert SLOWFAST_8x8_R50.pyth slowfast_mm.pth --to mmaction2
  slowfast-kernels convert C2D_NOPOOL_8x8_R50.pkl ours.pth --to slowfast --model c2d_nopool_8x8_r50

Exit status: 0 written, 2 the file cannot be read or converted (one line says why).
"""

TARGETS = ("pyslowfast", "pytorchvideo", "mmaction2", "slowfast")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="checkpoint to read")
    parser.add_argument("target", metavar="OUT", help="file to write")
    parser.add_argument("--to", choices=TARGETS, required=True, help="library the written file is for")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="preset, where neither the file nor the published models of its shapes tell (pooling of C2D)",
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
    folder = Path(args.target).resolve().parent
    if not folder.is_dir():
        raise UserError(f"{args.target}: the folder {folder} does not exist (expected one to write into)")
    overrides = parse_overrides(args.overrides)
    from slowfast_kernels.models import checkpoint

    with reading(args.source):
        said = checkpoint.convert(args.source, args.target, to=args.to, model=args.model, **overrides)
    report.say(str(said))
    return 0
