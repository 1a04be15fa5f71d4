"""A series in a bounded number of points, against plain numpy on all of its readings."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamer.readings import Float64
from streamer.report.track import Column, Track


def readings(n: int, seed: int) -> Float64:
    """(columns, n): a fifth without a forecast, as many without a score."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(len(Column), n))
    made[Column.TIME] = np.arange(n)
    made[Column.LOW] = made[Column.HIGH] = made[Column.LAST]
    made[Column.EXPECTED : Column.SCORE, rng.random(n) < 0.2] = math.nan
    made[Column.SCORE] = np.abs(made[Column.SCORE])
    made[Column.SCORE, rng.random(n) < 0.2] = math.nan
    return made


def last_known(values: Float64) -> float:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else math.nan


@given(
    pieces=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    limits=st.lists(st.integers(2, 40), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_point_says_what_its_readings_were(pieces: list[int], limits: list[int], seed: int) -> None:
    """However the readings came, and while the limit falls: extremes, the last, the highest score, exactly."""
    whole = readings(sum(pieces), seed)
    limits = sorted(limits, reverse=True)
    track, at = Track(), 0
    for k, piece in enumerate(pieces):
        most = limits[k * len(limits) // len(pieces)]
        track.add(whole[:, at : at + piece], most)
        at += piece
        assert track.points.shape[1] <= most
    n, points = whole.shape[1], track.points
    assert track.readings == n
    assert points.shape[1] == math.ceil(n / track.span)
    assert track.span == 1 or points.shape[1] * 2 >= min(limits) - 1  # no coarser than it must be
    for k in range(points.shape[1]):
        part = whole[:, k * track.span : (k + 1) * track.span]
        wanted = {
            Column.TIME: part[Column.TIME, 0],
            Column.LOW: part[Column.LAST].min(),
            Column.HIGH: part[Column.LAST].max(),
            Column.LAST: part[Column.LAST, -1],
            Column.EXPECTED: last_known(part[Column.EXPECTED]),
            Column.LOWER: np.fmin.reduce(part[Column.LOWER]),
            Column.UPPER: np.fmax.reduce(part[Column.UPPER]),
            Column.SCORE: np.fmax.reduce(part[Column.SCORE]),
        }
        for column, value in wanted.items():
            np.testing.assert_equal(points[column, k], value, err_msg=column.name)
    score = whole[Column.SCORE]
    if np.isnan(score).all():
        assert math.isnan(track.peak)
    else:
        assert track.peak == np.nanmax(score)
        assert track.peak_at == np.nanargmax(score)


def test_what_is_few_stays_as_it_was() -> None:
    """A point a reading, bit for bit."""
    whole = readings(100, 1)
    track = Track()
    for at in range(0, 100, 7):
        track.add(whole[:, at : at + 7], 100)
    assert track.span == 1
    np.testing.assert_array_equal(track.points, whole)
