"""The signals that the daemon obeys: held back from the start, and taken one by one where it can act on them.

They must be held before a library is imported that starts threads, as numpy does: a signal goes to any thread that does
not hold it back, and would end the process there.
"""

from __future__ import annotations

import signal

HELD = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def hold() -> None:
    """From now on, in this thread and in all that it will start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def wait(seconds: float) -> signal.Signals | None:
    """The next one that has come or comes in time."""
    got = signal.sigtimedwait(HELD, seconds)
    return None if got is None else signal.Signals(got.si_signo)
