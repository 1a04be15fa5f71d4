"""The synthetic series: sound, seeded, and of as many kinds as they claim."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import features, synthetic
from models.synthetic import Float64, Series

PARTS = (
    synthetic.day_shape, synthetic.free_period, synthetic.autoregressive, synthetic.oscillation, synthetic.random_walk,
    synthetic.trend, synthetic.levels, synthetic.bursts,
)  # fmt: skip


@pytest.fixture(scope="module")
def many() -> Series:
    return synthetic.generate(np.random.default_rng(11), 800, 300)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(8, 120), st.integers(0, 2**32 - 1))
def test_series_are_finite_and_time_increases(count: int, steps: int, seed: int) -> None:
    """Any number of series from eight readings on: finite values of moderate size at strictly increasing times."""
    series = synthetic.generate(np.random.default_rng(seed), count, steps)
    assert series.time.shape == series.value.shape == (count, steps)
    assert np.isfinite(series.value).all()
    assert np.abs(series.value).max() < 1e12
    assert (np.diff(series.time, axis=1) > 0).all()
    assert (series.time > 1.5e9).all()


def test_the_seed_decides() -> None:
    """Equal seeds give equal series, bit for bit; different seeds share no time and next to no value."""
    one, again, other = (synthetic.generate(np.random.default_rng([1, seed]), 30, 100) for seed in (5, 5, 6))
    for column, same, different in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(column, same)
        assert (column == different).mean() < 0.01


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_part_is_a_signal_of_about_unit_scale(part: Callable[[np.random.Generator, Float64], Float64]) -> None:
    """Each part alone is finite, moves, and is neither lost beside the others nor drowns them."""
    time = synthetic.clock(np.random.default_rng(2), 200, 400)
    value = part(np.random.default_rng(3), time)
    assert value.shape == time.shape
    assert np.isfinite(value).all()
    assert (value.std(axis=1) > 0).mean() > 0.5
    assert 0.05 < np.median(value.std(axis=1)) < 5


def test_the_shape_of_the_day_repeats_each_week() -> None:
    """The same seed a week later gives the same shape; within the week, working days are alike."""
    time = 1.6e9 + np.arange(96)[None] * 900.0 + np.zeros((50, 1))
    today, next_week = (synthetic.day_shape(np.random.default_rng(4), time + days * 86_400) for days in (0, 7))
    np.testing.assert_allclose(today, next_week, atol=1e-4)


def repeats(series: Series) -> Float64:
    share: Float64 = (np.diff(series.value, axis=1) == 0).mean(axis=1)
    return share


def test_some_are_constant_and_some_are_switches(many: Series) -> None:
    """About one in thirty never moves; about one in fifteen has two values only."""
    distinct = np.array([len(np.unique(row)) for row in many.value])
    assert 15 <= (distinct == 1).sum() <= 45
    assert 20 <= (distinct == 2).sum() <= 120


def test_some_are_quantised_and_some_are_held(many: Series) -> None:
    """A third or so has few values for its length, on one grid; a tenth or so often repeats its last one."""
    distinct = np.array([len(np.unique(row)) for row in many.value])
    coarse = (distinct > 2) & (distinct <= 60)
    assert 0.15 < coarse.mean() < 0.6
    on_grid = 0
    for row in many.value[coarse]:
        gaps = np.diff(np.unique(row))
        gaps = gaps[gaps > 1e-6 * np.ptp(row)]
        on_grid += bool(np.allclose(gaps / gaps.min(), np.round(gaps / gaps.min()), atol=1e-3))
    assert on_grid / coarse.sum() > 0.5
    held = (repeats(many) > 0.3) & (distinct > 60)
    assert 0.02 < held.mean() < 0.3


def test_most_are_neither_noise_nor_a_straight_line(many: Series) -> None:
    """There are persistent and restless ones: lag-one correlations from below 0.2 to above 0.9."""
    moving = many.value[many.value.std(axis=1) > 0]
    centred = moving - moving.mean(axis=1, keepdims=True)
    lag_one = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / (centred**2).sum(axis=1)
    assert (lag_one < 0.2).mean() > 0.05
    assert (lag_one > 0.9).mean() > 0.1


def test_units_span_many_powers_of_ten(many: Series) -> None:
    """Spreads from thousandths to ten thousands, levels near and far from zero: no unit is home."""
    spread = many.value.std(axis=1)
    low, high = np.quantile(spread[spread > 0], [0.05, 0.95])
    assert low < 1e-2
    assert high > 1e4
    far = np.abs(many.value.mean(axis=1)) > 20 * spread
    assert 0.05 < far.mean() < 0.6


def test_clocks_are_of_every_sort(many: Series) -> None:
    """Regular, jittered, random and thinned arrivals at cadences from a second to an hour, some with gaps."""
    interval = np.diff(many.time, axis=1)
    typical = np.median(interval, axis=1)
    assert typical.min() < 2
    assert typical.max() > 1800
    varies = interval.std(axis=1) / interval.mean(axis=1)
    assert (varies < 1e-3).mean() > 0.3  # regular
    assert ((varies > 1e-3) & (varies < 0.15)).mean() > 0.1  # jittered
    assert (interval.max(axis=1) > 20 * typical).mean() > 0.02  # gaps


def test_wild_readings_are_there() -> None:
    """Of smooth waves that pass through what sensors do, one in eight holds one far from both its neighbours."""
    wave = np.sin(np.arange(500)[None] / 30 + np.arange(400)[:, None])
    value = synthetic.distort(np.random.default_rng(5), wave)
    lone = np.abs(value[:, 1:-1] - 0.5 * (value[:, :-2] + value[:, 2:])).max(axis=1)
    assert 0.1 < (lone > 4 * wave.std()).mean() < 0.2


def test_features_take_them_all(many: Series) -> None:
    """Every series runs through the streaming inputs without a number out of limits."""
    statistics = features.Statistics.allocate(len(many.value))
    slots, normal = np.arange(len(many.value)), np.ones(len(many.value), bool)
    for t in range(many.value.shape[1]):
        seen = features.look(statistics, slots, many.time[:, t])
        assert np.isfinite(seen.inputs).all()
        assert (seen.scale > 0).all()
        features.learn(statistics, slots, many.time[:, t], many.value[:, t], normal)
