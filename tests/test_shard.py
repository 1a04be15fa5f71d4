"""The shard: readings in, verdicts and changes of alarms out; restart = no restart."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.step import state_size
from models.weights import ForecasterConfig
from streamer.alarms import Change
from streamer.readings import Batch, Unscored
from streamer.shard import LATER, MADE_BY_WEIGHTS, NEVER, Shard, State
from tests.streams import START, batch, cut, feed, new_shard, noise, random_weights, shipped_weights, stream

KEYS = ["plant/a#t", "plant/a#p", "plant/b#t", "plant/b#p", "plant/c"]
READINGS = stream(600, len(KEYS), seed=5)
READINGS.value[[400, 401, 405, 500]] += 300.0


def through_json(state: State) -> State:
    """As a snapshot gives it back: arrays copied, the rest as JSON."""
    rest = msgspec.json.decode(msgspec.json.encode(state.rest), type=dict[str, object])
    return State({name: array.copy() for name, array in state.arrays.items()}, rest)


def in_alarm() -> tuple[Shard, float]:
    """A shard whose first series has a value alarm and whose device b is silent; and the time."""
    shard = new_shard(KEYS)
    shard.listen_from(START)
    n = 120
    for k in range(n):
        shard.process(batch(np.arange(5), START + 60.0 * k, noise(5, k)), START + 60.0 * k)
    now = START + 60.0 * n
    for k in range(12):
        shard.process(batch([0, 1, 4], now + 60.0 * k, [900.0, 20.0, 20.0]), now + 60.0 * k)
    now += 60.0 * 11
    shard.find_silent(now)
    return shard, now


@cache
def in_alarm_saved() -> tuple[State, float]:
    """Its state, made once."""
    shard, now = in_alarm()
    return through_json(shard.export()), now


def incidents() -> Batch:
    """Four series of one device and one of another, one message after the other; faults that move some of them."""
    n = 500
    rng = np.random.default_rng(9)
    value = 20 + rng.normal(size=(n, 5))
    value[200, :3] += [40, 60, 1e3]
    value[260:300, 1] += 80
    value[270, [0, 3]] += 70
    value[320:360, 2:] -= 90
    value[400:, 0] += 90
    value[450:454, 1:3] += [60, 90]
    rows = n * value.shape[1]
    time = START + 10.0 * np.arange(n).repeat(5) + rng.choice([0.0, 0.0, 1.0, -100.0], rows, p=[0.6, 0.3, 0.09, 0.01])
    return batch(np.tile([3, 0, 1, 2, 4], n), time, value.ravel())


INCIDENT_KEYS = ["plant/a#t", "plant/a#p", "plant/a#q", "plant/a#r", "plant/b"]
INCIDENTS = incidents()


@pytest.mark.parametrize("seed", range(8))
def test_who_is_not_looked_for_is_not_overdue(seed: int) -> None:
    """A shard that looks for silence only when somebody can be overdue tells the same as one that always looks."""
    rng = np.random.default_rng(seed)
    shards = [new_shard(KEYS), new_shard(KEYS)]
    told: list[list[Change]] = [[], []]
    now, skipped = START, 0
    for shard in shards:
        shard.listen_from(START)
    for _ in range(45):
        now += 7.0
        for shard in shards:
            shard.process(batch(np.arange(5), now, noise(5)), now)
    for _ in range(300):
        now += float(rng.choice([1.0, 1.0, 1.0, 5.0, 40.0, -3.0]))
        slots, what = np.flatnonzero(rng.random(5) < 0.4), int(rng.integers(40))
        for shard, changes in zip(shards, told, strict=True):
            if what < 3:
                changes.extend(shard.process(batch(slots, now, np.full(len(slots), 20.0)), now).changes)
            elif what == 3:
                changes.extend(shard.hear(slots, np.full(len(slots), now)))
            elif what == 4:
                changes.extend(shard.pause(slots, now))
            elif what == 5:
                shard.resume(slots, now)
            elif what == 6:
                shard.listen_from(now)
            skipped += shard._none_due[0] <= now <= shard._none_due[1]
            if shard is shards[1]:
                shard._none_due = NEVER
            changes.extend(shard.find_silent(now))
        assert [(c.what, c.alarm) for c in told[0]] == [(c.what, c.alarm) for c in told[1]]
    assert any(change.alarm.kind == "silent" for change in told[0])
    assert skipped > 100


def test_a_series_that_comes_of_age_while_nothing_comes_is_looked_for() -> None:
    """One that does not report by the clock can be overdue once it is two days old, not when others report again."""
    shard, now = new_shard(KEYS[:1]), START
    shard.listen_from(START)
    for gap in [10.0, 100.0, 30.0] * 15:
        shard.process(batch([0], now, [20.0]), now)
        now += gap
    of_age = START + 2 * 86_400.0
    assert shard.find_silent(of_age - 30.0) == []
    assert [change.what for change in shard.find_silent(of_age + 31.0)] == ["opened"]


def test_an_irregular_series_is_missed_once_it_is_known_for_long_enough() -> None:
    """Though nothing whatever has come since before two days were over."""
    shard = new_shard(KEYS)
    shard.listen_from(START)
    now = START
    for k in range(120):
        now += 3600.0 if k % 20 == 0 else 60.0
        shard.process(batch(np.arange(5), now, noise(5, k)), now)
    told = []
    while now < START + 2 * 86_400.0 + 7200.0:
        now += 600.0
        told += [now] * len(shard.find_silent(now))
    known_at = START + 3600.0 + 2 * 86_400.0
    assert told
    assert known_at <= told[0] <= known_at + 600.0


class Told(NamedTuple):
    """All of a change that is not a number that may differ by rounding."""

    what: str
    series: str | None
    id: str
    updated_at: float
    readings: int
    view: str | None
    members: tuple[str, ...]
    channels: list[str]


def told(changes: list[Change]) -> list[Told]:
    return [
        Told(
            change.what, change.series, alarm.id, alarm.updated_at, alarm.readings, alarm.view, alarm.members,
            [channel.key for channel in alarm.channels],
        )
        for change in changes
        for alarm in [change.alarm]
    ]  # fmt: skip


@given(st.lists(st.integers(1, len(INCIDENTS) - 1), max_size=40))
@example(list(range(1, len(INCIDENTS))))
@settings(max_examples=6, deadline=None)
def test_incidents_do_not_depend_on_how_the_stream_was_cut(at: list[int]) -> None:
    """All of it at once, in pieces that cut messages, reading by reading: the same changes in the same order."""
    pieces = [0, *sorted(at), len(INCIDENTS)]
    results = []
    for edges in ([0, len(INCIDENTS)], pieces):
        shard = new_shard(INCIDENT_KEYS, budget=30.0)
        outcomes = [shard.process(INCIDENTS[a:z], START) for a, z in pairwise(edges)]
        results.append(told([change for outcome in outcomes for change in outcome.changes]))
    assert results[0] == results[1]
    assert {each.what for each in results[0]} == {"opened", "updated", "left", "closed"}
    assert max(len(each.members) for each in results[0]) == 3


@pytest.mark.parametrize("split", [200 * 5 + 2, 203 * 5, 272 * 5 + 2, 290 * 5, 330 * 5])
def test_an_incident_of_several_series_goes_on_after_a_restart(split: int) -> None:
    """In the middle of a message, of the incident, after a member has left: as if nothing had happened."""
    first = new_shard(INCIDENT_KEYS, budget=30.0)
    feed(first, INCIDENTS[:split], at_once=5)
    assert first.open_alarms()
    second = new_shard([], max_series=5, budget=30.0)
    assert second.restore(through_json(first.export())) is None
    assert second.open_alarms() == first.open_alarms()
    rest = INCIDENTS[split:]
    there, here = (
        [change for _, piece in cut(rest, list(range(5, len(rest), 5))) for change in shard.process(piece, 0.0).changes]
        for shard in (first, second)
    )
    assert here == there
    assert here
    same(first.export(), second.export())


def same(one: State, other: State) -> None:
    assert through_json(one).rest == through_json(other).rest
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)


@given(st.lists(st.integers(1, 599), max_size=30))
@settings(max_examples=6, deadline=None)
def test_verdicts_and_alarms_do_not_depend_on_how_the_stream_was_cut(at: list[int]) -> None:
    """Scores to 1e-6; the same alarms with the same ids."""
    whole, pieces = new_shard(KEYS, budget=30.0), new_shard(KEYS, budget=30.0)
    now = float(READINGS.time[-1])
    at_once = whole.process(READINGS, now)
    edges = [0, *sorted(at), len(READINGS)]
    parts = [pieces.process(READINGS[a:z], now) for a, z in pairwise(edges)]
    np.testing.assert_allclose(np.concatenate([part.scores.score for part in parts]), at_once.scores.score, atol=1e-6)
    changes = told([change for part in parts for change in part.changes])
    assert changes == told(at_once.changes)
    assert changes  # there is something to compare


def test_an_empty_batch_is_nothing() -> None:
    """A turn whose messages held no reading for the model."""
    outcome = new_shard(KEYS).process(batch([], [], []), START)
    assert len(outcome.scores) == len(outcome.strictness) == len(outcome.changes) == 0


def test_strictness_is_there_where_a_forecast_was() -> None:
    """A late reading has none, and must not be counted in a device's joint score."""
    outcome = new_shard(KEYS).process(batch([0, 1, 0], [START, START, START - 1], 1.0), START)
    assert np.isnan(outcome.strictness).tolist() == [False, False, True]
    assert outcome.scores.unscored.tolist() == [Unscored.WARMING, Unscored.WARMING, Unscored.LATE]


