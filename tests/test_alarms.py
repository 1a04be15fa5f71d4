"""Incidents: one alarm each, open as long as the fault, closed when the series is back; silence by learned cadence."""

from __future__ import annotations

import numpy as np
import pytest

from models import weights
from models.features import Narrow, Wide
from streamer.alarms import NOTED_SCORE, OPEN_SCORE, Change, alarm_id
from streamer.readings import Batch, Float64
from streamer.registry import Registry
from streamer.shard import Shard
from tests.streams import batch, noise

START = 1_790_000_000.0


def shard(capacity: int = 16, budget: float = 1.0) -> Shard:
    return Shard(Registry(capacity, 1e9, 1e9), weights.load(), capacity, budget_per_series_month=budget)


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


def test_a_noisy_sensor_that_sticks_is_told_by_the_pattern_of_its_readings() -> None:
    """At a value that it often has: told before any view finds it odd, and over when the noise is back."""
    keys = [f"room/{n}" for n in range(8)]
    target = shard()
    slot = target.registry.resolve(keys, 0.0)
    values = np.random.default_rng(3).normal(20, 1, (1400, len(keys)))
    values[1100:1250] = 17.5
    changes: list[tuple[int, Change]] = []
    for k, row in enumerate(values):
        at = np.full(len(keys), START + 60.0 * k)
        batch = Batch(slot, at, row, np.zeros(len(keys), np.uint8))
        changes += [(k, change) for change in target.process(batch, float(at[0])).changes]
    opened = {change.alarm.key: k for k, change in changes if change.what == "opened"}
    assert opened.keys() == set(keys)
    assert all(1100 <= k < 1115 for k in opened.values())
    assert {change.alarm.view for _, change in changes if change.what == "opened"} == {"pattern"}
    assert sorted(whats([change for _, change in changes])) == ["closed"] * 8 + ["opened"] * 8


# --- One incident of a device is one alarm ---

FIELDS = ["oven#temperature", "oven#power", "oven#pressure"]


def device(n: int, first: int = 0) -> Float64:
    """Calm readings of three fields `(n, 3)`."""
    return np.column_stack([calm(n, 10_000 * field + first) for field in range(3)]).astype(np.float64)


def feed_device(
    to: Shard, values: Float64, *, first: int = 0, keys: list[str] = FIELDS, at_once: int = 1
) -> list[Change]:
    """One message a minute with all fields, `at_once` of them a batch."""
    slot = to.registry.resolve(keys, 0.0)
    changes: list[Change] = []
    for start in range(0, len(values), at_once):
        part = values[start : start + at_once]
        at = START + 60.0 * np.arange(first + start, first + start + len(part), dtype=np.float64)
        n = part.size
        batch = Batch(np.tile(slot, len(part)), at.repeat(len(slot)), part.ravel(), np.zeros(n, np.uint8))
        changes += to.process(batch, float(at[-1])).changes
    return changes


def told(changes: list[Change]) -> list[tuple[str, str | None]]:
    return [(change.what, change.series) for change in changes]


def warm_device() -> Shard:
    target = shard()
    assert feed_device(target, device(400)) == []
    return target


def test_a_fault_that_moves_three_fields_is_one_alarm() -> None:
    """Opened under the first, joined by the others, held by all, closed once; it names all three."""
    target = warm_device()
    fault = device(5, 400) + np.array([40.0, 60.0, 4e3])
    changes = feed_device(target, fault, first=400)
    assert told(changes)[:3] == [("opened", FIELDS[0]), ("updated", FIELDS[1]), ("updated", FIELDS[2])]
    assert {change.alarm.id for change in changes} == {alarm_id(FIELDS[0], "value", START + 60 * 400)}
    (alarm,) = target.open_alarms()
    assert alarm.members == tuple(FIELDS)
    assert [target.value_alarms.alarm_of(slot) for slot in range(3)] == [alarm] * 3
    assert {channel.key for channel in alarm.channels} == set(FIELDS)
    assert [channel.share for channel in alarm.channels] == sorted((c.share for c in alarm.channels), reverse=True)
    assert (alarm.channels[0].key, alarm.channels[0].value > 3e3) == (FIELDS[2], True)
    assert sum(channel.share for channel in alarm.channels) == pytest.approx(1.0)
    assert all(channel.value in fault[:, FIELDS.index(channel.key)] for channel in alarm.channels)
    (own,) = [channel for channel in alarm.channels if channel.key == alarm.key]
    assert (alarm.value, alarm.expected, alarm.score) == (own.value, own.expected, own.score)
    assert alarm.readings == 15
    after = told(feed_device(target, device(60, 405), first=405))
    assert sorted(what for what, _ in after) == ["closed", "left", "left"]
    assert after[-1][0] == "closed"
    assert target.open_alarms() == []


