"""Readings out of order: put in order within the allowance, and then scored as if they had come so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import reorder
from streamer.readings import Batch, Flag, Float64, Unscored
from streamer.reorder import Reorder
from streamer.shard import Shard
from tests.streams import START, batch, cut, new_shard, noise
from tests.test_shard import same, through_json

LATENESS = 5.0
KEYS = ["plant/a#t", "plant/a#p", "plant/b#t"]


class OneByOne:
    """What `Reorder` promises, in words that are easier to check: a list, and one reading after the other."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: list[tuple[int, float, float, int]] = []
        """slot, time, arrival, number"""
        self.released: dict[int, float] = {}
        self.latest = -np.inf
        self.gone: list[int] = []

    def take(self, number: int, slot: int, time: float, arrival: float, has_time: bool) -> None:
        if arrival < self.latest:
            self.let_go(lambda _: True)
        self.latest = arrival
        late = time <= self.released.get(slot, -np.inf)
        self.held.append((slot, time, arrival, number))
        newest = {s: max(t for other, t, *_ in self.held if other == s) for s, *_ in self.held}

        def is_due(each: tuple[int, float, float, int]) -> bool:
            s, t, came, n = each
            is_at_once = n == number and (late or not has_time)
            return is_at_once or newest[s] >= t + LATENESS or arrival >= came + LATENESS or number >= n + self.most

        self.let_go(is_due)

    def release(self, now: float) -> None:
        self.let_go(lambda each: now < self.latest or now >= each[2] + LATENESS)

    def let_go(self, is_due: object) -> None:
        assert callable(is_due)
        limit: dict[int, float] = {}
        for each in self.held:
            if is_due(each):
                limit[each[0]] = max(limit.get(each[0], -np.inf), each[1])
        goes = [each for each in self.held if each[1] <= limit.get(each[0], -np.inf)]
        self.held = [each for each in self.held if each not in goes]
        for slot, time, _, number in sorted(goes, key=lambda each: (each[1], each[3])):
            self.released[slot] = max(self.released.get(slot, -np.inf), time)
            self.gone.append(number)


READINGS = st.lists(
    st.tuples(
        st.integers(0, 2),  # slot
        st.integers(-15, 3),  # event time, against the arrival
        st.sampled_from([0, 0, 0, 1, 1, 2, 3, 6, -2]),  # seconds since the arrival before
        st.sampled_from([True, True, True, False]),  # has a time of its own
        st.sampled_from(["", "", "", "cut", "release"]),  # what happens behind it
    ),
    max_size=60,
)


@given(READINGS, st.sampled_from([4, 1000]))
@settings(max_examples=300, deadline=None)
def test_what_goes_on_when_is_that_of_one_reading_after_the_other(
    told: list[tuple[int, int, int, bool, str]], most: int
) -> None:
    """However they are cut, with clocks that are set back, readings without a time, and too many that wait."""
    limit, reorder.MOST_HELD = reorder.MOST_HELD, most
    try:
        ours, theirs = Reorder(LATENESS), OneByOne(most)
        gone: list[int] = []
        waiting: list[tuple[int, float, float, bool]] = []
        now, number = START, 0

        def take() -> None:
            if waiting:
                slot, time, arrival, has_time = (np.array(column) for column in zip(*waiting, strict=True))
                readings = batch(slot, time, np.arange(number - len(waiting), number))
                readings.flags[~has_time] = Flag.ARRIVAL_TIME
                gone.extend(ours.take(readings, arrival, number - len(waiting)).batch.value.astype(int).tolist())
                waiting.clear()

        for slot, offset, pause, has_time, then in told:
            now += pause
            time = now + offset if has_time else now
            theirs.take(number, slot, time, now, has_time)
            waiting.append((slot, time, now, has_time))
            number += 1
            if then:
                take()
                assert gone == theirs.gone
            if then == "release":
                now += pause
                gone += ours.release(now).batch.value.astype(int).tolist()
                theirs.release(now)
                assert not ours.is_due(now)
            if then == "cut":  # and kept over a restart
                again = Reorder(LATENESS)
                again.restore(ours.state(3), 3)
                ours = again
        take()
        assert gone == theirs.gone
        assert len(ours) == len(theirs.held) <= most
    finally:
        reorder.MOST_HELD = limit


