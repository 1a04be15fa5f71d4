"""The seasonal baseline and its contest with the LSTM: one formula reading by reading, fair, and hard to fool."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import features
from streamer import baseline
from streamer.baseline import Column, Forecasters
from streamer.detector import Detector
from streamer.readings import Bool, Float64, Forecaster
from streamer.shard import Shard
from tests.streams import START, batch, feed, new_shard, noise, shipped_weights, stream

DAY = 86_400.0


# --- The formula ---


@dataclass
class OneSeries:
    """The same in plain numbers, straight from the description: one series, one reading at a time."""

    errors: list[float] = field(default_factory=lambda: [0.0] * 5)
    followed: int = 0
    count: int = 0
    lstm_leads: bool = False

    def places(self, previous: float, usual: float, known: float, residual: float) -> list[float]:
        change = usual - (previous - residual)  # from what the previous reading's time of day usually holds
        return [previous, previous + known * change, known * usual]

    def band(self, places: list[float], unit: float) -> list[float]:
        weights = [(error + 0.02) ** -16 for error in self.errors[:3]]
        median = sum(w * place for w, place in zip(weights, places, strict=True)) / sum(weights)
        half = math.asinh(unit * max(8 * self.errors[3], 0.1))
        return [median - half, median, median + half]

    def learn(self, y: float, places: list[float], lstm: list[float], unit: float, *, normal: bool) -> None:
        missed = [min(abs(y - said) / unit, 5.0) for said in [*places, self.band(places, unit)[1], lstm[1]]]
        self.followed += 1
        self.count += normal
        for k, each in enumerate(missed):
            if k < 3:
                self.errors[k] += max(1 / 200, 1 / self.followed) * (each - self.errors[k])
            elif normal:
                self.errors[k] += max(1 / 200, 1 / self.count) * (each - self.errors[k])
        of_baseline, of_lstm = self.errors[3:]
        if self.lstm_leads:
            self.lstm_leads = not of_baseline < 0.97 * of_lstm
        else:
            self.lstm_leads = self.count >= 20 and of_lstm < 0.97 * of_baseline


def a_look(rng: np.random.Generator, n: int) -> features.Look:
    """What `features.look` could say of `n` series."""
    inputs = np.zeros((n, features.INPUT_SIZE), np.float32)
    inputs[:, baseline.ROUGHNESS] = rng.normal(-1, 1, n)
    inputs[:, baseline.DAY_VALUE] = rng.normal(0, 1, n)
    inputs[:, baseline.DAY_KNOWN] = rng.choice([0.0, 0.5, 0.8], n)
    inputs[:, baseline.DAY_RESIDUAL] = rng.normal(0, 0.3, n)
    previous = rng.normal(0, 1, n).astype(np.float32)
    return features.Look(inputs, np.zeros(n), np.ones(n), previous, np.ones(n, np.float32), np.ones(n))


@pytest.mark.parametrize("seed", range(3))
def test_a_wave_of_series_comes_to_the_same_as_each_of_them_in_plain_numbers(seed: int) -> None:
    """Places, bands, errors and who is in charge, over 200 readings in which either is the better at times."""
    rng = np.random.default_rng(seed)
    n = 7
    ours, theirs = Forecasters.allocate(n), [OneSeries() for _ in range(n)]
    changes = 0
    for k in range(200):
        slots = np.flatnonzero(rng.random(n) < 0.8)
        look = a_look(rng, len(slots))
        lstm = rng.normal(0, 1, (len(slots), 1)).astype(np.float32) + np.array([-1, 0, 1.2], np.float32)
        best = look.inputs[:, baseline.DAY_VALUE] * look.inputs[:, baseline.DAY_KNOWN] if k // 60 % 2 else lstm[:, 1]
        y = (best + rng.normal(0, 0.2, len(slots))).astype(np.float32)
        before = ours.lstm_leads(slots)
        standing = ours.forecast(slots, look, lstm)
        normal = rng.random(len(slots)) < 0.9
        ours.learn(slots, standing.missed(y), normal)
        changes += int((ours.lstm_leads(slots) != before).sum())
        for row, slot in enumerate(slots.tolist()):
            one, inputs, unit = theirs[slot], look.inputs[row].tolist(), math.exp(look.inputs[row, baseline.ROUGHNESS])
            usual, known, residual = (
                inputs[at] for at in (baseline.DAY_VALUE, baseline.DAY_KNOWN, baseline.DAY_RESIDUAL)
            )
            places = one.places(float(look.previous[row]), usual, known, residual)
            np.testing.assert_allclose(standing.said[row, baseline.PLACES], places, atol=1e-5)
            band = lstm[row].tolist() if one.lstm_leads else one.band(places, unit)
            np.testing.assert_allclose(standing.band[row], band, rtol=1e-4, atol=1e-4)
            one.learn(float(y[row]), places, lstm[row].tolist(), unit, normal=bool(normal[row]))
            row_of_ours = ours.rows[slot]
            np.testing.assert_allclose(row_of_ours[baseline.MISSED], one.errors, rtol=1e-4, atol=1e-5)
            assert row_of_ours[Column.FOLLOWED :].tolist() == [one.followed, one.count, one.lstm_leads]
    assert changes > n


@given(st.lists(st.floats(-1e30, 1e30), min_size=30, max_size=60))
@settings(max_examples=20, deadline=None)
def test_no_reading_counts_more_than_the_cap(values: list[float]) -> None:
    """Whatever finite values come, the means stay between 0 and MOST_MISSED, and somebody is in charge."""
    shard = new_shard(["a"])
    feed(shard, batch([0] * len(values), START + np.arange(len(values)), values), at_once=7)
    row = shard.detector.forecasters.rows[0]
    assert np.isfinite(row).all()
    assert (row[baseline.MISSED] >= 0).all()
    assert (row[baseline.MISSED] <= baseline.MOST_MISSED).all()
    assert row[Column.LSTM_LEADS] in (0, 1)


# --- In the detector ---

N = 400


def holds(n: int = N, seed: int = 0) -> Float64:
    """A value that stays, and now and then is another: nobody can know when."""
    rng = np.random.default_rng(seed)
    return 20 + np.cumsum(np.where(rng.random(n) < 0.1, rng.normal(size=n), 0.0))


def sine(n: int = N, seed: int = 0) -> Float64:
    """A cycle of forty readings: the last value is always behind."""
    values: Float64 = 20 + 5 * np.sin(2 * np.pi * np.arange(n) / 40)
    return values + 0.05 * np.random.default_rng(seed).normal(size=n)


def leaders(values: Float64, *, interval: float = 60.0) -> tuple[Detector, Bool]:
    """Series `(series, n)` through a detector, no alarm open; and where the LSTM was in charge after each reading."""
    series, n = values.shape
    target = Detector(shipped_weights(), series, budget_per_series_month=1.0)
    leads = np.zeros(values.shape, np.bool_)
    for k in range(n):
        scores, wave = target.score(batch(np.arange(series), START + interval * k, values[:, k]))
        target.learn(scores, wave, np.ones(series, np.bool_))
        leads[:, k] = target.forecasters.lstm_leads(slice(series))
    return target, leads


def test_who_is_in_charge_is_who_forecasts_better() -> None:
    """The baseline where there is nothing to know but the last value, the LSTM where it sees what comes."""
    _, leads = leaders(np.array([*(holds(seed=seed) for seed in range(5)), *(sine(seed=seed) for seed in range(5))]))
    assert not leads[:5].any()
    assert leads[5:, 100:].all()


def test_a_series_begins_with_the_baseline() -> None:
    """Until both have been seen to do something; its first reading has no forecast to be judged."""
    _, leads = leaders(sine()[None, : baseline.CONTEST_READINGS + 20])
    assert not leads[0, : baseline.CONTEST_READINGS].any()
    assert leads[0, baseline.CONTEST_READINGS :].any()


def test_what_is_expected_is_the_word_of_the_one_in_charge() -> None:
    """Of a value that stays itself, within a band that holds it and is drawn around it."""
    values = holds()
    shard = new_shard(["a"])
    scores = feed(shard, batch([0] * N, START + 60.0 * np.arange(N), values), at_once=50)
    off = np.abs(scores.expected[200:] - values[199:-1])
    assert off.max() < 0.01 * np.abs(np.diff(values)).max()
    assert ((scores.lower <= values) & (values <= scores.upper))[200:].mean() > 0.85


def test_a_day_that_repeats_is_expected_to() -> None:
    """After ten days the baseline's median goes by the hour, since the last value is only noise away from it."""
    at = START + 900.0 * np.arange(96 * 10)
    values = 20 + 5 * np.sin(2 * np.pi * at / DAY) + noise(len(at), 3, level=0)
    target, _ = leaders(values[None], interval=900.0)
    errors = target.forecasters.rows[0]
    assert errors[Column.USUAL] < 0.95 * errors[Column.PREVIOUS]
    assert errors[Column.BASELINE] <= 1.01 * errors[Column.USUAL]


