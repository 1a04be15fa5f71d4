"""Waiting on a condition with a deadline, in place of sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.01


def wait_until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """The first truthy value of `condition`; an AssertionError that names `what` when `seconds` pass without one."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}; the last answer was {value!r}"
        time.sleep(POLL_SECONDS)  # the pause between two looks; no test relies on its length
