"""System calls of the real daemon that end it, fail, or take long: by strace, without a hook in the daemon."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.servers import program
from tests.waiting import wait_until

SECONDS = 20.0
FIVE_MINUTES = 300_000_000  # microseconds
RENAME, REMOVE = "?rename,?renameat,renameat2", "?unlink,unlinkat"  # those of them that this machine has


def traced(
    log: Path, calls: str, injection: str, paths: Sequence[Path] = (), launch: Sequence[str] = ()
) -> tuple[str, ...]:
    """The command `launch` under strace, which does `injection` to `calls` on `paths`, or on whatever.

    strace is a process beside the daemon (-D), so that the daemon's process is the one that was started. What it sees
    goes to `log`.
    """
    only = [part for path in paths for part in ("-P", str(path))]
    what = ["-e", f"trace={calls}", "-e", f"inject={calls}:{injection}"]
    return (program("strace"), "-D", "-f", "-y", "-qq", "-o", str(log), *only, *what, *launch)


@contextmanager
def failing(
    process: subprocess.Popen[bytes],
    calls: str,
    injection: str,
    paths: Sequence[Path] = (),
    *,
    ending: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """A process that runs already, with `injection` into `calls` on `paths`, or on whatever, as long as it lasts.

    `ending` makes strace let the process go; in the middle of a delay it obeys SIGKILL only.
    """
    only = [part for path in paths for part in ("-P", str(path))]
    what = ["-e", f"trace={calls}", "-e", f"inject={calls}:{injection}"]
    attach = [program("strace"), "-f", "-qq", "-o", "/dev/null", *only, *what, "-p", str(process.pid)]
    with subprocess.Popen(attach) as tracing:
        try:
            wait_until(lambda: _is_held(process.pid), SECONDS, "strace")
            yield
        finally:
            tracing.send_signal(ending)


def hanging(process: subprocess.Popen[bytes], call: str) -> AbstractContextManager[None]:
    """A process that runs already, in which `call` does not return."""
    return failing(process, call, f"delay_enter={FIVE_MINUTES}", ending=signal.SIGKILL)


def _is_held(pid: int) -> bool:
    """By a tracer, all threads."""
    try:
        threads = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # one has ended meanwhile
        return False
    return not any("TracerPid:\t0\n" in thread for thread in threads)


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
