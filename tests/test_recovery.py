"""Recovery: a shard that takes in a journal is the shard that wrote it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.weights import ForecasterConfig
from streamer.disk import DiskFiles
from streamer.journal import Journal
from streamer.readings import Batch
from streamer.records import Admitted, Budget, Evicted, Group, Heard, Listening, SessionLost, Swept
from streamer.recovery import apply, replay
from streamer.redelivery import Redelivery
from streamer.registry import FREE, Registry
from streamer.shard import Shard
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