def test_one_wild_reading_changes_nobody() -> None:
    """Neither by itself nor by the way back, though no alarm keeps it out: who is in charge is who would have been."""
    calm = np.array([holds(), holds(), sine(), sine()])
    wild = calm.copy()
    wild[:, 300] = [1e4, -1e29, 1e4, -1e29]
    np.testing.assert_array_equal(leaders(wild)[1], leaders(calm)[1])


def calm() -> tuple[Shard, float]:
    """A shard whose only series has had 200 readings; and the time of the next."""
    shard = new_shard(["a"])
    feed(shard, batch([0] * 200, START + 60.0 * np.arange(200), noise(200)), at_once=20)
    return shard, START + 60.0 * 200


def test_an_incident_decides_nothing_but_is_followed() -> None:
    """Who is in charge, and how wide the band is, stays as it was; the baseline's median goes where the series is."""
    shard, now = calm()
    before = shard.detector.forecasters.rows.copy()
    scores = feed(shard, batch([0] * 200, now + 60.0 * np.arange(200), 500.0 + noise(200, 1, level=0)))
    assert shard.value_alarms.is_open(1).all()
    after = shard.detector.forecasters.rows
    for kept in (Column.BASELINE, Column.LSTM, Column.COUNT, Column.LSTM_LEADS):
        np.testing.assert_array_equal(after[:, kept], before[:, kept])
    assert after[0, Column.PREVIOUS] < after[0, Column.USUAL]
    assert np.abs(scores.expected[-100:] - 500.0).max() < 50.0


