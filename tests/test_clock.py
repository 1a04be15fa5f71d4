"""The clock that is moved by hand, and the cadence: when a series is due."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.clock import (
    IRREGULAR_HISTORY_SECONDS,
    LEARNED_GAPS,
    LEAST_SILENCE_SECONDS,
    PROVEN_GAPS,
    REGULAR_LATE,
    Cadence,
    ManualClock,
    Steps,
    SystemClock,
)

START = 1_767_225_600.0
DAY = 86_400.0


def test_a_manual_clock_moves_when_it_is_told_to() -> None:
    """Both readings go forward; the wall's alone can be set."""
    clock = ManualClock(START)
    assert (clock.now(), clock.monotonic()) == (START, 0.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (START + 2.5, 2.5)
    clock.set(START - 3600)
    assert (clock.now(), clock.monotonic()) == (START - 3600, 2.5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_the_system_clock_goes_forward() -> None:
    """Two readings in a row; the wall's is in epoch seconds."""
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.now() > START


def test_a_wall_clock_that_is_set_is_noticed_once() -> None:
    """In either direction; time that passes and a clock that is slewed are no step."""
    clock = ManualClock(START)
    steps = Steps(clock)
    clock.advance(3600)
    assert not steps.has_stepped()
    for _ in range(100):
        clock.set(clock.now() + 0.5)
        assert not steps.has_stepped()
    for there in (START + 9 * DAY, START):
        clock.set(there)
        assert steps.has_stepped()
        assert not steps.has_stepped()


class Series:
    """One series in slot 0 of a cadence that hears everything since START."""

    def __init__(self) -> None:
        self.cadence = Cadence(2)
        self.cadence.listening_since = START
        self.now = START
        self.event_time: float | None = None

    def report(self, *, event_time: float | None = None, ordinary: bool = True) -> None:
        """A reading arrives now; without an event time it is of now."""
        at = self.now if event_time is None else event_time
        elapsed = np.nan if self.event_time is None else at - self.event_time
        self.event_time = at
        self.cadence.observe(np.array([0]), np.array([elapsed]), np.array([self.now]), np.array([ordinary]))

    def every(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.now += seconds
            self.report()

    def repeat(self) -> None:
        """The last reading comes once more, now."""
        self.cadence.hear(np.array([0]), np.array([self.now]))

    @property
    def allowed(self) -> float:
        return float(self.cadence.allowed_seconds(1, self.now)[0])

    @property
    def is_overdue(self) -> bool:
        return float(self.cadence.quiet_seconds(1, self.now)[0]) > self.allowed


def test_nothing_is_due_before_a_cadence_is_known() -> None:
    """Thirty intervals are the least."""
    series = Series()
    series.every(60.0, LEARNED_GAPS)
    assert series.allowed == np.inf
    series.every(60.0, 1)
    assert series.allowed == pytest.approx(REGULAR_LATE * 60.0)
    assert series.cadence.usual_seconds(0) == pytest.approx(60.0)


def test_a_series_that_never_reported_is_never_due() -> None:
    """Its slot is free, or its first reading has been refused."""
    assert Cadence(3).allowed_seconds(3, START).tolist() == [np.inf] * 3


@pytest.mark.parametrize("interval", [0.1, 5.0, 60.0, 3600.0])
def test_a_regular_series_is_overdue_after_a_few_of_its_intervals(interval: float) -> None:
    """But never within a pause that networks make."""
    series = Series()
    series.every(interval, 50)
    series.now += max(4.9 * interval, LEAST_SILENCE_SECONDS - 0.1)
    assert not series.is_overdue
    series.now += max(0.2 * interval, 0.2)
    assert series.is_overdue


def test_the_longest_interval_counts_for_a_series_that_reports_on_change() -> None:
    """Three nights of eight hours: a fourth is nothing, a whole day is too much."""
    rng = np.random.default_rng(4)
    series = Series()
    for _ in range(4):
        series.every(1.0, 1)
        while (series.now - START) % DAY < 16 * 3600:
            series.now += float(rng.exponential(900)) + 1
            series.report()
        series.now += 8 * 3600
        assert not series.is_overdue
    series.report()
    series.now += DAY - 1
    assert not series.is_overdue
    series.now += 12 * 3600
    assert series.is_overdue


def test_an_irregular_series_is_never_due_before_two_nights() -> None:
    """How long it may be quiet is not known yet."""
    rng = np.random.default_rng(4)
    series = Series()
    while series.now < START + IRREGULAR_HISTORY_SECONDS - 2000:
        series.now += float(rng.exponential(300)) + 1
        series.report()
        assert series.allowed == np.inf
    series.now = START + IRREGULAR_HISTORY_SECONDS + 3600
    assert np.isfinite(series.allowed)


def test_arrivals_that_are_random_do_not_pass_for_a_clock() -> None:
    """Of three hundred series of random intervals hardly one is ever taken for regular."""
    rng = np.random.default_rng(11)
    n = 300
    cadence = Cadence(n)
    now = START
    ever = np.zeros(n, np.bool_)
    due = START + rng.exponential(60.0, n)
    for _ in range(60 * 150):
        slot = int(due.argmin())
        now = float(due[slot])
        cadence.observe(np.array([slot]), np.array([np.nan]), np.array([now]), np.array([True]))
        due[slot] += rng.exponential(60.0)
        ever[slot] |= bool(np.isfinite(cadence.allowed_seconds(n, now)[slot]))
    assert ever.mean() < 0.05


def test_a_device_that_uploads_an_hour_at_once_is_due_in_an_hour() -> None:
    """Sixty readings of a minute each arrive together: that they follow by a minute says nothing of the next."""
    series = Series()
    for hour in range(60):
        series.now = START + 3600.0 * (hour + 1)
        for minute in range(60):
            series.report(event_time=series.now - 3600.0 + 60.0 * minute)
        assert series.allowed >= 3600
    assert series.allowed == pytest.approx(REGULAR_LATE * 3600)


def test_a_backlog_does_not_make_a_series_look_fast() -> None:
    """A hundred readings of ten minutes each arrive in one second: nothing is due within the next one."""
    series = Series()
    for k in range(100):
        series.now = START + 0.01 * k
        series.report(event_time=START - 600.0 * (100 - k))
    assert series.allowed == np.inf
    for k in range(60):
        series.now = START + 600.0 * k
        series.report()
    assert series.allowed == pytest.approx(REGULAR_LATE * 600.0)


def test_a_device_whose_clock_jumps_ahead_is_as_usual_as_before() -> None:
    """A year that only its own clock has seen is no interval."""
    series = Series()
    series.every(60.0, 50)
    allowed = series.allowed
    series.now += 60
    series.report(event_time=series.now + 365 * DAY)
    assert series.allowed == allowed


@pytest.mark.parametrize("after", [0.3, 10.0, 55.0])
def test_a_gateway_that_sends_each_reading_twice_is_due_as_any(after: float) -> None:
    """However late in the interval the second one comes: from what was heard last on, but for what is in between."""
    series = Series()
    for _ in range(50):
        series.now += after
        series.repeat()
        series.now += 60.0 - after
        series.report()
    longest = max(after, 60.0 - after)
    assert REGULAR_LATE * longest <= series.allowed <= REGULAR_LATE * 60.0


def test_several_messages_of_one_second_are_a_cadence_too() -> None:
    """Times without fractions, as Tasmota sends them: the first of a second counts, the others are duplicates."""
    series = Series()
    for tick in range(400):
        series.now = START + 1 + 0.3 * tick
        if series.event_time is None or int(series.now) > series.event_time:
            series.report(event_time=float(int(series.now)))
        else:
            series.repeat()
    assert series.allowed == LEAST_SILENCE_SECONDS
    series.now += LEAST_SILENCE_SECONDS + 1
    assert series.is_overdue


def test_a_day_of_repetitions_is_no_interval() -> None:
    """Somebody was there all the time."""
    series = Series()
    series.every(60.0, 50)
    allowed = series.allowed
    for _ in range(1440):
        series.now += 60.0
        series.repeat()
    series.every(60.0, 1)
    assert series.allowed == allowed


def test_an_interval_in_which_the_daemon_did_not_hear_teaches_nothing() -> None:
    """Its own absence is not the sensor's."""
    series = Series()
    series.every(60.0, 50)
    usual, allowed = series.cadence.usual_seconds(0), series.allowed
    series.now += DAY
    series.cadence.listening_since = series.now - 10
    assert not series.is_overdue
    series.report()
    assert (series.cadence.usual_seconds(0), series.allowed) == (usual, allowed)


def test_silence_is_counted_from_the_moment_of_listening() -> None:
    """A series that stopped while the daemon was away is missed as soon as it is due."""
    series = Series()
    series.every(60.0, 50)
    series.now += DAY
    series.cadence.listening_since = series.now
    series.now += 4 * 60
    assert not series.is_overdue
    series.now += 2 * 60
    assert series.is_overdue


def test_a_silence_that_raised_an_alarm_does_not_become_usual() -> None:
    """A sensor that dies again is missed as soon as the first time."""
    series = Series()
    series.every(60.0, PROVEN_GAPS)
    allowed = series.allowed
    series.now += DAY
    series.report(ordinary=False)
    assert series.allowed == allowed


def test_an_evicted_series_has_no_cadence() -> None:
    """The next one in its slot learns its own."""
    series = Series()
    series.every(60.0, 50)
    series.cadence.evict(np.array([0]))
    assert series.allowed == np.inf
    assert series.cadence.arrival(1).tolist() == [0.0]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e9, 1e9) | st.just(np.nan), st.booleans()), max_size=80))
