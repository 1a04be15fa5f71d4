"""The thread that waits for the disk, so that nobody else has to: a write to a disk that hangs may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class DiskThread:
    """Calls what it is given, one after the other, in a thread that a process can end without."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Its result, or what it has raised, in time. For one thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
            self._thread.start()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
                future.set_exception(error)

        self._calls.put(run)
        return future

    def _run(self) -> None:
        while True:
            run = self._calls.get()
            run()
            del run  # not held until the next one comes
