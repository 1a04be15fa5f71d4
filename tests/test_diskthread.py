"""The disk's thread: calls in their order, and what becomes of each."""

from __future__ import annotations

import threading

import pytest

from streamer.diskthread import DiskThread, Patient
from tests.waiting import wait_until

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


def test_a_patient_writer_does_not_wait_for_ever() -> None:
    """A disk that hangs is an error, from the second time on at once; what the disk says comes through."""
    go_on, written = threading.Event(), list[bytes]()

    def write(content: bytes) -> None:
        if content == b"full":
            raise OSError(28, "No space left on device")
        assert go_on.wait(SECONDS)
        written.append(content)

    patient = Patient(write, 0.05)
    with pytest.raises(OSError, match="has not answered in"):
        patient(b"one")
    with pytest.raises(OSError, match="has not answered yet"):
        patient(b"two")
    go_on.set()
    wait_until(lambda: written, SECONDS, "the write")
    patient = Patient(write, SECONDS)
    patient(b"three")
    assert written == [b"one", b"three"]
    with pytest.raises(OSError, match="No space left"):
        patient(b"full")
