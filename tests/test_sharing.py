"""One answer for many: what is shared, what is not, and what the maker leaves to others."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamer.sharing import Shared
from tests.waiting import wait_until

SECONDS = 20.0


def test_a_failure_is_for_all_who_wait_for_it_and_for_nobody_else() -> None:
    """Whoever asks later has another try."""
    shared, may_fail = Shared[int](16), threading.Event()

    def wait_for_it() -> int:
        assert may_fail.wait(SECONDS)
        return 1

    def fail() -> int:
        raise ZeroDivisionError

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared.get, "", wait_for_it)
        wait_until(lambda: not shared._next and shared._asking == 1, SECONDS, "the first")
        others = [pool.submit(shared.get, "", fail) for _ in range(3)]
        wait_until(lambda: shared._asking == 4, SECONDS, "the others")
        may_fail.set()
        assert first.result(SECONDS) == 1
        for other in others:
            with pytest.raises(ZeroDivisionError):
                other.result(SECONDS)
    assert shared.get("", lambda: 2) == 2


def test_who_makes_one_leaves_as_much_time_to_others() -> None:
    """However many ask, half of the time nobody is at it."""
    shared, times = Shared[int](16), list[tuple[float, float]]()

    def make() -> int:
        begun_at = time.monotonic()
        threading.Event().wait(0.05)
        times.append((begun_at, time.monotonic()))
        return len(times)

    assert [shared.get("", make) for _ in range(4)] == [1, 2, 3, 4]
    for (begun_at, ended_at), (next_at, _) in itertools.pairwise(times):
        assert next_at - ended_at >= ended_at - begun_at