@pytest.mark.parametrize("split", [3, 300])
def test_restored_from_an_export_it_goes_on_as_if_nothing_had_happened(split: int) -> None:
    """Restart = no restart: equal verdicts, equal alarms, equal states, bit for bit."""
    first = new_shard(KEYS, budget=30.0)
    feed(first, READINGS[:split], at_once=50)
    second = Shard(new_shard([], max_series=50).registry, shipped_weights(), 50, budget_per_series_month=30.0)
    assert second.restore(through_json(first.export())) is None
    there, here = feed(first, READINGS[split:], at_once=50), feed(second, READINGS[split:], at_once=50)
    np.testing.assert_array_equal(there.score, here.score)
    same(first.export(), second.export())


def test_open_alarms_of_both_kinds_outlive_a_restart() -> None:
    """They neither close nor open again; they close when it is time, under the same id."""
    first, now = in_alarm()
    before = first.open_alarms()
    assert [(alarm.kind, alarm.key) for alarm in before] == [("value", KEYS[0]), ("silent", "plant/b#*")]
    second = new_shard([], max_series=5)
    second.restore(through_json(first.export()))
    assert second.open_alarms() == before
    second.listen_from(START)
    assert second.find_silent(now) == []
    changes = second.process(batch([2, 3], now + 60, 20.0), now + 60).changes
    assert [(change.what, change.alarm.id) for change in changes] == [("closed", before[1].id)]
    later = [
        change
        for k in range(60)
        for change in second.process(batch(0, now + 60.0 * (k + 1), 20.0), now + 60.0 * (k + 1)).changes
    ]
    assert [(change.what, change.alarm.id) for change in later] == [("closed", before[0].id)]


