"""Other weights come to serve while readings come: nothing is lost or doubled, and a restart repeats it to the bit."""

from __future__ import annotations

import random
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from models import features, mixture
from models.step import NumpyStepper
from models.weights import ForecasterConfig, Weights
from streamer.clock import ManualClock
from streamer.readings import Batch, Float64, Message
from streamer.recent import READINGS, Recent
from streamer.records import Abnormal, Rebuilt, Swapped
from streamer.recovery import replay
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.shard import Shard
from tests import streams
from tests.crashfs import CrashFiles
from tests.streams import START, cut, feed, noise, random_weights, shipped_weights, stream
from tests.test_safekeeping import Broker, Daemon
from tests.test_shard import same, through_json

SERIES = 7
SETS = [random_weights(ForecasterConfig(input_size=18, hidden_size=8), seed) for seed in range(3)]
SETS.append(random_weights(ForecasterConfig(input_size=18, hidden_size=6, num_layers=2, attention=3), 3))
BY_NAME = {weights.sha256: weights for weights in SETS}
KEYS = [f"plant/{slot}" for slot in range(SERIES)]


def new_shard() -> Shard:
    return Shard(Registry(SERIES, 1e9, 1e9), SETS[0], SERIES, budget_per_series_month=1.0, find_weights=BY_NAME.get)


def swap(shard: Shard, weights: Weights, generation: int = 2) -> None:
    shard.begin_swap(weights, generation)
    shard.finish_swap()


# --- What a series finds ---


def medians(shard: Shard, time: float) -> Float64:
    """What the weights that serve forecast of each series, in y; nothing is moved on."""
    slots = np.arange(shard.registry.rows)
    stepper = NumpyStepper(shard.weights, len(slots))
    stepper.put(slots, shard.detector.stepper.export(slots))
    look = features.look(shard.detector.statistics, slots, np.full(len(slots), time))
    head = stepper.step(slots, look.inputs)
    return mixture.quantiles(mixture.unpack(head, look.previous, look.step))[:, 1].astype(np.float64)


def forecasts_after(first: Weights, then: Weights, values: Float64, at: int) -> Float64:
    """The forecasts of the readings from `at` on, where the weights are swapped."""
    keys = [f"a/{k}" for k in range(values.shape[1])]
    shard, rows = streams.new_shard(keys, weights=first), []
    for t, value in enumerate(values):
        if t == at and then is not first:
            swap(shard, then)
        rows.append(medians(shard, START + 10.0 * t))
        shard.process(streams.batch(np.arange(len(keys)), START + 10.0 * t, value), START)
    return np.array(rows[at:])


@pytest.mark.parametrize("other", SETS[1:], ids=["alike", "alike too", "of another shape"])
def test_the_state_is_near_that_of_a_network_which_has_seen_all(other: Weights) -> None:
    """From the first forecast on; without its last readings a series would be further off by far."""
    values = np.array([noise(SERIES, t, level=20.0) for t in range(200)])
    truth = forecasts_after(other, other, values, 180)
    off = np.abs(forecasts_after(SETS[0], other, values, 180) - truth).max()
    own = np.abs(forecasts_after(SETS[0], SETS[0], values, 180) - truth).max()
    assert off < 0.05 * own


def test_a_series_with_few_readings_finds_its_state_too() -> None:
    values = np.array([noise(SERIES, t, level=20.0) for t in range(40)])
    truth = forecasts_after(SETS[1], SETS[1], values, 25)
    own = np.abs(forecasts_after(SETS[0], SETS[0], values, 25) - truth).max()
    assert np.abs(forecasts_after(SETS[0], SETS[1], values, 25) - truth).max() < 0.1 * own
    for at in (0, 1, 2, 3):
        assert np.isfinite(forecasts_after(SETS[0], SETS[3], values, at)).all()


def test_statistics_alarms_and_ranks_are_as_without_it() -> None:
    """Only what the network has made is made anew."""
    shards = []
    for with_swap in (False, True):
        shard = streams.new_shard(KEYS, weights=shipped_weights())
        feed(shard, stream(400, SERIES, seed=1), at_once=10)
        if with_swap:
            swap(shard, SETS[1])
        shards.append(shard.export())
    arrays = [dict(state.arrays) for state in shards]
    recurrent = [each.pop("recurrent") for each in arrays]
    assert recurrent[0].shape != recurrent[1].shape
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(array, arrays[1][name], err_msg=name)
    assert shards[0].rest["value_alarms"] == shards[1].rest["value_alarms"]


