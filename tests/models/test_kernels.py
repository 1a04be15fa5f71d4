"""What the interpreter lets pass the compiler may not: every kernel is compiled for GPUs that need not be here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from models import cells
from tests.compiled import Compiled

ROOT = Path(__file__).parent.parent.parent
MOST_SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes of a block (CUDA C++ Programming Guide, table of capabilities)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_kernels_compile(tmp_path: Path) -> None:
    """For an A100 and an H100, for every cell: on tensor cores, in the shared memory there is, in registers."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.compiled"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [msgspec.json.decode(line, type=Compiled) for line in done.stdout.splitlines()]
    assert {(each.kernel, each.capability) for each in found} == {
        (kernel, capability)
        for kernel in ("step", "lstm_forward", "lstm_backward", "gru_forward", "gru_backward")
        for capability in MOST_SHARED
    }
    assert len(found) == 4 + 2 * len(cells.CELLS) + 10
    for each in found:
        assert each.has_tensor_cores, each
        assert each.shared_bytes <= MOST_SHARED[each.capability], each
        assert each.spilled_bytes <= 128, each  # some of the A100's registers are needed otherwise