def test_the_reading_after_a_gap_teaches_nothing() -> None:
    """Neither of them knew that so much time would pass."""
    shard, now = calm()
    before = shard.detector.forecasters.rows.copy()
    feed(shard, batch(0, now + DAY, 21.0))
    np.testing.assert_array_equal(shard.detector.forecasters.rows, before)


READINGS = stream(400, 5, seed=3)


@given(st.lists(st.integers(1, 399), max_size=40))
@settings(max_examples=6, deadline=None)
def test_the_contest_does_not_depend_on_how_the_stream_was_cut(at: list[int]) -> None:
    """Nor on which series share a wave."""
    whole, pieces = new_shard(list("abcde")), new_shard(list("abcde"))
    whole.process(READINGS, START)
    edges = [0, *sorted(set(at)), len(READINGS)]
    for begin, end in pairwise(edges):
        pieces.process(READINGS[begin:end], START)
    np.testing.assert_allclose(pieces.detector.forecasters.rows, whole.detector.forecasters.rows, atol=1e-4)


def test_both_are_counted() -> None:
    """A series is in the charge of one of them; one that is no longer there counts for none."""
    shard = new_shard(["holds", "sine", "new"])
    for k, (a, b) in enumerate(zip(holds(), sine(), strict=True)):
        shard.process(batch([0, 1], START + 60.0 * k, [a, b]), START + 60.0 * k)
    assert shard.in_charge() == {Forecaster.LSTM: 1, Forecaster.BASELINE: 2}
    shard.evict(np.array([1]), START + 60.0 * N)
    assert shard.in_charge() == {Forecaster.LSTM: 0, Forecaster.BASELINE: 2}
    assert not shard.detector.forecasters.rows[1].any()
