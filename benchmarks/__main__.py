"""`python -m benchmarks`, before anything loads NumPy."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Drop OpenBLAS's overrides, which hold for another processor than this, before NumPy loads it; then run."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    from benchmarks import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
