"""`streamer demo`: an embedded broker, a simulated plant with labelled faults, and the daemon, to be watched."""

from __future__ import annotations


def run_demo(seconds: float | None, port: int | None, http_port: int | None, *, as_json: bool = False) -> int:
    """Runs until `seconds` have passed, or until Ctrl-C or SIGTERM; for the main thread.

    A port of 0 or None takes a free one. The last line on standard output is the account (`as_json`: it is the only
    one, the rest goes to standard error); the exit status is 1 if nothing was caught. Raises StreamerError for what a
    person can mend.
    """
    from streamer.demo.session import run  # the plant's process imports this package too, and needs no daemon

    return run(seconds, port or 0, http_port or 0, as_json)
