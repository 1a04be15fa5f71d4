"""Time as the daemon sees it: handed in, so that a test moves it by hand and a replay takes it from the data; and how
often each series reports."""

from __future__ import annotations

import enum
import time
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Clock(Protocol):
    """Two readings of time: the wall's for data, the steady one for timers."""

    def now(self) -> float:
        """Epoch seconds; it may jump when somebody sets the machine's clock."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; it never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: float = 0.0) -> None:
        """`start` in epoch seconds; the steady reading starts at 0."""
        self._now = start
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass: both readings go forward."""
        if seconds < 0:
            raise ValueError("time does not pass backwards; `set` moves the wall clock")
        self._now += seconds
        self._monotonic += seconds

    def set(self, now: float) -> None:
        """Move the wall clock alone, as an operator or NTP does."""
        self._now = now


STEP_SECONDS = 10.0  # NTP slews what is less than a second; silence begins at twenty


class Steps:
    """Notices that the wall clock was set, or that the machine slept: it has moved otherwise than the steady one.

    A gateway without a battery starts in the past and is put right later: then every sensor seems to have been quiet
    for days.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._apart = clock.now() - clock.monotonic()

    def has_stepped(self) -> bool:
        """Since the last call."""
        before, self._apart = self._apart, self._clock.now() - self._clock.monotonic()
        return abs(self._apart - before) > STEP_SECONDS


# --- Cadence: when a series is due -----------------------------------------------------------------------------------

LEARNED_GAPS = 30  # before so many intervals are known nothing is due
PROVEN_GAPS = 100
# A series reports by the clock if its longest interval is at most so many usual ones. Random arrivals pass by chance
# once in 80 (30 intervals, ratio 2) or 160 (100, ratio 3): the longest of n exponential ones is below r with chance
# (1 - e^-r)^n.
YOUNG_REGULAR_RATIO, REGULAR_RATIO = 2.0, 3.0
REGULAR_LATE = 5.0  # such a series is silent after so many usual intervals,
IRREGULAR_LATE = 3.0  # any other after so many of its longest,
IRREGULAR_HISTORY_SECONDS = 2 * 86_400.0  # and only once two nights have shown how long that may be
LEAST_SILENCE_SECONDS = 20.0  # networks and brokers pause that long without anything being wrong
STALE_SECONDS = 300.0  # so long after it was said it is of the past, where it is not known how often a series reports
LIVE_SHARE = 0.5  # of the event time that has passed: a reading that took less to arrive was held back with others
FORGET_SECONDS = 14 * 86_400.0  # the longest interval fades by e in this time
USUAL_RATE = 1 / 100


class _Column(enum.IntEnum):
    ARRIVAL = 0  # of the last reading, epoch seconds of the daemon's clock; 0: never
    FIRST = 1  # arrival of the first
    GAPS = 2  # intervals learned
    USUAL = 3  # their mean, seconds
    LONGEST = 4  # the longest, fading, seconds


class _Between(enum.IntEnum):
    """Since the last reading in its order, where duplicates and late ones are heard as well."""

    SINCE = 0  # its arrival; 0: not known, that of the last one then
    QUIET = 1  # the longest that nothing was heard, seconds


class Cadence:
    """How often each series reports, by what it has shown; arrays of one row a slot, owned by one thread.

    An interval is the longer of two: between arrivals and between event times. Where the event times say that a reading
    has waited for company, it teaches nothing: a device that uploads an hour's readings at once is due in an hour, not
    in a minute, and neither a backlog nor a device's clock that jumps ahead changes what is usual. Where the series was
    heard meanwhile without a reading in its order, several messages of one second say, the longest quiet time between
    counts instead.
    """

    def __init__(self, capacity: int) -> None:
        self.rows = np.zeros((capacity, len(_Column)))
        self.between = np.zeros((capacity, len(_Between)))
        self.listening_since = 0.0
        """the daemon's clock when it began to hear: silence is counted from here at the earliest"""

    def observe(
        self,
        slots: NDArray[np.intp],
        elapsed: NDArray[np.float64],
        arrival: NDArray[np.float64],
        ordinary: NDArray[np.bool_],
    ) -> None:
        """Takes in that `slots` (unique) have reported, `elapsed` seconds of event time after their last reading.

        `arrival` is when each came, by the daemon's clock, not when there was time for it. Where `ordinary` is False (a
        silence that raised an alarm) the interval teaches nothing.
        """
        rows, between = self.rows[slots], self.between[slots]
        heard, since = rows[:, _Column.ARRIVAL], between[:, _Between.SINCE]
        known, before = heard > 0, np.where(since > 0, since, heard)
        waited, elapsed = np.where(known, arrival - before, 0.0), np.where(np.isnan(elapsed), 0.0, elapsed)
        quiet = np.maximum(between[:, _Between.QUIET], arrival - heard)
        interval = np.where(before < heard, quiet, np.maximum(waited, elapsed))
        teaches = known & ordinary & (before >= self.listening_since) & (waited > LIVE_SHARE * elapsed) & (waited > 0)
        gaps = rows[:, _Column.GAPS] + teaches
        rate = np.where(teaches, np.maximum(1 / np.maximum(gaps, 1), USUAL_RATE), 0.0)
        rows[:, _Column.USUAL] += rate * (interval - rows[:, _Column.USUAL])
        faded = rows[:, _Column.LONGEST] * np.exp(-np.where(teaches, interval, 0.0) / FORGET_SECONDS)
        rows[:, _Column.LONGEST] = np.where(teaches, np.maximum(faded, interval), rows[:, _Column.LONGEST])
        rows[:, _Column.GAPS] = gaps
        rows[:, _Column.FIRST] = np.where(known, rows[:, _Column.FIRST], arrival)
        rows[:, _Column.ARRIVAL] = arrival
        self.rows[slots] = rows
        self.between[slots, _Between.SINCE], self.between[slots, _Between.QUIET] = arrival, 0.0

    def hear(self, slots: NDArray[np.intp], arrival: NDArray[np.float64]) -> None:
        """`slots` (unique) have sent something that is no reading in its order: not silent; it teaches nothing yet."""
        known = self.rows[slots, _Column.ARRIVAL] > 0
        slots, arrival = slots[known], arrival[known]
        before, quiet = self.rows[slots, _Column.ARRIVAL], self.between[slots, _Between.QUIET]
        since = self.between[slots, _Between.SINCE]
        self.between[slots, _Between.SINCE] = np.where(since > 0, since, before)
        self.between[slots, _Between.QUIET] = np.maximum(quiet, arrival - before)
        self.rows[slots, _Column.ARRIVAL] = arrival

    def await_from(self, slots: NDArray[np.intp], now: float) -> None:
        """Silence of `slots` is counted from `now` on, and so is their next interval."""
        slots = slots[self.rows[slots, _Column.ARRIVAL] > 0]
        self.rows[slots, _Column.ARRIVAL] = now
        self.between[slots, _Between.SINCE], self.between[slots, _Between.QUIET] = now, 0.0

    def allowed_seconds(self, count: int, now: float) -> NDArray[np.float64]:
        """How long each of the first `count` series may keep quiet; infinite while that is not known."""
        rows = self.rows[:count]
        usual, longest = rows[:, _Column.USUAL], rows[:, _Column.LONGEST]
        gaps = rows[:, _Column.GAPS]
        regular = longest <= np.where(gaps < PROVEN_GAPS, YOUNG_REGULAR_RATIO, REGULAR_RATIO) * usual
        allowed = np.where(regular, REGULAR_LATE * usual, IRREGULAR_LATE * longest)
        unknown = (gaps < LEARNED_GAPS) | (~regular & (now - rows[:, _Column.FIRST] < IRREGULAR_HISTORY_SECONDS))
        return np.where(unknown, np.inf, np.maximum(allowed, LEAST_SILENCE_SECONDS))

    def unknown_seconds(self, count: int, now: float) -> float:
        """In how many seconds the next of the first `count` series is known for long enough, so that
        `allowed_seconds` may change though nothing comes; infinite if none is waited for."""
        left = self.rows[:count, _Column.FIRST] + IRREGULAR_HISTORY_SECONDS - now
        return float(left[left > 0].min(initial=np.inf))

    def is_late(self, count: int, now: float) -> NDArray[np.bool_]:
        """Which of the first `count` series have reported longer ago than they do, whoever is to blame: what they are
        like now is not known. Where their cadence is not either, five mean intervals and STALE_SECONDS have to pass.
        """
        absent = self.absent_seconds(count, now)
        late = absent > LEAST_SILENCE_SECONDS
        if late.any():  # else there is no need to look further
            allowed = self.allowed_seconds(count, now)
            guessed = np.maximum(REGULAR_LATE * self.rows[:count, _Column.USUAL], STALE_SECONDS)
            late &= absent > np.where(np.isfinite(allowed), allowed, guessed)
        return late

    def quiet_seconds(self, count: int, now: float) -> NDArray[np.float64]:
        """How long each of the first `count` series has kept quiet while the daemon listened."""
        return np.minimum(self.absent_seconds(count, now), now - self.listening_since)

    def absent_seconds(self, count: int, now: float) -> NDArray[np.float64]:
        """How long ago each of the first `count` series reported last.

        Where that lies in the future, since the wall clock was set back, the time since then counts.
        """
        arrival = self.rows[:count, _Column.ARRIVAL]
        return now - np.where(arrival > now + STEP_SECONDS, self.listening_since, arrival)

    def usual_seconds(self, slot: int) -> float:
        """The mean interval of one series."""
        return float(self.rows[slot, _Column.USUAL])

    def arrival(self, count: int) -> NDArray[np.float64]:
        """When each of the first `count` series reported last, epoch seconds."""
        return self.rows[:count, _Column.ARRIVAL]

    def begin_anew(self, slots: NDArray[np.intp]) -> None:
        """How often these series report is not known any more; when they did so last is."""
        arrival = self.rows[slots, _Column.ARRIVAL]
        self.rows[slots] = 0.0
        self.rows[slots, _Column.ARRIVAL] = self.rows[slots, _Column.FIRST] = arrival
        self.between[slots] = 0.0

    def evict(self, slots: NDArray[np.intp]) -> None:
        """Forgets these series."""
        self.rows[slots] = 0.0
        self.between[slots] = 0.0
