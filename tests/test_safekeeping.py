"""Append, fdatasync, PUBACK, apply: whatever is killed wherever, each message of QoS 1 is in the state once.

The engine is turned by hand on a file system that can lose power, against a broker of twenty lines.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from models.features import Narrow
from models.weights import ForecasterConfig
from streamer.clock import ManualClock
from streamer.diskthread import DiskThread
from streamer.engine import Adjustment, Engine
from streamer.inbox import Inbox
from streamer.intake import MESSAGE_REJECTIONS, READING_REJECTIONS
from streamer.journal import Journal
from streamer.metrics import Metrics
from streamer.payloads import Decoder, Rejection
from streamer.readings import Message
from streamer.records import Group, SessionLost
from streamer.recovery import replay
from streamer.redelivery import Redelivery, RedeliveryState
from streamer.registry import Registry
from streamer.safekeeping import HANGING_SECONDS, RETRY_SECONDS, Begin, Safekeeping, at_once
from streamer.shard import Shard, State
from tests import scrapes
from tests.crashfs import CrashFiles
from tests.streams import START, random_weights
from tests.test_shard import same
from tests.waiting import wait_until

WEIGHTS = random_weights(ForecasterConfig(input_size=18, hidden_size=4))
SERIES = 5
SECONDS = 20.0
WINDOW, IDENTIFIERS = 30, 40  # unconfirmed at most; identifiers are used again soon


class Killed(BaseException):
    """The process is gone."""


class Broker:
    """QoS 1 and a session: what is not acknowledged is sent again, in its order, with DUP and its identifier."""

    def __init__(self) -> None:
        self.connection = 0
        self.session_began = 0
        self.unconfirmed: dict[int, Message] = {}
        self.published = 0
        self._mid = 0

    def connect(self) -> list[Message]:
        """What comes again."""
        self.connection += 1
        again = [m._replace(dup=True, connection=self.connection) for m in self.unconfirmed.values()]
        self.unconfirmed = {message.mid: message for message in again}
        return again

    def publish(self, now: float) -> Message:
        """The next reading of the next series; the value is its number."""
        self._mid = self._mid % IDENTIFIERS + 1
        while self._mid in self.unconfirmed:
            self._mid = self._mid % IDENTIFIERS + 1
        number = self.published
        self.published += 1
        message = Message(f"plant/{number % SERIES}", b"%d" % number, 1, self._mid, False, now, self.connection)
        self.unconfirmed[self._mid] = message
        return message

    def acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.connection == self.connection:
                del self.unconfirmed[message.mid]


class Snapshot:
    """The last one, as `App` keeps it."""

    def __init__(self, state: State, redelivery: RedeliveryState, position: int) -> None:
        self.state, self.redelivery, self.position = state, redelivery, position


class Daemon:
    """An engine on a directory of files, from its start on."""

    def __init__(
        self,
        files: CrashFiles,
        broker: Broker,
        clock: ManualClock,
        saved: Snapshot | None,
        begin: Begin = at_once,
        make: Callable[[], Shard] | None = None,
    ) -> None:
        self.files, self.broker, self.clock, self.saved = files, broker, clock, saved
        self.journal = Journal(files, clock.now, segment_bytes=3_000)
        self.shard = (make or new_shard)()
        self.redelivery = Redelivery()
        self.acknowledged: list[Message] = []
        self.lose_acknowledgements = False
        self.is_slow = begin is not at_once
        self.saves = 0
        self.owes_snapshot = False
        position = saved.position if saved else 0
        opened = self.journal.open(beyond=position)
        assert not opened.damage
        if saved:
            self.shard.restore(saved.state)
            self.redelivery.restore(saved.redelivery)
        recovered = replay(self.journal.read(position), position, self.shard, self.redelivery)
        assert (recovered.end, recovered.damage) == (opened.end, None)
        self.inbox = Inbox(10**9)
        reasons = [*(reason.value for reason in Rejection), *MESSAGE_REJECTIONS]
        readings = [*(reason.value for reason in Rejection), *READING_REJECTIONS]
        self.metrics = Metrics(
            "0", START, {"messages_rejected_total": reasons, "readings_rejected_total": readings}, clock.monotonic
        )
        self.metrics.measured("messages_queued", self.inbox.queued)
        self.engine = Engine(
            instance="gate",
            shard=self.shard,
            decoder=Decoder(own_prefix="streamer/gate/"),
            inbox=self.inbox,
            metrics=self.metrics,
            clock=clock,
            commit_seconds=30.0,
            publish=lambda _: True,
            acknowledge=self.acknowledge,
            hearing=lambda: self.broker.connection,
            journal=self.journal,
            redelivery=self.redelivery,
            session=lambda: self.broker.session_began,
            save=self.save,
            owes_snapshot=lambda: self.owes_snapshot,
            snapshot_seconds=40.0,
            max_pending_bytes=5_000,
            begin=begin,
            patience_seconds=0.02,
            rebuilt_rows=2,
        )
        self.engine.add_abnormal(recovered.abnormal)
        self.receive(broker.connect())

    def acknowledge(self, messages: Sequence[Message]) -> None:
        assert self.is_slow or self.journal.durable == self.journal.end
        self.acknowledged += messages
        if not self.lose_acknowledgements:
            self.broker.acknowledge(messages)
        self.files.step()  # a kill between the acknowledgement and what follows

    def save(self, shard: Shard) -> Iterator[None]:
        assert self.journal.durable == self.journal.end
        self.saves += 1
        position, known = self.journal.end, self.redelivery.state()
        shard.begin_copy()
        while (state := shard.go_on_copying(3)) is None:
            yield
        self.saved = Snapshot(state, known, position)
        self.owes_snapshot = False
        self.files.step()

    def receive(self, messages: Sequence[Message]) -> None:
        with self.metrics.lock:
            self.metrics.received(len(messages), 0)
            assert not self.inbox.put(list(messages))

    def turn(self, count: int = 0) -> None:
        """So many new messages, then one turn of all that waits."""
        self.clock.advance(7.0)
        room = WINDOW - len(self.broker.unconfirmed)
        self.receive([self.broker.publish(self.clock.now()) for _ in range(min(count, room))])
        self.engine.turn(self.inbox.take(1_000, 0))

    def snapshot(self) -> None:
        """One of the state between two turns, whole."""
        for _ in self.save(self.shard):
            pass
        self.engine._safekeeping.begin_anew()

    def live(self, fate: str, rng: random.Random) -> bool:
        """A turn and what comes over it: `in the middle` or behind it a kill, or a `snapshot` if one can be.

        True: it is dead.
        """
        if fate == "in the middle":
            self.files.step = kill_at(rng.randrange(1, 8))
        try:
            self.turn()
        except Killed:
            return True
        finally:
            self.files.step = lambda: None
        if fate == "snapshot" and not self.shard.is_swapping and self.journal.durable == self.journal.end:
            self.snapshot()
        return fate in ("SIGKILL", "power cut")

    def left(self, fate: str, rng: random.Random) -> CrashFiles:
        """What the next run finds."""
        return self.files.one_after_power_cut(rng) if fate == "power cut" else self.files

    def wait_acknowledged(self, count: int) -> None:
        """Turns without messages until the broker has been told of so many."""

        def is_told() -> bool:
            self.turn()
            return len(self.acknowledged) == count

        wait_until(is_told, SECONDS, f"{count} acknowledgements")

    def rejected(self) -> float:
        return scrapes.parse(self.metrics.render("")[0].decode())["messages_rejected_total", "redelivered"]


def kill_at(nth: int) -> Callable[[], None]:
    """For the n-th step of the disk."""
    steps = itertools.count(1)

    def step() -> None:
        if next(steps) == nth:
            raise Killed

    return step


def new_shard() -> Shard:
    return Shard(Registry(SERIES, 1e9, 1e9), WEIGHTS, SERIES, budget_per_series_month=1.0)


def values_of(files: CrashFiles) -> list[int]:
    """What the journal holds of the stream, in its order."""
    journal = Journal(files, lambda: 0.0)
    journal.open()
    groups = [record for _, record in journal.read(0) if isinstance(record, Group)]
    return [int(value) for group in groups for value in group.batch.value]


def judge(daemon: Daemon) -> None:
    """Nothing is left at the broker, all is in the journal and in the state once, and the state is a twin's."""
    assert not daemon.broker.unconfirmed
    assert values_of(daemon.files) == list(range(daemon.broker.published))
    count = daemon.shard.detector.statistics.narrow[:, Narrow.COUNT]
    assert count.sum() == daemon.broker.published
    twin = new_shard()
    replay(daemon.journal.read(0), 0, twin, Redelivery())
    same(daemon.shard.export(), twin.export())


