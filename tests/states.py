"""State directories as a daemon leaves them, made by its parts, with the places that a test wants to damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.weights import Weights
from streamer import recovery, snapshot
from streamer.disk import DiskFiles
from streamer.journal import Journal
from streamer.readings import Batch
from streamer.records import Admitted, Group
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.shard import Shard
from tests.streams import START, shipped_weights

SERIES = 4
KEYS = [f"plant/{number}#temperature" for number in range(SERIES)]


def new_shard(weights: Weights | None = None) -> Shard:
    return Shard(Registry(100, 1e9, 1e9), weights or shipped_weights(), 100, budget_per_series_month=1.0)


def make_state(
    directory: Path,
    groups: int = 40,
    *,
    snapshots: tuple[int, ...] = (10, 20),
    admit_at: dict[int, str] | None = None,
    weights: Weights | None = None,
    segment_bytes: int = 1_500,
) -> Shard:
    """A journal of so many groups, a minute apart and of one reading a series; a snapshot in front of some of them.

    `admit_at`: in front of which group another series is let in. Gives the shard that has taken all of it.
    """
    files = DiskFiles(directory / "journal")
    directory.mkdir(0o700, exist_ok=True)
    files.make()
    journal = Journal(files, lambda: START, segment_bytes=segment_bytes)
    journal.open()
    shard, redelivery = new_shard(weights), Redelivery()
    rng = np.random.default_rng(3)
    admit(journal, shard, KEYS)
    for number in range(groups):
        if number in (admit_at or {}):
            admit(journal, shard, [(admit_at or {})[number]])
        if number in snapshots:
            journal.sync()
            state = recovery.with_redelivery(shard.export(), redelivery.state())
            snapshot.write(directory, state.arrays, state.rest, position=journal.end)
        count, time = len(shard.registry), START + 60.0 * number
        slot = np.arange(count, dtype=np.int32)
        batch = Batch(slot, np.full(count, time), rng.normal(20.0, 1.0, count), np.zeros(count, np.uint8))
        ones, mid = np.ones(count, np.uint32), np.full(count, number + 1, np.uint16)
        group = Group(batch, np.full(count, time), ones, ones, mid, shard.registry.changes, shard.taken)
        journal.append(group)
        journal.sync()
        recovery.apply(group, shard, redelivery)
    journal.close()
    return shard


def admit(journal: Journal, shard: Shard, keys: list[str]) -> None:
    admitted: list[int] = []
    shard.registry.resolve(keys, START, admitted)
    devices = [shard.registry.device_key(shard.registry.device(slot)) for slot in admitted]
    journal.append(Admitted(admitted, keys, devices, *shard.registry.bucket))


def snapshots(directory: Path) -> list[Path]:
    """The oldest first."""
    return sorted(directory.glob("*.snap"))


def flip(path: Path, offset: int) -> None:
    """One bit; from the end where `offset` is negative."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def flip_group(directory: Path, number: int) -> None:
    """A bit in the body of this group, wherever it lies: of its time, which no other has."""
    needle = np.full(2, START + 60.0 * number).tobytes()
    for path in sorted((directory / "journal").glob("*.log")):
        at = path.read_bytes().find(needle)
        if at >= 0:
            flip(path, at + 16)
            return
    raise AssertionError(f"no group {number}")
