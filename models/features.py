"""Per-series streaming inputs of the forecaster: running location and scale, elapsed time, clock, seasonal memory.

A forecast is made when a reading's *time* is known and its value has not been looked at: `look` gives the inputs for
that moment, `learn` takes the value in afterwards. Training (`pretrain`) and serving (`step`) call the same two
functions, so that the network meets in service exactly what it met in training.

The network works in y = asinh((x - location) / scale): linear near the location, logarithmic far from it, so that a
value of 1e30 is large and not infinite. Beyond 1e30 the float32 columns would overflow: callers keep such numbers out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bounds import within

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Slots = NDArray[np.intp]

INPUTS = (
    "previous",  # the previous reading, in y
    "difference",  # the last difference, in its own scale
    "roughness_now",  # log of the recent mean difference over the scale
    "roughness",  # log of the long-run mean difference over the scale
    "elapsed",  # log of the seconds since the previous reading, standardised by eye
    "elapsed_unusual",  # the same less its running mean
    "day_sin",
    "day_cos",
    "week_sin",
    "week_cos",
    "day_value",  # what this quarter of an hour used to hold, in y
    "day_known",  # 0 never visited, towards 1 with visits
    "day_residual",  # how far the previous reading was from its own quarter of an hour
    "week_value",
    "week_known",
    "week_residual",
    "age",  # log of the number of readings
    "repeats",  # share of readings equal to the one before
)
INPUT_SIZE = len(INPUTS)

DAY_SECONDS, WEEK_SECONDS = 86_400.0, 604_800.0
DAY_BUCKETS, WEEK_BUCKETS = 96, 168  # quarters of an hour in a day, hours in a week
DAY_BUCKET_SECONDS, WEEK_BUCKET_SECONDS = DAY_SECONDS / DAY_BUCKETS, WEEK_SECONDS / WEEK_BUCKETS
DAY_RATE, WEEK_RATE = 1 / 7, 1 / 4  # the memory follows about a week of days, a month of weeks

SLOWEST_RATE = 1 / 2000  # of location and scale: measured best on the labelled recordings
ELAPSED_RATE = 1 / 500
RECENT_RATE = 1 / 20
REPEAT_RATE = 1 / 100
SETTLED, YOUNG_CLIP_SCALES = 5, 100.0  # the same for the first few readings
CLIP_SCALES = 10.0  # a deviation counts at most this many scales when it is learned
RELATIVE_FLOOR = 1e-6  # of |location|: about the resolution of a float32 sensor
ABSOLUTE_FLOOR = 1e-12
Y_LIMIT = 15.0  # asinh(1.6e6)
OLDEST = 4096  # readings: no training series is longer, so that no older age is ever shown


class Wide(enum.IntEnum):
    """Columns that need float64: an energy counter of 1e9 that moves by 0.01, an epoch time in microseconds."""

    TIME = 0  # of the last reading, epoch seconds; NaN: there was none
    VALUE = 1  # the last reading
    LOCATION = 2
    DAY_BUCKET = 3  # number of the quarter of an hour since the epoch that is being averaged
    WEEK_BUCKET = 4


class Narrow(enum.IntEnum):
    """Columns for which float32 suffices."""

    COUNT = 0  # readings learned
    SCALE = 1  # mean absolute deviation from the location
    DIFFERENCE = 2  # last reading less the one before
    STEP = 3  # mean absolute difference
    RECENT_STEP = 4  # the same over the last 20 or so
    LOG_ELAPSED = 5  # mean of log seconds between readings
    REPEATS = 6
    DAY_RESIDUAL = 7
    WEEK_RESIDUAL = 8
    DAY_SUM = 9  # deviations of the current quarter of an hour
    DAY_COUNT = 10
    WEEK_SUM = 11
    WEEK_COUNT = 12


@dataclass(slots=True)
class Statistics:
    """All running statistics, one row per slot. Allocated once: pages that no slot touches cost no memory."""

    wide: Float64  # (capacity, len(Wide))
    narrow: Float32  # (capacity, len(Narrow))
    day: Float32  # (capacity, 96) mean deviation from the location, the series' own unit
    day_visits: NDArray[np.uint8]  # (capacity, 96)
    week: Float32  # (capacity, 168)
    week_visits: NDArray[np.uint8]  # (capacity, 168)

    @classmethod
    def allocate(cls, capacity: int) -> Statistics:
        """Rows of series that have no reading yet."""
        return cls(
            wide=np.zeros((capacity, len(Wide))),
            narrow=np.zeros((capacity, len(Narrow)), np.float32),
            day=np.zeros((capacity, DAY_BUCKETS), np.float32),
            day_visits=np.zeros((capacity, DAY_BUCKETS), np.uint8),
            week=np.zeros((capacity, WEEK_BUCKETS), np.float32),
            week_visits=np.zeros((capacity, WEEK_BUCKETS), np.uint8),
        )

    def gather(self, slots: Slots) -> tuple[Float64, Float32]:
        """Copies of `wide` and `narrow`, column by column in memory."""
        return np.asfortranarray(self.wide.take(slots, axis=0)), np.asfortranarray(self.narrow.take(slots, axis=0))

    def reset(self, slots: Slots) -> None:
        """Forget these series."""
        for column in fields(self):
            getattr(self, column.name)[slots] = 0

    def begin_anew(self, slots: Slots) -> None:
        """Series are as if their last reading had been their first; those without one stay as they are."""
        slots = slots[self.narrow[slots, Narrow.COUNT] > 0]
        for values in (self.narrow, self.day, self.day_visits, self.week, self.week_visits):
            values[slots] = 0
        self.narrow[slots, Narrow.COUNT] = self.narrow[slots, Narrow.DAY_COUNT] = 1
        self.narrow[slots, Narrow.WEEK_COUNT] = 1
        self.wide[slots, Wide.LOCATION] = self.wide[slots, Wide.VALUE]


class Look(NamedTuple):
    """What is known of each row of a wave before its value is looked at; arrays `(n,)` unless said."""

    inputs: Float32
    """(n, INPUT_SIZE), in the order of `INPUTS`"""
    location: Float64
    scale: Float64
    """> 0, the series' own unit"""
    previous: Float32
    """the previous reading in y"""
    step: Float32
    """the usual difference between readings in y, > 0: the natural unit of the forecast's scale"""
    elapsed: Float64
    """seconds since the previous reading; NaN for the first"""


