"""What a state directory holds, read without touching it: the state that a start would reach, by the code of a start.

Two SHA-256 of that state, both over series in the order of their keys, so that neither slots, nor segments, nor when
snapshots were taken, matter:

- `sha256`: what the readings have made of it: the model's state, the statistics, the calibration and the value alarms
  of each series. Two daemons that were given the same readings have the same, however often one of them was killed and
  however their messages were cut into turns.
- `sha256_with_arrivals`: besides, what depends on when they came: cadence, silence, and which messages of the session
  are known. A copy of a directory has the same, and so has whoever takes in the same journal.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer import recovery, reorder, snapshot
from streamer.alarms import Incident, Member
from streamer.disk import DiskFiles
from streamer.errors import StateError
from streamer.journal import Journal, Opened
from streamer.readings import Alarm
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.shard import Shard
from streamer.statedir import holder

MOST_SHOWN = 10
OF_ARRIVALS = ("cadence", "between")
"""Arrays that depend on when a reading came."""


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One file."""

    file: str
    size_bytes: int
    position: int | None
    """in the journal; None where `trouble` says why not"""
    trouble: str | None


class Inspection(NamedTuple):
    """What was found; a field is what `streamer state --json` calls it."""

    directory: str
    in_use_by: str | None
    """who has it open: then the figures are those of a moment"""
    generation: int
    weights_sha256: str
    snapshots: list[SnapshotFile]
    """the newest first"""
    snapshot: str | None
    """the file that a start would begin with"""
    left_behind: str | None
    """what of it would not be used"""
    journal_first: int
    journal_end: int
    """the position of the next record: the last good one is that before"""
    journal_replayed: int
    """readings that a start would take from the journal"""
    journal_cut_bytes: int
    """behind the last good record, never acknowledged"""
    series: int
    readings: int
    """applied, of all series"""
    readings_applied: dict[str, int]
    """by series; neither late ones nor those that came twice"""
    paused: list[str]
    """series in maintenance"""
    in_charge: dict[str, int]
    """series by the forecaster in charge"""
    alarms: list[Alarm]
    """the open ones"""
    sha256: str
    sha256_with_arrivals: str
    problems: list[str]
    """what a start would say at ERROR"""

    def summary(self) -> dict[str, object]:
        """For people: a few lines, however many series there are."""
        most = sorted(self.readings_applied.items(), key=lambda item: -item[1])
        lines: dict[str, object] = {
            "directory": self.directory,
            "in use by": f"{self.in_use_by}: the figures are those of a moment" if self.in_use_by else "nobody",
            "weights": f"generation {self.generation}, SHA-256 {self.weights_sha256[:16]}",
            "journal": f"records {self.journal_first} to {self.journal_end - 1}"
            if self.journal_end > self.journal_first
            else f"no records, the next is {self.journal_end}",
        }
        for each in self.snapshots:
            used = ", used" if each.file == self.snapshot else ""
            lines[each.file] = each.trouble or f"at record {each.position}, {each.size_bytes} bytes{used}"
        lines |= {
            "from the journal": f"{self.journal_replayed} readings behind {self.snapshot or 'nothing'}",
            "series": self.series,
            "readings": self.readings,
            **{f"  {key}": count for key, count in most[:MOST_SHOWN]},
        }
        if len(most) > MOST_SHOWN:
            lines["  ..."] = f"{len(most) - MOST_SHOWN} more series; --json has all"
        if self.paused:
            more = f" and {len(self.paused) - MOST_SHOWN} more" if len(self.paused) > MOST_SHOWN else ""
            lines["paused"] = ", ".join(self.paused[:MOST_SHOWN]) + more
        lines["in charge"] = ", ".join(f"{name} of {count} series" for name, count in self.in_charge.items())
        lines["open alarms"] = len(self.alarms)
        lines |= {f"  {a.id}": f"{a.kind} {a.key}" for a in self.alarms[:MOST_SHOWN]}
        lines["SHA-256"] = self.sha256
        lines["with arrivals"] = self.sha256_with_arrivals
        if self.left_behind:
            lines["left behind"] = self.left_behind
        return lines | {f"problem {number}": problem for number, problem in enumerate(self.problems, 1)}


def inspect(directory: Path, shard: Shard) -> Inspection:
    """Reads the directory; `shard` has met no reading. Raises StateError."""
    try:
        files = _snapshots(directory)
        in_use_by = holder(directory / "lock")
        redelivery = Redelivery()
        restored = recovery.restore(directory, shard, redelivery, aside=lambda _: "a start would set it aside")
        opened, recovered = _recover(directory / "journal", restored.position, shard, redelivery)
    except OSError as error:
        raise StateError(
            f"{directory}: cannot be read by user {os.getuid()}: {error.strerror}; expected the state of a daemon"
        ) from error
    damage = [sentence.replace("it is kept as", "a start would keep it as") for sentence in opened.damage]
    problems = [*restored.set_aside, *damage, *recovered.missing]
    problems += [f"weights that were to serve are not to be had: {sentence}" for sentence in recovered.lacking]
    problems += [f"the journal is not used to its end: {recovered.damage}"] if recovered.damage else []
    registry = shard.registry
    slots = [slot for slot in range(registry.rows) if registry.key(slot)]
    applied = {registry.key(slot): int(shard.applied[slot]) for slot in sorted(slots, key=registry.key)}
    sha256, sha256_with_arrivals = _digests(shard, redelivery)
    return Inspection(
        directory=str(directory),
        in_use_by=in_use_by,
        generation=shard.generation,
        weights_sha256=shard.weights.sha256,
        snapshots=files,
        snapshot=restored.snapshot.path.name if restored.snapshot else None,
        left_behind=restored.left_behind,
        journal_first=opened.first,
        journal_end=opened.end,
        journal_replayed=recovered.readings,
        journal_cut_bytes=opened.cut_bytes,
        series=len(registry),
        readings=sum(applied.values()),
        readings_applied=applied,
        paused=sorted(map(registry.key, shard.paused().tolist())),
        in_charge={forecaster.name.lower(): count for forecaster, count in shard.in_charge().items()},
        alarms=shard.open_alarms(),
        sha256=sha256,
        sha256_with_arrivals=sha256_with_arrivals,
        problems=problems,
    )


