"""Maintenance, and a person's word: what `pause`, `resume` and `mark_normal` do to a shard."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from models.features import Narrow
from streamer.alarms import Change
from streamer.clock import ManualClock
from streamer.readings import Float64, Message, Unscored
from streamer.records import Abnormal
from streamer.recovery import Recovered, replay
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.requests import Command, MarkNormal, Pause, Resume
from streamer.shard import Shard, State
from tests.crashfs import CrashFiles
from tests.streams import START, batch, new_shard, noise, shipped_weights
from tests.test_safekeeping import Broker, Daemon, Killed, Snapshot, kill_at
from tests.test_shard import same, through_json

FIELDS = ["plant/a#t", "plant/a#p", "plant/b"]
CADENCE = 10.0
DAY = 86_400.0


class Plant:
    """Three series of two devices that report together; the hands of whoever operates it."""

    def __init__(self, warm: int = 200, seed: int = 0) -> None:
        self.shard = new_shard(FIELDS)
        self.shard.listen_from(START)
        self.now = START
        self.rng = np.random.default_rng(seed)
        self.told: list[tuple[str, str, str | None, str | None]] = []
        self.report(warm)
        assert not self.told

    def report(
        self, n: int, level: float = 20.0, *, who: tuple[int, ...] = (0, 1, 2), odd: tuple[int, ...] = (0,)
    ) -> list[Unscored]:
        """`n` readings of each of `who`, those of `odd` around `level`; gives what became of each of the first."""
        fates = []
        for _ in range(n):
            self.now += CADENCE
            value = np.where(np.isin(who, odd), level, 20.0) + self.rng.normal(size=len(who))
            outcome = self.shard.process(batch(list(who), self.now, value), self.now)
            self.note(outcome.changes)
            self.note(self.shard.find_silent(self.now))
            fates.append(Unscored(int(outcome.scores.unscored[0])))
        return fates

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.note(self.shard.find_silent(self.now))

    def note(self, changes: list[Change]) -> None:
        told = [each for each in changes if each.what != "updated"]
        self.told += [(each.what, each.alarm.kind, each.series or each.alarm.key, each.alarm.reason) for each in told]

    def pause(self, *slots: int) -> None:
        self.note(self.shard.pause(np.array(slots), self.now))

    def resume(self, *slots: int) -> None:
        self.shard.resume(np.array(slots), self.now)

    def mark_normal(self, *slots: int) -> None:
        self.note(self.shard.mark_normal(np.array(slots), self.now))


def rows_of(shard: Shard, slot: int) -> dict[str, bytes]:
    """All that is known of a series but that it has come, and its last value."""
    arrays = shard.export().arrays
    return {name: arrays[name][slot].tobytes() for name in sorted(arrays.keys() - {"latest", "cadence", "between"})}


def test_readings_of_a_paused_series_are_counted_and_leave_nothing_behind() -> None:
    """However odd they are; the other series of the device are judged as before."""
    plant = Plant()
    plant.pause(0)
    before = rows_of(plant.shard, 0)
    assert plant.report(50, 900.0) == [Unscored.PAUSED] * 50
    assert rows_of(plant.shard, 0) == before
    assert np.isnan(plant.shard.detector.latest[0, 0])
    assert plant.shard.detector.latest[0, 1] > 800.0
    assert not plant.told
    plant.report(1, 900.0, odd=(1,))
    assert plant.told == [("opened", "value", FIELDS[1], None)]


def test_an_alarm_of_a_paused_series_closes_and_what_it_has_shown_is_abnormal() -> None:
    """With the reason; the series that shares it holds on to it."""
    plant = Plant()
    at = plant.now + CADENCE
    plant.report(5, 900.0, odd=(0, 1))
    plant.told.clear()
    assert plant.shard.spans(np.array([0, 2])) == [Abnormal(0, at, plant.now)]
    plant.pause(0)
    plant.pause(1)
    assert plant.told == [("left", "value", FIELDS[0], None), ("closed", "value", FIELDS[1], "paused")]
    assert plant.shard.abnormal() == []


def test_a_paused_series_is_not_missed() -> None:
    """Nor does it keep its device from being so; a silence that was told ends."""
    plant = Plant()
    plant.pause(0)
    plant.report(50, who=(1, 2))
    assert not plant.told
    plant.wait(200.0)
    assert sorted(plant.told) == [("opened", "silent", FIELDS[1], None), ("opened", "silent", FIELDS[2], None)]
    plant.told.clear()
    plant.pause(1)
    assert plant.told == [("closed", "silent", FIELDS[1], "paused")]


def test_scoring_goes_on_after_a_pause_as_after_a_gap() -> None:
    """Also after one so short that nothing is missing; the pause itself survives a restart, and so does its end."""
    plant = Plant()
    plant.pause(0)
    plant.shard = restarted(plant.shard)
    assert plant.report(1) == [Unscored.PAUSED]
    plant.resume(0)
    plant.shard = restarted(plant.shard)
    assert plant.report(3) == [Unscored.GAP, Unscored.SCORED, Unscored.SCORED]
    plant.report(40)
    assert not plant.told


def test_silence_is_counted_from_the_end_of_a_pause_on() -> None:
    """Not from the last reading before it; and the pause is no interval that the series has shown."""
    plant = Plant()
    plant.pause(0)
    for _ in range(360):
        plant.report(1, who=(1, 2))
    plant.resume(0)
    plant.report(4, who=(1, 2))
    assert not plant.told
    plant.report(4, who=(1, 2))
    assert plant.told == [("opened", "silent", FIELDS[0], None)]
    plant.report(1)
    assert plant.told[1:] == [("closed", "silent", FIELDS[0], None)]
    assert plant.shard.cadence.usual_seconds(0) == pytest.approx(CADENCE)


def test_a_state_of_an_earlier_build_has_no_pauses() -> None:
    """It is taken all the same; who was in alarm was so since the alarm opened."""
    plant = Plant()
    plant.report(5, 900.0)
    state = through_json(plant.shard.export())
    del state.arrays["pauses"]
    (member,) = state.rest["value_alarms"][1]  # type: ignore[index]  # JSON
    del member["since"]
    again = new_shard(FIELDS)
    again.restore(state)
    assert again.abnormal() == plant.shard.abnormal() != []
    assert not len(again.paused())


def restarted(shard: Shard) -> Shard:
    """As a snapshot and a start leave it."""
    state: State = through_json(shard.export())
    again = new_shard(FIELDS)
    again.restore(state)
    again.listen_from(shard.cadence.listening_since)
    return again


# --- A person's word ---


def test_what_is_marked_normal_is_learned_within_minutes_and_a_fault_after_it_is_told() -> None:
    """A lawful jump of the level: a verdict again after twenty readings, no alarm for it, one for the next jump."""
    plant = Plant()
    plant.report(30, 60.0)
    assert plant.told == [("opened", "value", FIELDS[0], None)]
    plant.told.clear()
    plant.mark_normal(0)
    assert plant.told == [("closed", "value", FIELDS[0], "marked normal")]
    fates = plant.report(300, 60.0)
    assert fates == [Unscored.WARMING] * 19 + [Unscored.SCORED] * 281
    assert len(plant.told) == 1
    location = plant.shard.detector.latest[0, 2]
    assert abs(location - 60.0) < 2.0
    plant.report(3, 20.0)
    assert plant.told[1:] == [("opened", "value", FIELDS[0], None)]


def test_a_larger_swing_that_is_marked_normal_is_learned() -> None:
    """The scale begins anew, as does what is known of its tails."""
    plant = Plant()
    swing = [20.0 + 300.0 * np.sin(n / 5.0) for n in range(400)]
    for level in swing[:40]:
        plant.report(1, level)
    assert plant.told
    plant.mark_normal(0)
    plant.told.clear()
    for level in swing[40:]:
        plant.report(1, level)
    assert not plant.told
    plant.report(3, 4000.0)
    assert plant.told == [("opened", "value", FIELDS[0], None)]


def test_a_slower_cadence_that_is_marked_normal_is_learned() -> None:
    """Without it each reading would end a silence, and the next silence be told; with it none is."""
    plant = Plant()

    def slowly(n: int) -> None:
        for _ in range(n):
            for _ in range(9):
                plant.report(1, who=(1, 2))
            plant.report(1)

    slowly(5)
    assert [what for what, *_ in plant.told] == ["opened", "closed"] * 5
    plant.report(8, who=(1, 2))
    plant.told.clear()
    plant.mark_normal(0)
    assert plant.told == [("closed", "silent", FIELDS[0], "marked normal")]
    slowly(60)
    assert len(plant.told) == 1
    plant.report(60, who=(1, 2))
    assert plant.told[1:] == [("opened", "silent", FIELDS[0], None)]


def test_marking_an_alarm_of_values_normal_keeps_the_cadence() -> None:
    """Whoever says that 60 degrees are right has not said that quiet is."""
    plant = Plant()
    plant.report(30, 60.0)
    plant.mark_normal(0)
    plant.told.clear()
    plant.report(8, who=(1, 2))
    assert plant.told == [("opened", "silent", FIELDS[0], None)]


def test_a_series_in_no_alarm_can_be_marked_too() -> None:
    """All begins anew then, its cadence included; the last reading counts as its first, so no older one is taken."""
    plant = Plant()
    plant.mark_normal(0)
    assert plant.shard.detector.statistics.narrow[0, Narrow.COUNT] == 1
    assert plant.shard.cadence.allowed_seconds(1, plant.now) == np.inf
    late = plant.shard.process(batch([0, 0], [plant.now - 5.0, plant.now], 20.0), plant.now)
    assert late.scores.unscored.tolist() == [Unscored.LATE, Unscored.DUPLICATE]
    assert plant.report(30)[18:20] == [Unscored.WARMING, Unscored.SCORED]
    assert not plant.told


def test_a_fault_that_stays_for_a_week_keeps_its_alarm_on_day_eight() -> None:
    """No time passing makes 100 degrees normal; a reading every quarter of an hour, with the day's own swing before."""
    shard, cadence = new_shard(["boiler"]), 900.0
    rng = np.random.default_rng(4)
    at: Float64 = START + cadence * np.arange(int(12 * DAY / cadence), dtype=np.float64)
    value = 20.0 + 3.0 * np.sin(at * 2 * np.pi / DAY) + rng.normal(size=len(at)) * 0.3
    fault = START + 4 * DAY
    value[at >= fault] = 100.0 + rng.normal(size=int((at >= fault).sum())) * 0.3
    changes = []
    for day in range(12):
        rows = slice(int(day * DAY / cadence), int((day + 1) * DAY / cadence))
        changes += shard.process(batch(0, at[rows], value[rows]), at[rows]).changes
        if day >= 4:
            assert [since for _, since in shard.abnormal()] == [fault], day
    assert [(c.what, c.alarm.opened_at) for c in changes if c.what != "updated"] == [("opened", fault)]