def to_y(value: Float64, location: Float64, scale: Float64) -> Float32:
    """The network's coordinate of a value, within +-Y_LIMIT."""
    return within(np.arcsinh((value - location) / scale), -Y_LIMIT, Y_LIMIT).astype(np.float32)


def from_y(y: NDArray[np.floating], location: Float64, scale: Float64) -> Float64:
    """The value at a coordinate of the network, in the series' own unit."""
    return location + scale * np.sinh(within(y.astype(np.float64), -Y_LIMIT, Y_LIMIT))


def _scale(narrow: Float32, location: Float64) -> Float64:
    """The scale with its floor: a constant series still has one."""
    floor = RELATIVE_FLOOR * np.abs(location) + ABSOLUTE_FLOOR
    return np.maximum(narrow[:, Narrow.SCALE], floor)


def look(statistics: Statistics, slots: Slots, time: Float64) -> Look:
    """The inputs for readings of `slots` (unique) that have come at `time`."""
    wide, narrow = statistics.gather(slots)
    count = narrow[:, Narrow.COUNT]
    location = wide[:, Wide.LOCATION]
    scale = _scale(narrow, location)
    previous = to_y(wide[:, Wide.VALUE], location, scale)
    step_floor = 1e-3 * scale
    step = np.maximum(narrow[:, Narrow.STEP], step_floor)
    recent = np.maximum(narrow[:, Narrow.RECENT_STEP], step_floor)

    elapsed = np.where(count > 0, time - wide[:, Wide.TIME], np.nan)
    log_elapsed = np.log(within(np.where(count > 0, elapsed, 1.0), 1e-3, 1e7))

    day_phase = time * (2 * np.pi / DAY_SECONDS)
    week_phase = time * (2 * np.pi / WEEK_SECONDS)
    day_row, week_row = _bucket(time, DAY_BUCKET_SECONDS, DAY_BUCKETS), _bucket(time, WEEK_BUCKET_SECONDS, WEEK_BUCKETS)
    day_visits = statistics.day_visits[slots, day_row]
    week_visits = statistics.week_visits[slots, week_row]

    inputs = np.empty((len(slots), INPUT_SIZE), np.float32)
    inputs[:, 0] = previous
    inputs[:, 1] = np.arcsinh(narrow[:, Narrow.DIFFERENCE] / step)
    inputs[:, 2] = np.log(recent / scale)
    inputs[:, 3] = np.log(step / scale)
    inputs[:, 4] = (log_elapsed - 4.0) / 3.0
    inputs[:, 5] = np.where(count > 1, log_elapsed - narrow[:, Narrow.LOG_ELAPSED], 0.0)
    inputs[:, 6] = np.sin(day_phase)
    inputs[:, 7] = np.cos(day_phase)
    inputs[:, 8] = np.sin(week_phase)
    inputs[:, 9] = np.cos(week_phase)
    inputs[:, 10] = np.arcsinh(statistics.day[slots, day_row] / scale)
    inputs[:, 11] = day_visits / (1.0 + day_visits)
    inputs[:, 12] = narrow[:, Narrow.DAY_RESIDUAL]
    inputs[:, 13] = np.arcsinh(statistics.week[slots, week_row] / scale)
    inputs[:, 14] = week_visits / (1.0 + week_visits)
    inputs[:, 15] = narrow[:, Narrow.WEEK_RESIDUAL]
    inputs[:, 16] = np.log1p(np.minimum(count, OLDEST)) / 8.0
    inputs[:, 17] = narrow[:, Narrow.REPEATS]
    inputs = within(inputs, -Y_LIMIT, Y_LIMIT)
    slope = 1.0 / np.cosh(previous)  # of asinh at the previous reading
    step_y = within(step / scale * slope, 1e-4, 10.0).astype(np.float32)
    return Look(inputs, location, scale, previous, step_y, elapsed)