def shuffled(seed: int, n: int = 240) -> tuple[Batch, Batch, Float64]:
    """Readings of three series, one a second each, in order; the same as they come, up to 5 s late; when they come."""
    rng = np.random.default_rng(seed)
    slot = np.tile(np.arange(3, dtype=np.int32), n)
    time = START + np.repeat(np.arange(n, dtype=np.float64), 3)
    value = noise(3 * n, seed)
    value[600:640:3] += 90.0
    whole = Batch(slot, time, value, np.zeros(3 * n, np.uint8))
    arrival = time + rng.uniform(0.0, LATENESS, 3 * n) * (rng.random(3 * n) < rng.choice([0.1, 0.5, 1.0]))
    order = np.argsort(arrival, kind="stable")
    return whole, whole[order], arrival[order]


def by_reading(readings: Batch, column: Float64) -> dict[tuple[int, float], float]:
    return {(s, t): x for s, t, x in zip(*(a.tolist() for a in (readings.slot, readings.time, column)), strict=True)}


def drive(shard: Shard, readings: Batch, arrival: Float64, at: list[int]) -> dict[tuple[int, float], float]:
    """As the engine does, turn by turn; at the end time passes. Gives the score of each reading."""
    scores: dict[tuple[int, float], float] = {}
    for rows, piece in cut(readings, at):
        ready = shard.hold(piece, arrival[rows])
        outcome = shard.process(ready.batch, ready.arrival, is_heard=ready.is_heard)
        scores |= by_reading(ready.batch, outcome.scores.score)
    ready = shard.release(arrival[-1] + LATENESS)
    outcome = shard.process(ready.batch, ready.arrival, is_heard=ready.is_heard)
    return scores | by_reading(ready.batch, outcome.scores.score)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 719), max_size=40))
@settings(max_examples=25, deadline=None)
def test_what_is_shuffled_within_the_allowance_is_scored_as_if_it_had_come_in_order(seed: int, at: list[int]) -> None:
    """Reading by reading, bit for bit, with the same model state and the same alarms."""
    in_order, shaken = new_shard(KEYS), new_shard(KEYS)
    shaken.reorder.allow(LATENESS)
    whole, came, arrival = shuffled(seed)
    outcome = in_order.process(whole, whole.time)
    assert drive(shaken, came, arrival, at) == pytest.approx(
        by_reading(whole, outcome.scores.score), rel=0, abs=1e-6, nan_ok=True
    )
    assert len(shaken.reorder) == 0
    assert shaken.applied.tolist() == in_order.applied.tolist() == [240] * 3
    assert [alarm.id for alarm in shaken.open_alarms()] == [alarm.id for alarm in in_order.open_alarms()]


def test_in_the_same_waves_the_scores_are_the_same_to_the_last_bit() -> None:
    """One reading at a time on both sides."""
    in_order, shaken = new_shard(KEYS), new_shard(KEYS)
    shaken.reorder.allow(LATENESS)
    whole, came, arrival = shuffled(3)
    expected: dict[tuple[int, float], float] = {}
    found: dict[tuple[int, float], float] = {}
    for k in range(len(whole)):
        expected |= by_reading(whole[k : k + 1], in_order.process(whole[k : k + 1], float(whole.time[k])).scores.score)
    readies = [shaken.hold(came[k : k + 1], arrival[k : k + 1]) for k in range(len(came))]
    readies.append(shaken.release(arrival[-1] + LATENESS))
    for ready in readies:
        for k in range(len(ready.batch)):
            one = ready.batch[k : k + 1]
            found |= by_reading(one, shaken.process(one, ready.arrival[k : k + 1], is_heard=True).scores.score)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal([found[key] for key in expected], list(expected.values()))
    assert sum(score >= 1.0 for score in expected.values()) > 0


def test_state_with_readings_that_wait_goes_on_where_it_was() -> None:
    """A snapshot in the middle, copied in pieces while the shard goes on."""
    whole, came, arrival = shuffled(8)
    one = new_shard(KEYS)
    one.reorder.allow(LATENESS)
    ready = one.hold(came[:400], arrival[:400])
    one.process(ready.batch, ready.arrival, is_heard=True)
    assert len(one.reorder) > 5
    at_once = one.export()
    one.begin_copy()
    other = new_shard(KEYS)
    other.reorder.allow(LATENESS)
    middle = None
    for k in range(400, len(came)):
        ready = one.hold(came[k : k + 1], arrival[k : k + 1])
        one.process(ready.batch, ready.arrival, is_heard=True)
        middle = middle or one.go_on_copying(1)
    assert middle is not None
    same(at_once, middle)
    other.restore(through_json(middle))
    for k in range(400, len(came)):
        ready = other.hold(came[k : k + 1], arrival[k : k + 1])
        other.process(ready.batch, ready.arrival, is_heard=True)
    same(one.export(), other.export())
    assert len(whole) == one.taken