@settings(deadline=None)
def test_whatever_the_clocks_do_what_is_allowed_is_a_positive_time(steps: list[tuple[float, float, bool]]) -> None:
    """Event times may jump back and arrivals coincide."""
    cadence = Cadence(1)
    now = START
    for wait, elapsed, ordinary in steps:
        now += wait
        cadence.observe(np.array([0]), np.array([elapsed]), np.array([now]), np.array([ordinary]))
    assert np.isfinite(cadence.rows).all()
    assert cadence.allowed_seconds(1, now)[0] >= LEAST_SILENCE_SECONDS
    assert cadence.quiet_seconds(1, now)[0] <= now


def test_a_wall_clock_that_is_set_back_makes_no_interval_and_no_silence() -> None:
    """Negative times teach nothing; silence is counted anew from the next reading."""
    series = Series()
    series.every(60.0, 50)
    usual = series.cadence.usual_seconds(0)
    series.now -= 7200
    series.report(event_time=series.event_time)
    assert not series.is_overdue
    assert series.cadence.usual_seconds(0) == pytest.approx(usual)
    series.every(60.0, 1)
    assert series.cadence.usual_seconds(0) == pytest.approx(usual)


@pytest.mark.parametrize("back_seconds", [3600.0, DAY, 365 * DAY])
def test_a_series_that_stops_as_the_clock_is_set_back_is_missed_as_soon_as_any(back_seconds: float) -> None:
    """Its last arrival lies in the future; silence is counted from the moment at which the clock was set."""
    series = Series()
    series.every(60.0, 50)
    series.now -= back_seconds
    series.cadence.listening_since = series.now
    series.now += 4 * 60
    assert not series.is_overdue
    series.now += 2 * 60
    assert series.cadence.absent_seconds(1, series.now).tolist() == [6 * 60]
    assert series.is_overdue
