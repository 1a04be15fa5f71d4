"""Incidents: one alarm each, open as long as the fault, closed when the series is back; silence by learned cadence."""

from __future__ import annotations

import numpy as np
import pytest

from models import weights
from models.features import Narrow, Wide
from streamer.alarms import Change, alarm_id
from streamer.readings import Batch
from streamer.registry import Registry
from streamer.shard import Shard

START = 1_790_000_000.0


def shard(capacity: int = 16) -> Shard:
    return Shard(Registry(capacity, 1e9, 1e9), weights.load(), capacity, budget_per_series_month=1.0)


def feed(
    to: Shard, values: np.ndarray, *, key: str = "oven#temperature", first: int = 0, step: float = 60.0
) -> list[Change]:
    """Reading by reading, on time."""
    slot = to.registry.resolve([key], 0.0)
    changes: list[Change] = []
    for k, value in enumerate(values, first):
        at = START + step * k
        batch = Batch(slot, np.array([at]), np.array([value]), np.zeros(1, np.uint8))
        changes += to.process(batch, at).changes
    return changes


def calm(n: int, first: int = 0) -> np.ndarray:
    rng = np.random.default_rng([7, first])
    return 20 + 2 * np.sin(np.arange(first, first + n) / 20) + 0.1 * rng.normal(size=n)


def whats(changes: list[Change]) -> list[str]:
    return [change.what for change in changes if change.what != "updated"]


def test_a_spike_is_one_alarm_that_closes_by_itself() -> None:
    """Opened at the spike, closed after ten calm readings, under one id that anybody can compute."""
    target = shard()
    assert feed(target, calm(400)) == []
    changes = feed(target, np.r_[80.0, calm(40, 401)], first=400)
    assert whats(changes) == ["opened", "closed"]
    opened, closed = changes[0].alarm, changes[-1].alarm
    assert opened.id == closed.id == alarm_id("oven#temperature", "value", START + 60 * 400)
    assert opened.value == 80.0
    assert opened.direction == "above"
    assert opened.upper is not None
    assert opened.upper < 80.0
    assert closed.closed_at is not None
    assert target.open_alarms() == []


def test_a_jump_that_stays_keeps_its_alarm_and_teaches_nothing() -> None:
    """A thousand readings later the alarm is open, and location, scale and count are those of before the fault."""
    target = shard()
    feed(target, calm(400))
    statistics = target.detector.statistics
    known = statistics.wide[0, Wide.LOCATION], statistics.narrow[0, [Narrow.SCALE, Narrow.STEP, Narrow.COUNT]].tolist()
    changes = feed(target, calm(1000, 400) + 40, first=400)
    assert whats(changes) == ["opened"]
    after = statistics.wide[0, Wide.LOCATION], statistics.narrow[0, [Narrow.SCALE, Narrow.STEP, Narrow.COUNT]].tolist()
    assert after == known
    assert whats(feed(target, calm(60, 1400), first=1400)) == ["closed"]


def test_the_way_back_from_a_long_fault_is_not_its_worst_reading() -> None:
    """By then the forecast expects the fault; the alarm goes on to show what was wrong, not that it is over."""
    target = shard()
    feed(target, calm(400))
    fault = calm(60, 400) + 40
    changes = feed(target, np.r_[fault, calm(60, 460)], first=400)
    assert whats(changes) == ["opened", "closed"]
    closed = changes[-1].alarm
    assert closed.value in fault
    assert closed.direction == "above"
    assert closed.score == max(change.alarm.score or 0.0 for change in changes)


def test_a_burst_that_comes_again_and_again_alarms_a_few_times_only() -> None:
    """What ends by itself raises the bar: the budget holds in the end."""
    target = shard()
    feed(target, calm(400))
    opened = []
    for k in range(20):
        values = np.r_[calm(60, 400 + 60 * k)]
        values[10:12] += 20.0
        opened.append(whats(feed(target, values, first=400 + 60 * k)).count("opened"))
    assert opened[0] == 1
    assert sum(opened[10:]) <= 2


def silence(target: Shard, now: float) -> list[str]:
    return [change.alarm.key for change in target.find_silent(now)]


def test_a_dead_device_is_one_alarm_and_closes_when_it_is_back() -> None:
    """Two fields of one topic that stop together are one incident, under the joint key."""
    target = shard()
    for key in ("oven#temperature", "oven#humidity"):
        feed(target, calm(60), key=key)
    last = START + 60 * 59
    assert silence(target, last + 200) == []
    assert silence(target, last + 400) == ["oven#*"]
    assert silence(target, last + 900) == []
    assert whats(feed(target, calm(1), first=80)) == ["closed"]


def test_a_field_that_stops_while_its_device_goes_on_is_silent_alone() -> None:
    """The device still reports its other field."""
    target = shard()
    feed(target, calm(60), key="oven#humidity")
    feed(target, calm(120), key="oven#temperature")
    assert silence(target, START + 60 * 119 + 1) == ["oven#humidity"]


def test_a_sensor_that_reports_on_change_is_not_silent_at_night() -> None:
    """After days with long quiet nights a night is nothing; a week without a word is."""
    target = shard()
    slot = target.registry.resolve(["door#contact"], 0.0)
    rng = np.random.default_rng(5)
    at = START
    for day in range(5):
        at = START + 86_400 * day
        while at < START + 86_400 * day + 14 * 3600:
            target.process(Batch(slot, np.array([at]), rng.normal(size=1), np.zeros(1, np.uint8)), at)
            at += float(rng.exponential(900)) + 1
            assert silence(target, at) == []
    assert silence(target, at + 12 * 3600) == []
    assert silence(target, at + 7 * 86_400) == ["door#contact"]


def test_nothing_is_silent_while_nobody_listens() -> None:
    """After hours without a broker the clock of silence starts anew."""
    target = shard()
    feed(target, calm(60))
    target.listen_from(START + 10_000)
    assert silence(target, START + 10_100) == []
    assert silence(target, START + 10_400) == ["oven#temperature"]


@pytest.mark.parametrize("kind", ["value", "silent"])
def test_open_alarms_survive_a_snapshot(kind: str) -> None:
    """A shard that takes over the state closes the same alarm when the series is back."""
    target = shard()
    feed(target, calm(400))
    if kind == "value":
        feed(target, np.array([90.0]), first=400)
    else:
        target.find_silent(START + 60 * 400 + 1000)
    (alarm,) = target.open_alarms()
    assert alarm.kind == kind
    other = shard()
    assert other.restore(target.export()) is None
    assert other.open_alarms() == [alarm]
    closed = [change.alarm.id for change in feed(other, calm(40, 420), first=420) if change.what == "closed"]
    assert closed == [alarm.id]
