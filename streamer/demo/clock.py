"""The plant's time: it starts in the past, runs faster than the wall, and stands still when the plant does."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

SPEED = 300.0  # seconds of the plant in one of the wall: a minute shows five hours, a series reports 30 times a second
STEP_SECONDS = 0.04  # of the wall: how often the plant reports and tells its time
DAYS_AGO = 30  # far enough that the plant's present is nobody's future
OPENING_HOUR = 8  # a first minute is one working day, in which rooms stay in use


def first_moment(now: float) -> float:
    """When the plant's time starts, epoch seconds: in the morning, a month before `now`."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=OPENING_HOUR, minute=0, second=0, microsecond=0)
    return (day - timedelta(days=DAYS_AGO)).timestamp()


class PlantClock:
    """A `streamer.clock.Clock` whose `now` follows the plant's own word, and whose timers are the wall's.

    Only what the data says about time runs fast: cadence, silence, staleness. Reconnection, sweeps and deadlines are
    about this machine and take as long as ever. Between two words of the plant the clock goes on by itself for a step
    at most, so that a machine that is too busy for the plant does not make every sensor look silent.
    """

    def __init__(self, start: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`start` in epoch seconds."""
        self._monotonic = monotonic
        self._word = (start, monotonic())
        self._latest = start

    def hear(self, moment: float) -> None:
        """Takes the plant's word for the time, epoch seconds; any one thread."""
        self._word = (moment, self._monotonic())

    def now(self) -> float:
        moment, heard_at = self._word
        since = min(self._monotonic() - heard_at, STEP_SECONDS)
        self._latest = max(self._latest, moment + since * SPEED)
        return self._latest

    def monotonic(self) -> float:
        return self._monotonic()
