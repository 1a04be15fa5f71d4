"""The detector: waves, verdicts by rule, and results that depend on the readings alone."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import calibration
from models.calibration import Column
from models.features import Narrow, Wide
from models.weights import Weights
from streamer.detector import WARM_READINGS, Detector, no_scores, waves
from streamer.readings import Batch, Scores, Unscored
from tests.streams import START, batch, cut, noise, shipped_weights, stream

PROMISED_READINGS = 30


def detector(capacity: int = 8, weights: Weights | None = None) -> Detector:
    return Detector(weights or shipped_weights(), capacity, budget_per_series_month=1.0)


def feed(target: Detector, readings: Batch) -> Scores:
    """Scores and learns a batch, as the shard does where no alarm is open."""
    scores = no_scores(len(readings))
    for rows in waves(readings.slot):
        part, wave = target.score(readings[rows])
        target.learn(part, wave, np.ones(len(wave.slots), np.bool_))
        scores.put(rows, part)
    return scores


def feed_cut(readings: Batch, at: list[int]) -> Scores:
    target = detector()
    scores = no_scores(len(readings))
    for rows, piece in cut(readings, at):
        scores.put(np.arange(rows.start, rows.stop), feed(target, piece))
    return scores


def warm(target: Detector, *, n: int = 60, interval: float = 1.0) -> float:
    """Series 0 with a verdict; gives the time of its last reading."""
    for k in range(n):
        feed(target, batch(0, START + k * interval, noise(n)[k]))
    return START + (n - 1) * interval


def reasons(scores: Scores) -> list[Unscored]:
    return [Unscored(each) for each in scores.unscored.tolist()]


# --- Waves ---


@given(st.lists(st.integers(0, 5), max_size=60))
def test_waves_take_every_row_once_no_slot_twice_and_keep_the_order(slots: list[int]) -> None:
    """However often a series occurs in a batch."""
    slot = np.array(slots, np.int32)
    cuts = list(waves(slot))
    assert sorted(row for rows in cuts for row in rows.tolist()) == list(range(len(slots)))
    assert all(len(set(slot[rows].tolist())) == len(rows) > 0 for rows in cuts)
    for series in set(slots):
        seen = [row for rows in cuts for row in rows.tolist() if slots[row] == series]
        assert seen == sorted(seen)


def test_there_are_as_many_waves_as_the_most_frequent_series_needs() -> None:
    """A batch in which each series occurs once is one wave."""
    assert [rows.tolist() for rows in waves(np.array([3, 1, 2], np.int32))] == [[0, 1, 2]]
    assert [rows.tolist() for rows in waves(np.array([1, 1, 2, 1], np.int32))] == [[0, 2], [1], [3]]


# --- Results depend on the readings alone ---


READINGS = stream(400, 5, seed=3)
AT_ONCE = feed_cut(READINGS, [])


@given(st.lists(st.integers(1, 399), max_size=40))
@settings(max_examples=8, deadline=None)
def test_results_do_not_depend_on_how_the_stream_was_cut(at: list[int]) -> None:
    """Scores to 1e-6; the band, in units of its own width, to 1e-4: float32 sums differ by their order."""
    scores = feed_cut(READINGS, at)
    assert reasons(scores) == reasons(AT_ONCE)
    np.testing.assert_allclose(scores.score, AT_ONCE.score, rtol=0, atol=1e-6)
    width = AT_ONCE.upper - AT_ONCE.lower
    for name in ("expected", "lower", "upper"):
        off = np.abs(getattr(scores, name) - getattr(AT_ONCE, name)) / width
        assert np.nanmax(off) < 1e-4, name


def test_series_do_not_influence_each_other() -> None:
    """A series among others gets the scores that it gets alone."""
    rows = np.flatnonzero(READINGS.slot == 2)
    alone = feed(detector(), READINGS[rows])
    np.testing.assert_allclose(alone.score, AT_ONCE.score[rows], rtol=0, atol=1e-6)


def test_the_place_in_the_arrays_does_not_matter() -> None:
    """The same readings under another slot get the same verdicts."""
    rows = np.flatnonzero(READINGS.slot == 2)
    there = READINGS[rows]
    moved = feed(detector(), Batch(np.full(len(rows), 7, np.int32), there.time, there.value, there.flags))
    np.testing.assert_allclose(moved.score, AT_ONCE.score[rows], rtol=0, atol=1e-6)


def test_scoring_changes_nothing_but_the_hidden_states() -> None:
    """Statistics, seasonal memory and calibration stay bit for bit until `learn`."""
    target = detector()
    end = warm(target)
    before = target.export(8)
    target.score(batch([0, 1], end + 1, [1e6, 3.0]))
    after = target.export(8)
    changed = {name for name in before if not np.array_equal(before[name], after[name], equal_nan=True)}
    assert changed == {"recurrent", "scorer"}


def test_learning_what_is_not_normal_leaves_what_lasts_alone() -> None:
    """Of an open alarm nothing is kept but what the next forecast starts from."""
    target = detector()
    end = warm(target)
    before = target.export(1)
    for k in range(50):
        scores, wave = target.score(batch(0, end + 1 + k, 500.0))
        target.learn(scores, wave, np.zeros(1, np.bool_))
    after = target.export(1)
    normal = np.r_[Column.COUNT, Column.THRESHOLD : Column.RECORD]  # rank and record follow every reading
    np.testing.assert_array_equal(before["calibration"][:, normal], after["calibration"][:, normal])
    for name in ("statistics.day", "statistics.week"):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert target.statistics.wide[0, Wide.LOCATION] == before["statistics.wide"][0, Wide.LOCATION]
    assert target.statistics.narrow[0, Narrow.SCALE] == before["statistics.narrow"][0, Narrow.SCALE]


@pytest.mark.parametrize("split", [1, 37, 250])
def test_restored_from_an_export_it_goes_on_as_if_nothing_had_happened(split: int) -> None:
    """Restart = no restart, bit for bit, in every array and every verdict."""
    first = detector()
    feed(first, READINGS[:split])
    second = detector(capacity=40)
    second.restore(first.export(5))
    there, here = feed(first, READINGS[split:]), feed(second, READINGS[split:])
    for name in ("score", "expected", "lower", "upper", "unscored", "view"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name), err_msg=name)
    for name, array in first.export(5).items():
        np.testing.assert_array_equal(array, second.export(5)[name], err_msg=name)


def test_an_export_is_a_copy() -> None:
    """What the engine does afterwards does not reach a snapshot that is being written."""
    target = detector()
    end = warm(target)
    kept = target.export(1)
    before = {name: array.copy() for name, array in kept.items()}
    feed(target, batch(0, end + 1, 25.0))
    assert all(np.array_equal(kept[name], before[name], equal_nan=True) for name in kept)


def test_an_evicted_slot_is_as_new() -> None:
    """The next series that gets it starts without a past."""
    target = detector()
    warm(target)
    target.evict(np.array([0]))
    fresh = detector()
    for name, array in target.export(1).items():
        np.testing.assert_array_equal(array, fresh.export(1)[name], err_msg=name)
    assert target.is_warming(1).tolist() == [True]


# --- Verdicts by rule ---


@pytest.mark.parametrize("interval", [0.001, 1.0, 60.0, 86_400.0])
def test_a_series_has_a_verdict_within_its_first_thirty_readings(interval: float) -> None:
    """At any cadence; before that its score is absent and counted as warming, from then on it never is again."""
    target = detector()
    n = PROMISED_READINGS + 20
    scores = feed(target, batch([0] * n, START + interval * np.arange(n), noise(n)))
    assert reasons(scores) == [Unscored.WARMING] * WARM_READINGS + [Unscored.SCORED] * (n - WARM_READINGS)
    assert np.isnan(scores.score).tolist() == [True] * WARM_READINGS + [False] * (n - WARM_READINGS)
    assert WARM_READINGS < PROMISED_READINGS
    assert np.isnan(scores.expected[0])
    assert np.isfinite(scores.expected[1:]).all()


@pytest.mark.parametrize("value", [0.0, 21.5, -1e30, 1e-300])
def test_a_constant_series_has_finite_verdicts(value: float) -> None:
    """A valve that has always been shut has a score too, and it is a calm one."""
    n = 60
    scores = feed(detector(), batch([0] * n, START + np.arange(n), value))
    for name in ("score", "expected", "lower", "upper"):
        assert np.isfinite(getattr(scores, name)[WARM_READINGS:]).all(), name
    assert scores.score[WARM_READINGS:].max() < 1


@given(st.lists(st.floats(-1e30, 1e30), min_size=30, max_size=60))
@settings(max_examples=30, deadline=None)
def test_no_value_gives_a_score_that_is_no_number(values: list[float]) -> None:
    """Whatever finite values come, verdicts and state stay finite and ordered."""
    target = detector(1)
    scores = feed(target, batch([0] * len(values), START + np.arange(len(values)), values))
    judged = scores.score[WARM_READINGS:]
    assert np.isfinite(judged).all()
    assert (judged >= 0).all()
    assert (scores.lower[1:] <= scores.expected[1:]).all()
    assert (scores.expected[1:] <= scores.upper[1:]).all()
    assert all(np.isfinite(array).all() for name, array in target.export(1).items() if name != "latest")


def test_a_reading_at_the_time_of_the_last_one_is_a_duplicate() -> None:
    """A broker that sends again does not teach twice."""
    target = detector()
    end = warm(target)
    before = target.export(1)
    scores = feed(target, batch(0, end, 99.0))
    assert reasons(scores) == [Unscored.DUPLICATE]
    assert np.isnan(scores.score[0])
    for name, array in target.export(1).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_reading_before_the_last_one_is_late() -> None:
    """The hidden state cannot go back in time: counted, not stepped."""
    target = detector()
    end = warm(target)
    before = target.export(1)
    scores = feed(target, batch(0, end - 0.5, 99.0))
    assert reasons(scores) == [Unscored.LATE]
    for name, array in target.export(1).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_late_and_duplicate_readings_do_not_warm_a_series_up() -> None:
    """Only readings that were learned count."""
    target = detector()
    feed(target, batch([0] * 40, START, 1.0))
    assert target.is_warming(1).tolist() == [True]
    assert reasons(feed(target, batch([0] * 2, [START - 1, START + 1], 1.0))) == [Unscored.LATE, Unscored.WARMING]


def test_only_the_first_reading_after_a_gap_lacks_a_verdict() -> None:
    """Yesterday's forecast does not speak for today, but the next reading is judged again."""
    target = detector()
    end = warm(target)
    scores = feed(target, batch([0] * 4, end + 3600 + np.arange(4), noise(4, 1)))
    assert reasons(scores) == [Unscored.GAP, *[Unscored.SCORED] * 3]


