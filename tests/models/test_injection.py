"""Anomalies are where they are said to be, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import injection, synthetic
from models.injection import NAMES, Injected, inject
from streamer.readings import Float64
from tests.recall import recall


def series(seed: int, count: int = 20, steps: int = 1500) -> Float64:
    return synthetic.generate(np.random.default_rng(seed), count, steps, incidents=False).value


def often(seed: int, clean: Float64) -> Injected:
    return inject(np.random.default_rng(seed), clean, every=(50.0, 150.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_readings_outside_of_anomalies_are_as_they_were(seed: int) -> None:
    """But for the new levels that stay: there they are as far apart as before."""
    clean = series(seed)
    found = often(seed, clean)
    moved = found.value - clean
    for row in range(len(clean)):
        quiet = (found.event[row] == 0) & ~found.is_aftermath[row]
        both = quiet[1:] & quiet[:-1]
        scale = 1e-9 * (np.abs(clean[row]).max() + np.abs(found.value[row]).max())
        assert np.abs(np.diff(moved[row])[both]).max(initial=0.0) <= scale
        if NAMES.index("new level") not in found.kind[row]:
            assert (moved[row][quiet] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_an_event_is_one_stretch_of_one_kind_that_shows(seed: int) -> None:
    """Its first reading differs; the readings before the first are left alone."""
    clean = series(seed)
    found = often(seed, clean)
    assert np.isfinite(found.value).all()
    assert ((found.event > 0) == (found.kind >= 0)).all()
    assert not (found.is_aftermath & (found.event > 0)).any()
    assert (found.event[:, : injection.FIRST] == 0).all()
    for number in range(1, int(found.event.max()) + 1):
        rows, steps = np.nonzero(found.event == number)
        assert len(set(rows.tolist())) == 1
        assert (np.diff(steps) == 1).all()
        kind = found.kind[rows[0], steps[0]]
        assert (found.kind[rows, steps] == kind).all()
        name = NAMES[kind]
        assert len(steps) <= injection.KINDS[name][2]


def test_every_kind_comes_and_a_seed_says_all() -> None:
    """Of a few hundred events each kind has some; the same seed gives the same."""
    clean = series(1, 60)
    found, again = often(2, clean), often(2, clean)
    assert set(found.kind[found.kind >= 0].tolist()) == set(range(len(NAMES)))
    for one, two in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_quantised_series_stays_on_its_grid() -> None:
    """Steps of a quarter."""
    rng = np.random.default_rng(3)
    clean = np.round(np.cumsum(rng.normal(size=(10, 1500)), axis=1)) / 4
    found = often(4, clean)
    assert found.event.max() > 20
    np.testing.assert_allclose(found.value * 4, np.round(found.value * 4), atol=1e-9)


def test_a_series_that_holds_one_value_can_have_anomalies() -> None:
    found = often(5, np.full((10, 1500), 7.0))
    assert found.event.max() > 20
    assert np.isfinite(found.value).all()


def test_recall_in_numbers() -> None:
    """A hundred normal readings, two above 0.5: at one in a hundred the threshold is the second; one of two events."""
    scores = np.zeros((1, 110))
    scores[0, :4] = [0.9, 0.6, 0.55, np.nan]
    event, kind = np.zeros((1, 110), np.int32), np.full((1, 110), -1, np.int8)
    event[0, 100:103], kind[0, 100:103] = 1, NAMES.index("shift")
    event[0, 105], kind[0, 105] = 2, NAMES.index("spike")
    scores[0, [101, 105]] = [0.7, 0.58]
    aftermath = np.zeros((1, 110), np.bool_)
    aftermath[0, [103, 104, 106, 107, 108]] = True
    scores[0, 103] = 5.0
    found = recall(scores, Injected(np.zeros((1, 110)), event, kind, aftermath), 0.011)
    assert found.threshold == 0.6
    assert found.share == 0.5
    assert (found.by_kind["shift"], found.by_kind["spike"]) == (1.0, 0.0)
    assert found.by_kind["ramp"] == pytest.approx(np.nan, nan_ok=True)