def _snapshots(directory: Path) -> list[SnapshotFile]:
    found = []
    for path in snapshot.newest_first(directory):
        position, trouble, size_bytes = None, None, 0
        try:
            size_bytes = path.stat().st_size
            position = snapshot.read(path).position
        except snapshot.DamagedError as error:
            trouble = str(error)
        except OSError as error:
            trouble = f"cannot be read: {error.strerror or error}"
        found.append(SnapshotFile(path.name, size_bytes, position, trouble))
    return found


def _recover(
    directory: Path, position: int | None, shard: Shard, redelivery: Redelivery
) -> tuple[Opened, recovery.Recovered]:
    end = position or 0
    if not directory.exists():
        return Opened(end, end, 0, "", []), recovery.Recovered(end, 0, None)
    journal = Journal(_Viewed(directory), lambda: 0.0)
    opened = journal.open(beyond=end)
    return opened, recovery.recover(journal, opened, position, shard, redelivery)


class _Viewed(DiskFiles):
    """A directory that is only looked at: what is renamed or removed in it is so for who looks, and for nobody else."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._real = {name: name for name in super().names()}

    def names(self) -> list[str]:
        return list(self._real)

    def size(self, name: str) -> int:
        return super().size(self._real[name])

    def read(self, name: str, most_bytes: int | None = None) -> bytes:
        return super().read(self._real[name], most_bytes)

    def rename(self, old: str, new: str) -> None:
        self._real[new] = self._real.pop(old)

    def remove(self, name: str) -> None:
        del self._real[name]

    def create(self, name: str) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)


# --- The digests ---


def _digests(shard: Shard, redelivery: Redelivery) -> tuple[str, str]:
    """`sha256` and `sha256_with_arrivals`."""
    registry = shard.registry
    order = np.array(sorted((s for s in range(registry.rows) if registry.key(s)), key=registry.key), np.intp)
    arrays = shard.export().arrays
    names = [[registry.key(slot), registry.device_key(registry.device(slot))] for slot in order.tolist()]
    by_readings = hashlib.sha256(msgspec.json.encode(names))
    waiting = {name: arrays.pop(name) for name in list(arrays) if name.startswith(reorder.PREFIX)}
    for name in sorted(arrays.keys() - OF_ARRIVALS):
        _add(by_readings, name, arrays[name][order])
    saved = shard.value_alarms.state()
    members = {registry.key(each.slot): _member(each) for each in saved.members}
    incidents = {each.alarm.id: _incident(each, registry) for each in saved.incidents}
    by_readings.update(msgspec.json.encode([members, incidents], order="sorted"))

    if waiting:
        place = np.full(registry.rows, -1)
        place[order] = np.arange(len(order))
        held = {name: waiting[reorder.PREFIX + name] for name in reorder.FIELDS}
        at = place[held["slot"].astype(np.intp)]
        by_key = np.lexsort((held["number"], at))
        _add(by_readings, "waiting", at[by_key])
        for name in ("time", "value", "flags"):
            _add(by_readings, name, held[name][by_key])
        _add(by_readings, reorder.RELEASED, waiting[reorder.RELEASED][order])

    whole = by_readings.copy()
    for name in ("arrival", "number") if waiting else ():
        _add(whole, name, held[name][by_key])
    for name in OF_ARRIVALS:
        _add(whole, name, arrays[name][order])
    silent = sorted(
        ([registry.key(slot) for slot in each.slots], msgspec.to_builtins(each.alarm))
        for each in shard.silence_alarms.state()
    )
    known = redelivery.state()
    first_to_last = np.argsort(known.mid)
    whole.update(msgspec.json.encode(silent, order="sorted"))
    _add(whole, "mid", known.mid[first_to_last])
    _add(whole, "digest", known.digest[first_to_last])
    return by_readings.hexdigest(), whole.hexdigest()


def _add(digest: hashlib._Hash, name: str, array: NDArray[np.generic]) -> None:
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def _member(member: Member) -> dict[str, object]:
    """Without its slot; what was kept of the histogram not as it is packed, which any zlib does otherwise."""
    document: dict[str, object] = msgspec.to_builtins(member)
    del document["slot"]
    if member.kept is not None:
        kept: dict[str, object] = msgspec.to_builtins(member.kept)
        document["kept"] = kept | {"histogram": zlib.decompress(member.kept.histogram)}
    return document


def _incident(incident: Incident, registry: Registry) -> dict[str, object]:
    """By the keys of its series and its device."""
    document: dict[str, object] = msgspec.to_builtins(incident)
    device, slots = registry.device_key(incident.device), sorted(map(registry.key, incident.slots))
    return document | {"device": device, "slots": slots}