def test_a_gap_is_measured_by_the_series_own_cadence() -> None:
    """A minute is nothing to a series that reports every minute; thirty intervals or thirty seconds are the least."""
    slow, fast = detector(), detector()
    slow_end, fast_end = warm(slow, interval=60.0), warm(fast, interval=0.01)
    assert reasons(feed(slow, batch(0, slow_end + 1500, 20.0))) == [Unscored.SCORED]
    assert reasons(feed(slow, batch(0, slow_end + 1500 + 3600, 20.0))) == [Unscored.GAP]
    assert reasons(feed(fast, batch(0, fast_end + 29, 20.0))) == [Unscored.SCORED]
    assert reasons(feed(fast, batch(0, fast_end + 29 + 120, 20.0))) == [Unscored.GAP]


def test_a_gap_teaches_the_calibration_nothing() -> None:
    """The error after a gap is the gap's doing."""
    target = detector()
    end = warm(target)
    before = target.calibration.rows.copy()
    feed(target, batch(0, end + 7200, 90.0))
    np.testing.assert_array_equal(target.calibration.rows, before)


def test_readings_without_a_time_are_never_late() -> None:
    """Nor are two of one moment duplicates: the payload gave no time to compare, and a wall clock is slewed."""
    target = detector()
    end = warm(target)
    times = np.array([end - 3, end - 2, end - 2, end + 1])
    scores = feed(target, batch([0] * 4, times, noise(4, 2), arrival_time=True))
    assert reasons(scores) == [Unscored.SCORED] * 4


