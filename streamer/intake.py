"""From messages to the readings that reach the model: what is read, what is none, what is refused; all of it counted.

For the engine's thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from streamer.log import SparingLog
from streamer.payloads import Columns, Decoder
from streamer.readings import LARGEST_VALUE, Batch, Message
from streamer.records import Group
from streamer.registry import FREE, Registry
from streamer.safekeeping import Safekeeping

MESSAGE_REJECTIONS = ("redelivered",)
READING_REJECTIONS = ("future", "out_of_range", "admission_rate", "admission_full")


@dataclass(slots=True, eq=False)
class Fates:
    """What has become of the messages of a turn; those that were decoded in three lists of one length."""

    counts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    senders: list[Message] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """length of the columns after each"""
    digests: list[int] = field(default_factory=list)
    """0 where nobody will ask whether it came before"""


class Admitted(NamedTuple):
    """The readings of a turn, and how many there are of those that have no part in it."""

    group: Group
    readings: int
    """in all"""
    rejected: Counter[str]
    series_refused: dict[str, int]


class Intake:
    """`read` what has come, then `admit` the readings: in between, what the messages command can be done."""

    def __init__(
        self,
        decoder: Decoder,
        safekeeping: Safekeeping,
        registry: Registry,
        *,
        session: Callable[[], int],
        divert: Callable[[Message], None],
        hear: Callable[[list[str], float], None],
        max_future_seconds: float,
        sparing: SparingLog,
    ) -> None:
        """`session` gives the number of the connection that began the broker's session. `divert` gets each message that
        the decoder does not want, `hear` the keys of series whose readings were refused: somebody is there.
        """
        self.decoder = decoder
        """may be replaced between two turns"""
        self.wanting = 0
        """readings, since this was last set to 0, whose new series found no room"""
        self._safekeeping = safekeeping
        self._registry = registry
        self._session = session
        self._divert = divert
        self._hear = hear
        self._max_future_seconds = max_future_seconds
        self._sparing = sparing
        self._columns = Columns()
        self._refused_before = dict(registry.refused)

    def read(self, messages: list[Message]) -> Fates:
        """Of a turn; what is no reading goes where it belongs."""
        fates, session = Fates(), self._session()
        # What waits of an older connection belongs to the session before; its end is journaled ahead of this turn.
        older = next((n for n, message in enumerate(messages) if message.connection >= session), len(messages))
        self._sort(messages[:older], fates)
        if older < len(messages) and self._safekeeping.note_session(session):
            fates.digests = [0] * len(fates.digests)
        self._sort(messages[older:], fates)
        return fates

    def _sort(self, messages: list[Message], fates: Fates) -> None:
        """Those that are readings are read, as many at once as may be."""
        run: list[Message] = []
        is_wanted = self.decoder.is_wanted
        for message in messages:
            if message.dup:
                self._read(run, fates)  # it may be one of these again
                run = []
                if self._safekeeping.is_known(message):
                    fates.rejected["redelivered"] += 1
                    continue
            if not is_wanted(message.topic):
                fates.counts["ignored"] += 1
                self._divert(message)
            elif message.retain:
                fates.counts["retained"] += 1
            else:
                run.append(message)
        self._read(run, fates)

    def _read(self, run: list[Message], fates: Fates) -> None:
        for message, end in zip(run, self.decoder.decode_all(run, self._columns), strict=True):
            if isinstance(end, int):
                fates.senders.append(message)
                fates.ends.append(end)
            else:
                reason = str(end)
                fates.rejected[reason] += 1
                self._sparing.event(logging.INFO, "message rejected", per=reason, reason=reason, topic=message.topic)
        new = fates.senders[len(fates.digests) :]
        fates.counts["decoded"] += len(new)
        fates.digests += self._safekeeping.note(new)

    def admit(self, now: float, fates: Fates) -> Admitted:
        """The readings that reach the model, written into the journal; the others are counted."""
        columns, registry = self._columns, self._registry
        rejected: Counter[str] = Counter({str(reason): n for reason, n in columns.rejected.items()})
        readings = len(columns) + sum(columns.rejected.values())
        time, value = np.array(columns.time, np.float64), np.array(columns.value, np.float64)
        ends = np.array(fates.ends, np.intp)
        owner = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        future = time > now + self._max_future_seconds
        out_of_range = ~future & (np.abs(value) > LARGEST_VALUE)
        good = ~(future | out_of_range)
        if not good.all():
            self._hear([columns.key[row] for row in np.flatnonzero(~good).tolist()], now)
        if future.any():
            row = int(np.flatnonzero(future)[0])
            self._sparing.event(
                logging.WARNING, "reading rejected: its time is in the future", key=columns.key[row],
                ahead_seconds=round(float(time[row]) - now, 1), advice="check its clock, and input.time_zone",
            )  # fmt: skip
        # A reading that is refused for its value or time must not found a series.
        keys = columns.key if good.all() else [key for key, is_good in zip(columns.key, good, strict=True) if is_good]
        slot = np.full(len(columns), FREE, np.int32)
        admitted: list[int] = []
        slot[good] = registry.resolve(keys, now, admitted)
        refused = {name: n - self._refused_before[name] for name, n in registry.refused.items()}
        self._refused_before = dict(registry.refused)
        self.wanting += refused["full"]
        for reason, n in (
            ("future", int(future.sum())),
            ("out_of_range", int(out_of_range.sum())),
            *((f"admission_{name}", n) for name, n in refused.items()),
        ):
            if n:
                rejected[reason] += n
            if n and reason != "future":
                self._sparing.event(logging.WARNING, "readings rejected", per=reason, reason=reason, readings=n)
        rows = np.flatnonzero(slot != FREE)
        flags = np.array(columns.flags, np.uint8)
        group = self._safekeeping.append_group(
            Batch(slot[rows], time[rows], value[rows], flags[rows]),
            fates.senders,
            np.bincount(owner[rows], minlength=len(fates.senders)).astype(np.uint32),
            fates.digests,
            admitted,
        )
        columns.clear()
        return Admitted(group, readings, rejected, refused)