class EveryNth:
    """A step of the files that is a kill each n-th time."""

    def __init__(self, nth: int) -> None:
        self._nth = nth
        self._steps = 0

    def __call__(self) -> None:
        self._steps += 1
        if self._steps % self._nth == 0:
            raise Killed


@pytest.mark.parametrize("is_power_cut", [False, True], ids=["SIGKILL", "power cut"])
def test_a_kill_at_any_step_loses_nothing_and_doubles_nothing(is_power_cut: bool) -> None:
    """At every n-th step of the disk, the acknowledgements and the snapshots, some of them lost on their way."""
    kills = 0
    for nth in range(3, 40):
        rng = random.Random(nth)
        files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
        daemon = Daemon(files, broker, clock, None)
        step = EveryNth(nth)
        for _ in range(20):
            files.step = step
            daemon.lose_acknowledgements = rng.random() < 0.3
            try:
                daemon.turn(rng.randrange(6))
            except Killed:
                kills += 1
                files.step = lambda: None
                files = files.one_after_power_cut(rng) if is_power_cut else files
                daemon = Daemon(files, broker, clock, daemon.saved)
        files.step = lambda: None
        daemon = Daemon(files, broker, clock, daemon.saved)  # what was acknowledged in vain comes again
        for _ in range(3):
            daemon.turn()
        judge(daemon)
    assert kills > 150


