"""Irregular time is normal: the alarms of devices told otherwise are those of the regular run, within a tolerance.

The tolerances lie under what `python -m tests.irregular` measured over ten seeds, see docs/quality.md.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest

from tests.devices import Device
from tests.irregular import DEAD_ROWS, REGULAR, VARIANTS, Runs, compare, extra, run

WARM_ROWS = 20


class Tolerance(NamedTuple):
    """How far the alarms may be from those of the regular run."""

    kept: float
    """least share of those that can be expected"""
    clear_kept: float
    """the same of the clear ones"""
    extra: float
    """most others per 10,000 readings"""


TOLERANCES = {
    "as they are": Tolerance(1.0, 1.0, 0.0),
    "90 % of the rows": Tolerance(0.75, 0.80, 0.5),
    "70 % of the rows": Tolerance(0.65, 0.75, 1.2),
    "50 % of the rows": Tolerance(0.60, 0.70, 2.5),
    "times +-40 %": Tolerance(0.75, 0.90, 0.4),
    "outages": Tolerance(0.60, 0.70, 1.2),
    "10 % late by 1-5": Tolerance(0.75, 0.80, 0.6),
    "30 % late by 1-20": Tolerance(0.65, 0.75, 1.0),
    "30 % empty cells": Tolerance(0.65, 0.75, 1.2),
    "a channel away": Tolerance(0.75, 0.90, 0.4),
    "10 % late by 1-5, put in order": Tolerance(1.0, 1.0, 0.0),
    "30 % late by 1-20, put in order": Tolerance(1.0, 1.0, 0.0),
}


QUICK = [
    REGULAR, "70 % of the rows", "times +-40 %", "outages", "10 % late by 1-5", "30 % empty cells", "a channel away",
    "10 % late by 1-5, put in order",
]  # fmt: skip


pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def told() -> tuple[list[Device], Runs]:
    return run(seed=2, count=4, names=QUICK, intervals=(60.0, 600.0))


@pytest.mark.parametrize("name", QUICK)
def test_alarms_are_those_of_the_regular_run(told: tuple[list[Device], Runs], name: str) -> None:
    """Nearly all of them open within twenty readings, and few others do."""
    devices, runs = told
    hold(compare(devices, runs[REGULAR], runs[name]), TOLERANCES[name])


@pytest.mark.long
def test_so_it_is_at_every_cadence() -> None:
    """The same for every way of telling, over three seeds of more devices."""
    tallies: dict[str, Counter[str]] = {name: Counter() for name in VARIANTS}
    for seed in (11, 12, 13):
        devices, runs = run(seed, 6)
        for name in VARIANTS:
            tallies[name] += compare(devices, runs[REGULAR], runs[name])
    for name, tally in tallies.items():
        hold(tally, TOLERANCES[name])


def hold(tally: Counter[str], tolerance: Tolerance) -> None:
    assert tally["clear"] >= 4
    assert tally["kept"] >= tolerance.kept * tally["expected"]
    assert tally["clear_kept"] >= tolerance.clear_kept * tally["clear"]
    assert extra(tally) <= tolerance.extra


def test_late_rows_alone_have_no_verdict(told: tuple[list[Device], Runs]) -> None:
    """A row that comes after a younger one is not scored; every other one is, once the series is warm."""
    devices, runs = told
    for device, heard in zip(devices, runs["10 % late by 1-5"], strict=True):
        order = heard.order
        late = np.zeros(len(order), np.bool_)
        late[order] = order < np.maximum.accumulate(order)
        assert 0.05 < late.mean() < 0.4
        assert np.isnan(heard.scores[late]).all()
        in_time = order[~late[order]][WARM_ROWS:]
        assert not np.isnan(heard.scores[in_time]).any()
        assert len(order) == len(device.values)


def test_late_rows_that_are_put_in_order_change_nothing(told: tuple[list[Device], Runs]) -> None:
    """With the allowance on, every row has the verdict of the regular run."""
    devices, runs = told
    for device, before, after in zip(devices, runs[REGULAR], runs["10 % late by 1-5, put in order"], strict=True):
        order = after.order
        assert (order < np.maximum.accumulate(order)).mean() > 0.05  # the verdicts stand where the rows stood
        assert sorted(order) == list(range(len(device.values)))
        np.testing.assert_allclose(after.scores, before.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["30 % empty cells", "a channel away"])
def test_an_absent_channel_does_not_silence_its_device(told: tuple[list[Device], Runs], name: str) -> None:
    """The others are scored on, and the joint score is there wherever one of them has a verdict."""
    _, runs = told
    for heard in runs[name]:
        known = ~np.isnan(heard.scores)
        without = np.argwhere(heard.told & ~known)
        after = without[without[:, 0] >= 5 * WARM_ROWS].tolist()
        assert after == ([[DEAD_ROWS.stop, 2]] if name == "a channel away" else [])  # the first one after a gap
        assert not np.isnan(heard.joint[known.any(axis=1)]).any()
        assert known.any(axis=1)[5 * WARM_ROWS :].mean() > 0.95


def test_a_channel_that_is_away_changes_no_alarm_of_the_others(told: tuple[list[Device], Runs]) -> None:
    """Nor its own before that."""
    _, runs = told
    for before, after in zip(runs[REGULAR], runs["a channel away"], strict=True):
        assert not after.told[DEAD_ROWS.start : DEAD_ROWS.stop, -1].any()
        np.testing.assert_array_equal(before.alarmed[:, :-1], after.alarmed[:, :-1])
        np.testing.assert_array_equal(before.alarmed[: DEAD_ROWS.start], after.alarmed[: DEAD_ROWS.start])