def test_marking_normal_is_no_flood_of_alarms() -> None:
    """Forty series at once: in the hours after it they raise no more alarms than forty that are new."""
    count, n = 40, 500
    shard = new_shard([f"device{k}" for k in range(count)])
    values = np.array([noise(n, k) for k in range(count)])
    values[:, 200:] = 60.0 + 3.0 * (values[:, 200:] - 20.0)
    opened = 0
    for k in range(n):
        if k == 230:
            assert shard.value_alarms.is_open(count).mean() > 0.8
            shard.mark_normal(np.arange(count), START + CADENCE * k)
        changes = shard.process(batch(np.arange(count), START + CADENCE * k, values[:, k]), START).changes
        opened += sum(each.what == "opened" for each in changes) if k >= 230 else 0
    assert opened <= 1


# --- Commands among readings, and kills ---

SOME = ["plant/0", "plant/1", "plant/2"]
WORDS: dict[str, Callable[[str], Command]] = {
    "pause": lambda key: Pause(key=key),
    "resume": lambda key: Resume(key=key),
    "mark-normal": lambda key: MarkNormal(key=key),
}


def some_shard() -> Shard:
    return Shard(Registry(len(SOME), 1e9, 1e9), shipped_weights(), len(SOME), budget_per_series_month=1e4)


