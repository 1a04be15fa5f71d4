"""Recovery: a shard that takes in a journal is the shard that wrote it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.weights import ForecasterConfig
from streamer import snapshot
from streamer.disk import DiskFiles
from streamer.journal import Journal
from streamer.readings import Alarm, Batch
from streamer.records import (
    Abnormal,
    Admitted,
    Budget,
    Evicted,
    Group,
    Heard,
    Lateness,
    Listening,
    MarkedNormal,
    Paused,
    Record,
    Resumed,
    SessionLost,
    Swept,
)
from streamer.recovery import Recovered, _behind_damage, apply, recover, replay, restore
from streamer.redelivery import Redelivery
from streamer.registry import FREE, Registry
from streamer.reorder import PREFIX
from streamer.shard import Shard
from tests import states
from tests.crashfs import CrashFiles
from tests.streams import START, random_weights
from tests.test_shard import same, through_json

WEIGHTS = random_weights(ForecasterConfig(input_size=18, hidden_size=8))
SERIES, MOST = 12, 10
"""more ask than may come in"""


def new_shard(max_series: int = MOST, per_minute: float = 5.0, burst: float = 4.0) -> Shard:
    registry = Registry(max_series, per_minute, burst)
    return Shard(registry, WEIGHTS, max_series, budget_per_series_month=1.0)


class Run:
    """A shard in service, which writes down what happens to it."""

    def __init__(self, journal: Journal) -> None:
        self.shard, self.redelivery = new_shard(), Redelivery()
        self.journal = journal
        self.now = START
        self.rng = np.random.default_rng(8)
        self.bucket = self.shard.registry.bucket

    def turn(self, beat: float = 20.0) -> None:
        """Some messages of some series, one of them by the clock; a faulty value now and then."""
        count = int(self.rng.integers(1, 9))
        self.now += 5.0
        readings = self.rng.integers(0, 4, count).astype(np.uint32)
        readings[0] = 1
        rows = int(readings.sum())
        registry, admitted = self.shard.registry, list[int]()
        keys = ["beat", *(f"plant/{n // 3}#f{n}" for n in self.rng.integers(0, SERIES, rows - 1))]
        slot = registry.resolve(keys, self.now, admitted)
        if registry.bucket != self.bucket:
            self.bucket = registry.bucket
            names = [registry.key(each) for each in admitted]
            devices = [registry.device_key(registry.device(each)) for each in admitted]
            self.journal.append(Admitted(admitted, names, devices, *self.bucket))
        good = slot != FREE
        owner = np.repeat(np.arange(count), readings)[good]
        value = self.rng.normal(20.0, 1.0, rows) + 300.0 * (self.rng.random(rows) < 0.01)
        value[0] = beat + self.rng.normal()
        time = self.now - self.rng.exponential(1.0, rows)
        group = Group(
            Batch(slot[good], time[good], value[good], np.zeros(int(good.sum()), np.uint8)),
            np.linspace(self.now, self.now + 1.0, count),
            np.bincount(owner, minlength=count).astype(np.uint32),
            self.rng.integers(0, 2**32, count).astype(np.uint32),
            self.rng.integers(0, 9, count).astype(np.uint16),
        )
        self.journal.append(group)
        self.redelivery.note(group)
        self.shard.process(group.batch, group.arrival[owner])

    def work(self, turns: int) -> int:
        """Turns with all that may come between them; gives the changes of silence."""
        silent = 0
        for n in range(turns):
            self.turn()
            if n % 90 == 10:
                self.journal.append(Listening(self.now))
                self.shard.listen_from(self.now)
            if n % 90 == 80:
                self.now += 900.0
                self.journal.append(Swept(self.now))
                silent += len(self.shard.find_silent(self.now))
                self.journal.append(Heard([2, 4], self.now))
                self.shard.hear(np.array([2, 4]), np.full(2, self.now))
            if n % 200 == 150:
                self.journal.append(Evicted([1, 3], self.now))
                self.shard.evict(np.array([1, 3]), self.now)
            if n % 70 == 30:
                self.journal.append(Paused([0, 5], self.now))
                self.shard.pause(np.array([0, 5]), self.now)
            if n % 70 == 60:
                self.journal.append(Resumed([0, 5], self.now))
                self.shard.resume(np.array([0, 5]), self.now)
            if n % 110 == 77:
                self.journal.append(MarkedNormal([4, 6], self.now))
                self.shard.mark_normal(np.array([4, 6]), self.now)
            if n == 133:
                self.journal.append(Budget(30.0))
                self.shard.detector.budget_per_series_month = 30.0
                self.journal.append(SessionLost())
                self.redelivery.forget()
        return silent


def assert_twins(one: Run, shard: Shard, redelivery: Redelivery) -> None:
    same(one.shard.export(), shard.export())
    assert shard.cadence.listening_since == one.shard.cadence.listening_since
    assert shard.detector.budget_per_series_month == one.shard.detector.budget_per_series_month
    assert [array.tolist() for array in redelivery.state()] == [array.tolist() for array in one.redelivery.state()]


def test_a_replay_gives_the_state_that_wrote_the_journal(tmp_path: Path) -> None:
    """To the last bit: from nothing under other limits, and from a state in the middle."""
    files = DiskFiles(tmp_path / "journal")
    files.make()
    journal = Journal(files, lambda: START, segment_bytes=20_000)
    journal.open()
    run = Run(journal)
    silent = run.work(220)
    middle, position = through_json(run.shard.export()), journal.end
    listening, budget = run.shard.cadence.listening_since, run.shard.detector.budget_per_series_month
    known = run.redelivery.state()
    silent += run.work(220)
    run.turn(beat=500.0)
    journal.sync()
    assert silent > 0
    assert run.shard.open_alarms()

    again = Journal(files, lambda: START)
    again.open()
    from_nothing, redelivery = new_shard(max_series=3, per_minute=0.0, burst=0.0), Redelivery()
    recovered = replay(again.read(0), 0, from_nothing, redelivery)
    assert (recovered.end, recovered.damage) == (journal.end, None)
    assert recovered.readings > 1_500
    assert_twins(run, from_nothing, redelivery)

    from_middle, redelivery = new_shard(), Redelivery()
    from_middle.restore(middle)
    from_middle.listen_from(listening)
    from_middle.detector.budget_per_series_month = budget
    redelivery.restore(known)
    replay(again.read(position), position, from_middle, redelivery)
    assert_twins(run, from_middle, redelivery)


def single(slot: int, at: float) -> Group:
    """One message with one reading, taken when it was measured."""
    batch = Batch(np.array([slot], np.int32), np.array([at]), np.array([20.0 + np.sin(at)]), np.zeros(1, np.uint8))
    return Group(batch, np.array([at]), np.ones(1, np.uint32), np.ones(1, np.uint32), np.ones(1, np.uint16))


def test_series_that_come_back_from_silence_come_back_one_by_one() -> None:
    """Groups are not merged there: who ends the incident, when, and whose interval teaches, is as it was in service."""
    keys, devices = ["gateway/a#v", "gateway/b#v", "other/c#v"], ["gateway", "gateway", "other"]
    records: list[Record] = [Listening(START), Budget(1.0), Admitted([0, 1, 2], keys, devices, 50.0, START)]
    beats = START + 10.0 * np.arange(200)
    records += [single(slot, at + slot) for at in beats for slot in range(3)]
    back = START + 3000.0
    records += [Swept(back - 5), single(0, back), single(1, back + 1), single(2, back + 60)]
    live, replayed = new_shard(per_minute=600.0, burst=100.0), new_shard(per_minute=600.0, burst=100.0)
    closed: dict[str, Alarm] = {}
    for record in records:
        closed |= {each.alarm.id: each.alarm for each in apply(record, live, Redelivery()) if each.what == "closed"}
    found = replay(enumerate(records), 0, replayed, Redelivery())
    assert len(closed) == 2
    assert found.closed == closed
    same(replayed.export(), live.export())


def test_a_pause_among_readings_that_wait_is_repeated() -> None:
    """What came before it and goes on in it, what came in it and goes on behind it, in groups that a replay merges."""
    rng = np.random.default_rng(2)
    records: list[Record] = [Lateness(40.0), Listening(START), Budget(1.0)]
    records.append(Admitted([0, 1], ["a", "b"], ["a", "b"], 50.0, START))
    for n in range(150):
        group = single(n % 2, START + 10.0 * n)
        group.batch.time[:] -= rng.choice([0.0, 0.0, 15.0, 35.0])
        records.append(group)
        if n in (60, 100):
            records.append(Paused([0], START + 10.0 * n))
        if n in (80, 103):
            records.append(Resumed([0], START + 10.0 * n))
    records.append(Swept(START + 1800.0))
    live, replayed = new_shard(per_minute=600.0, burst=100.0), new_shard(per_minute=600.0, burst=100.0)
    for record in records:
        apply(record, live, Redelivery())
        if record == Paused([0], START + 600.0):
            heard = live.cadence.arrival(1)[0]
        elif isinstance(record, Group) and 60 < (record.arrival[0] - START) / 10.0 < 80:
            assert live.cadence.arrival(1)[0] >= heard
            heard = live.cadence.arrival(1)[0]
    replay(enumerate(records), 0, replayed, Redelivery())
    same(replayed.export(), live.export())
    assert live.open_alarms()


def test_what_was_abnormal_in_a_replay_is_told_unless_the_journal_says_it() -> None:
    """An alarm that opens and ends in it: its span is owed once, and no longer when its fact follows."""
    records: list[Record] = [Listening(START), Budget(1.0), Admitted([0], ["a"], ["a"], 50.0, START)]
    groups = [single(0, START + 10.0 * n) for n in range(80)]
    for n in range(60, 64):
        groups[n].batch.value[:] = 4000.0
    shard = new_shard(per_minute=600.0, burst=100.0)
    found = replay(enumerate([*records, *groups]), 0, shard, Redelivery())
    assert found.abnormal == (Abnormal(0, START + 600.0, START + 760.0),)
    told = [*records, *groups[:78], *found.abnormal, *groups[78:]]
    again = new_shard(per_minute=600.0, burst=100.0)
    assert replay(enumerate(told), 0, again, Redelivery()).abnormal == ()
    same(again.export(), shard.export())


def test_behind_damage_silence_is_counted_from_there_whatever_is_written_again() -> None:
    """A snapshot has the old beginning written once more: that must not bring back what nobody heard in the hole."""
    shard, heard = new_shard(), START + 600.0
    shard.listen_from(START)
    for _, record in _behind_damage([(5, Listening(START)), (6, single(0, heard)), (7, Listening(START))], shard):
        if isinstance(record, Listening):
            apply(record, shard, Redelivery())
            assert shard.cadence.listening_since == heard
    assert shard.cadence.listening_since == heard


def test_a_damaged_journal_is_replayed_up_to_the_damage() -> None:
    """And says where it could go on."""
    files = CrashFiles()
    journal = Journal(files, lambda: START)
    journal.open()
    run = Run(journal)
    for _ in range(20):
        run.turn()
        journal.sync()
    (inode,) = files.live.values()
    inode.content[len(inode.content) // 2] ^= 1
    shard = new_shard()
    recovered = replay(journal.read(0), 0, shard, Redelivery())
    assert recovered.damage is not None
    assert recovered.end == recovered.damage.position
    assert 0 < recovered.end < recovered.damage.resumes_at < journal.end


def test_a_record_that_cannot_come_here_is_refused() -> None:
    """The journal and the state do not belong together."""
    shard, redelivery = new_shard(), Redelivery()
    apply(Admitted([0], ["a"], ["a"], 1.0, None), shard, redelivery)
    with pytest.raises(ValueError, match="of a registry that was not this one"):
        apply(Admitted([0], ["b"], ["b"], 1.0, None), shard, redelivery)


def test_what_an_earlier_run_did_not_hold_is_not_held_in_its_replay(tmp_path: Path) -> None:
    """The journal says how late a reading might be when it was written; afterwards what the settings say holds."""
    whole = states.make_state(tmp_path / "state")
    shard, recovered = taken(tmp_path / "state", lateness_seconds=3600.0)
    assert recovered.readings == 80
    assert len(shard.reorder) == 0
    assert shard.reorder.lateness_seconds == 3600.0
    state = shard.export()
    arrays = {name: array for name, array in state.arrays.items() if not name.startswith(PREFIX)}
    same(state._replace(arrays=arrays), whole.export())


def test_a_replay_says_how_far_it_is(tmp_path: Path) -> None:
    """By the position of each record, so that whoever waits sees that it goes on."""
    states.make_state(tmp_path / "state", 41)
    shard, redelivery, seen = states.new_shard(), Redelivery(), list[int]()
    journal = Journal(DiskFiles(tmp_path / "state" / "journal"), lambda: START)
    opened = journal.open()
    recovered = recover(journal, opened, None, shard, redelivery, seen.append)
    assert seen == list(range(recovered.end))
    assert recovered.end == opened.end > 40


# --- Damage ---


def taken(directory: Path, lateness_seconds: float = 0.0) -> tuple[Shard, Recovered]:
    """What a start makes of the directory."""
    shard, redelivery = states.new_shard(), Redelivery()
    shard.reorder.allow(lateness_seconds)
    restored = restore(directory, shard, redelivery)
    journal = Journal(DiskFiles(directory / "journal"), lambda: START)
    opened = journal.open(beyond=restored.position or 0)
    return shard, recover(journal, opened, restored.position, shard, redelivery)


def test_a_replay_goes_on_behind_readings_that_are_lost(tmp_path: Path) -> None:
    """Wherever they lie: all others are taken in, and it is said how many are missing."""
    for number in (20, 27, 39):
        whole = states.make_state(tmp_path / str(number), 41)
        states.flip_group(tmp_path / str(number), number)
        shard, recovered = taken(tmp_path / str(number))
        assert (recovered.damage, recovered.end) == (None, 42)
        (sentence,) = recovered.missing
        assert sentence.endswith(f"what follows {number + 1} was taken in, 4 readings are missing")
        assert shard.applied[:4].tolist() == [40] * 4
        assert shard.taken == whole.taken
        assert shard.cadence.listening_since == START + 60.0 * (number + 1)


def test_a_replay_goes_over_more_than_one_damage(tmp_path: Path) -> None:
    """Each is told."""
    states.make_state(tmp_path / "state")
    for number in (25, 26, 33, 35):
        states.flip_group(tmp_path / "state", number)
    shard, recovered = taken(tmp_path / "state")
    assert [s.rpartition(", ")[2] for s in recovered.missing] == [f"{n} readings are missing" for n in (8, 4, 4)]
    assert shard.applied[:4].tolist() == [36] * 4


def test_it_goes_over_a_segment_that_is_gone(tmp_path: Path) -> None:
    """The snapshot lies before it."""
    states.make_state(tmp_path / "state")
    segments = sorted((tmp_path / "state" / "journal").glob("*.log"))
    gone = next(path for path in segments if int(path.stem) > 21)
    following = segments[segments.index(gone) + 1]
    gone.unlink()
    shard, recovered = taken(tmp_path / "state")
    missing = int(following.stem) - int(gone.stem)
    assert recovered.missing[0].endswith(f"{4 * missing} readings are missing")
    assert shard.applied[:4].tolist() == [40 - missing] * 4


def test_it_does_not_go_on_where_slots_may_mean_other_series(tmp_path: Path) -> None:
    """A series was let in among what is lost: the state stays as it was before, and whole."""
    states.make_state(tmp_path / "state", admit_at={30: "plant/new"})
    segment = next(p for p in sorted((tmp_path / "state" / "journal").glob("*.log")) if b"plant/new" in p.read_bytes())
    states.flip(segment, segment.read_bytes().find(b"plant/new"))
    shard, recovered = taken(tmp_path / "state")
    assert recovered.damage is not None
    assert (recovered.damage.position, recovered.end, recovered.missing) == (31, 31, ())
    same(shard.export(), states.make_state(tmp_path / "before", 30).export())


def test_a_series_let_in_behind_the_damage_is_let_in(tmp_path: Path) -> None:
    """It is counted before the first group is judged."""
    states.make_state(tmp_path / "state", admit_at={30: "plant/new"})
    states.flip_group(tmp_path / "state", 29)
    shard, recovered = taken(tmp_path / "state")
    assert recovered.damage is None
    assert shard.applied[:5].tolist() == [39, 39, 39, 39, 10]


@pytest.mark.parametrize("how", ["slot", "count"])
def test_a_snapshot_that_makes_us_fail_is_set_aside(tmp_path: Path, how: str) -> None:
    """Its checksum is right and its content is not: the older one is used, from a shard that is as new again."""
    directory = tmp_path / "state"
    whole = states.make_state(directory)
    good = snapshot.read(states.snapshots(directory)[-1])
    meta: dict[str, Any] = msgspec.to_builtins(good.meta)
    if how == "slot":
        meta["silence_alarms"] = msgspec.to_builtins([([10**6], Alarm("x", "silent", "plant/0", 0.0, 0.0))])
    else:
        meta["registry"]["devices"] = [99] * 4
    snapshot.write(directory, good.arrays, meta, position=good.position)
    shard, redelivery = states.new_shard(), Redelivery()
    restored = restore(directory, shard, redelivery)
    assert restored.snapshot is not None
    assert restored.snapshot.path.name == "snapshot-000000000002.snap"
    assert "cannot be taken in" in restored.set_aside[0]
    assert len(restored.failures) == (how == "slot")
    same(taken(directory)[0].export(), whole.export())


def test_a_snapshot_that_cannot_be_moved_away_is_no_obstacle(tmp_path: Path) -> None:
    """The older one is used all the same."""
    states.make_state(tmp_path)
    newest = states.snapshots(tmp_path)[-1]
    states.flip(newest, -50)
    (tmp_path / f"{newest.name}.bad").mkdir()
    restored = restore(tmp_path, states.new_shard(), Redelivery())
    assert restored.position == 11
    assert "it could not be set aside" in restored.set_aside[0]


def test_a_bug_in_a_replay_leaves_the_snapshot(tmp_path: Path) -> None:
    """It is told, and the start goes on: a journal must not make it fail for ever."""
    states.make_state(tmp_path, 21)
    files = DiskFiles(tmp_path / "journal")
    journal = Journal(files, lambda: START)
    journal.open()
    journal.append(Admitted([7], ["plant/new"], ["plant/new"], 1.0, None))
    journal.sync()
    journal.close()
    shard, recovered = taken(tmp_path)
    assert isinstance(recovered.failure, ValueError)
    assert recovered.damage is not None
    assert shard.applied[:4].tolist() == [20] * 4


def test_without_snapshots_a_journal_that_has_lost_its_beginning_is_not_used(tmp_path: Path) -> None:
    """Its readings name series that nobody knows."""
    states.make_state(tmp_path, snapshots=())
    min((tmp_path / "journal").glob("*.log")).unlink()
    shard, recovered = taken(tmp_path)
    assert recovered.damage is not None
    assert "are no longer kept" in str(recovered.damage)
    assert (len(shard.registry), recovered.readings) == (0, 0)
