"""Entry of ``python -m slowfast_kernels.bench.gpu``."""

import sys

from slowfast_kernels.bench.gpu.command import command

sys.exit(command(sys.argv[1:]))