# --- Piece by piece ---


@given(st.lists(st.integers(1, 399), min_size=1, max_size=20), st.integers(1, SERIES), st.integers(0, 200))
@settings(max_examples=6, deadline=None)
def test_no_reading_is_lost_or_doubled_and_the_cut_of_the_stream_does_not_matter(
    at: list[int], rows: int, begin: int
) -> None:
    """Between the pieces of a swap readings are scored: of old series and of those that have been rebuilt."""
    readings = stream(400, SERIES, seed=2)

    def run(edges: list[int]) -> Shard:
        shard = new_shard()
        shard.registry.resolve(KEYS, START)
        end = 0
        for part, piece in cut(readings, sorted({*edges, *range(begin, 400, 20)})):
            if part.start == begin:
                shard.begin_swap(SETS[1], 2)
            if part.start >= begin and (part.start - begin) % 20 == 0 and shard.is_swapping:
                end = shard.next_rebuilt(rows)
                shard.go_on_swapping(end)
            shard.process(piece, START)
        assert not shard.is_swapping
        assert (shard.generation, shard.weights, end) == (2, SETS[1], SERIES)
        return shard

    one, two = run([]), run(at)
    plain = new_shard()
    plain.registry.resolve(KEYS, START)
    plain.process(readings, START)
    np.testing.assert_array_equal(one.applied, plain.applied)
    same(one.export(), two.export())


def test_a_copy_that_was_begun_before_shows_the_moment_of_its_beginning() -> None:
    shard = new_shard()
    shard.registry.resolve(KEYS, START)
    feed(shard, stream(300, SERIES, seed=3), at_once=30)
    before = through_json(shard.export())
    shard.begin_copy()
    shard.go_on_copying(2)
    shard.begin_swap(SETS[1], 2)
    shard.go_on_swapping(4)
    shard.process(streams.batch([0, 5], START + 1e4, 20.0), START)
    shard.finish_swap()
    copied = shard.go_on_copying(100)
    assert copied is not None
    same(before, copied)


def test_a_series_that_is_forgotten_in_the_middle_leaves_nothing_behind() -> None:
    """Neither under the old weights nor under the new ones."""
    shard = new_shard()
    shard.registry.resolve(KEYS, START)
    feed(shard, stream(300, SERIES, seed=3), at_once=30)
    shard.begin_swap(SETS[3], 2)
    shard.go_on_swapping(4)
    shard.evict(np.array([2, 5]), START)
    shard.finish_swap()
    rows = shard.export().arrays
    for name in ("recurrent", "recent", "recent.count"):
        assert not rows[name][[2, 5]].any()
        assert rows[name][[1, 4]].any()


def test_weights_that_no_longer_serve_are_let_go() -> None:
    """But for those that the settings name: no copy of them may have been kept."""
    shard = new_shard()
    for weights in (SETS[1], SETS[2], SETS[3]):
        swap(shard, weights)
    assert set(shard._known) == {SETS[0].sha256, SETS[3].sha256}


def test_a_swap_that_is_given_up_leaves_the_old_weights() -> None:
    """Without a journal a stop does not wait for its end: what is saved is whole, and of the old weights."""
    shard = new_shard()
    shard.registry.resolve(KEYS, START)
    feed(shard, stream(300, SERIES, seed=3), at_once=30)
    before = shard.export()
    shard.begin_swap(SETS[3], 2)
    shard.go_on_swapping(3)
    assert (shard.coming, shard.is_swapping) == (2, True)
    shard.give_up_swap()
    assert (shard.generation, shard.weights, shard.coming) == (1, SETS[0], None)
    same(before, shard.export())
    feed(shard, stream(50, SERIES, seed=4))


def test_a_second_swap_finishes_the_first() -> None:
    shard = new_shard()
    shard.registry.resolve(KEYS, START)
    feed(shard, stream(300, SERIES, seed=3), at_once=30)
    shard.begin_swap(SETS[1], 2)
    shard.go_on_swapping(3)
    shard.begin_swap(SETS[3], 3)
    shard.finish_swap()
    assert (shard.generation, shard.weights) == (3, SETS[3])


# --- Restarts ---