def test_a_wall_clock_that_was_ahead_for_a_moment_is_forgotten() -> None:
    """A year ahead for two readings, then right again: after one gap each way the series is as it was."""
    target = detector()
    end = warm(target, interval=10.0)
    interval = float(target.statistics.narrow[0, Narrow.LOG_ELAPSED])
    ahead = end + 365 * 86_400
    times = np.array([ahead, ahead + 10, end + 20, end + 30, end + 40])
    scores = feed(target, batch([0] * 5, times, noise(5, 2), arrival_time=True))
    assert reasons(scores) == [Unscored.GAP, Unscored.SCORED, Unscored.GAP, Unscored.SCORED, Unscored.SCORED]
    assert target.statistics.wide[0, Wide.TIME] == end + 40
    assert float(target.statistics.narrow[0, Narrow.LOG_ELAPSED]) == pytest.approx(interval, abs=0.5)


def test_a_spike_scores_far_above_the_threshold_and_noise_far_below() -> None:
    """What the whole program is for, in one line of numbers."""
    target = detector()
    n = 500
    values = noise(n)
    values[-1] = 45.0
    scores = feed(target, batch([0] * n, START + 60.0 * np.arange(n), values))
    assert scores.score[-1] > 1
    assert (scores.score[WARM_READINGS:-1] > 1).sum() == 0
    inside = (values >= scores.lower) & (values <= scores.upper)
    assert inside[WARM_READINGS:-1].mean() > 0.95
    assert not inside[-1]