@pytest.mark.parametrize(("later", "alarms"), [(20, 1), (60, 2)])
def test_an_alarm_of_long_standing_swallows_no_new_fault(later: int, alarms: int) -> None:
    """A field that goes wrong within 30 readings joins; later it is an incident of its own, and closes by itself."""
    target = warm_device()
    fault = device(later + 60, 400)
    fault[:, 0] += 40.0
    fault[later : later + 3, 1] += 60.0
    changes = feed_device(target, fault, first=400)
    assert whats(changes).count("opened") == alarms
    assert told(changes)[-1] == ("left" if alarms == 1 else "closed", FIELDS[1])
    (alarm,) = target.open_alarms()
    assert alarm.members == (FIELDS[0],)
    assert alarm.opened_at == START + 60 * 400
    assert len(alarm.channels) == (2 if alarms == 1 else 1)


def test_a_member_that_is_calm_holds_no_more() -> None:
    """The field that opened it is back, another is not: the alarm keeps key and id, and closes with the last one."""
    target = warm_device()
    fault = device(40, 400)
    fault[0] += [40.0, 60.0, 0.0]
    fault[:, 1] += 60.0
    changes = feed_device(target, fault, first=400)
    assert told(changes)[-1] == ("left", FIELDS[0])
    (alarm,) = target.open_alarms()
    assert (alarm.key, alarm.members) == (FIELDS[0], (FIELDS[1],))
    assert target.value_alarms.alarm_of(0) is None
    last = feed_device(target, device(60, 440), first=440)
    assert told(last) == [("closed", FIELDS[1])]
    assert last[0].alarm.id == alarm.id


def test_what_a_series_learns_does_not_depend_on_its_device() -> None:
    """Three fields of one device and three devices of one field: scores and state are equal bit for bit."""
    together, apart = shard(), shard()
    values = np.concatenate([device(400), device(5, 400) + np.array([40.0, 60.0, 0.0]), device(100, 405)])
    opened = [
        whats(feed_device(to, values, keys=keys)).count("opened")
        for to, keys in ((together, FIELDS), (apart, [f"oven{k}#x" for k in range(3)]))
    ]
    assert opened == [1, 2]
    here, there = together.export().arrays, apart.export().arrays
    for name, array in here.items():
        np.testing.assert_array_equal(array, there[name], err_msg=name)


@pytest.mark.parametrize(("later", "is_named"), [(-2, True), (2, True), (-40, False), (40, False)])
def test_a_field_near_the_threshold_is_named_and_holds_nothing(later: int, is_named: bool) -> None:
    """A few readings before or after the alarm's last news; not what was long ago."""
    target = warm_device()
    values = device(120, 400)
    values[60:, 0] += 40.0
    values[60 + later, 1] += 1.7
    changes = feed_device(target, values[: 61 + later], first=400)
    assert NOTED_SCORE <= target.detector.latest[1, 0] < OPEN_SCORE
    changes += feed_device(target, values[61 + later :], first=461 + later)
    assert told(changes)[0] == ("opened", FIELDS[0])
    (alarm,) = target.open_alarms()
    assert alarm.members == (FIELDS[0],)
    assert [channel.key for channel in alarm.channels] == FIELDS[: 1 + is_named]


