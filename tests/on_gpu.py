"""All that needs a GPU, in one go and within ten minutes: `python -m tests.on_gpu DIR`.

The tests of the kernels, compiled; then `streamer bench step` and `train`. What they say goes to DIR, a line of each to
standard output. A borrowed machine will do: besides torch with CUDA and Triton it has to have pytest, hypothesis,
msgspec and safetensors only, and a C compiler, with which Triton builds what starts a kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = [
    *(
        f"tests/{name}.py"
        for name in ("models/test_cuda_step", "models/test_cuda_loop", "models/test_step", "test_bench_gpu")
    ),
    "tests/models/test_retraining.py::test_mixed_precision_learns_as_fp32_does",
]
BENCH = "import sys; from streamer.bench import main; sys.exit(main(sys.argv[1:]))"
STAGES: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    # pyproject's settings are left out: they name plug-ins of pytest that may not be there
    ("tests.txt", 240, ("-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-v", *TESTS)),
    ("step.json", 120, ("-c", BENCH, "step", "--device", "cuda", "--json")),
    ("train.json", 200, ("-c", BENCH, "train", "--device", "cuda", "--steps", "512", "--json")),
)
"""What a stage writes, the seconds that it may take, and what Python is told."""


def main(directory: Path) -> int:
    """Runs every stage, also after one that failed; 0: none did."""
    import torch

    if not torch.cuda.is_available():
        sys.stdout.write("torch sees no CUDA device\n")
        return 1
    directory.mkdir(parents=True, exist_ok=True)
    environment, failed = {**os.environ, "TRITON_INTERPRET": "0"}, 0
    for name, seconds, arguments in STAGES:
        began = time.monotonic()
        with (directory / name).open("wb") as out, (directory / f"{name}.err").open("wb") as err:
            try:
                code = subprocess.run(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    stdout=out,
                    stderr=err,
                    env=environment,
                    timeout=seconds,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        failed += code != 0
        sys.stdout.write(f"{name}: exit status {code} after {time.monotonic() - began:.0f} s\n")
        sys.stdout.flush()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
