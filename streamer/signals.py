"""The signals that the daemon obeys: held back from the start, and taken one by one where it can act on them.

They must be held before a library is imported that starts threads, as numpy does: a signal goes to any thread that does
not hold it back, and would end the process there.
"""

from __future__ import annotations

import queue
import signal
import threading

HELD = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def hold() -> None:
    """From now on, in this thread and in all that it will start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


class Listener:
    """Takes the held signals in their order, in a thread of its own.

    A thread, since `signal.sigtimedwait` gives a signal that nobody sent when a process that was stopped (SIGSTOP, a
    debugger) goes on after the time is up; `sigwait` has no time that could be.
    """

    def __init__(self) -> None:
        self._came: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()

    def start(self) -> None:
        """After `hold`."""
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def wait(self, seconds: float) -> signal.Signals | None:
        """The next one that has come or comes in time."""
        try:
            return self._came.get(timeout=seconds)
        except queue.Empty:
            return None

    def _listen(self) -> None:
        while True:
            self._came.put(signal.Signals(signal.sigwait(HELD)))