def test_of_two_incidents_the_later_one_is_joined() -> None:
    """Both are open, one for a long time."""
    target = warm_device()
    fault = device(80, 400)
    fault[:, 0] += 40.0
    fault[60:, 1] += 60.0
    fault[70:, 2] += 80.0
    feed_device(target, fault, first=400)
    assert [alarm.members for alarm in target.open_alarms()] == [(FIELDS[0],), (FIELDS[1], FIELDS[2])]


def test_other_devices_have_alarms_of_their_own() -> None:
    """The same minute, another topic."""
    target = shard()
    keys = ["oven/1#t", "oven/2#t", "oven/3#t"]
    feed_device(target, device(400), keys=keys)
    changes = feed_device(target, device(1, 400) + 60.0, first=400, keys=keys)
    assert told(changes) == [("opened", key) for key in keys]


def test_a_series_that_is_forgotten_leaves_its_alarm_to_the_others() -> None:
    """The last one closes it."""
    target = warm_device()
    feed_device(target, device(5, 400) + 60.0, first=400)
    assert told(target.evict(np.array([0, 2]), 0.0)) == [("left", FIELDS[0]), ("left", FIELDS[2])]
    assert [alarm.members for alarm in target.open_alarms()] == [(FIELDS[1],)]
    assert told(target.evict(np.array([1]), 0.0)) == [("closed", FIELDS[1])]


def test_a_drift_is_told_with_the_usual_level() -> None:
    """The forecast follows it; the operator reads what used to be, and on which side of it the series is."""
    target = shard(budget=30.0)
    values = calm(1200)
    values[1000:] -= 0.5 * np.arange(200)
    opened, *_ = (change.alarm for change in feed(target, values))
    for alarm in (opened, *target.open_alarms()):
        assert alarm.view in ("level", "drift", "pattern")
        assert alarm.value == pytest.approx(alarm.expected, abs=0.5)
        assert alarm.usual == alarm.channels[0].usual == pytest.approx(20, abs=0.5)
        assert alarm.direction == "below"


@pytest.mark.parametrize("sigmas", [1.5, 2.0, 5.0])
def test_a_mild_shift_that_stays_is_not_told_again_and_again(sigmas: float) -> None:
    """Hour by hour for two weeks; it is held as long as it is further than half of what it was."""
    target = shard()
    calm_alarms = len(feed(target, noise(2500, 5), step=3600.0))
    opened = [
        change for change in feed(target, sigmas + noise(400, 6), first=2500, step=3600.0) if change.what == "opened"
    ]
    assert calm_alarms < 20
    assert len(opened) <= 2
    assert sigmas < 2 or (len(opened), len(target.open_alarms())) == (1, 1)


def test_a_reading_after_a_gap_is_no_peak() -> None:
    """It has no verdict, so it is not what the series is measured by afterwards."""
    target = shard()
    feed(target, calm(400))
    feed(target, np.array([80.0]), first=400)
    peaks = [list(member.peak_views) for member in target.value_alarms.state().members]
    feed(target, np.array([1e9]), first=40_000)
    assert [list(member.peak_views) for member in target.value_alarms.state().members] == peaks


def test_a_spike_is_told_without_it() -> None:
    """There the forecast says what would have been normal."""
    target = shard()
    feed(target, calm(400))
    (change,) = feed(target, np.array([80.0]), first=400)
    assert change.alarm.view == "error"
    assert change.alarm.usual is None


def silence(target: Shard, now: float) -> list[str]:
    return [change.alarm.key for change in target.find_silent(now)]


def test_a_sensor_that_sends_several_times_a_second_and_whole_seconds_is_missed() -> None:
    """As Tasmota does; also where the state comes from a build that knew nothing of what is heard in between."""
    target = shard()
    target.registry.resolve(["tele/x#Power"], START)
    target.listen_from(START)
    for k in range(400):
        if k == 200:
            state = target.export()
            del state.arrays["between"]
            target = shard()
            target.restore(state)
            target.listen_from(START)
        now = START + 0.3 * k
        target.process(batch(0, np.floor(now), 20.0 + 0.01 * (k % 7)), now)
    assert silence(target, now + 19.0) == []
    assert len(silence(target, now + 21.0)) == 1


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