def learn(statistics: Statistics, slots: Slots, time: Float64, value: Float64, normal: NDArray[np.bool_]) -> None:
    """Takes readings in, each within 1e30. One that is not `normal` becomes the previous, but teaches nothing lasting.

    The previous reading, the last difference, the recent step, the cadence and the residuals follow every reading;
    location, scale, step, seasons, repeats and count follow normal ones. A series' first reading always teaches, and so
    does the first change of a series that has held one value: without it there is no scale to judge by.
    """
    wide, narrow = statistics.gather(slots)
    first = narrow[:, Narrow.COUNT] == 0
    normal = normal | first
    count = narrow[:, Narrow.COUNT] + normal
    rate = np.maximum(1.0 / np.maximum(count, 1.0), SLOWEST_RATE)
    slow = np.where(normal, rate, 0.0)

    location = np.where(first, value, wide[:, Wide.LOCATION])
    scale = _scale(narrow, location)
    # The first few deviations set the scale; from then on one wild value may move it only so far.
    clip = np.where(count < SETTLED, YOUNG_CLIP_SCALES, CLIP_SCALES)
    limit = clip * scale
    deviation = within(value - location, -limit, limit)
    difference = np.where(first, 0.0, value - wide[:, Wide.VALUE])
    step = narrow[:, Narrow.STEP]
    step_limit = clip * np.maximum(step, 1e-3 * scale)
    size = np.minimum(np.abs(difference), step_limit)

    # A series that has only ever held one value has no scale: its first change sets it, whatever an alarm thinks of it,
    # up to the size of the value, lest a sensor that holds 20 and once says 1e6 is deaf from then on.
    awakes = ~first & (narrow[:, Narrow.SCALE] <= 0) & (difference != 0)
    most = np.where(location[awakes] != 0, np.abs(location[awakes]), np.inf)
    narrow[awakes, Narrow.SCALE] = 0.5 * np.minimum(np.abs(difference[awakes]), most)
    narrow[awakes, Narrow.STEP] = narrow[awakes, Narrow.SCALE]

    elapsed = np.where(first, 0.0, time - wide[:, Wide.TIME])
    log_elapsed = np.log(within(elapsed, 1e-3, 1e7))
    mean_log = narrow[:, Narrow.LOG_ELAPSED]
    elapsed_rate = np.where(first | (elapsed < 0), 0.0, np.maximum(1.0 / np.maximum(count - 1, 1.0), ELAPSED_RATE))

    _learn_season(statistics, slots, time, deviation, normal, wide, narrow, scale)
    wide[:, Wide.TIME] = time
    wide[:, Wide.VALUE] = value
    wide[:, Wide.LOCATION] = location + slow * deviation
    narrow[:, Narrow.SCALE] += np.where(awakes, 0.0, slow) * (np.abs(deviation) - narrow[:, Narrow.SCALE])
    narrow[:, Narrow.STEP] += np.where(first | awakes, 0.0, slow) * (size - step)
    narrow[:, Narrow.RECENT_STEP] += np.maximum(rate, RECENT_RATE) * (size - narrow[:, Narrow.RECENT_STEP])
    narrow[:, Narrow.DIFFERENCE] = difference
    narrow[:, Narrow.LOG_ELAPSED] = mean_log + elapsed_rate * (log_elapsed - mean_log)
    narrow[:, Narrow.REPEATS] += np.where(first | ~normal, 0.0, np.maximum(rate, REPEAT_RATE)) * (
        (difference == 0) - narrow[:, Narrow.REPEATS]
    )
    narrow[:, Narrow.COUNT] = count
    statistics.wide[slots], statistics.narrow[slots] = wide, narrow


