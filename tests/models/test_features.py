"""The streaming inputs against a plain loop, against themselves cut otherwise, and against hostile values."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import features
from models.features import INPUTS, Float64, Narrow, Statistics, Wide

START = 1.7e9  # a Tuesday in November 2023
DAY_VALUE, DAY_KNOWN, DAY_RESIDUAL = (INPUTS.index(name) for name in ("day_value", "day_known", "day_residual"))
WEEK_VALUE, WEEK_KNOWN = INPUTS.index("week_value"), INPUTS.index("week_known")

values = st.lists(
    st.floats(-1e30, 1e30) | st.floats(-1e3, 1e3) | st.sampled_from([0.0, 20.0, 20.5, 1e30, -1e30, 1e9, 5e-324]),
    min_size=1,
    max_size=40,
)
intervals = st.floats(1e-3, 1e8) | st.sampled_from([1e-3, 1.0, 60.0, 900.0, 86_400.0, 1e8])


def copies(statistics: Statistics) -> dict[str, np.ndarray]:
    return {field.name: getattr(statistics, field.name).copy() for field in fields(statistics)}


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray], rows: slice | np.ndarray = slice(None)) -> None:
    for name, array in one.items():
        np.testing.assert_array_equal(array[rows], two[name][rows], err_msg=name)


def teach(statistics: Statistics, slot: int, time: float, value: float, normal: bool = True) -> None:
    features.learn(statistics, np.array([slot]), np.array([time]), np.array([value]), np.array([normal]))


def look(statistics: Statistics, slot: int, time: float) -> features.Look:
    return features.look(statistics, np.array([slot]), np.array([time]))


def stream(seed: int, slots: int, readings: int) -> tuple[Float64, Float64, np.ndarray]:
    """Times, values and which are normal, `(slots, readings)`: noise about a level, with wild and repeated readings."""
    rng = np.random.default_rng(seed)
    time = START + np.cumsum(rng.exponential(600, (slots, readings)), axis=1)
    value = rng.normal(size=(slots, readings)) * 10.0 ** rng.integers(-3, 4, (slots, 1)) + rng.normal(size=(slots, 1))
    value[rng.random(value.shape) < 0.05] *= 1e6
    repeated = rng.random(value.shape) < 0.2
    repeated[:, 0] = False
    value[:, 1:] = np.where(repeated[:, 1:], value[:, :-1], value[:, 1:])
    return time, value, rng.random(value.shape) < 0.9


def assert_within_limits(statistics: Statistics, slot: int, time: float) -> None:
    seen = look(statistics, slot, time)
    assert np.isfinite(seen.inputs).all()
    assert np.abs(seen.inputs).max() <= features.Y_LIMIT
    assert np.isfinite(seen.location).all()
    assert np.isfinite(seen.scale).all()
    assert seen.scale[0] > 0
    assert abs(seen.previous[0]) <= features.Y_LIMIT
    assert 1e-5 < seen.step[0] <= 10
    for value in (0.0, 1e30, -1e30):
        assert abs(features.to_y(np.array([value]), seen.location, seen.scale)[0]) <= features.Y_LIMIT


def test_a_look_mutates_nothing() -> None:
    """Looking any number of times, at any time, changes no statistic and gives the same again."""
    statistics = Statistics.allocate(3)
    time, value, normal = stream(0, 3, 50)
    for t in range(50):
        features.learn(statistics, np.arange(3), time[:, t], value[:, t], normal[:, t])
    before = copies(statistics)
    first = features.look(statistics, np.array([2, 0]), np.array([START + 1e6, START]))
    again = features.look(statistics, np.array([2, 0]), np.array([START + 1e6, START]))
    assert_same(before, copies(statistics))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)


def plain_loop(value: list[float], normal: list[bool]) -> tuple[float, float, float]:
    """Location, scale and step of one series in Python's floats: running means with rates 1/n, no slower than 1/2,000.

    A deviation counts at most 100 scales (10 from the fifth reading on), a difference as many steps. The first change
    of a series without a scale sets scale and step to half of it, at most half the size of the location.
    """
    location, scale, step, previous, count = value[0], 0.0, 0.0, value[0], 1
    for x, teaches in zip(value[1:], normal[1:], strict=True):
        count += teaches
        rate = max(1 / count, 1 / 2000) * teaches
        unit = max(scale, 1e-6 * abs(location) + 1e-12)
        clip = 100 if count < 5 else 10
        deviation = min(max(x - location, -clip * unit), clip * unit)
        difference = abs(x - previous)
        if scale <= 0 and difference > 0:
            scale = step = 0.5 * min(difference, abs(location) or float("inf"))
        else:
            step += rate * (min(difference, clip * max(step, 1e-3 * unit)) - step)
            scale += rate * (abs(deviation) - scale)
        location += rate * deviation
        previous = x
    return location, scale, step


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_location_scale_and_step_are_those_of_a_plain_loop(seed: int, readings: int) -> None:
    """The arrays do what the loop says, with wild, repeated and abnormal readings, to float32's resolution."""
    time, value, normal = stream(seed, 4, readings)
    statistics = Statistics.allocate(4)
    for t in range(readings):
        features.learn(statistics, np.arange(4), time[:, t], value[:, t], normal[:, t])
    for k in range(4):
        location, scale, step = plain_loop(value[k].tolist(), normal[k].tolist())
        assert statistics.narrow[k, Narrow.SCALE] == pytest.approx(scale, rel=1e-4)
        assert statistics.narrow[k, Narrow.STEP] == pytest.approx(step, rel=1e-4)
        assert statistics.wide[k, Wide.LOCATION] == pytest.approx(location, rel=1e-6, abs=1e-4 * scale)