@cache
def warm_state() -> State:
    """Series that have verdicts and a cadence, so that a few odd readings or a short silence are an alarm."""
    shard = some_shard()
    shard.registry.resolve(SOME, START)
    for k in range(60):
        at = START + 7.0 * (k - 60)
        shard.process(batch([0, 1, 2], at, noise(3, k)), at)
    return through_json(shard.export())


def start(files: CrashFiles, broker: Broker, clock: ManualClock, saved: Snapshot | None) -> Daemon:
    saved = saved or Snapshot(warm_state(), Redelivery().state(), 0)
    return Daemon(files, broker, clock, saved, make=some_shard)


def assert_is_what_the_journal_says(daemon: Daemon) -> Recovered:
    twin = some_shard()
    twin.restore(warm_state())
    found = replay(daemon.journal.read(0), 0, twin, Redelivery())
    same(daemon.shard.export(), twin.export())
    assert twin.open_alarms() == daemon.shard.open_alarms()
    return found


TURNS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(SOME), max_size=5) | st.sampled_from([[key] * 12 for key in SOME]),
        st.sampled_from([20.0, 20.0, 900.0]),  # what they report
        st.sampled_from([7.0, 7.0, 7.0, 100.0]),  # after how long
        st.lists(st.tuples(st.sampled_from(sorted(WORDS)), st.sampled_from([*SOME, "plant/3"])), max_size=2),
        st.sampled_from(["", "", "", "SIGKILL", "power cut", "in the middle", "snapshot"]),
    ),
    min_size=5,
    max_size=30,
)