def rewind(statistics: Statistics, slots: Slots, time: Float64, value: Float64) -> None:
    """These series stand where this was their last reading; what lasts is what it is now."""
    statistics.wide[slots, Wide.TIME] = time
    statistics.wide[slots, Wide.VALUE] = value
    statistics.narrow[slots, Narrow.DIFFERENCE] = 0
    statistics.narrow[slots, Narrow.RECENT_STEP] = statistics.narrow[slots, Narrow.STEP]


def _bucket(time: Float64, seconds: float, buckets: int) -> NDArray[np.intp]:
    return np.floor(time / seconds).astype(np.int64) % buckets


def _learn_season(
    statistics: Statistics,
    slots: Slots,
    time: Float64,
    deviation: Float64,
    normal: NDArray[np.bool_],
    wide: Float64,
    narrow: Float32,
    scale: Float64,
) -> None:
    """Averages the current bucket of day and week; folds it into the memory when the clock has left it."""
    away, taught = np.arcsinh(deviation / scale), np.where(normal, deviation, 0.0)
    for values, visits, seconds, buckets, rate, bucket_at, sum_at, count_at, residual_at in (
        (
            statistics.day, statistics.day_visits, DAY_BUCKET_SECONDS, DAY_BUCKETS, DAY_RATE,
            Wide.DAY_BUCKET, Narrow.DAY_SUM, Narrow.DAY_COUNT, Narrow.DAY_RESIDUAL,
        ),
        (
            statistics.week, statistics.week_visits, WEEK_BUCKET_SECONDS, WEEK_BUCKETS, WEEK_RATE,
            Wide.WEEK_BUCKET, Narrow.WEEK_SUM, Narrow.WEEK_COUNT, Narrow.WEEK_RESIDUAL,
        ),
    ):  # fmt: skip
        number = np.floor(time / seconds)
        left = np.flatnonzero(number != wide[:, bucket_at])
        full = left[narrow[left, count_at] > 0]
        if len(full):
            at = (slots[full], wide[full, bucket_at].astype(np.int64) % buckets)
            seen = visits[at]
            mean = narrow[full, sum_at] / narrow[full, count_at]
            values[at] += np.maximum(1.0 / (seen + 1.0), rate) * (mean - values[at])
            visits[at] = np.minimum(seen, 254) + 1
        narrow[left, sum_at] = 0
        narrow[left, count_at] = 0
        wide[:, bucket_at] = number
        narrow[:, sum_at] += taught
        narrow[:, count_at] += normal
        row = number.astype(np.int64) % buckets
        known = visits[slots, row] > 0
        usual = np.arcsinh(values[slots, row] / scale)
        residual = within(away - usual, -Y_LIMIT, Y_LIMIT)
        narrow[:, residual_at] = np.where(known, residual, 0.0)
