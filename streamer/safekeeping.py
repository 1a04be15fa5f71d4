"""What must be safe before it is acknowledged: append, fdatasync, PUBACK, apply, in this order.

Without a journal everything counts as safe, and the broker is told when the engine has applied it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from streamer.journal import Journal
from streamer.readings import Batch, Message
from streamer.records import Admitted, Budget, Fact, Group, Lateness, Listening, SessionLost, UInt32, digest
from streamer.redelivery import Redelivery
from streamer.shard import Shard

RETRY_SECONDS = 1.0  # a disk that refuses is asked again so often
OWED = "the journal is damaged, and no snapshot is written yet that makes up for it"
PATIENCE_SECONDS = 0.5  # scoring waits so long for a write, and then goes on from memory (by eye: an SD card's pauses)
HANGING_SECONDS = 5.0  # a write that takes longer is told as trouble
KEPT_BYTES = 256  # what the acknowledgement of a message weighs that waits for the disk

Begin = Callable[[Callable[[], object]], Future[object]]
"""Begins a call, perhaps in another thread."""


def at_once(call: Callable[[], object]) -> Future[object]:
    """A `Begin` without a thread."""
    future: Future[object] = Future()
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
        future.set_exception(error)
    return future


class _Waiting(NamedTuple):
    """Messages whose acknowledgement waits for the disk."""

    end: int
    """they are safe when all records below this position are"""
    messages: list[Message]


class Safekeeping:
    """The journal as the engine uses it. For the engine's thread."""

    def __init__(
        self,
        shard: Shard,
        journal: Journal | None,
        redelivery: Redelivery,
        acknowledge: Callable[[Sequence[Message]], None],
        max_pending_bytes: int,
        *,
        owes_snapshot: Callable[[], bool] = lambda: False,
        begin: Begin = at_once,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`owes_snapshot`: what the journal is given could not be replayed yet, since damage lies before it."""
        self._shard = shard
        self._journal = journal
        self._redelivery = redelivery
        self._acknowledge = acknowledge
        self._max_pending_bytes = max_pending_bytes
        self._owes_snapshot = owes_snapshot
        self._begin = begin
        self._patience_seconds = patience_seconds
        self._written: tuple[float, float, tuple[float, float | None]] | None = None
        self._session = 0
        self._waiting: deque[_Waiting] = deque()
        self._waiting_messages = 0
        self._writing: Future[object] | None = None
        self._began_at: float | None = None
        """monotonic; of the write that the disk has not answered yet"""
        self._retry_at = -np.inf
        self._refusal: str | None = None

    @property
    def has_journal(self) -> bool:
        return self._journal is not None

    @property
    def durable(self) -> int:
        """Position in the journal below which all is on the disk; 0 without one."""
        return 0 if self._journal is None else self._journal.durable

    @property
    def is_safe(self) -> bool:
        """Nothing waits for the disk."""
        return self._journal is None or (self._writing is None and self._journal.durable == self._journal.end)

    @property
    def is_due(self) -> bool:
        """A commit is wanted, also where no message has come."""
        return not self.is_safe or self._refusal is not None or bool(self._waiting)

    @property
    def pending_bytes(self) -> int:
        """What waits in memory for the disk."""
        return 0 if self._journal is None else self._journal.pending_bytes + KEPT_BYTES * self._waiting_messages

    @property
    def is_full(self) -> bool:
        """So much waits for the disk that nothing more must be taken."""
        return self.pending_bytes >= self._max_pending_bytes

    @property
    def end(self) -> int:
        """The position of the next record."""
        return 0 if self._journal is None else self._journal.end

    def is_kept(self, end: int) -> bool:
        """A start would find all records below this position, as far as there is a journal."""
        return self._journal is None or (self._journal.durable >= end and not self._owes_snapshot())

    def trouble(self, monotonic: float) -> str | None:
        """Why nothing is acknowledged, None while all is well. Any thread may ask."""
        return self.disk_trouble(monotonic) or (OWED if self._owes_snapshot() else None)

    def disk_trouble(self, monotonic: float) -> str | None:
        """What is wrong with the disk, None if nothing is."""
        began_at = self._began_at
        if began_at is not None and monotonic - began_at > HANGING_SECONDS:
            return f"the disk has not answered for {monotonic - began_at:.0f} seconds"
        return self._refusal

    def begin_anew(self) -> None:
        """After a snapshot: what is not in it and was written before is written again."""
        self._written = None

    def note_session(self, began: int) -> bool:
        """A message of the session that began with this connection is next; 0 for a session of an earlier run.

        True if the session before is lost: its identifiers mean nothing any more.
        """
        if began == self._session:
            return False
        self._session = began
        self._redelivery.forget()
        self.append(SessionLost())
        return True

    def is_known(self, message: Message) -> bool:
        """The broker sends again what the journal holds."""
        return message.dup and self._journal is not None and self._redelivery.is_known(message)

    def note(self, messages: Sequence[Message]) -> list[int]:
        """These messages will be in the next group; gives the digest of each."""
        if self._journal is None:
            return [0] * len(messages)
        digests = [digest(message) if message.qos else 0 for message in messages]
        self._redelivery.note_coming([message.mid for message in messages], digests)
        return digests

    def append(self, fact: Fact) -> None:
        """A fact, before or as it changes the state."""
        if self._journal is not None:
            self._write_differences([])
            self._journal.append(fact)

    def append_group(
        self, batch: Batch, messages: Sequence[Message], readings: UInt32, digests: Sequence[int], admitted: list[int]
    ) -> Group:
        """The readings of a turn with those who sent them, behind the series that they have founded."""
        group = Group(
            batch,
            np.array([message.arrival for message in messages], np.float64),
            readings,
            np.array(digests, np.uint32),
            np.array([m.mid if known else 0 for m, known in zip(messages, digests, strict=True)], np.uint16),
            self._shard.registry.changes,
            self._shard.taken,
        )
        if self._journal is not None and messages:
            self._write_differences(admitted)
            self._journal.append(group)
        return group

    def _write_differences(self, admitted: list[int]) -> None:
        """What has changed by the clock or by an operator since the last record."""
        shard, registry, journal = self._shard, self._shard.registry, self._journal
        if journal is None:
            return
        now = (shard.cadence.listening_since, shard.detector.budget_per_series_month, registry.bucket)
        before, self._written = self._written, now
        if before is None and shard.reorder.is_used:
            journal.append(Lateness(shard.reorder.lateness_seconds))
        if before is None or now[0] != before[0]:
            journal.append(Listening(now[0]))
        if before is None or now[1] != before[1]:
            journal.append(Budget(now[1]))
        if before is None or now[2] != before[2]:
            keys = [registry.key(slot) for slot in admitted]
            devices = [registry.device_key(registry.device(slot)) for slot in admitted]
            journal.append(Admitted(admitted, keys, devices, *now[2]))

    def commit(self, messages: Sequence[Message], monotonic: float, *, is_last: bool = False) -> None:
        """Makes all safe and acknowledges it. A disk that refuses, or does not answer soon, is not waited for.

        What it leaves behind waits for a later call, in memory; what is safe then is acknowledged, and only that. The
        last call is patient twice: with the write before it, and with its own.
        """
        if self._journal is None:
            return
        if messages:
            self._waiting.append(_Waiting(self._journal.end, list(messages)))
            self._waiting_messages += len(messages)
        self._look(monotonic, self._patience_seconds if is_last else 0.0)
        if self._writing is None and monotonic >= self._retry_at:
            self._writing, self._began_at = self._begin(self._journal.syncing()), monotonic
            self._look(monotonic, self._patience_seconds)
        if messages and self._waiting:
            self._keep_little()

    def _look(self, monotonic: float, patience_seconds: float) -> None:
        """Whether the disk has answered."""
        if self._journal is None or self._writing is None:
            return
        try:
            error = self._writing.exception(patience_seconds)
        except TimeoutError:
            return
        self._writing, self._began_at = None, None
        if isinstance(error, OSError):
            self._refusal = f"the journal cannot be written: {error.strerror or error}"
            self._retry_at = monotonic + RETRY_SECONDS
            return
        if error is not None:
            raise error
        self._refusal = None
        if self._owes_snapshot():
            return
        safe: list[Message] = []
        while self._waiting and self._waiting[0].end <= self._journal.durable:
            safe += self._waiting.popleft().messages
        self._waiting_messages -= len(safe)
        self._acknowledge(safe)

    def _keep_little(self) -> None:
        """Of the messages that came last all that an acknowledgement needs."""
        end, messages = self._waiting.pop()
        kept = [message._replace(topic="", payload=b"") for message in messages if message.qos]
        self._waiting_messages -= len(messages) - len(kept)
        if kept:
            self._waiting.append(_Waiting(end, kept))

    def applied(self, messages: Sequence[Message]) -> None:
        """Without a journal that is when the broker is told."""
        if self._journal is None:
            self._acknowledge(messages)

    def close(self) -> None:
        """Nothing is written any more. A file that the disk still has in its hands is left to the process's end."""
        if self._journal is not None and self._writing is None:
            self._journal.close()