class LateBroker(Broker):
    """Its readings have times of their own, up to 15 seconds late, many out of order."""

    def connect(self) -> list[Message]:
        again = [m._replace(arrival=self.now) for m in super().connect()]
        self.unconfirmed = {message.mid: message for message in again}
        return again

    now = START

    def publish(self, now: float) -> Message:
        self.now = now
        message = super().publish(now)
        number = self.published - 1
        payload = b'{"time": %f, "value": %d}' % (now - number * 7919 % 1500 / 100, number)
        self.unconfirmed[message.mid] = message._replace(payload=payload)
        return self.unconfirmed[message.mid]


def test_a_kill_at_any_step_loses_nothing_that_waits_for_earlier_readings() -> None:
    """The same where readings wait by an allowance for lateness, which is another one after some of the starts."""
    kills = waited = 0
    for nth in range(3, 40):
        rng = random.Random(nth)
        files, broker, clock = CrashFiles(), LateBroker(), ManualClock(START)

        def start(
            saved: Snapshot | None,
            seconds: float,
            files: CrashFiles = files,
            broker: Broker = broker,
            clock: ManualClock = clock,
        ) -> Daemon:
            daemon = Daemon(files, broker, clock, saved)
            daemon.shard.reorder.allow(seconds)  # as `recover` does at its end
            return daemon

        daemon = start(None, 15.0)
        step = EveryNth(nth)
        for _ in range(20):
            files.step = step
            try:
                daemon.turn(rng.randrange(6))
                waited += len(daemon.shard.reorder)
            except Killed:
                kills += 1
                files.step = lambda: None
                daemon = start(daemon.saved, rng.choice([15.0, 15.0, 40.0, 0.0]))
        files.step = lambda: None
        daemon = start(daemon.saved, 15.0)
        for _ in range(4):
            daemon.turn()
        assert not broker.unconfirmed
        assert values_of(files) == list(range(broker.published))
        assert len(daemon.shard.reorder) == 0
        twin = new_shard()
        replay(daemon.journal.read(0), 0, twin, Redelivery())
        same(daemon.shard.export(), twin.export())
    assert kills > 150
    assert waited > 1000


def test_what_needs_no_acknowledgement_leaves_nothing_behind_while_a_snapshot_is_owed() -> None:
    """QoS 0 for as long as it may take: nothing waits, and nothing is to be done."""
    journal = Journal(CrashFiles(), lambda: START)
    journal.open()
    owed, acknowledged = [True], list[Message]()
    keeping = Safekeeping(
        new_shard(), journal, Redelivery(), acknowledged.extend, 65_536, owes_snapshot=lambda: owed[0]
    )

    def is_due() -> bool:
        return keeping.is_due

    for turn in range(100):
        keeping.commit([Message("plant/1", b"1", 0, 0, False, START, 1)], float(turn))
    assert not is_due()
    keeping.commit([Message("plant/1", b"1", 1, 7, False, START, 1)], 100.0)
    assert is_due()
    assert not acknowledged
    owed.clear()
    owed.append(False)
    keeping.commit([], 101.0)
    assert [message.mid for message in acknowledged] == [7]
    assert not is_due()


