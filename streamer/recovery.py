"""The records of a journal, taken in as they were the first time: a restart is no crash.

What a record does is said here and nowhere else. The engine does the same when it happens, or by `apply` itself; so a
replay on the same weights and the CPU gives the same state, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from streamer.alarms import Change
from streamer.journal import DamagedError
from streamer.readings import Batch
from streamer.records import Admitted, Budget, Evicted, Group, Heard, Listening, Record, SessionLost, Swept
from streamer.redelivery import Redelivery
from streamer.shard import Shard

DEAR_READINGS = 128  # of one series in a group: from here on it is processed in slices,
SLICE_READINGS = 256  # about 0.4 s if they are of one series, between which the engine looks up


def slices(batch: Batch) -> list[slice]:
    """The rows that are processed at once, in the daemon and in a replay alike."""
    is_dear = len(batch) > DEAR_READINGS and np.bincount(batch.slot).max() > DEAR_READINGS
    step = SLICE_READINGS if is_dear else max(len(batch), 1)
    return [slice(start, start + step) for start in range(0, max(len(batch), 1), step)]


class Recovered(NamedTuple):
    """What a replay came to."""

    end: int
    """the position behind the last record that was taken in"""
    readings: int
    damage: DamagedError | None
    """why it ends before the journal does"""


def apply(record: Record, shard: Shard, redelivery: Redelivery) -> list[Change]:
    """One record; gives the changes of alarms. Raises ValueError for one that cannot come next."""
    match record:
        case Group(batch=batch):
            if len(batch) and not 0 <= int(batch.slot.min()) <= int(batch.slot.max()) < shard.registry.rows:
                raise ValueError("the readings are of series that this registry has not let in")
            redelivery.note(record)
            arrivals = record.arrivals()
            return [change for rows in slices(batch) for change in shard.process(batch[rows], arrivals[rows]).changes]
        case Admitted():
            shard.make_room(max(record.slots, default=0) + 1)
            shard.registry.admit_again(record.slots, record.keys, record.devices, record.tokens, record.refilled_at)
        case Evicted():
            return shard.evict(np.array(record.slots, np.intp), record.now)
        case Heard():
            return shard.hear(np.array(record.slots, np.intp), np.full(len(record.slots), record.now))
        case Listening():
            shard.listen_from(record.since)
        case Swept():
            return shard.find_silent(record.now)
        case Budget():
            shard.detector.budget_per_series_month = record.per_series_month
        case SessionLost():
            redelivery.forget()
    return []


def replay(records: Iterable[tuple[int, Record]], start: int, shard: Shard, redelivery: Redelivery) -> Recovered:
    """Takes in what `Journal.read(start)` gives. Raises ValueError and OSError."""
    end, readings = start, 0
    try:
        for position, record in records:
            apply(record, shard, redelivery)
            end = position + 1
            readings += len(record.batch) if isinstance(record, Group) else 0
    except DamagedError as damage:
        return Recovered(end, readings, damage)
    return Recovered(end, readings, None)
