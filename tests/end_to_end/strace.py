"""System calls of the real daemon that end it, fail, or take long: by strace, without a hook in the daemon."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers import program


def traced(
    log: Path, calls: str, injection: str, paths: Sequence[Path] = (), launch: Sequence[str] = ()
) -> tuple[str, ...]:
    """The command `launch` under strace, which does `injection` to `calls` on `paths`, or on whatever.

    strace is a process beside the daemon (-D), so that the daemon's process is the one that was started. What it sees
    goes to `log`. Calls that this machine does not have are written with a question mark, as `?unlink,unlinkat`.
    """
    only = [part for path in paths for part in ("-P", str(path))]
    what = ["-e", f"trace={calls}", "-e", f"inject={calls}:{injection}"]
    return (program("strace"), "-D", "-f", "-y", "-qq", "-o", str(log), *only, *what, *launch)


def killed_in(log: Path) -> str:
    """The line of the call in which the process ended; empty if it was in none that is traced."""
    begun: dict[str, str] = {}
    killed = ""
    for line in log.read_text(errors="replace").splitlines():
        thread, _, rest = line.partition(" ")
        if not rest.lstrip().startswith(("<...", "+++")):
            begun[thread] = line
        if line.endswith("= ?"):
            killed = begun[thread]
    return killed


def kill_in_delay(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process that strace holds, and for strace, which would hold it until its delay is over."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (tracer,) = re.findall(r"TracerPid:\s+(\d+)", status)
    process.kill()
    os.kill(int(tracer), signal.SIGKILL)
