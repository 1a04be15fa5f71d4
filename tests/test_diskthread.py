"""The disk's thread: calls in their order, and what becomes of each."""

from __future__ import annotations

import threading

import pytest

from streamer.diskthread import DiskThread

SECONDS = 20.0


def test_calls_run_one_after_the_other_and_nobody_waits_for_them() -> None:
    """The first one hangs until it is let go; the second begins behind it."""
    disk, go_on, order = DiskThread(), threading.Event(), list[int]()

    def hang() -> None:
        assert go_on.wait(SECONDS)
        order.append(1)

    first = disk.begin(hang)
    second = disk.begin(lambda: order.append(2))
    assert not first.done()
    assert not second.done()
    go_on.set()
    second.result(SECONDS)
    assert order == [1, 2]


def test_what_a_call_raises_is_for_who_asks_and_the_thread_goes_on() -> None:
    """A disk's error and a bug alike."""
    disk = DiskThread()
    failing = disk.begin(lambda: 1 / 0)
    following = disk.begin(lambda: "done")
    with pytest.raises(ZeroDivisionError):
        failing.result(SECONDS)
    assert following.result(SECONDS) == "done"
