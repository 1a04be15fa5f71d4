"""The readings of the few series that somebody looks at, each with its verdict: the past that a chart shows.

Of all others only the last readings are kept (`recent.py`), without what was expected of them: a trace begins with
these, and grows from there on. For the engine's thread.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features import Wide
from streamer.detector import SLEWED_SECONDS
from streamer.readings import Batch, Float64, Scores, Unscored
from streamer.shard import Shard

ROWS = 4096  # readings of a series: 200 KB; an hour at one a second, a month at one in ten minutes
MOST = 16  # series
IDLE_SECONDS = 60.0  # a page asks every second; one in a tab that is hidden, every minute
COLUMNS = ("time", "value", "expected", "lower", "upper", "score")


class Part(NamedTuple):
    """Some of the readings of a series."""

    serial: int
    """of the trace: with another one the readings are numbered anew"""
    first: int
    """number of the first one here"""
    rows: Float64
    """(n, COLUMNS), NaN where there is nothing; time never goes back"""


class Trace:
    """The last readings of one series."""

    def __init__(self, slot: int, serial: int, asked_at: float) -> None:
        self.slot = slot
        self.serial = serial
        self.asked_at = asked_at
        self.count = 0
        """readings so far"""
        self._rows = np.empty((ROWS, len(COLUMNS)))
        self._latest = -np.inf

    def add(self, rows: Float64) -> None:
        """Readings in the order in which they were judged; where a clock was slewed it counts as standing still."""
        rows = rows[-ROWS:].copy()
        rows[:, 0] = np.maximum.accumulate(np.maximum(rows[:, 0], self._latest))
        self._latest = float(rows[-1, 0])
        self._rows[(self.count + np.arange(len(rows))) % ROWS] = rows
        self.count += len(rows)

    def is_behind(self, time: float) -> bool:
        """A reading of that time does not go on from here: the clock was set back."""
        return time < self._latest - SLEWED_SECONDS

    def since(self, number: int) -> Part:
        """From the reading of that number on, as far as they are kept; from the first one if there was no such yet."""
        first = max(number if 0 <= number <= self.count else 0, self.count - ROWS)
        return Part(self.serial, first, self._rows[np.arange(first, self.count) % ROWS])


class Traces:
    """At most MOST of them; who has not been asked for the longest makes room."""

    def __init__(self) -> None:
        self._traces: dict[str, Trace] = {}  # by series key, the one asked for last at the end
        self._slots = np.empty(0, np.int32)
        self._serial = 0

    def __len__(self) -> int:
        return len(self._traces)

    def take(self, batch: Batch, scores: Scores) -> None:
        """Readings that were judged. Of 4,096: 50 us where one series is looked at, 260 us where MOST are."""
        if not self._traces:
            return
        ours = np.flatnonzero(np.isin(batch.slot, self._slots))
        if not len(ours):
            return
        in_order = (scores.unscored[ours] != Unscored.LATE) & (scores.unscored[ours] != Unscored.DUPLICATE)
        columns = (batch.time, batch.value, scores.expected, scores.lower, scores.upper, scores.score)
        for key, trace in self._traces.items():
            rows = ours[in_order & (batch.slot[ours] == trace.slot)]
            if not len(rows):
                continue
            if trace.is_behind(float(batch.time[rows[0]])):
                self._traces[key] = self._new(trace.slot, trace.asked_at)
            self._traces[key].add(np.stack([column[rows] for column in columns], axis=1))

    def follow(self, shard: Shard, key: str, now: float, serial: int, number: int) -> Part | None:
        """The readings of a series from one number of that trace on, and from now on more; None: no such series.

        `now`: steady seconds.
        """
        slot = shard.registry.find(key)
        trace = self._traces.pop(key, None)
        if slot is None:
            self._settle()
            return None
        if trace is None or trace.slot != slot:
            while len(self._traces) >= MOST:
                del self._traces[next(iter(self._traces))]
            trace = self._new(slot, now)
            past = _past(shard, slot)
            if len(past):
                trace.add(past)
        trace.asked_at = now
        self._traces[key] = trace
        self._settle()
        return trace.since(number if serial == trace.serial else 0)

    def drop_idle(self, now: float) -> None:
        """Those that nobody has asked for in IDLE_SECONDS."""
        if self._traces:
            self._traces = {key: each for key, each in self._traces.items() if now - each.asked_at <= IDLE_SECONDS}
            self._settle()

    def forget(self, slots: NDArray[np.integer]) -> None:
        """These slots will be other series'."""
        if self._traces:
            gone = set(slots.tolist())
            self._traces = {key: each for key, each in self._traces.items() if each.slot not in gone}
            self._settle()

    def _new(self, slot: int, now: float) -> Trace:
        self._serial += 1
        return Trace(slot, self._serial, now)

    def _settle(self) -> None:
        self._slots = np.array([trace.slot for trace in self._traces.values()], np.int32)


def _past(shard: Shard, slot: int) -> Float64:
    """What is kept of every series, `(n, COLUMNS)`: times and values, and the verdict on the last one."""
    last = shard.detector.recent.last(np.array([slot]))
    n = int(last.lengths[0])
    rows = np.full((n, len(COLUMNS)), np.nan)
    if n:
        rows[:, 0], rows[:, 1] = last.time[0, -n:], last.value[0, -n:]
        score, value, expected, lower, upper = shard.detector.latest[slot].tolist()
        if value == rows[-1, 1] and shard.detector.statistics.wide[slot, Wide.TIME] == rows[-1, 0]:
            rows[-1, 2:] = expected, lower, upper, score
    return rows