def test_what_is_exported_does_not_change_with_the_shard() -> None:
    """A snapshot is written while the engine goes on."""
    shard, now = in_alarm()
    state = shard.export()
    kept = through_json(state)
    shard.process(batch(np.arange(5), now + 60, 20.0), now + 60)
    same(state, kept)


def test_state_of_other_weights_keeps_statistics_and_leaves_the_hidden_state_behind() -> None:
    """(h, c) and calibration mean nothing to other weights, of another width even less; what was measured stays."""
    first, _ = in_alarm()
    other = random_weights(ForecasterConfig(input_size=18, hidden_size=7))
    second = new_shard([], weights=other, max_series=5)
    left_behind = second.restore(through_json(first.export()))
    assert left_behind is not None
    assert "other weights" in left_behind
    mine, theirs = second.export().arrays, first.export().arrays
    for name in MADE_BY_WEIGHTS:
        assert not mine[name].any(), name
    for name in mine.keys() - set(MADE_BY_WEIGHTS):
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    assert second.open_alarms() == first.open_alarms()
    assert len(second.registry) == len(KEYS)


def test_a_state_from_before_there_was_a_baseline_is_used() -> None:
    """All of it goes on; who is in charge is found out anew."""
    first, _ = in_alarm()
    state = through_json(first.export())
    for name in LATER:
        del state.arrays[name]
    second = new_shard([], max_series=5)
    assert second.restore(state) is None
    mine, theirs = second.export().arrays, first.export().arrays
    assert not mine["forecasters"].any()
    for name in mine.keys() - set(LATER):
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