# Readings of a paused series in two groups, which a start replays together.
PAUSED_IN_TWO = [([], 20.0, 7.0, [("pause", "plant/0")], "SIGKILL"), *[(["plant/0"], 20.0, 7.0, [], "")] * 2]


@given(TURNS, st.integers(0, 2**32))
@example([*[([], 20.0, 7.0, [], "")] * 2, *PAUSED_IN_TWO], 0)
@settings(max_examples=15, deadline=None)
def test_any_order_of_readings_commands_and_kills_gives_the_state_that_the_journal_says(
    turns: list[tuple[list[str], float, float, list[tuple[str, str]], str]], seed: int
) -> None:
    """What a result has said is so after the kill; and every series that has left an alarm is told as abnormal."""
    rng, files, clock, broker = random.Random(seed), CrashFiles(), ManualClock(START), Broker()
    daemon = start(files, broker, clock, None)
    is_paused = dict.fromkeys(SOME, False)

    def paused() -> dict[str, bool]:
        slots = daemon.shard.paused().tolist()
        return {key: daemon.shard.registry.find(key) in slots for key in SOME}

    for who, level, seconds, commands, what in turns:
        clock.advance(seconds)
        readings = [b"%f" % rng.gauss(level, 1.0) for _ in who]
        daemon.receive(
            [Message(key, value, 0, 0, False, clock.now()) for key, value in zip(who, readings, strict=True)]
        )
        asked = [(word, key, daemon.engine.command(WORDS[word](key))) for word, key in commands]
        is_killed = daemon.live(what, rng)
        answers = [(word, key, future.result().done) for word, key, future in asked if future.done()]
        is_paused |= {key: word == "pause" for word, key, done in answers if done and word != "mark-normal"}
        if is_killed:
            files = daemon.left(what, rng)
            daemon = start(files, broker, clock, daemon.saved)
            assert_is_what_the_journal_says(daemon)
            unanswered = {key for _, key, future in asked if not future.done()}
            assert {k: v for k, v in paused().items() if k not in unanswered} == {
                k: v for k, v in is_paused.items() if k not in unanswered
            }
            is_paused = paused()
        else:
            assert len(answers) == len(asked)
    daemon.turn()
    daemon.turn()
    assert paused() == is_paused
    found = assert_is_what_the_journal_says(daemon)
    assert found.abnormal == ()
    spans = [record for _, record in daemon.journal.read(0) if isinstance(record, Abnormal)]
    assert all(START - 420.0 <= span.since <= span.until <= clock.now() for span in spans)
    reasons = {alarm.reason for alarm in found.closed.values() if alarm.kind == "value"}
    event(f"spans {min(len(spans), 2)}, closed {sorted(map(str, reasons))}")