def test_what_is_granted_counts_for_what_is_rare_and_not_for_what_is_only_far() -> None:
    """A slow series whose ranks show what the budget asks for, against the parts computed one by one."""
    target = Detector(shipped_weights(), 8, budget_per_series_month=30.0)
    values = noise(400)
    values[395:] += [0, 3, 8, 8, 0]
    grants = []
    for k, value in enumerate(values):
        before = deepcopy(target.calibration)
        scores, wave = target.score(batch(0, START + k * 3600.0, value))
        rows, strict = before.gather(wave.slots), wave.strictness[:, None]
        decades = calibration.granted(rows, wave.strictness)
        near = np.minimum(calibration.distance(rows, wave.views) / strict, calibration.DISTANT_SHARE)
        rare = (before.rarity(rows, wave.slots, wave.views, wave.strictness) + decades) / strict
        np.testing.assert_allclose(wave.levels, np.maximum(rare, near), rtol=1e-6)
        target.learn(scores, wave, np.ones(1, np.bool_))
        grants.append(float(decades[0]))
    assert grants[8] == 0.0
    assert grants[-1] == pytest.approx(calibration.MOST_GRANTED * float(wave.strictness[0]))


def test_the_last_verdict_of_every_series_can_be_shown() -> None:
    """`latest` holds score, value, expected, lower, upper; NaN for a slot without readings."""
    target = detector()
    scores = feed(target, batch([0] * 40, START + np.arange(40), noise(40)))
    row = [scores.score[-1], noise(40)[-1], scores.expected[-1], scores.lower[-1], scores.upper[-1]]
    np.testing.assert_array_equal(target.latest[0], row)
    assert np.isnan(target.latest[1]).all()
