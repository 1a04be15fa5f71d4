"""Several views of a reading, each calibrated per series to a tail probability, joined by maximum to one score.

A view is a number >= 0 that grows with oddness. Per series and view two things are learned while it streams: the level
that one reading in ten exceeds, and the mean excess above it. Beyond that level the tail is taken as exponential (peaks
over threshold, Pickands 1975; Siffer et al. 2017 for the streaming use). The views are logarithms of an error, so that
an exponential tail in them is a power law in the error itself. A new series starts from a prior measured on synthetic
ones.

score = log p / log p*, where p* is the tail probability that the operator's alarm budget allows at the series' cadence.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Slots = NDArray[np.intp]

VIEWS = (
    "surprise",  # -log10 of the forecast's tail probability: unlikely, by the forecast's own width
    "error",  # size of the forecast error in the series' global scale: large, however unsure the forecast was
    "level",  # distance from the usual level at this time of day: does not get used to a fault
)
SURPRISE, ERROR, LEVEL = range(len(VIEWS))

TAIL_SHARE = 0.1
PRIOR_THRESHOLD = np.array([1.0, 1.2, 1.5], np.float32)
PRIOR_EXCESS = np.array([0.45, 0.30, 0.25], np.float32)  # both: 90 % quantile, mean excess; held-out synthetic series
LEAST_EXCESS = np.array([0.15, 0.05, 0.05], np.float32)  # by eye: an all but deterministic series has a tail too
PRIOR_WEIGHT = 10.0  # the prior counts as so many exceedances
SLOWEST_THRESHOLD_RATE = 0.02
SLOWEST_EXCESS_RATE = 1 / 200
PEAK_RATE = 1 / 20
MOST_EXCESSES = 8.0  # an exceedance counts at most so many mean excesses when it is learned
MOST_PEAK_EXCESSES = 20.0
YOUNG = 20.0  # readings: below about this age the tail is widened
MONTH_SECONDS = 30.44 * 86_400
STRICTNESS_RANGE = (1.5, 9.0)  # -log10 p*: a reading a day and a budget of one, up to a reading a millisecond


class Column(enum.IntEnum):
    """Columns of the state beside the views' own."""

    COUNT = 0
    THRESHOLD = 1  # one a view
    EXCESS = 1 + len(VIEWS)  # one a view


WIDTH = 1 + 2 * len(VIEWS)


@dataclass(slots=True)
class Calibration:
    """What is known of each series' tails, one row a slot; a row of zeros is a new series."""

    rows: Float32

    @classmethod
    def allocate(cls, capacity: int) -> Calibration:
        return cls(np.zeros((capacity, WIDTH), np.float32))

    def reset(self, slots: Slots) -> None:
        """Forget these series."""
        self.rows[slots] = 0

    def _gather(self, slots: Slots) -> tuple[Float32, Float32, Float32]:
        rows = self.rows[slots]
        new = rows[:, Column.COUNT] == 0
        rows[new, Column.THRESHOLD : Column.EXCESS] = PRIOR_THRESHOLD
        rows[new, Column.EXCESS :] = PRIOR_EXCESS
        return rows, rows[:, Column.THRESHOLD : Column.EXCESS], rows[:, Column.EXCESS :]

    def rarity(self, slots: Slots, views: Float32) -> Float32:
        """-log10 of the tail probability of each view `(n, len(VIEWS))`, by what the series has shown so far."""
        rows, threshold, excess = self._gather(slots)
        young = 1.0 + YOUNG / (rows[:, Column.COUNT, None] + 1.0)
        at_threshold = -np.log10(TAIL_SHARE)
        beyond = at_threshold + (views - threshold) / (np.maximum(excess, LEAST_EXCESS) * young * np.log(10.0))
        result: Float32 = np.where(views > threshold, beyond, at_threshold * views / threshold).astype(np.float32)
        return result

    def learn(self, slots: Slots, views: Float32) -> None:
        """Takes the views of normal readings in."""
        if not len(slots):
            return
        rows, threshold, excess = self._gather(slots)
        count = rows[:, Column.COUNT, None]
        over = views > threshold
        width = np.maximum(excess, LEAST_EXCESS)
        rate = np.clip(10.0 / (count + 10.0), SLOWEST_THRESHOLD_RATE, 1.0)
        size = np.clip(views - threshold, 0.0, MOST_EXCESSES * width)
        excess_rate = np.maximum(1.0 / (TAIL_SHARE * count + PRIOR_WEIGHT), SLOWEST_EXCESS_RATE)
        rows[:, Column.EXCESS :] = excess + over * excess_rate * (size - excess)
        rows[:, Column.THRESHOLD : Column.EXCESS] = np.maximum(threshold + rate * width * (over - TAIL_SHARE), 0.05)
        rows[:, Column.COUNT] += 1
        self.rows[slots] = rows

    def learn_peak(self, slot: int, views: Float32) -> None:
        """Takes in the highest views `(len(VIEWS),)` of an incident that ended by itself, as one exceedance each.

        A burst that belongs to the series alarms the first few times and then no more: the budget holds.
        """
        slots = np.array([slot])
        rows, threshold, excess = self._gather(slots)
        width = np.maximum(excess, LEAST_EXCESS)
        size = np.clip(views - threshold, 0.0, MOST_PEAK_EXCESSES * width)
        rows[:, Column.EXCESS :] = excess + (size > 0) * PEAK_RATE * (size - excess)
        rows[:, Column.COUNT] += 1
        self.rows[slots] = rows


def strictness(budget_per_month: float, interval_seconds: Float64) -> Float64:
    """-log10 p* of a series that reports every `interval_seconds`: p* = budget / readings a month / number of views."""
    p = budget_per_month * interval_seconds / MONTH_SECONDS / len(VIEWS)
    return np.clip(-np.log10(np.maximum(p, 1e-30)), *STRICTNESS_RANGE)


def joint_score(scores: Float64, strict: Float64) -> float:
    """One score of a device from those of its series at one time `(k,)`, NaN where absent: the rarest, for k looks.

    NaN if none has a score.
    """
    known = ~np.isnan(scores)
    if not known.any():
        return float("nan")
    rarity = np.maximum(scores[known] * strict[known] - np.log10(known.sum()), 0.0)
    return float((rarity / strict[known]).max())