def test_a_stop_needs_no_snapshot_where_the_journal_has_all() -> None:
    """It is said to be safe as long as the disk has taken everything."""
    files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
    daemon = Daemon(files, broker, clock, None)
    daemon.turn(3)
    assert daemon.engine.is_safe_unsaved
    files.room_bytes = 0
    daemon.turn(3)
    assert not daemon.engine.is_safe_unsaved


def test_nothing_is_acknowledged_before_it_is_safe_and_scoring_goes_on() -> None:
    """A full disk: no acknowledgement and no snapshot; when space returns all is acknowledged, once."""
    files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
    daemon = Daemon(files, broker, clock, None)
    daemon.turn(3)
    files.room_bytes = 0
    for _ in range(9):
        daemon.turn(3)
    assert daemon.engine.journal_trouble() == "the journal cannot be written: No space left on device"
    assert len(daemon.acknowledged) == 3
    assert daemon.saves == 0
    assert daemon.shard.detector.statistics.narrow[:, Narrow.COUNT].sum() == 30
    files.room_bytes = None
    clock.advance(RETRY_SECONDS)
    daemon.turn()
    assert daemon.engine.journal_trouble() is None
    assert [message.mid for message in daemon.acknowledged] == [*range(1, 31)]
    assert daemon.saves == 1
    judge(daemon)


def test_a_kill_while_the_disk_is_full_loses_nothing() -> None:
    """What was scored from memory alone is not in the next run's state, and comes again."""
    files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
    daemon = Daemon(files, broker, clock, None)
    daemon.turn(3)
    files.room_bytes = 0
    daemon.turn(3)
    files.room_bytes = None
    daemon = Daemon(files, broker, clock, daemon.saved)
    daemon.turn(2)
    judge(daemon)
    assert daemon.rejected() == 0


def test_what_is_in_no_snapshot_is_written_again_behind_it() -> None:
    """Where silence is counted from, and the alarm budget; and that a series was refused, which drained the bucket."""
    files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
    daemon = Daemon(files, broker, clock, None)
    daemon.engine.adjust(Adjustment(Decoder(own_prefix="streamer/gate/"), 30.0, True))
    while not daemon.saves:
        daemon.turn(2)
    daemon.turn(2)
    daemon.receive([Message("plant/refused", b"1", 0, 0, False, clock.now())])
    daemon.turn()
    again = Daemon(files, broker, clock, daemon.saved)
    same(again.shard.export(), daemon.shard.export())
    assert again.shard.cadence.listening_since == daemon.shard.cadence.listening_since > START
    assert again.shard.detector.budget_per_series_month == 30.0


def test_a_message_that_comes_again_is_applied_once_and_acknowledged() -> None:
    """Also where both copies are in one turn; and it is counted by its own reason."""
    broker, clock = Broker(), ManualClock(START)
    daemon = Daemon(CrashFiles(), broker, clock, None)
    daemon.lose_acknowledgements = True
    daemon.turn(4)
    daemon.receive([broker.publish(clock.now())])
    daemon.receive(broker.connect())
    daemon.lose_acknowledgements = False
    daemon.turn()
    judge(daemon)
    assert daemon.rejected() == 5


def test_a_lost_session_forgets_what_had_come() -> None:
    """An equal message under an old identifier is a new one; what the old connection left in the inbox is not."""
    broker, clock = Broker(), ManualClock(START)
    daemon = Daemon(CrashFiles(), broker, clock, None)
    daemon.turn(3)
    old = broker.publish(clock.now())
    broker.connection = broker.session_began = 2
    broker.unconfirmed.clear()
    again = daemon.acknowledged[0]._replace(dup=True, connection=2)
    daemon.receive([old, daemon.acknowledged[1]._replace(dup=True), again])
    daemon.lose_acknowledgements = True
    daemon.turn()
    assert values_of(daemon.files) == [0, 1, 2, 3, 0]
    assert daemon.rejected() == 1
    facts = [record for _, record in daemon.journal.read(0) if isinstance(record, SessionLost)]
    assert len(facts) == 1
    restarted = Redelivery()
    replay(daemon.journal.read(0), 0, new_shard(), restarted)
    live, known = daemon.redelivery.state(), restarted.state()
    assert dict(zip(live.mid, live.digest, strict=True)) == dict(zip(known.mid, known.digest, strict=True))