def test_the_memory_is_two_thousand_readings_long() -> None:
    """5,000 readings at 0 +- 1, then at 5 +- 1: 2,000 readings later the location has gone 63 % of the way."""
    statistics = Statistics.allocate(1)
    for t in range(7000):
        teach(statistics, 0, START + t, (5.0 if t >= 5000 else 0.0) + (-1) ** t)
    assert statistics.wide[0, Wide.LOCATION] == pytest.approx(5 * (1 - np.exp(-1)), abs=0.05)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_one_slot_at_a_time_equals_many_at_once(seed: int) -> None:
    """A series' statistics and inputs do not depend on who shares the wave, nor on the order within it."""
    time, value, normal = stream(seed, 7, 60)
    together, alone = Statistics.allocate(7), Statistics.allocate(7)
    order = np.random.default_rng(seed).permutation(7)
    for t in range(60):
        whole = features.look(together, order, time[order, t])
        features.learn(together, order, time[order, t], value[order, t], normal[order, t])
        for at, k in enumerate(order):
            one = np.array([k])
            single = features.look(alone, one, time[one, t])
            np.testing.assert_allclose(single.inputs[0], whole.inputs[at], rtol=1e-5, atol=1e-5)
            features.learn(alone, one, time[one, t], value[one, t], normal[one, t])
    two = copies(alone)
    for name, array in copies(together).items():
        np.testing.assert_allclose(array, two[name], rtol=1e-5, atol=1e-7, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_slots_do_not_disturb_each_other(slots: set[int], seed: int) -> None:
    """Learning and forgetting touch the rows of their slots and no others, bit for bit."""
    statistics = Statistics.allocate(10)
    time, value, normal = stream(seed, 10, 30)
    for t in range(20):
        features.learn(statistics, np.arange(10), time[:, t], value[:, t], normal[:, t])
    before = copies(statistics)
    chosen = np.array(sorted(slots))
    others = np.setdiff1d(np.arange(10), chosen)
    for t in range(20, 30):
        features.learn(statistics, chosen, time[chosen, t], value[chosen, t], normal[chosen, t])
    assert_same(before, copies(statistics), others)
    statistics.reset(chosen)
    assert_same(before, copies(statistics), others)
    assert_same(copies(Statistics.allocate(10)), copies(statistics), chosen)


def test_an_abnormal_reading_becomes_the_previous_one_and_no_more() -> None:
    """Location, scale, step, seasons, repeats and count stay as they were, bit for bit; time and value move on."""
    statistics = Statistics.allocate(1)
    rng = np.random.default_rng(0)
    start = START - START % 3600  # so that all this lies within one quarter of an hour
    for t in range(30):
        teach(statistics, 0, start + t, 20 + rng.normal())
    before = copies(statistics)
    for t in range(30, 500):
        teach(statistics, 0, start + t, 500 + rng.normal(), normal=False)
    after = copies(statistics)
    for name in ("day", "day_visits", "week", "week_visits"):
        np.testing.assert_array_equal(after[name], before[name])
    kept = [Narrow.COUNT, Narrow.SCALE, Narrow.STEP, Narrow.REPEATS]
    kept += [Narrow.DAY_SUM, Narrow.DAY_COUNT, Narrow.WEEK_SUM, Narrow.WEEK_COUNT]
    np.testing.assert_array_equal(after["narrow"][0, kept], before["narrow"][0, kept])
    assert after["wide"][0, Wide.LOCATION] == before["wide"][0, Wide.LOCATION]
    assert after["wide"][0, Wide.TIME] == start + 499
    assert abs(after["wide"][0, Wide.VALUE] - 500) < 5
    assert look(statistics, 0, start + 500).previous[0] > 5  # far from the location, as it has to be


def test_the_seasons_keep_what_was_normal_when_a_fault_crosses_their_bound() -> None:
    """A bucket that a fault enters is filed with its normal readings only; the fault's own stay unvisited."""
    statistics = Statistics.allocate(1)
    for t in range(20):
        teach(statistics, 0, START - START % 3600 + 60 * t, 20 + (-1) ** t)  # a quarter of an hour and a third
    for t in range(20, 60):
        teach(statistics, 0, START - START % 3600 + 60 * t, 1000.0, normal=False)
    row = int(START // 3600) * 4 % 96
    assert statistics.day_visits[0, row : row + 4].tolist() == [1, 1, 0, 0]
    assert np.abs(statistics.day[0]).max() < 2


def test_the_first_reading_always_teaches() -> None:
    """A series cannot begin abnormal: there is nothing to compare with."""
    one, two = Statistics.allocate(1), Statistics.allocate(1)
    teach(one, 0, START, 7.0, normal=False)
    teach(two, 0, START, 7.0, normal=True)
    assert_same(copies(one), copies(two))
    assert one.wide[0, Wide.LOCATION] == 7
    assert one.narrow[0, Narrow.COUNT] == 1


def test_a_series_that_held_one_value_takes_its_scale_from_its_first_change() -> None:
    """20 held for long, then 21: half of the change is the scale, also within an alarm; 1e6 instead counts as 20."""
    for change, scale in ((21.0, 0.5), (1e6, 10.0)):
        for normal in (True, False):
            statistics = Statistics.allocate(1)
            for t in range(100):
                teach(statistics, 0, START + t, 20.0)
            assert statistics.narrow[0, Narrow.REPEATS] > 0.6
            teach(statistics, 0, START + 100, change, normal)
            assert statistics.narrow[0, [Narrow.SCALE, Narrow.STEP]].tolist() == [scale, scale]


def test_seasonal_memory_recalls_a_repeated_daily_shape() -> None:
    """After ten days of one shape, what the eleventh will bring stands in the inputs, within a tenth of its size."""
    statistics = Statistics.allocate(1)
    midnight = START - START % 86_400

    def shape(time: float) -> float:
        hours = time % 86_400 / 3600
        return 20 + 3 * math.sin(2 * math.pi * hours / 24) + (4.0 if 8 <= hours < 17 else 0.0)

    at = midnight + 900.0 * np.arange(96 * 10) + 450
    for time in at:
        teach(statistics, 0, time, shape(time))
    errors = []
    for time in at[-96:] + 86_400:
        seen = look(statistics, 0, time)
        recalled = features.from_y(seen.inputs[:, DAY_VALUE], seen.location, seen.scale)[0]
        errors.append(abs(recalled - shape(time)))
        assert seen.inputs[0, DAY_KNOWN] >= 9 / 10
    assert max(errors) < 0.7
    assert np.mean(errors) < 0.35
    assert abs(look(statistics, 0, at[-1] + 900).inputs[0, DAY_RESIDUAL]) < 0.2
    teach(statistics, 0, at[-1] + 900, shape(at[-1] + 900) + 10)  # ten above what this quarter of an hour holds
    assert look(statistics, 0, at[-1] + 1800).inputs[0, DAY_RESIDUAL] > 1


def test_weekly_memory_tells_the_weekend_from_the_week() -> None:
    """Six weeks of working days at 10 and week-ends at 2: Monday's and Sunday's noon are each recalled."""
    statistics = Statistics.allocate(1)
    monday = START - START % 604_800 + 4 * 86_400  # the epoch was a Thursday
    for hour in range(24 * 7 * 6):
        teach(statistics, 0, monday + 3600.0 * hour, 2.0 if hour // 24 % 7 >= 5 else 10.0)
    for day, wanted in ((0, 10.0), (4, 10.0), (5, 2.0), (6, 2.0)):
        seen = look(statistics, 0, monday + 6 * 604_800 + day * 86_400 + 12 * 3600)
        recalled = features.from_y(seen.inputs[:, WEEK_VALUE], seen.location, seen.scale)[0]
        assert recalled == pytest.approx(wanted, abs=1.0)
        assert seen.inputs[0, WEEK_KNOWN] >= 5 / 6


def test_an_unvisited_hour_is_unknown_and_not_zero() -> None:
    """Where the memory has nothing, its inputs say so: unknown, with no value and no residual."""
    statistics = Statistics.allocate(1)
    for t in range(10):
        teach(statistics, 0, START + t, 1000.0 + t)
    seen = look(statistics, 0, START + 40_000)
    assert seen.inputs[0, [DAY_VALUE, DAY_KNOWN, WEEK_VALUE, WEEK_KNOWN]].tolist() == [0, 0, 0, 0]


def test_a_new_series_is_neutral() -> None:
    """Before its first reading a slot has no elapsed time, a scale above nothing and inputs within limits."""
    statistics = Statistics.allocate(1)
    assert_within_limits(statistics, 0, START)
    assert np.isnan(look(statistics, 0, START).elapsed[0])
    teach(statistics, 0, START, 5.0)
    assert look(statistics, 0, START + 60).elapsed.tolist() == [60]


@settings(max_examples=60, deadline=None)
@given(values, st.data())
def test_no_value_and_no_gap_leads_out_of_the_limits(given_values: list[float], data: st.DataObject) -> None:
    """Whatever comes, up to 1e30 and after gaps of years: inputs are finite and bounded, scales above nothing."""
    statistics = Statistics.allocate(1)
    time = data.draw(st.sampled_from([0.0, 1.0, START, 4e9]))
    for value in given_values:
        time += data.draw(intervals)
        assert_within_limits(statistics, 0, time)
        teach(statistics, 0, time, value, data.draw(st.booleans()))
    assert_within_limits(statistics, 0, time)
    assert_within_limits(statistics, 0, time + 1e9)
    assert np.isfinite(statistics.wide).all()
    assert np.isfinite(statistics.narrow).all()
    assert np.isfinite(statistics.day).all()
    assert np.isfinite(statistics.week).all()


@pytest.mark.parametrize("value", [0.0, 20.0, -1e30, 1e-300])
def test_a_constant_series_stays_within_limits(value: float) -> None:
    """A sensor that never moves has a scale above nothing, is seen to repeat, and its own value is y = 0."""
    statistics = Statistics.allocate(1)
    for t in range(300):
        teach(statistics, 0, START + 60 * t, value)
    assert_within_limits(statistics, 0, START + 60 * 300)
    seen = look(statistics, 0, START + 60 * 300)
    assert seen.inputs[0, INPUTS.index("repeats")] > 0.9
    assert features.to_y(np.array([value]), seen.location, seen.scale)[0] == 0


def test_an_energy_counter_keeps_its_hundredths() -> None:
    """A counter at 1e9 that moves by 0.01 stays within limits; its last difference is 0.01, where float32 has 0."""
    statistics = Statistics.allocate(1)
    for t in range(500):
        teach(statistics, 0, START + 60 * t, 1e9 + 0.01 * t)
        assert_within_limits(statistics, 0, START + 60 * (t + 1))
    assert statistics.narrow[0, Narrow.DIFFERENCE] == pytest.approx(0.01, abs=1e-6)
    assert statistics.wide[0, Wide.LOCATION] == pytest.approx(1e9 + 0.01 * 249.5, abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(-1e9, 1e9))
def test_from_y_undoes_to_y(location: float, scale: float, value: float) -> None:
    """A value comes back to float32's resolution of its y, where y is within its limit."""
    place, unit = np.array([location]), np.array([scale])
    y = features.to_y(np.array([value]), place, unit)
    back = features.from_y(y, place, unit)[0]
    if abs(y[0]) < features.Y_LIMIT:
        assert back == pytest.approx(value, abs=4e-6 * (abs(value - location) + scale) + 1e-9 * abs(location))
    else:
        assert (value > location) == (back > location)
