"""When a retraining is due: by the clock with jitter, by drift against the record, never by accident."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.retraining.policy import SAMPLE_SECONDS, WINDOW_SECONDS, Drift, Plan, Policy

HOUR = 3600.0


def observe(drift: Drift, begin: float, hours: float, loss: float, seed: int = 0) -> float:
    rng, now = np.random.default_rng(seed), begin
    while now < begin + hours * HOUR:
        drift.observe(now, loss * (1 + 0.05 * rng.normal()))
        now += SAMPLE_SECONDS
    return now


def test_the_timer_is_jittered_and_counts_from_the_last_one() -> None:
    due = []
    for seed in range(50):
        policy = Policy(Plan(24 * HOUR, 0.0), 0.0, seed)
        now = next(t for t in np.arange(0.0, 30 * HOUR, 60.0) if policy.reason(float(t)))
        due.append(float(now) / HOUR)
        policy.ended(float(now))
        assert policy.reason(float(now) + 20 * HOUR) is None
        assert policy.reason(float(now) + 27 * HOUR) == "timer"
    assert 21.5 < min(due) < 23
    assert 25 < max(due) < 26.5


def test_without_a_plan_nothing_is_ever_due() -> None:
    policy = Policy(Plan(0.0, 0.0), 0.0, 1)
    now = observe(policy.drift, 0.0, 3, 1.0)
    observe(policy.drift, now, 3, 9.0)
    assert policy.reason(1e9) is None


def test_a_sustained_rise_is_drift_and_a_short_one_is_not() -> None:
    drift = Drift(0.3)
    now = observe(drift, 0.0, 5, 1.0)
    assert not drift.has_come()
    assert drift.record == pytest.approx(1.0, abs=0.05)
    now = observe(drift, now, 0.8, 2.0)
    assert not drift.has_come()
    now = observe(drift, now, 2, 1.0)
    assert not drift.has_come()
    now = observe(drift, now, 1.1, 1.6)
    assert drift.has_come()
    observe(drift, now, 0.1, 1.0)
    assert not drift.has_come()


def test_a_slow_rise_is_measured_against_the_record_not_against_yesterday() -> None:
    drift, now = Drift(0.3), 0.0
    for loss in np.linspace(1.0, 1.6, 25):
        now = observe(drift, now, 2, float(loss))
    assert drift.has_come()


def test_other_weights_have_a_record_of_their_own() -> None:
    drift = Drift(0.3)
    now = observe(drift, 0.0, 3, 1.0)
    drift.forget()
    observe(drift, now, 3, 5.0)
    assert not drift.has_come()
    assert drift.record == pytest.approx(5.0, abs=0.3)


def test_a_site_that_tells_nothing_has_no_drift() -> None:
    """Neither NaN nor a pause of a day says anything."""
    drift = Drift(0.3)
    now = observe(drift, 0.0, 3, 1.0)
    for k in range(100):
        drift.observe(now + k * SAMPLE_SECONDS, float("nan"))
    assert not drift.has_come()
    drift.observe(now + 24 * HOUR, 9.0)
    drift.observe(now + 24 * HOUR + SAMPLE_SECONDS, 9.0)
    assert not drift.has_come()
    assert WINDOW_SECONDS == HOUR


def test_drift_does_not_ask_for_one_after_the_other() -> None:
    policy = Policy(Plan(0.0, 0.3), 0.0, 1)
    now = observe(policy.drift, 0.0, 3, 1.0)
    now = observe(policy.drift, now, 2, 2.0)
    assert policy.reason(now) == "drift"
    policy.ended(now)
    assert policy.reason(now + 60) is None


def test_drift_that_no_retraining_cures_asks_ever_more_seldom() -> None:
    """A season that no weights forecast better is tried again after two, four, eight hours, at last once a day."""
    policy = Policy(Plan(0.0, 0.3), 0.0, 1)
    now = observe(policy.drift, 0.0, 3, 1.0)
    begun = []
    while now < 7 * 24 * HOUR:
        policy.drift.observe(now, 2.0)
        if policy.reason(now):
            begun.append(now)
            policy.ended(now, in_vain=True)
        now += SAMPLE_SECONDS
    assert 8 <= len(begun) <= 12
    assert begun[-1] - begun[-2] == pytest.approx(24 * HOUR, abs=60)
    policy.ended(now)
    assert policy.reason(now + HOUR) == "drift"


def test_a_clock_that_is_set_back_does_not_stop_the_timer() -> None:
    policy = Policy(Plan(24 * HOUR, 0.0), 1000 * HOUR, 1)
    assert policy.reason(0.0) is None
    assert policy.reason(27 * HOUR) == "timer"
