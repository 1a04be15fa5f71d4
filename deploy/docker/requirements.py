"""What the image installs beside the daemon: its dependencies, with the wanted build of torch.

`python3 requirements.py cpu > requirements.txt`; and afterwards, by the Python that they were installed for,
`python requirements.py --check cpu`.
"""

import re
import sys
import tomllib
from pathlib import Path

BUILDS = ("any", "cpu", "cuda", "none")
*check, build = sys.argv[1:]
if build not in BUILDS:
    sys.exit(f"TORCH: found {build!r}; expected one of {', '.join(BUILDS)}")
if check and build == "none":
    sys.exit()
if check:
    import torch

    if build not in ("any", "cpu" if torch.version.cuda is None else "cuda"):
        sys.exit(f"TORCH={build}, but the index has given torch {torch.__version__}: see docs/container.md")
    sys.exit()

(pin,) = re.findall(r"^torch==.*$", Path("constraints.txt").read_text(), re.MULTILINE)
for requirement in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]:
    # The suffix: else the default build would do, with gigabytes for CUDA.
    torch_for = {"cpu": f"{pin}+cpu\n", "none": ""} if re.match(r"torch\b", requirement) else {}
    sys.stdout.write(torch_for.get(build, f"{requirement}\n"))