LAYOUTS = {
    **{cell: ForecasterConfig(18, 6, cell=cell) for cell in ("lstm", "peephole", "coupled", "gru", "fgr")},
    "attention": ForecasterConfig(18, 6, attention=3),
    "two layers": ForecasterConfig(18, 6, 2, residual=True),
}


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_restarted_with_other_weights_the_hidden_state_begins_anew(before: str, after: str) -> None:
    """Whatever the cells: of equal width or not, no hidden state is read as another network's."""
    old, new = (random_weights(LAYOUTS[name], seed) for seed, name in enumerate((before, after)))
    first = new_shard(KEYS, weights=old)
    feed(first, READINGS[:100], at_once=50)
    state = through_json(first.export())
    assert state.arrays["recurrent"].any()
    second = new_shard([], weights=new, max_series=5)
    assert "other weights" in str(second.restore(state))
    assert second.export().arrays["recurrent"].shape == (len(KEYS), state_size(new.config))
    assert not second.export().arrays["recurrent"].any()
    same_again = new_shard([], weights=old, max_series=5)
    assert same_again.restore(state) is None
    np.testing.assert_array_equal(same_again.export().arrays["recurrent"], state.arrays["recurrent"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_hidden_state_of_another_width_is_refused(name: str) -> None:
    """Under the same checksum too: what carries a width of its own is never put where it does not fit."""
    weights = random_weights(LAYOUTS[name])
    state = new_shard(KEYS, weights=weights).export()
    wider = np.zeros((len(KEYS), state_size(weights.config) + 6), np.float32)
    with pytest.raises(ValueError, match="array recurrent does not fit"):
        new_shard([], weights=weights, max_series=5).restore(State({**state.arrays, "recurrent": wider}, state.rest))


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    """Wrong rows, another type, a missing array, no registry: nothing is taken over."""
    first, _ = in_alarm()
    good = through_json(first.export())
    wrong = {
        "array noted does not fit": State({k: v for k, v in good.arrays.items() if k != "noted"}, good.rest),
        "array cadence does not fit": State({k: v for k, v in good.arrays.items() if k != "cadence"}, good.rest),
        "array latest does not fit": State(good.arrays | {"latest": good.arrays["latest"][:-1]}, good.rest),
        "array recurrent does not fit": State(good.arrays | {"recurrent": good.arrays["recurrent"][:, 1:]}, good.rest),
        "array calibration does not fit": State(
            good.arrays | {"calibration": good.arrays["calibration"].astype(np.float64)}, good.rest
        ),
        "not of this kind": State(good.arrays, {k: v for k, v in good.rest.items() if k != "registry"}),
    }
    for reason, state in wrong.items():
        second = new_shard([], max_series=5)
        with pytest.raises(ValueError, match=reason):
            second.restore(state)
        assert len(second.registry) == 0
        same(second.export(), new_shard([], max_series=5).export())


def test_a_limit_that_was_lowered_forgets_nothing() -> None:
    """The series there are stay and go on; a new one is not let in."""
    first, now = in_alarm()
    second = new_shard([], max_series=3)
    assert second.restore(through_json(first.export())) is None
    same(first.export(), second.export())
    there, here = (each.process(batch(np.arange(5), now + 60, 20.0), now + 60) for each in (first, second))
    np.testing.assert_array_equal(there.scores.score, here.scores.score)
    assert second.registry.resolve(["plant/new"], now).tolist() == [-1]


def test_an_evicted_series_closes_its_alarm_and_frees_its_slot() -> None:
    """The next key that comes gets a slot without a past."""
    shard, now = in_alarm()
    changes = shard.evict(np.array([0]), now)
    assert [(change.what, change.alarm.key) for change in changes] == [("closed", KEYS[0])]
    assert shard.registry.find(KEYS[0]) is None
    assert shard.registry.resolve(["plant/new"], now).tolist() == [0]
    outcome = shard.process(batch(0, now, 5.0), now)
    assert outcome.scores.unscored.tolist() == [Unscored.WARMING]
    assert shard.cadence.allowed_seconds(1, now).tolist() == [np.inf]


def test_a_slot_that_is_used_again_has_no_past() -> None:
    """In every array, to the last bit, as in a shard that never knew another series; so are its alarms to come."""
    used, now = in_alarm()
    used.evict(np.array([0, 2]), now)
    fresh = new_shard(KEYS)
    fresh.registry.evict([0, 2])
    readings = batch([0, 2] * 300, now + 60.0 * np.arange(300).repeat(2), noise(600))
    readings.value[400:420] += 500.0
    for shard in (used, fresh):
        shard.listen_from(now)
        assert shard.registry.resolve(["plant/y", "plant/x"], now).tolist() == [2, 0]
    one, other = (shard.process(readings, readings.time).changes for shard in (used, fresh))
    assert told(one) == told(other)
    assert "opened" in {change.what for change in one}
    for name, array in used.export().arrays.items():
        np.testing.assert_array_equal(array[[0, 2]], fresh.export().arrays[name][[0, 2]], name)


def test_a_device_that_is_silent_stays_so_without_one_of_its_series() -> None:
    """Its alarm closes with the last one, and says why."""
    shard, now = in_alarm()
    (silent,) = (alarm for alarm in shard.open_alarms() if alarm.kind == "silent")
    assert shard.evict(np.array([2]), now) == []
    assert silent in shard.open_alarms()
    assert shard.find_silent(now + 60.0) == []
    (closed,) = shard.evict(np.array([3]), now + 70.0)
    assert (closed.what, closed.alarm.id) == ("closed", silent.id)
    assert (closed.alarm.closed_at, closed.alarm.reason) == (now + 70.0, "evicted")
    assert silent.id not in [alarm.id for alarm in shard.open_alarms()]


def test_who_is_worth_least_makes_room_first() -> None:
    """A stranger, then who has an old normal, then who is silent, then an incident; the longest quiet first."""
    shard, now = in_alarm()
    shard.registry.max_series = 7
    shard.make_room(7)
    slots = shard.registry.resolve(["stranger/new", "stranger/old"], now)
    assert slots.tolist() == [5, 6]
    shard.process(batch(6, now - 5.0, 1.0), now - 5.0)
    shard.process(batch(5, now, 1.0), now)
    later = now + 2 * 86_400.0
    assert shard.idle(later, 86_400.0, 9).tolist() == [6, 5, 1, 4, 2, 3, 0]
    assert shard.idle(later, 86_400.0, 3).tolist() == [6, 5, 1]


def test_who_is_idle() -> None:
    """Who has kept quiet for so long, longer than its cadence allows, and while the daemon has listened for an hour."""
    shard = new_shard(["minutes", "daily", "stranger"])
    day, hour = 86_400.0, 3600.0
    for k in range(40):
        shard.process(batch(1, START + day * k, 1.0), START + day * k)
    now = START + 39 * day
    for k in range(40):
        shard.process(batch(0, now + 60.0 * k, 1.0), now + 60.0 * k)
    now += 39 * 60.0
    shard.process(batch(2, now, 1.0), now)
    assert shard.idle(now + 1.9 * day, 2 * day, 9).tolist() == []
    assert shard.idle(now + 2.1 * day, 2 * day, 9).tolist() == [2, 0]
    assert shard.idle(now + 5.1 * day, 2 * day, 9).tolist() == [2, 1, 0]
    shard.listen_from(now + 5.1 * day)
    assert shard.idle(now + 5.1 * day + 0.9 * hour, 2 * day, 9).tolist() == []
    assert shard.idle(now + 5.1 * day + 1.1 * hour, 2 * day, 9).tolist() == [2, 0]
    shard.evict(np.array([2]), now)
    assert shard.idle(now + 6.0 * day, 2 * day, 9).tolist() == [0]


def test_series_that_are_warming_are_counted() -> None:
    """Free slots are not."""
    shard = new_shard(KEYS, max_series=50)
    assert shard.warming() == len(KEYS)
    feed(shard, batch([0] * 40, START + np.arange(40), noise(40)))
    assert shard.warming() == len(KEYS) - 1
    shard.evict(np.array([1]), START + 40)
    assert shard.warming() == len(KEYS) - 2


def test_a_series_is_live_until_it_is_stale_and_later_than_its_cadence_allows() -> None:
    """An hourly sensor does not vanish from a dashboard after five minutes."""
    shard = new_shard(["fast", "hourly", "never"])
    for k in range(40):
        shard.process(batch(1, START + 3600.0 * k, 1.0), START + 3600.0 * k)
    now = START + 39 * 3600.0
    for k in range(40):
        shard.process(batch(0, now + k, 1.0), now + k)
    assert shard.live(now + 200, 300.0).tolist() == [0, 1]
    assert shard.live(now + 1000, 300.0).tolist() == [1]
    assert shard.live(now + 6 * 3600, 300.0).tolist() == []


def test_how_a_stream_is_cut_changes_no_bit() -> None:
    """One by one, or by thousands: a replay may take groups together, and a twin's turns may be others."""
    rng = np.random.default_rng(1)
    series, rounds = 600, 3
    readings = batch(
        np.tile(np.arange(series), rounds), START + 10.0 * np.arange(rounds).repeat(series), rng.normal(size=1800)
    )
    states = []
    for sizes in ([1800], [1, 1, 2, 5, 16], [513], [601, 1, 1025, 3, 130]):
        shard, start = new_shard([f"plant/{n}" for n in range(series)]), 0
        for size in sizes * 1800:
            shard.process(readings[start : start + size], START)
            start += size
            if start >= len(readings):
                break
        states.append(shard.export())
    for state in states[1:]:
        same(state, states[0])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_copy_made_piece_by_piece_is_the_state_when_it_began(sizes: list[int], seed: int) -> None:
    """Whatever happens in between: readings, silence, series that are forgotten and new ones in their slots."""
    before, now = in_alarm_saved()
    shard = new_shard([], max_series=len(KEYS))
    shard.restore(before)
    rng = np.random.default_rng(seed)
    wanted = through_json(shard.export())
    shard.begin_copy()
    state = None
    for n, size in enumerate([*sizes, 5]):
        now += 60.0
        match int(rng.integers(5)):
            case 0:
                shard.hear(np.array([1, 3]), np.full(2, now))
            case 1:
                shard.evict(np.array([rng.integers(5)]), now)
                shard.registry.resolve([f"plant/new{n}"], now)
            case 2:
                shard.find_silent(now)
            case _:
                slots = np.flatnonzero(shard.registry.devices >= 0)
                shard.process(batch(slots, now, rng.normal(20.0, 1.0, len(slots))), now)
        state = shard.go_on_copying(size)
        if state is not None:
            break
    assert state is not None
    same(through_json(state), wanted)
    assert shard.go_on_copying(1) is None
