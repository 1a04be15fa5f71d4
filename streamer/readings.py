"""The vocabulary of the stream: what passes from part to part, frozen, as arrays.

A reading is one value of one series at one event time. Nothing here holds one Python object per reading.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

LARGEST_VALUE = 1e30  # a number beyond is no measurement, and float32 statistics could not hold its square


class Message(NamedTuple):
    """One PUBLISH as it came from the broker, undecoded."""

    topic: str
    payload: bytes
    qos: int
    mid: int
    """packet identifier, 0 at QoS 0"""
    retain: bool
    """the broker had kept it: an old value, not a reading"""
    arrival: float
    """epoch seconds of the daemon's clock"""
    connection: int = 0
    """number of the connection that delivered it: an acknowledgement goes out on no other"""
    dup: bool = False
    """the broker has sent it before and saw no acknowledgement"""


class Flag(enum.IntFlag):
    """Bits of `Batch.flags`."""

    ARRIVAL_TIME = 1
    """the payload had no time: `time` is the arrival"""


class Unscored(enum.IntEnum):
    """Why a reading has no score; the label of `streamer_readings_unscored_total`."""

    SCORED = 0
    WARMING = 1
    GAP = 2
    DUPLICATE = 3
    LATE = 4
    PAUSED = 5


class Forecaster(enum.IntEnum):
    """Who forecasts a series; the label of `streamer_forecaster_in_charge`."""

    LSTM = 0
    BASELINE = 1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Readings in the order in which they came; all arrays `(n,)`."""

    slot: Int32
    time: Float64
    """event time, epoch seconds"""
    value: Float64
    """finite, in the series' own unit"""
    flags: UInt8

    def __len__(self) -> int:
        return len(self.slot)

    def __getitem__(self, rows: Int32 | slice | NDArray[np.intp]) -> Batch:
        return Batch(self.slot[rows], self.time[rows], self.value[rows], self.flags[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The verdicts on a batch, row by row; all arrays `(n,)`."""

    score: Float64
    """calibrated, 1 = the rarity that the alarm budget allows; NaN where there is none"""
    unscored: UInt8
    """`Unscored`: 0 where there is a score, else why not"""
    expected: Float64
    """median of the forecast, in the series' own unit; NaN where there was no forecast"""
    lower: Float64
    upper: Float64
    """the forecast's 99 % band"""
    view: UInt8
    """which view gave the score: an index into `models.calibration.NAMES`"""

    def __len__(self) -> int:
        return len(self.score)

    def put(self, rows: NDArray[np.intp], part: Scores) -> None:
        """Takes over the verdicts on some rows of the batch."""
        self.score[rows], self.unscored[rows], self.view[rows] = part.score, part.unscored, part.view
        self.expected[rows], self.lower[rows], self.upper[rows] = part.expected, part.lower, part.upper


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """The readings of a batch that were stepped: not late, no duplicate, no slot twice. Arrays `(n,)` or as said."""

    rows: NDArray[np.intp]
    """their row numbers in the batch"""
    slots: NDArray[np.intp]
    time: Float64
    value: Float64
    elapsed: Float64
    """seconds of event time since the series' previous reading; NaN for its first"""
    views: Float32
    """(n, views) in the order of `models.calibration.VIEWS`"""
    levels: Float64
    """(n, views): the score of each view alone"""
    distances: Float64
    """(n, views): how far from the old normal, on the same scale; it is what an open alarm is held by"""
    strictness: Float64
    """-log10 p* of the series: what a score of 1 means"""
    granted: Float32
    """decades of the score that are no rarity"""
    usual: Float64
    """what this time of day usually holds, in the series' own unit: what the views `level` and `drift` judge by"""
    interval: Float64
    """seconds of event time between the series' readings, usually"""
    missed: Float32
    """(n, 5): how far off each forecast was, in the order of `baseline.Column`"""


@dataclass(frozen=True, slots=True)
class Channel:
    """What one series contributes to an incident: its worst reading, and what would have been normal then."""

    key: str
    share: float
    """of the rarity, -log10 p, of all channels that are named; they add up to 1"""
    score: float
    view: str
    value: float
    expected: float
    lower: float
    upper: float
    usual: float | None
    """the usual level of the views that judge by it, whose forecast may have got used to the fault; else None"""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One incident. The same id from opening to closing; a change makes a new value."""

    id: str
    """deterministic: series key and opening time"""
    kind: str
    """value | silent"""
    key: str
    """the series that opened it"""
    opened_at: float
    """event time, epoch seconds"""
    updated_at: float
    closed_at: float | None = None
    """None while it is open"""
    reason: str | None = None
    """why it was closed, where the series has not come back: evicted | lost | paused | marked normal"""
    value: float | None = None
    """the reading of the series `key` that opened it, later its worst one; None for a silent series"""
    expected: float | None = None
    lower: float | None = None
    """the 99 % band of the forecast"""
    upper: float | None = None
    usual: float | None = None
    """as in `Channel`"""
    score: float | None = None
    """of that reading, the highest of the series"""
    direction: str | None = None
    """above | below what is usual, where that is known, else what was expected"""
    view: str | None = None
    """which view of the detector gave the score"""
    readings: int = 0
    """of its members, since it opened"""
    channels: tuple[Channel, ...] = ()
    """the series of the device that contribute, the largest share first; empty for `silent`"""
    members: tuple[str, ...] = ()
    """keys of the series that hold a `value` alarm open now"""
    detail: dict[str, float] = field(default_factory=dict)
    """figures of the kind: for `silent` the usual and the present interval in seconds"""