def test_how_long_a_paused_series_was_quiet_does_not_go_by_how_the_stream_was_cut() -> None:
    """Two messages in a batch, as a replay takes them, leave what the two by themselves do."""
    alone, together = new_shard(["plant/0"]), new_shard(["plant/0"])
    one, two = batch([0], START + 70.0, [1.0]), batch([0], START + 84.0, [1.0])
    for shard in (alone, together):
        shard.listen_from(START)
        shard.process(batch([0], START, [1.0]), START)
        shard.pause(np.array([0]), START)
    alone.process(one, START + 70.0)
    alone.process(two, START + 84.0)
    together.process(batch([0, 0], [START + 70.0, START + 84.0], [1.0, 1.0]), np.array([START + 70.0, START + 84.0]))
    np.testing.assert_array_equal(alone.cadence.between, together.cadence.between)
    np.testing.assert_array_equal(alone.cadence.rows, together.cadence.rows)


@pytest.mark.parametrize("is_power_cut", [False, True], ids=["SIGKILL", "power cut"])
def test_a_command_whose_result_was_told_is_kept_whatever_step_is_the_last(is_power_cut: bool) -> None:
    """A kill at each step of the disk in the turn that obeys it, and behind it."""
    told = 0
    for nth in range(1, 12):
        files, clock, broker = CrashFiles(), ManualClock(START), Broker()
        daemon = start(files, broker, clock, None)
        daemon.turn()
        future = daemon.engine.command(Pause(key="plant/1"))
        files.step = kill_at(nth)
        with contextlib.suppress(Killed):
            daemon.turn()
        files.step = lambda: None
        files = files.one_after_power_cut(random.Random(nth)) if is_power_cut else files
        daemon = start(files, broker, clock, daemon.saved)
        assert_is_what_the_journal_says(daemon)
        told += future.done()
        assert not future.done() or daemon.shard.paused().tolist() == [1]
    assert 0 < told < 11


def test_no_result_is_told_before_the_disk_has_the_command() -> None:
    """On a full disk it acts and is not told; at the end it is told as not done."""
    files, clock, broker = CrashFiles(), ManualClock(START), Broker()
    daemon = start(files, broker, clock, None)
    daemon.turn()
    files.room_bytes = 0
    first, second = daemon.engine.command(Pause(key="plant/1")), daemon.engine.command(Pause(key="plant/2"))
    daemon.turn()
    assert not first.done()
    files.room_bytes = None
    daemon.turn()
    assert (first.result(0).done, second.result(0).done) == (True, True)
    files.room_bytes = 0
    last = daemon.engine.command(Resume(key="plant/1"))
    daemon.turn()
    unheard = daemon.engine.command(Resume(key="plant/2"))
    daemon.engine._orders.answer_last(daemon.engine._safekeeping.is_kept)
    assert [(each.result(0).done, "stopped before" in each.result(0).detail) for each in (last, unheard)] == [
        (False, True)
    ] * 2


def test_the_order_in_which_alarms_are_kept_does_not_hang_on_how_the_stream_was_cut() -> None:
    """Several open at once, one of a series with many readings before: a replay takes the groups as one."""
    clock = ManualClock(START)
    daemon, rng = start(CrashFiles(), Broker(), clock, None), random.Random(0)
    for who, level in ((["plant/0"] * 12, 20.0), (["plant/0", "plant/1"], 900.0)):
        clock.advance(20.0)
        daemon.receive([Message(key, b"%f" % rng.gauss(level, 1.0), 0, 0, False, clock.now()) for key in who])
        daemon.turn()
    assert {0, 1} <= {slot for slot, _ in daemon.shard.abnormal()}
    assert_is_what_the_journal_says(daemon)