def test_a_stop_in_the_middle_of_a_dear_turn_leaves_it_to_the_journal() -> None:
    """No snapshot names such a state; all is acknowledged, and the next run takes it in."""
    files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
    daemon = Daemon(files, broker, clock, None)
    readings = [{"time": START - 2000 + k, "value": k} for k in range(1000)]
    dear = Message("plant/0", json.dumps(readings).encode(), 1, 1, False, START, 1)
    broker.unconfirmed[1] = dear
    daemon.receive([dear])
    daemon.engine.stop(0.0)
    daemon.engine.turn(daemon.inbox.take(1, 0))
    assert daemon.engine.is_safe_unsaved
    assert not daemon.engine._save_if_whole()
    assert not broker.unconfirmed
    again = Daemon(files, broker, clock, daemon.saved)
    assert again.shard.detector.statistics.narrow[:, Narrow.COUNT].sum() == 1000


def test_a_stop_while_much_that_has_waited_goes_on_leaves_it_to_the_journal() -> None:
    """The same, where the passing of time has let it go; its message was acknowledged when it came."""
    files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
    daemon = Daemon(files, broker, clock, None)
    daemon.shard.reorder.allow(3000.0)
    readings = [{"time": START - k, "value": k} for k in range(1000)]
    dear = Message("plant/0", json.dumps(readings).encode(), 1, 1, False, START, 1)
    broker.unconfirmed[1] = dear
    daemon.receive([dear])
    daemon.engine.turn(daemon.inbox.take(1, 0))
    assert len(daemon.shard.reorder) == 1000
    assert not broker.unconfirmed
    clock.advance(3000.0)
    daemon.engine.stop(0.0)
    daemon.engine.turn([])
    assert daemon.engine.is_safe_unsaved
    assert not daemon.engine._save_if_whole()
    again = Daemon(files, broker, clock, daemon.saved)
    assert len(again.shard.reorder) == 0
    assert again.shard.detector.statistics.narrow[:, Narrow.COUNT].sum() == 1000


def test_a_full_memory_takes_no_more() -> None:
    """While the disk refuses, the engine leaves the messages in the inbox."""
    files, broker, clock = CrashFiles(), Broker(), ManualClock(START)
    daemon = Daemon(files, broker, clock, None)
    files.room_bytes = 0
    while daemon.journal.pending_bytes < 5_000:
        daemon.turn(9)
        broker.unconfirmed.clear()
    daemon.receive([broker.publish(clock.now())])
    daemon.engine.stop(0.0)
    assert daemon.engine._take(10) == []
    assert daemon.inbox.queued() > 0


def test_messages_gather_until_the_next_commit() -> None:
    """No sync begins sooner than `commit_seconds` after the one before began; here that is now."""
    daemon = Daemon(CrashFiles(), Broker(), ManualClock(START), None)
    daemon.turn(1)
    daemon.receive([daemon.broker.publish(START)])
    late = threading.Timer(0.0, daemon.receive, [[daemon.broker.publish(START)]])
    late.start()
    assert len(daemon.engine._take(2)) == 2
    late.join()


def test_a_write_that_took_long_has_been_time_enough_to_gather() -> None:
    """What came while the disk was at it waits no longer."""
    files, clock = CrashFiles(), ManualClock(START)
    daemon = Daemon(files, Broker(), clock, None)
    files.step = lambda: clock.advance(31.0)
    daemon.turn(1)
    daemon.receive([daemon.broker.publish(clock.now())])
    assert len(daemon.engine._take(2)) == 1  # else it would wait for half a minute


class SlowDisk:
    """Files that hang where they are told to, and the thread that hangs with them."""

    def __init__(self) -> None:
        self.files = CrashFiles()
        self.files.step = self._step
        self.begin = DiskThread().begin
        self.hangs_at = 0
        """the n-th step from now on; 0: none"""
        self.hangs = threading.Event()
        self._go_on = threading.Event()
        self._is_killed = False

    def _step(self) -> None:
        if threading.current_thread().name != "disk" or not self.hangs_at:
            return
        self.hangs_at -= 1
        if not self.hangs_at:
            self.hangs.set()
            assert self._go_on.wait(SECONDS)
            self.hangs.clear()
            self._go_on.clear()
            if self._is_killed:
                raise Killed

    def release(self) -> None:
        self.hangs_at = 0
        if self.hangs.is_set():
            self._go_on.set()

    def kill(self) -> CrashFiles:
        """What the disk has of it by then."""
        left = self.files.one_after_power_cut(random.Random(1))
        self._is_killed = True
        self.release()
        return left


