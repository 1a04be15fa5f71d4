"""What was published, and what became of it: in the journal of the real daemon, and in its state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessageInfo

from streamer import snapshot
from streamer.disk import DiskFiles
from streamer.journal import read
from streamer.records import Group
from streamer.recovery import DIGEST, MID, replay
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.settings import Settings
from streamer.shard import State
from streamer.wiring import decoder_from, load_weights, shard_from
from tests.end_to_end.daemon import SECONDS, START
from tests.test_shard import same

KEEPS_ALL = ["max_queued_messages 0", "max_inflight_messages 0"]


def new_snapshot(state: Path) -> Path:
    """The next number, also behind one that a kill has left unfinished."""
    numbers = [int(path.name.split("-")[1].split(".")[0]) for path in state.glob("snapshot-*")]
    return state / f"snapshot-{max(numbers, default=0) + 1:012d}.snap.part"


def journaled(state: Path) -> list[int]:
    """The values that the journal holds, in its order."""
    groups = [record for _, record in read(DiskFiles(state / "journal"), 0) if isinstance(record, Group)]
    return [int(value) for group in groups for value in group.batch.value]


class Ledger:
    """Numbers the messages, and keeps a twin of the daemon that is never killed: it reads on in the same journal."""

    def __init__(self, peer: Client, state: Path) -> None:
        settings = Settings()
        limits, decoder = settings.limits, decoder_from(settings)
        registry = Registry(limits.max_series, limits.new_series_per_minute, limits.new_series_burst, decoder.device)
        self.twin = shard_from(settings, load_weights(settings), registry)
        self.values: list[int] = []
        """what the journal has, in its order"""
        self.sent = 0
        self._peer = peer
        self._state = state
        self._position = 0
        self._waiting: list[MQTTMessageInfo] = []

    def publish(self, count: int) -> list[MQTTMessageInfo]:
        """The next so many numbers; a number is time and value of its reading."""
        new = []
        for number in range(self.sent, self.sent + count):
            payload = json.dumps({"time": START + number, "value": number})
            new.append(self._peer.publish(f"plant/{number % 20}", payload, qos=1))
        self.sent += count
        self._waiting += new
        return new

    def wait_published(self) -> None:
        """The broker has all."""
        for each in self._waiting:
            each.wait_for_publish(SECONDS)
        self._waiting.clear()

    def read_on(self) -> None:
        """What the journal has got since; while no daemon runs."""
        if not (self._state / "journal").exists():
            return
        records = list(read(DiskFiles(self._state / "journal"), self._position))
        recovered = replay(records, self._position, self.twin, Redelivery())
        assert recovered.damage is None
        self._position = recovered.end
        groups = [record for _, record in records if isinstance(record, Group)]
        self.values += [int(value) for group in groups for value in group.batch.value]

    def check(self, lost_by_broker: Collection[int] = ()) -> None:
        """After a proper end: each number once in the journal, and the state is the twin's, bit for bit."""
        self.read_on()
        lost = set(range(self.sent)) - set(self.values) - set(lost_by_broker)
        doubled = [value for value, count in Counter(self.values).items() if count > 1]
        assert (sorted(lost), doubled) == ([], [])
        found = snapshot.read_newest(self._state).snapshot
        assert found is not None
        assert found.position == self._position
        arrays = {name: array for name, array in found.arrays.items() if name not in (MID, DIGEST)}
        same(State(arrays, found.meta), self.twin.export())
