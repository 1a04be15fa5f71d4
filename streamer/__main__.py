"""`python -m streamer` and the console script `streamer`."""

from __future__ import annotations

import os
import sys

# One thread a scoring process: the waves are small, and two threads of OpenBLAS that wait for each other on a busy
# machine make a product of 50 rows eighteen times slower (measured). It must be said before numpy is loaded.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from streamer.cli import main  # noqa: E402  after the threads are set

if __name__ == "__main__":
    sys.exit(main())
