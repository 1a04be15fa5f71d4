"""The judge refuses a gain that may be chance, alarms beyond the budget and a ruined device; a real gain it takes."""

from __future__ import annotations

import numpy as np
import pytest

from models.history import History
from streamer.readings import Float64
from streamer.retraining import judgement
from streamer.retraining.dataset import JUDGE, TRAIN, Site
from streamer.retraining.judgement import LEAST_GAIN, RUINED, Judgement
from tests.retraining.sites import CADENCE
from tests.streams import START, batch, new_shard, shipped_weights

SERIES, STEPS = 10, 400
FROM = 200  # on judges


def some_site(values: Float64 | None = None, *, devices: int = 5, weight: Float64 | None = None) -> Site:
    given = np.random.default_rng(0).normal(size=(SERIES, STEPS)) if values is None else values
    count, steps = given.shape
    time = np.tile(START + CADENCE * np.arange(steps), count)
    part = np.tile(np.where(np.arange(steps) < FROM, TRAIN, JUDGE).astype(np.uint8), count)
    everything = np.ones(count * steps, np.bool_)
    return Site(
        History(time, given.ravel(), np.full(count, steps)),
        everything,
        everything.copy(),
        part,
        [f"device {k % devices}" for k in range(count)],
        np.ones(count) if weight is None else weight,
        FROM,
    )


def judge(site: Site, gained: Float64, alarms: tuple[int, int] = (0, 0)) -> Judgement:
    """`gained` `(series, steps)` nats a reading."""
    before = np.random.default_rng(1).normal(size=len(site.counts))
    return judgement.judge(site, before, before - gained.ravel(), alarms, 1.0)


def noisy(gain: float, scale: float = 0.3, seed: int = 2) -> Float64:
    return gain + scale * np.random.default_rng(seed).normal(size=(SERIES, STEPS))


def test_a_real_gain_is_promoted() -> None:
    """With figures that a person can check: the mean of what is gained in the judged part, and nothing of the rest."""
    gained = noisy(0.1)
    gained[:, :FROM] = -5.0
    found = judge(some_site(), gained)
    assert found.is_better
    assert found.figures["gain"] == pytest.approx(gained[:, FROM:].mean())
    assert found.figures["gain_error"] == pytest.approx(0.3 / np.sqrt(SERIES * (STEPS - FROM)), rel=0.5)
    assert "better by 0.095" in found.reason
    assert found.figures["judged_readings"] == SERIES * (STEPS - FROM)


def test_a_gain_that_is_too_small_is_refused() -> None:
    """However sure it is."""
    found = judge(some_site(), noisy(LEAST_GAIN - 0.005, 0.01))
    assert not found.is_better
    assert "have to be by" in found.reason


def test_a_gain_of_one_hour_is_chance() -> None:
    """All series gain at one time, a storm perhaps: by readings alone that would be sure, by slices of time not."""
    gained = noisy(0.0, 0.01)
    gained[:, 300:305] = 5.0
    assert gained[:, FROM:].mean() > 2 * LEAST_GAIN
    found = judge(some_site(), gained)
    assert not found.is_better
    assert "may be chance" in found.reason


def test_chance_is_promoted_seldom() -> None:
    """Where nothing is gained, and the noise is that of neighbours who resemble each other: none of 200."""
    rng = np.random.default_rng(3)
    wins = 0
    for _ in range(200):
        slow = np.repeat(rng.normal(size=(SERIES, STEPS // 20)), 20, axis=1)
        wins += judge(some_site(), slow).is_better
    assert wins <= 10  # 1.8 % each by Student's t, half of it since the larger of two errors counts


def test_a_ruined_device_refuses_the_candidate() -> None:
    """Four of five gain much, one loses a little more than is allowed."""
    gained = noisy(1.0)
    gained[[2, 7]] -= 1.0 + RUINED + 0.1
    found = judge(some_site(), gained)
    assert not found.is_better
    assert "device 2" in found.reason
    assert (found.figures["worst_device"], found.figures["devices_ruined"]) == ("device 2", 1.0)
    gained[[2, 7]] += 0.15  # it loses no more than that
    assert judge(some_site(), gained).is_better
    gained[[2, 7], FROM:] += np.repeat(np.random.default_rng(0).normal(0, 8, (2, 5)), 40, axis=1)  # it may be chance
    assert judge(some_site(), gained).figures["devices_ruined"] == 0


@pytest.mark.parametrize(
    ("before", "after", "is_better"),
    [
        (0, 0, True),
        (0, 1, True),
        (10, 10, True),
        (10, 11, False),
        (30, 12, True),
        (0, 4, False),
        (3, 12, False),
        (40, 60, False),
    ],
)
def test_alarms_are_within_the_budget_or_no_more_than_before(before: int, after: int, is_better: bool) -> None:
    """A gain in forecasts does not buy alarms: ten series for 200 minutes are 0.05 series-months."""
    site = some_site()
    assert judgement.judged_months(site) == pytest.approx(SERIES * (STEPS - FROM - 1) / 60 / 24 / 30.44)
    found = judge(site, noisy(0.5), (before, after))
    assert found.is_better == is_better
    assert found.is_better or "alarms" in found.reason


def test_more_alarms_within_a_wide_budget_are_refused_only_if_notable() -> None:
    """The budget allows 60: from 20 to 25 may be chance, from 2 to 12 is not."""
    site = some_site()
    budget = 50 / judgement.judged_months(site)
    before = np.zeros(len(site.counts))
    after = before - noisy(0.5).ravel()
    for alarms, is_better in (((20, 25), True), ((2, 12), False), ((0, 2), True)):
        assert judgement.judge(site, before, after, alarms, budget).is_better == is_better


def test_the_budget_allows_for_chance() -> None:
    """The 95 % quantile of the Poisson distribution, from tables; a single alarm is always one."""
    assert [judgement.allowed(mean) for mean in (0.01, 0.1, 1.0, 5.0, 10.0)] == [1, 1, 3, 9, 15]
    assert judgement.allowed(0.0) == 1
    assert judgement.allowed(1000.0) == pytest.approx(1052, abs=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    """One reading is enough."""
    gained = noisy(0.5)
    gained[3, 300] = bad
    found = judge(some_site(), gained)
    assert not found.is_better
    assert "no numbers" in found.reason


def test_a_series_counts_for_as_many_as_it_stands_for() -> None:
    """Those that were drawn from many weigh more than those that were sought out."""
    weight = np.where(np.arange(SERIES) < 5, 1.0, 9.0)
    gained = noisy(0.0, 0.01)
    gained[:5] += 1.0
    found = judge(some_site(weight=weight), gained)
    assert found.figures["gain"] == pytest.approx(0.1, abs=0.01)


def test_alarms_are_counted_by_the_daemons_own_shard() -> None:
    """Wild readings, in the judged part and before it: the alarms of a shard that is fed them reading by reading."""
    values = np.random.default_rng(5).normal(size=(4, STEPS))
    values[0, 100:103] += 60.0
    values[[0, 2], 300:303] += 60.0
    values[1, 350:353] -= 60.0
    site = some_site(values, devices=4)
    shard, opened = new_shard([f"device {k}#x" for k in range(4)]), []
    for t in range(STEPS):
        time = float(site.history.time[t])
        for k in range(4):
            outcome = shard.process(batch(k, time, values[k, t]), time)
            opened += [t for change in outcome.changes if change.what == "opened"]
    assert sorted(opened) == [100, 300, 300, 350]
    found = judgement.trial(shipped_weights(), site, 1.0)
    assert found.alarms == 3
    assert 0 <= found.in_charge <= 1