def test_a_disk_that_hangs_is_as_one_that_is_full() -> None:
    """Scoring goes on from memory; it is told after a while; when the disk answers all is acknowledged, once."""
    disk, broker, clock = SlowDisk(), Broker(), ManualClock(START)
    daemon = Daemon(disk.files, broker, clock, None, disk.begin)
    daemon.turn(3)
    daemon.wait_acknowledged(3)
    saves = daemon.saves
    disk.hangs_at = 1
    daemon.turn(3)
    assert disk.hangs.wait(SECONDS)
    assert daemon.engine.journal_trouble() is None
    clock.advance(HANGING_SECONDS + 1.0)
    assert daemon.engine.journal_trouble() == "the disk has not answered for 6 seconds"
    for _ in range(8):
        daemon.turn(3)
    assert daemon.engine.trouble() is None
    assert (len(daemon.acknowledged), daemon.saves) == (3, saves)
    assert daemon.shard.detector.statistics.narrow[:, Narrow.COUNT].sum() == 30
    disk.release()
    daemon.wait_acknowledged(30)
    assert daemon.engine.journal_trouble() is None
    assert [message.mid for message in daemon.acknowledged] == [*range(1, 31)]
    judge(daemon)


def test_what_a_slow_disk_has_taken_is_acknowledged_while_the_rest_waits() -> None:
    """A disk whose every write takes longer than scoring waits for it gets on all the same."""
    disk, broker, clock = SlowDisk(), Broker(), ManualClock(START)
    daemon = Daemon(disk.files, broker, clock, None, disk.begin)
    daemon.turn(1)
    daemon.wait_acknowledged(1)
    for so_far in (1, 3, 5):
        disk.hangs_at = 1
        daemon.turn(2)
        assert disk.hangs.wait(SECONDS)
        assert len(daemon.acknowledged) == so_far
        disk.release()
        wait_until(lambda: not disk.hangs.is_set(), SECONDS, "an answer")
        daemon.wait_acknowledged(so_far + 2)
    judge(daemon)


@pytest.mark.parametrize("is_owed", [False, True], ids=["due", "owed"])
def test_a_disk_that_is_always_at_something_lets_a_snapshot_be_made(is_owed: bool) -> None:
    """When one is due nothing more is taken until all is safe; the time that a disk may hang bounds that."""
    disk, broker, clock = SlowDisk(), Broker(), ManualClock(START)
    daemon = Daemon(disk.files, broker, clock, None, disk.begin)
    daemon.turn(1)
    daemon.wait_acknowledged(1)
    daemon.owes_snapshot = is_owed  # then sooner
    clock.advance(5.0 if is_owed else 40.0)
    saves, disk.hangs_at = daemon.saves, 1
    daemon.turn(2)
    assert disk.hangs.wait(SECONDS)
    daemon.receive([broker.publish(clock.now())])
    assert daemon.engine._take(10) == []
    clock.advance(HANGING_SECONDS + 1.0)
    assert len(daemon.engine._take(1)) == 1
    disk.release()
    daemon.wait_acknowledged(3)
    assert daemon.saves > saves
    assert not daemon.owes_snapshot


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_while_the_disk_hangs_loses_nothing(step: int) -> None:
    """In the write and in the sync of it."""
    disk, broker, clock = SlowDisk(), Broker(), ManualClock(START)
    daemon = Daemon(disk.files, broker, clock, None, disk.begin)
    daemon.turn(3)
    daemon.wait_acknowledged(3)
    disk.hangs_at = step
    for _ in range(5):
        daemon.turn(3)
    assert disk.hangs.wait(SECONDS)
    daemon = Daemon(disk.kill(), broker, clock, daemon.saved)
    daemon.turn(2)
    judge(daemon)
    assert broker.published == 20


@pytest.mark.parametrize("how", ["full", "hangs"])
def test_a_stop_does_not_wait_for_the_disk(how: str) -> None:
    """Nor does the engine turn in circles until its time is up; what is not safe is left to the broker."""
    disk, broker, clock = SlowDisk(), Broker(), ManualClock(START)
    daemon = Daemon(disk.files, broker, clock, None, disk.begin)
    if how == "full":
        disk.files.room_bytes = 0
    else:
        disk.hangs_at = 1
    while daemon.engine.pending_bytes() < 5_000:
        daemon.turn(9)
        broker.unconfirmed.clear()
    daemon.receive([broker.publish(clock.now())])
    daemon.engine.start()
    daemon.inbox.close()
    began = time.monotonic()
    assert not daemon.engine.stop(20.0)
    assert time.monotonic() - began < 5.0
    assert (len(daemon.acknowledged), daemon.saves, daemon.inbox.queued()) == (0, 0, 1)
    assert not daemon.engine.is_safe_unsaved
    disk.release()
