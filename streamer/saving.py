"""Snapshots of the state, written while the engine goes on; and what of the journal they make dispensable."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple

from streamer import recovery, snapshot
from streamer.clock import Clock
from streamer.diskthread import DiskThread
from streamer.journal import Journal
from streamer.log import SparingLog, event
from streamer.metrics import Metrics
from streamer.redelivery import Redelivery
from streamer.shard import Shard, State

log = logging.getLogger(__name__)

COPY_ROWS = 1024  # of the state, 3 MB, between two turns: 3 to 10 ms, most of them for fresh pages of memory
LAST_WRITE_SECONDS = 0.6  # for a snapshot that is still being written when the last one is due


class Keeping(NamedTuple):
    """How long the journal keeps what no snapshot needs any more."""

    seconds: float
    size_bytes: int


class Saving:
    """`save` is for the engine's thread, the rest for any."""

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        redelivery: Redelivery,
        disk: DiskThread,
        *,
        is_enabled: bool,
        keeping: Keeping | None,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        """`disk` writes the journal. `keeping`: None where none is written. Not `is_enabled`: there is no state."""
        self._directory = directory
        self._journal = journal
        self._redelivery = redelivery
        self._disk = disk
        self._is_enabled = is_enabled
        self._keeping = keeping
        self._metrics = metrics
        self._clock = clock
        self._sparing = SparingLog(log, 60.0, clock.monotonic)
        self._positions: deque[int] = deque(maxlen=snapshot.KEEP)
        """of the snapshots that this run has written"""
        self._dropping: Future[object] | None = None
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._is_writing_last = False
        self.has_saved_last = False
        self.is_owed = False
        """nothing may be acknowledged before the next snapshot"""

    def save(self, shard: Shard, *, is_last: bool) -> Iterator[None]:
        """Copies the state of now, some rows before each `next`, and writes it in a thread of its own. A disk that is
        still at it is not waited for, but at the end. The state stands at the end of the journal, also of one that is
        no longer written.
        """
        if not self._is_enabled:
            self.has_saved_last = is_last
            return
        if not self.wait(LAST_WRITE_SECONDS if is_last else 0.0):
            self._metrics.add("snapshot_total", 1, "failed")
            event(log, logging.ERROR, "snapshot left out: the disk is still at the one before")
            return
        if self._failure is not None:
            raise self._failure
        self._drop_journal()
        position, known = self._journal.end, self._redelivery.state()
        shard.begin_copy()
        while (state := shard.go_on_copying(COPY_ROWS)) is None:
            yield
        self._is_writing_last = is_last
        self._writing = threading.Thread(
            target=self._write,
            args=(recovery.with_redelivery(state, known), position, is_last),
            name="snapshot",
            daemon=True,
        )
        self._writing.start()

    def wait(self, seconds: float) -> bool:
        """True when no snapshot is being written."""
        if self._writing is None:
            return True
        self._writing.join(seconds)
        return not self._writing.is_alive()

    def wait_for_last(self, seconds: float) -> None:
        """For the one that `is_last`, if it has begun."""
        if self._is_writing_last:
            self.wait(seconds)

    def _drop_journal(self) -> None:
        """What neither of the two kept snapshots needs, in the thread that writes the journal."""
        if self._keeping is None or len(self._positions) < snapshot.KEEP:
            return
        if self._dropping is not None:
            if not self._dropping.done():
                return
            self._dropping.result()  # a bug is not swallowed
        self._dropping = self._disk.begin(partial(self._drop_journal_below, min(self._positions), self._keeping))

    def _drop_journal_below(self, position: int, keeping: Keeping) -> None:
        try:
            self._journal.drop_below(position, keep_seconds=keeping.seconds, keep_bytes=keeping.size_bytes)
        except OSError as error:
            self._sparing.event(logging.WARNING, "journal not shortened", per="journal", reason=str(error))

    def _write(self, state: State, position: int, is_last: bool) -> None:
        started = time.monotonic()
        try:
            path = snapshot.write(self._directory, state.arrays, state.rest, position=position, is_gentle=not is_last)
            size_bytes = path.stat().st_size
        except OSError as error:
            self._metrics.add("snapshot_total", 1, "failed")
            event(log, logging.ERROR, "snapshot failed", reason=str(error))
            return
        except BaseException as error:
            self._failure = error  # a bug is not swallowed: the engine meets it at the next snapshot
            raise
        self._metrics.snapshot("ok", time.monotonic() - started, size_bytes, self._clock.now())
        self._positions.append(position)
        self.has_saved_last = is_last
        self.is_owed = False