def test_cadence_and_silence_go_by_the_arrival() -> None:
    """As without an allowance, whatever waits."""
    _, came, arrival = shuffled(4)
    shards = [new_shard(KEYS), new_shard(KEYS)]
    shards[1].reorder.allow(LATENESS)
    for shard in shards:
        for k in range(0, 700, 7):
            ready = shard.hold(came[k : k + 7], arrival[k : k + 7])
            shard.process(ready.batch, ready.arrival, is_heard=ready.is_heard)
        assert shard.cadence.arrival(3).max() == arrival[699]
    np.testing.assert_allclose(shards[0].cadence.rows[:3], shards[1].cadence.rows[:3], rtol=1e-12)


def test_the_same_time_twice_is_a_duplicate() -> None:
    """The one that came later, also where both wait."""
    shard = new_shard(KEYS)
    shard.reorder.allow(LATENESS)
    first = shard.hold(batch(0, [START, START - 1.0, START], [1.0, 2.0, 3.0]), np.full(3, START))
    assert len(first.batch) == 0
    ready = shard.release(START + LATENESS)
    assert ready.batch.value.tolist() == [2.0, 1.0, 3.0]
    verdicts = shard.process(ready.batch, ready.arrival, is_heard=True).scores.unscored
    assert verdicts.tolist() == [Unscored.WARMING, Unscored.WARMING, Unscored.DUPLICATE]


def test_later_than_the_allowance_is_late() -> None:
    """It does not wait, and has no verdict."""
    shard = new_shard(KEYS)
    shard.reorder.allow(LATENESS)
    ready = shard.hold(batch(0, [START, START + 10.0, START + 1.0, START - 2.0], 1.0), np.full(4, START + 10.0))
    assert ready.batch.time.tolist() == [START, START + 1.0, START - 2.0]
    verdicts = shard.process(ready.batch, ready.arrival, is_heard=True).scores.unscored
    assert verdicts.tolist() == [Unscored.WARMING, Unscored.WARMING, Unscored.LATE]


def test_without_an_allowance_nothing_is_kept_or_written() -> None:
    """What comes is what goes on, the same arrays; the state knows nothing of it."""
    shard = new_shard(KEYS)
    readings, arrival = batch([0, 1], START, 20.0), np.full(2, START)
    ready = shard.hold(readings, arrival)
    assert ready.batch is readings
    assert not ready.is_heard
    assert not [name for name in shard.export().arrays if name.startswith(reorder.PREFIX)]


def test_an_allowance_that_is_taken_away_lets_all_go() -> None:
    """With the next reading of any series, or when time passes."""
    for passes in (False, True):
        shard = new_shard(KEYS)
        shard.reorder.allow(LATENESS)
        shard.hold(batch([0, 0], [START, START - 1.0], 20.0), np.full(2, START))
        again = new_shard(KEYS)
        again.restore(through_json(shard.export()))
        assert again.reorder.is_due(START)
        ready = again.release(START) if passes else again.hold(batch(1, START, 20.0), np.full(1, START))
        assert ready.batch.time.tolist()[:2] == [START - 1.0, START]
        assert len(again.reorder) == 0
        assert again.reorder.is_used


def test_a_state_that_does_not_fit_is_refused() -> None:
    """Arrays that are missing, of other kinds or lengths, or of series that do not exist."""
    shard = new_shard(KEYS)
    shard.reorder.allow(LATENESS)
    shard.hold(batch([0, 2], START, 20.0), np.full(2, START))
    good = through_json(shard.export())
    for name in [name for name in good.arrays if name.startswith(reorder.PREFIX) and name != reorder.RELEASED]:
        for bad in (
            good.arrays[name][:0].astype("f4"),
            np.append(good.arrays[name], 7).astype(good.arrays[name].dtype),
        ):
            with pytest.raises(ValueError, match="does not fit"):
                new_shard(KEYS).restore(good._replace(arrays=good.arrays | {name: bad}))
    beyond = np.array([0, 3], np.int32)
    with pytest.raises(ValueError, match="does not know"):
        new_shard(KEYS).restore(good._replace(arrays=good.arrays | {"reorder.slot": beyond}))


def test_evicted_series_leave_nothing_behind() -> None:
    """Whoever gets the slot begins anew."""
    shard = new_shard(KEYS)
    shard.reorder.allow(LATENESS)
    shard.hold(batch([0, 2], START, 20.0), np.full(2, START))
    shard.hold(batch([0, 2], START + 60.0, 20.0), np.full(2, START + 60.0))
    shard.evict(np.array([2]), START + 61.0)
    assert shard.reorder.held["slot"].tolist() == [0]
    assert shard.reorder.state(3)[reorder.RELEASED].tolist() == [START, -np.inf, -np.inf]
