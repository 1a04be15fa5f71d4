"""One answer for all who ask for it at the same time, and one that is being made at any moment, half of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """`get` is for any thread."""

    def __init__(self, most_asking: int) -> None:
        self._most_asking = most_asking
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._never = threading.Event()
        """what a rest waits for, and nobody sets; under libfaketime `time.sleep` goes by a wall clock that is moved"""
        self._free_at = -float("inf")
        """monotonic; who makes one takes the interpreter from others, and then they have it for as long"""
        self._next: dict[str, Future[T]] = {}
        """by kind: those that nobody has begun to make, so that they will be news to whoever asks now"""
        self._asking = 0

    def get(self, kind: str, make: Callable[[], T]) -> T | None:
        """What one of those who ask for this kind makes after all have asked; raises what `make` does.

        Of kinds there are few: each that is asked for is made by itself. None: too many ask already.
        """
        with self._lock:
            if self._asking >= self._most_asking:
                return None
            self._asking += 1
            coming = self._next.get(kind)
            mine = self._next[kind] = Future() if coming is None else coming
        try:
            if coming is None:
                self._make(kind, mine, make)
            return mine.result()
        finally:
            with self._lock:
                self._asking -= 1

    def _make(self, kind: str, mine: Future[T], make: Callable[[], T]) -> None:
        with self._turn:
            if (rest_seconds := self._free_at - time.monotonic()) > 0:
                self._never.wait(rest_seconds)
            with self._lock:
                del self._next[kind]
            begun_at = time.monotonic()
            try:
                mine.set_result(make())
            except BaseException as error:  # noqa: BLE001 - all who wait for it get it, this thread too
                mine.set_exception(error)
            ended_at = time.monotonic()
            self._free_at = ended_at + (ended_at - begun_at)
