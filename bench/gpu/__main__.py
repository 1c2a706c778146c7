"""Entry of ``python -m slowfast_kernels.bench.gpu``."""

import sys

from slowfast_kernels.bench.gpu.command import main

sys.exit(main(sys.argv[1:]))
