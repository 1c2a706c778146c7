"""Entry of ``python -m slowfast_kernels.bench.gpu``."""

import signal
import sys

from slowfast_kernels.bench.gpu.command import main

# Told to stop, it ends its workers first.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
sys.exit(main(sys.argv[1:]))
