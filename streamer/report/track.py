"""One series of any length in a bounded number of points: twice as many readings a point when there are too many.

A point has the first time of its readings, their lowest, highest and last value, the last forecast, the edges of all
bands and the highest score: exactly, however often it was condensed. So no peak is lost, only when exactly it was.
"""

from __future__ import annotations

import enum
import math

import numpy as np
from numpy.typing import NDArray

from streamer.readings import Float64

MOST_POINTS = 4096


class Column(enum.IntEnum):
    """Rows of `Track.points`."""

    TIME = 0
    LOW = 1
    HIGH = 2
    LAST = 3
    EXPECTED = 4
    LOWER = 5
    UPPER = 6
    SCORE = 7


class Track:
    """Grows by pieces; `span` readings are a point, the last one may have fewer."""

    def __init__(self) -> None:
        self.span = 1
        self.readings = 0
        self.peak = math.nan
        """highest score; NaN: none"""
        self.peak_at = math.nan
        """event time of the reading with that score, the first of several"""
        self._points = np.empty((len(Column), 0))

    @property
    def points(self) -> Float64:
        """(columns, n); NaN where nothing was known"""
        return self._points

    def add(self, readings: Float64, most: int) -> None:
        """(columns, m): readings in order of time, each with its value as low, high and last."""
        count = readings.shape[1]
        score = readings[Column.SCORE]
        if not np.isnan(score).all():
            at = int(np.nanargmax(score))
            if not score[at] <= self.peak:  # NaN is lower than all
                self.peak, self.peak_at = float(score[at]), float(readings[Column.TIME, at])
        room = -self.readings % self.span  # in the last point
        self.readings += count
        open_points = 1 if room else 0
        starts = np.arange(room, count, self.span) + open_points
        if open_points:
            starts = np.concatenate(([0], starts))
        whole, last = np.split(self._points, [self._points.shape[1] - open_points], axis=1)
        self._points = np.hstack((whole, merged(np.hstack((last, readings)), starts)))
        self.condense(most)

    def condense(self, most: int) -> None:
        """To so many points at most."""
        while self._points.shape[1] > most:
            self._points = merged(self._points, np.arange(0, self._points.shape[1], 2))
            self.span *= 2


def merged(points: Float64, starts: NDArray[np.intp]) -> Float64:
    """(columns, len(starts)): each from its start to before the next."""
    n = points.shape[1]
    result = np.empty((len(Column), len(starts)))
    result[Column.TIME] = points[Column.TIME, starts]
    for column in (Column.LOW, Column.LOWER):
        result[column] = np.fmin.reduceat(points[column], starts)
    for column in (Column.HIGH, Column.UPPER, Column.SCORE):
        result[column] = np.fmax.reduceat(points[column], starts)
    result[Column.LAST] = points[Column.LAST, np.append(starts[1:], n) - 1]
    known = np.where(np.isnan(points[Column.EXPECTED]), -1, np.arange(n))
    latest = np.maximum.reduceat(known, starts)
    result[Column.EXPECTED] = np.where(latest >= starts, points[Column.EXPECTED, latest], math.nan)
    return result
