"""Series come and go under a limit, the daemon is killed in between: the state is what the journal says, to the bit."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from models.features import Narrow
from streamer.clock import ManualClock
from streamer.readings import Message
from streamer.records import Admitted, Evicted, Group
from streamer.recovery import replay
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.shard import Shard
from tests.crashfs import CrashFiles
from tests.streams import START
from tests.test_safekeeping import WEIGHTS, Broker, Daemon
from tests.test_shard import same

MOST, SERIES = 4, 9
HOUR = 3600.0


def new_shard() -> Shard:
    """Few may come at once, so that both limits are met."""
    return Shard(Registry(MOST, 1.0, 3.0), WEIGHTS, MOST, budget_per_series_month=1.0)


def kept(daemon: Daemon) -> Counter[str]:
    """How many readings of each series that is there the journal says it has, told by hand."""
    keys, counts = dict[int, str](), Counter[str]()
    for _, record in daemon.journal.read(0):
        match record:
            case Admitted():
                keys |= dict(zip(record.slots, record.keys, strict=True))
            case Evicted():
                for slot in record.slots:
                    del counts[keys.pop(slot)]
            case Group(batch=batch):
                counts.update(keys[slot] for slot in batch.slot.tolist())
            case _:
                pass
    assert counts.keys() == set(keys.values())
    return counts


def judge(daemon: Daemon) -> None:
    twin, registry = new_shard(), daemon.shard.registry
    replay(daemon.journal.read(0), 0, twin, Redelivery())
    same(daemon.shard.export(), twin.export())
    assert twin.open_alarms() == daemon.shard.open_alarms()
    assert len(registry) <= MOST
    count = daemon.shard.detector.statistics.narrow[:, Narrow.COUNT]
    learned = {registry.key(slot): int(count[slot]) for slot in range(registry.rows) if registry.key(slot)}
    assert learned == kept(daemon)
    assert not count[[slot for slot in range(registry.rows) if not registry.key(slot)]].any()
    there = {registry.key(slot) for slot in range(registry.rows)}
    for alarm in daemon.shard.open_alarms():
        assert set(alarm.members) <= there


TURNS = st.lists(
    st.tuples(
        st.lists(st.integers(0, SERIES - 1), max_size=6),  # who reports, once or more often
        st.sampled_from([7.0, 60.0, 2 * HOUR, 50 * HOUR, 50 * HOUR]),  # after how long
        st.sampled_from(["", "", "", "SIGKILL", "power cut", "in the middle", "snapshot"]),
    ),
    min_size=10,
    max_size=40,
)


@given(TURNS, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_any_order_of_readings_evictions_and_kills_gives_the_state_that_the_journal_says(
    turns: list[tuple[list[int], float, str]], seed: int
) -> None:
    """And who was forgotten has left nothing behind: a series has the readings since it was let in last, no others."""
    rng, files, clock, broker = random.Random(seed), CrashFiles(), ManualClock(START), Broker()
    daemon = Daemon(files, broker, clock, None, make=new_shard)
    for who, seconds, what in turns:
        clock.advance(seconds)
        daemon.receive([Message(f"plant/{n % 3}/{n}", b"%d" % rng.randrange(9), 0, 0, False, clock.now()) for n in who])
        is_killed = daemon.live(what, rng)
        before = daemon.shard.export() if what != "in the middle" else None
        if is_killed:
            files = daemon.left(what, rng)
            daemon = Daemon(files, broker, clock, daemon.saved, make=new_shard)
            if before is not None:
                same(before, daemon.shard.export())
            judge(daemon)
    judge(daemon)
    evicted = sum(len(record.slots) for _, record in daemon.journal.read(0) if isinstance(record, Evicted))
    event(f"evicted {min(evicted, 3)}")


def test_an_eviction_that_no_disk_has_seen_has_not_been() -> None:
    """Killed while the disk is full: the next run knows the old series, and forgets them when it is asked again."""
    files, clock, broker = CrashFiles(), ManualClock(START), Broker()
    daemon = Daemon(files, broker, clock, None, make=new_shard)

    def report(*topics: str) -> None:
        daemon.receive([Message(topic, b"1", 0, 0, False, clock.now()) for topic in topics])
        daemon.turn()

    report("a", "b", "c")
    clock.advance(60.0)
    report("d")
    clock.advance(50 * HOUR)
    files.room_bytes = 0
    report("e")
    report("e")
    assert "e" in daemon.shard.registry
    files.room_bytes = None
    daemon = Daemon(files, broker, clock, daemon.saved, make=new_shard)
    assert [key in daemon.shard.registry for key in "abcde"] == [True] * 4 + [False]
    daemon.turn()
    clock.advance(2 * HOUR)
    report("e")
    report("e")
    assert "e" in daemon.shard.registry
    judge(daemon)
    assert np.isfinite(daemon.shard.cadence.rows).all()
