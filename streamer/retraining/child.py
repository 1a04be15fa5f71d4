"""The daemon's side of a retraining: starts the process, looks after it, ends it.

Spawned by exec, without a shell and without torch on this side; whatever becomes of it is a verdict. For one thread.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from streamer.retraining import contract
from streamer.retraining.contract import Request, Verdict

KILL_SECONDS = 1.0  # the daemon ends within five, whatever its child does
TOLD_BYTES = 2000  # of what it has said last: a failure's reason


class Child:
    """One retraining. `poll` it now and then; `kill` it at any time."""

    def __init__(self, request: Request, time_limit_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.request = request
        self._time_limit_seconds = time_limit_seconds
        self._now = now
        self._began = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._told = b""

    def start(self) -> None:
        """Raises OSError: the request cannot be written, or there is no process to be had."""
        out = Path(self.request.out)
        out.mkdir(0o700, parents=True, exist_ok=True)
        stem = Path(contract.CANDIDATE).stem
        for left in [*out.glob(f"{stem}.*"), *out.glob("*.part"), out / contract.VERDICT]:  # they speak for another one
            left.unlink(missing_ok=True)
        contract.write(out, contract.REQUEST, self.request)
        threads = str(self.request.threads)
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads
        )
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-P", "-m", "streamer.retraining.trainer", str(out / contract.REQUEST)],
            stdin=subprocess.PIPE,  # it ends when this end is closed, also by our death
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the daemon
        )
        self._began = self._now()
        if self._process.stderr is not None:
            os.set_blocking(self._process.stderr.fileno(), False)

    @property
    def pid(self) -> int | None:
        """None where it does not run."""
        return self._process.pid if self._process is not None else None

    def poll(self) -> Verdict | None:
        """What it came to, once; None while it runs, and when there is none. Kills it when its time is over."""
        if self._process is None:
            return None
        self._listen()
        status = self._process.poll()
        if status is not None:
            self._listen()
            self._let_go()
            return self._verdict(status)
        if self._now() - self._began <= self._time_limit_seconds:
            return None
        self.kill()
        return _failed(f"it had not come to an end after {self._time_limit_seconds:g} s and was killed")

    def kill(self) -> None:
        """Ends it, also where it is stopped; nothing if it does not run."""
        if self._process is None:
            return
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in a driver or in a disk dies later
            self._process.wait(KILL_SECONDS)
        self._let_go()

    def _verdict(self, status: int) -> Verdict:
        if status == 0:
            try:
                return contract.read_verdict(Path(self.request.out))
            except (OSError, ValueError, RecursionError) as error:
                return _failed(f"its verdict cannot be read: {error}")
        if status < 0:
            return _failed(f"it was ended by signal {-status}")
        said = self._told.decode(errors="replace").strip().splitlines()
        return _failed(f"it ended with status {status}" + (f": {said[-1]}" if said else ""))

    def _listen(self) -> None:
        """A pipe that nobody reads would stop it in the end."""
        if self._process is None or self._process.stderr is None:
            return
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._process.stderr.fileno(), 65_536):
                self._told = (self._told + piece)[-TOLD_BYTES:]

    def _let_go(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None


def _failed(reason: str) -> Verdict:
    return Verdict(result="failed", reason=reason)
