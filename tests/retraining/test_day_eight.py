"""It never learns the fault: a sensor that jumps and stays is in alarm on day 8, through all retrainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.retraining.site import Site, site

HOUR, DAY, MINUTE = 3600.0, 86_400.0, 60.0
BEAT = 2 * MINUTE
SERIES = 6
FAULTY = "plant/3"


def temperatures(time: float, rng: np.random.Generator) -> dict[str, float]:
    """Ovens that are heated in the daytime, each with a cycle of its own that the shipped weights do not know."""
    found = {}
    for k in range(SERIES):
        cycle = 3.0 * np.sin(2 * np.pi * time / ((20 + 4 * k) * MINUTE)) ** 3
        found[f"plant/{k}"] = float(20 + k + 2 * np.sin(2 * np.pi * time / DAY) + cycle + 0.3 * rng.normal())
    return found


def run(site: Site, hours: float, rng: np.random.Generator, fault: float | None = None) -> None:
    end = site.clock.now() + hours * HOUR
    next_tick = site.clock.now()
    while site.clock.now() < end:
        site.clock.advance(BEAT)
        values = temperatures(site.clock.now(), rng)
        if fault is not None:
            values[FAULTY] = fault + 0.3 * float(rng.normal())
        site.send(values)
        if site.clock.now() >= next_tick:
            site.tick()
            next_tick += HOUR


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fault_that_stays_is_in_alarm_on_day_eight(tmp_path: Path) -> None:
    """And no retraining was taught by it: when it is gone, the alarm closes, and the next fault is told."""
    rng = np.random.default_rng(5)
    with site(
        tmp_path / "state", "retrain.every_hours=24", "retrain.probation_hours=12", "state.snapshot_seconds=86400"
    ) as plant:
        run(plant, 72, rng)
        assert not [alarm for alarm in plant.engine.alarms if FAULTY in alarm.members]
        before = len(plant.results)
        run(plant, 7 * 24, rng, fault=100.0)
        (alarm,) = [alarm for alarm in plant.engine.alarms if FAULTY in alarm.members]
        assert plant.clock.now() - alarm.opened_at > 6.9 * DAY
        assert len(plant.results) - before >= 5
        assert "promoted" in plant.results
        assert "failed" not in plant.results
        run(plant, 6, rng)
        assert not [alarm for alarm in plant.engine.alarms if FAULTY in alarm.members]
        run(plant, 1, rng, fault=100.0)
        assert [alarm for alarm in plant.engine.alarms if FAULTY in alarm.members]
    print(plant.results)  # noqa: T201  the figures of docs/retraining.md, by pytest -s
