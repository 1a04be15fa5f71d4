"""What an earlier run has left, taken in: the newest good snapshot, and the journal as it was taken in the first time.

What a record does is said here and nowhere else. The engine does the same when it happens, or by `apply` itself; so a
replay on the same weights and the CPU gives the same state, bit for bit.

Over damage a replay goes on only where that is sound. Readings name their series by slot; so the first group behind
the damage says how often series had been let in or forgotten when it was written. Where that is what this registry
has seen, the slots mean what they meant, and what is missing is readings, as if a sensor had not sent them. Where it is
not, what follows would go to the wrong series, and the replay ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamer import snapshot
from streamer.alarms import Change
from streamer.journal import DamagedError, Journal, Opened
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
    Rebuilt,
    Record,
    Released,
    Resumed,
    SessionLost,
    Swapped,
    Swept,
)
from streamer.redelivery import Redelivery, RedeliveryState
from streamer.shard import Ready, Shard, State
from streamer.snapshot import Snapshot

DEAR_READINGS = 128  # of one series in a group: from here on it is processed in slices,
SLICE_READINGS = 256  # about 0.4 s if they are of one series, between which the engine looks up
MOST_MERGED = 4096  # readings that a replay takes at once: groups of ten by themselves cost twenty times as much
MOST_HOLES = 100  # that a replay goes over: a disk with more is no disk
MID, DIGEST = "redelivery.mid", "redelivery.digest"


def slices(batch: Batch) -> list[slice]:
    """The rows that are processed at once, in the daemon and in a replay alike."""
    is_dear = len(batch) > DEAR_READINGS and np.bincount(batch.slot).max() > DEAR_READINGS
    step = SLICE_READINGS if is_dear else max(len(batch), 1)
    return [slice(start, start + step) for start in range(0, max(len(batch), 1), step)]


# --- The snapshot ---


class Restored(NamedTuple):
    """What has become of the snapshots."""

    snapshot: Snapshot | None
    """the one that was taken, without its arrays; None: there is none that is sound and fits"""
    set_aside: list[str]
    """a sentence for each that could not be used"""
    left_behind: str | None
    """what of it could not be taken"""
    failures: list[Exception]
    """bugs of ours that made one unusable"""

    @property
    def position(self) -> int | None:
        """In the journal; None for a shard without a past."""
        return None if self.snapshot is None else self.snapshot.position


def restore(
    directory: Path, shard: Shard, redelivery: Redelivery, aside: Callable[[Path], str] | None = None
) -> Restored:
    """The newest state that is sound and fits, in a shard that has met no reading; `aside` as in `read_newest`."""
    left_behind: list[str | None] = []
    failures: list[Exception] = []

    def take(found: Snapshot) -> None:
        arrays = dict(found.arrays)
        mid, digest = (arrays.pop(name, np.zeros(0)) for name in (MID, DIGEST))
        try:
            left_behind.append(shard.restore(State(arrays, found.meta)))
            redelivery.restore(RedeliveryState(mid.astype(np.uint16), digest.astype(np.int64)))
        except Exception as error:  # for ours it is a bug, but the start must not for ever crash here
            if not isinstance(error, ValueError):
                failures.append(error)
            shard.begin_anew()
            redelivery.forget()
            raise ValueError(f"cannot be taken in: {error}") from error

    found, set_aside = snapshot.read_newest(directory, take, aside)
    if found is not None:
        found.arrays.clear()  # they are in the shard
    return Restored(found, set_aside, left_behind[-1] if found else None, failures)


def with_redelivery(state: State, known: RedeliveryState) -> State:
    """What `restore` looks for in a snapshot."""
    return state._replace(arrays=state.arrays | {MID: known.mid, DIGEST: known.digest})


# --- The journal ---


class Recovered(NamedTuple):
    """What a replay came to."""

    end: int
    """the position behind the last record that was taken in"""
    readings: int
    damage: DamagedError | None
    """why it ends before the journal does"""
    closed: dict[str, Alarm] = {}  # noqa: RUF012 (nobody writes to it)
    """the alarms that were closed in it, by id"""
    missing: tuple[str, ...] = ()
    """a sentence for each piece of the journal that it went over"""
    abnormal: tuple[Abnormal, ...] = ()
    """what series have shown that have left an alarm in it, and the journal does not say so yet"""
    failure: Exception | None = None
    """a bug of ours, by which nothing of the journal was taken in"""
    lacking: tuple[str, ...] = ()
    """a sentence for each set of weights that was to serve and is not to be had: the ones before went on"""


def recover(
    journal: Journal,
    opened: Opened,
    position: int | None,
    shard: Shard,
    redelivery: Redelivery,
    at: Callable[[int], None] = lambda _: None,
) -> Recovered:
    """All that follows `position`, for a shard that stands there; None: it has met no reading. Raises OSError.

    `at` is called with the position of each record that is taken in. Whatever goes wrong, the shard is one that can go
    on. Its alarm budget, and how late a reading may be, are afterwards what they were before.
    """
    start = position or 0
    budget, lateness_seconds = shard.detector.budget_per_series_month, shard.reorder.lateness_seconds
    shard.reorder.lateness_seconds = 0.0
    before = shard.export(), redelivery.state()
    try:
        return _replay_over_damage(partial(_read, journal, at), start, shard, redelivery)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  our bug: it starts all the same, or it would for ever crash here
        shard.begin_anew()
        shard.restore(before[0])
        redelivery.restore(before[1])
        reason = f"cannot be taken in: {error!r}"
        return Recovered(start, 0, DamagedError(start, max(opened.end, start + 1), reason), failure=error)
    finally:
        shard.detector.budget_per_series_month = budget
        shard.reorder.allow(lateness_seconds)


def _read(journal: Journal, at: Callable[[int], None], start: int) -> Iterator[tuple[int, Record]]:
    for position, record in journal.read(start):
        at(position)
        yield position, record


def _replay_over_damage(
    read: Callable[[int], Iterator[tuple[int, Record]]], start: int, shard: Shard, redelivery: Redelivery
) -> Recovered:
    whole = replay(read(start), start, shard, redelivery)
    damage = whole.damage
    for _ in range(MOST_HOLES):
        if damage is None or whole.damage is None:
            break
        behind, taken = damage.resumes_at, shard.taken
        part = replay(_behind_damage(read(behind), shard), behind, shard, redelivery)
        damage = part.damage
        if part.end == behind:
            continue  # nothing that can be used before the next damage, or before the end
        readings = shard.taken - part.readings - taken
        sentence = f"{whole.damage}; what follows {behind - 1} was taken in, {readings} readings are missing"
        whole = Recovered(
            part.end, whole.readings + part.readings, part.damage, whole.closed | part.closed,
            (*whole.missing, sentence), abnormal=(*whole.abnormal, *part.abnormal),
            lacking=(*whole.lacking, *part.lacking),
        )  # fmt: skip
    return whole


def _behind_damage(records: Iterable[tuple[int, Record]], shard: Shard) -> Iterable[tuple[int, Record]]:
    """The records, if the first group among them is of this shard's series; else nothing.

    Silence is counted from that group on at the earliest, whatever a snapshot has had written again behind it.
    """
    held: list[tuple[int, Record]] = []
    changes = shard.registry.changes
    rest = iter(records)
    for position, record in rest:
        held.append((position, record))
        if isinstance(record, Admitted | Evicted):
            changes += len(record.slots)
        if isinstance(record, Group):
            if record.changes == changes and record.before >= shard.taken:
                shard.taken = record.before
                floor = max(shard.cadence.listening_since, float(record.arrival.min(initial=np.inf)))
                shard.listen_from(floor)
                for at, each in chain(held, rest):
                    yield at, Listening(max(each.since, floor)) if isinstance(each, Listening) else each
            return


def replay(records: Iterable[tuple[int, Record]], start: int, shard: Shard, redelivery: Redelivery) -> Recovered:
    """Takes in what `Journal.read(start)` gives. Raises ValueError and OSError.

    Groups that follow one another are taken as one: by how a stream is cut no state differs. But one that ends a
    silence is taken by itself, as it was: when the incident closed, and what was an interval, goes by its own time.
    """
    end, readings, damage = start, 0, None
    closed: dict[str, Alarm] = {}
    left: list[Abnormal] = []
    told: set[Abnormal] = set()
    groups: list[Group] = []
    lacking: list[str] = []
    waiting = 0

    def note(changes: list[Change]) -> None:
        closed.update({change.alarm.id: change.alarm for change in changes if change.what == "closed"})
        left.extend([change.abnormal for change in changes if change.abnormal])

    def take() -> None:
        nonlocal waiting
        note(_take(groups, shard))
        groups.clear()
        waiting = 0

    try:
        for position, record in records:
            if isinstance(record, Group):
                ends_silence = _ends_silence(record, shard)
                if ends_silence:
                    take()
                redelivery.note(record)
                groups.append(record)
                waiting += len(record.batch)
                readings += len(record.batch)
                if ends_silence or waiting >= MOST_MERGED:
                    take()
            elif isinstance(record, Abnormal):
                told.add(record)
            else:
                take()
                note(apply(record, shard, redelivery))
                if isinstance(record, Swapped) and not shard.is_swapping:
                    lacking.append(f"generation {record.generation}, SHA-256 {record.sha256[:16]}")
            end = position + 1
    except DamagedError as found:
        damage = found
    take()
    untold = tuple(each for each in left if each not in told)
    return Recovered(end, readings, damage, closed, abnormal=untold, lacking=tuple(lacking))


def _ends_silence(group: Group, shard: Shard) -> bool:
    slots = group.batch.slot
    known = slots[(slots >= 0) & (slots < shard.registry.rows)]
    return bool(shard.silence_alarms.is_silent(known.astype(np.intp)).any())


def apply(record: Record, shard: Shard, redelivery: Redelivery) -> list[Change]:
    """One record; gives the changes of alarms. Raises ValueError for one that cannot come next."""
    match record:
        case Group():
            redelivery.note(record)
            return _take([record], shard)
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
        case Lateness():
            shard.reorder.allow(record.seconds)
        case Released():
            return _process(shard.release(record.now), shard)
        case SessionLost():
            redelivery.forget()
        case Swapped():
            shard.begin_swap_to(record.sha256, record.generation)
        case Rebuilt():
            shard.go_on_swapping(record.end)
        case Abnormal():
            pass
        case Paused():
            return shard.pause(np.array(record.slots, np.intp), record.now)
        case Resumed():
            shard.resume(np.array(record.slots, np.intp), record.now)
        case MarkedNormal():
            return shard.mark_normal(np.array(record.slots, np.intp), record.now)
    return []


def _take(groups: list[Group], shard: Shard) -> list[Change]:
    if not groups:
        return []
    batches = [group.batch for group in groups]
    batch = Batch(*(np.concatenate([getattr(b, name) for b in batches]) for name in ("slot", "time", "value", "flags")))
    if len(batch) and not 0 <= int(batch.slot.min()) <= int(batch.slot.max()) < shard.registry.rows:
        raise ValueError("the readings are of series that this registry has not let in")
    arrival, readings = (np.concatenate([getattr(g, name) for g in groups]) for name in ("arrival", "readings"))
    return _process(shard.hold(batch, np.repeat(arrival, readings)), shard)


def _process(ready: Ready, shard: Shard) -> list[Change]:
    changes = list(ready.changes)
    for rows in slices(ready.batch):
        changes += shard.process(ready.batch[rows], ready.arrival[rows], is_heard=ready.is_heard).changes
    return changes