def test_a_state_is_served_by_the_weights_that_have_made_it() -> None:
    """Where they are to be had; else what they have made is left behind, and that is said."""
    shard = new_shard()
    shard.registry.resolve(KEYS, START)
    feed(shard, stream(300, SERIES, seed=3), at_once=30)
    swap(shard, SETS[3], 5)
    state = through_json(shard.export())
    again = new_shard()
    assert again.restore(state) is None
    assert (again.generation, again.weights) == (5, SETS[3])
    same(state, again.export())
    poor = Shard(Registry(SERIES, 1e9, 1e9), SETS[0], SERIES, budget_per_series_month=1.0)
    assert poor.restore(state) is not None
    assert (poor.generation, poor.weights) == (1, SETS[0])


TURNS = st.lists(
    st.tuples(
        st.lists(st.integers(0, SERIES - 1), max_size=6),
        st.sampled_from(["", "", "", "", "swap", "swap", "SIGKILL", "power cut", "in the middle", "snapshot"]),
    ),
    min_size=10,
    max_size=40,
)


@given(TURNS, st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_any_order_of_readings_swaps_and_kills_gives_the_state_that_the_journal_says(
    turns: list[tuple[list[int], str]], seed: int
) -> None:
    """And whoever was killed in the middle of a swap goes on with it."""
    rng, files, clock, broker = random.Random(seed), CrashFiles(), ManualClock(START), Broker()
    daemon, swaps = Daemon(files, broker, clock, None, make=new_shard), 0

    def judge() -> None:
        twin = new_shard()
        replay(daemon.journal.read(0), 0, twin, Redelivery())
        same(daemon.shard.export(), twin.export())
        assert (twin.generation, twin.is_swapping) == (daemon.shard.generation, daemon.shard.is_swapping)

    for who, what in turns:
        clock.advance(7.0)
        daemon.receive([Message(f"plant/{n}", b"%d" % rng.randrange(9), 0, 0, False, clock.now()) for n in who])
        if what == "swap":
            swaps += 1
            daemon.engine.swap(rng.choice(SETS), 1 + swaps)
        is_killed = daemon.live(what, rng)
        before = daemon.shard.export() if what != "in the middle" else None
        if is_killed:
            files = daemon.left(what, rng)
            daemon = Daemon(files, broker, clock, daemon.saved, make=new_shard)
            if before is not None:
                same(before, daemon.shard.export())
            judge()
    while daemon.engine.is_swapping:
        daemon.turn()
    judge()
    kinds = [type(record) for _, record in daemon.journal.read(0)]
    event(f"swaps {kinds.count(Swapped)}, pieces {min(kinds.count(Rebuilt), 5)}")


def test_without_the_weights_the_ones_before_go_on_and_it_is_said() -> None:
    files, clock, broker = CrashFiles(), ManualClock(START), Broker()
    daemon = Daemon(files, broker, clock, None, make=new_shard)
    daemon.receive([Message("plant/1", b"1", 0, 0, False, clock.now())])
    daemon.turn()
    daemon.engine.swap(SETS[1], 2)
    daemon.turn()
    daemon.turn()
    poor = Shard(Registry(SERIES, 1e9, 1e9), SETS[0], SERIES, budget_per_series_month=1.0)
    found = replay(daemon.journal.read(0), 0, poor, Redelivery())
    assert found.lacking == (f"generation 2, SHA-256 {SETS[1].sha256[:16]}",)
    assert (poor.generation, poor.weights, int(poor.applied.sum())) == (1, SETS[0], 1)


def test_no_snapshot_is_begun_in_the_middle_of_a_swap_and_one_follows_it() -> None:
    files, clock, broker = CrashFiles(), ManualClock(START), Broker()
    daemon = Daemon(files, broker, clock, None, make=new_shard)
    daemon.receive([Message(f"plant/{n}", b"1", 0, 0, False, clock.now()) for n in range(SERIES)])
    daemon.turn()
    daemon.engine.swap(SETS[1], 2)
    clock.advance(1000.0)  # one is due
    while daemon.engine.is_swapping:
        daemon.turn()
        assert daemon.saves == 0 or not daemon.shard.is_swapping
    for _ in range(10):
        daemon.turn()
    assert daemon.saved is not None
    assert daemon.saved.state.rest["generation"] == 2


# --- The ring ---


@given(st.lists(st.integers(0, 2), max_size=400))
def test_the_ring_has_the_last_readings_of_each_series_in_their_order(who: list[int]) -> None:
    recent, told = Recent(3), [list[tuple[float, float]]() for _ in range(3)]
    for k, slot in enumerate(who):
        recent.add(np.array([slot]), np.array([float(k)]), np.array([k * 2.0]))
        told[slot].append((float(k), k * 2.0))
    time, value, lengths = recent.last(np.arange(3))
    for slot, all_of_it in enumerate(told):
        kept = all_of_it[-READINGS:]
        assert lengths[slot] == len(kept)
        first = READINGS - len(kept)
        assert list(zip(time[slot, first:], value[slot, first:], strict=True)) == kept
    recent.reset(np.array([1]))
    assert recent.last(np.array([1])).lengths.tolist() == [0]


def test_a_batch_is_what_the_tests_above_take_it_for() -> None:
    """The streams have late and doubled readings, which are applied nowhere."""
    shard = new_shard()
    shard.registry.resolve(KEYS, START)
    readings: Batch = stream(400, SERIES, seed=2)
    shard.process(readings, START)
    assert 0 < int(shard.applied.sum()) < len(readings)


# --- What the main thread is told ---


def test_there_is_no_moment_between_a_swap_that_is_wanted_and_one_that_runs() -> None:
    """Who saw neither would take the probation of the new weights for over."""
    clock, seen = ManualClock(START), list[bool]()

    class Watching(Shard):
        def begin_swap(self, weights: Weights, generation: int) -> None:
            seen.append(daemon.engine.is_swapping)
            super().begin_swap(weights, generation)
            seen.append(daemon.engine.is_swapping)

    def watching() -> Shard:
        return Watching(Registry(SERIES, 1e9, 1e9), SETS[0], SERIES, budget_per_series_month=1.0)

    daemon = Daemon(CrashFiles(), Broker(), clock, None, make=watching)
    daemon.receive([Message(f"plant/{n}", b"1", 0, 0, False, clock.now()) for n in range(SERIES)])
    daemon.turn()
    daemon.engine.swap(SETS[1], 2, is_watched=True)
    daemon.turn()
    assert seen == [True, True]


def test_a_swap_whose_successor_is_not_to_be_had_is_over_in_a_replay_too() -> None:
    """Live the second swap has finished the first one; its pieces are none of the first."""
    files, clock, broker = CrashFiles(), ManualClock(START), Broker()
    daemon = Daemon(files, broker, clock, None, make=new_shard)
    daemon.receive([Message(f"plant/{n}", b"1", 0, 0, False, clock.now()) for n in range(SERIES)])
    daemon.turn()
    for generation in (2, 3):
        daemon.engine.swap(SETS[generation - 1], generation)
        daemon.turn()
    find = {SETS[1].sha256: SETS[1]}.get
    poor = Shard(Registry(SERIES, 1e9, 1e9), SETS[0], SERIES, budget_per_series_month=1.0, find_weights=find)
    found = replay(daemon.journal.read(0), 0, poor, Redelivery())
    assert found.lacking == (f"generation 3, SHA-256 {SETS[2].sha256[:16]}",)
    assert (poor.generation, poor.weights, poor.is_swapping) == (2, SETS[1], False)


def test_readings_are_taken_while_a_swap_keeps_a_snapshot_waiting() -> None:
    """Also where the disk is slow: with each piece there would be something that is not safe yet."""
    clock = ManualClock(START)
    daemon = Daemon(CrashFiles(), Broker(), clock, None, begin=lambda _: Future(), make=new_shard)
    messages = [Message(f"plant/{n}", b"1", 0, 0, False, clock.now()) for n in range(SERIES)]
    daemon.engine.turn(messages)
    daemon.engine.swap(SETS[1], 2)
    daemon.engine.turn([])
    assert daemon.engine.is_swapping
    daemon.engine._saved_at = -np.inf
    daemon.receive(messages)
    assert len(daemon.engine._take(100)) == SERIES


def test_a_retraining_is_told_of_what_the_disk_does_not_know_yet() -> None:
    """An alarm has closed in the last turn: neither open any more nor in the journal, it is left out all the same."""
    clock = ManualClock(START)
    daemon = Daemon(CrashFiles(), Broker(), clock, None, make=new_shard)
    daemon.receive([Message("plant/1", b"1", 0, 0, False, clock.now())])
    daemon.turn()
    daemon.engine._append_each([Abnormal(0, START, START + 1)])
    asked = daemon.engine.occasion()
    daemon.turn()
    assert asked.result().open_abnormal == [(0, START)]
    daemon.turn()
    asked = daemon.engine.occasion()
    daemon.turn()
    assert asked.result().open_abnormal == []
