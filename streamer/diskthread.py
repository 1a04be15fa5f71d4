"""The thread that waits for the disk, so that nobody else has to: a write to a disk that hangs may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
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


class Patient:
    """Writes by a thread of its own, and waits for it so long, not for ever. For one thread."""

    def __init__(self, write: Callable[[bytes], None], seconds: float) -> None:
        self._write = write
        self._seconds = seconds
        self._thread = DiskThread()
        self._writing: Future[None] | None = None

    def __call__(self, content: bytes) -> None:
        """Raises OSError, also if the disk has not answered: then the content may be written yet, or never."""
        if self._writing is not None and not self._writing.done():
            raise TimeoutError("the disk has not answered yet")
        self._writing = self._thread.begin(partial(self._write, content))
        if not wait([self._writing], self._seconds).done:
            raise TimeoutError(f"the disk has not answered in {self._seconds:g} s")
        self._writing.result()
