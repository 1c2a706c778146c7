"""``python -m slowfast_kernels``: the same as the ``slowfast-kernels`` command."""

import sys

from slowfast_kernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
