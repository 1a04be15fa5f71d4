"""Journals of synthetic sites as a daemon writes them, and requests to retrain on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models import weights
from streamer.disk import DiskFiles
from streamer.journal import Journal
from streamer.readings import Batch, Float64
from streamer.records import Admitted, Fact, Group
from streamer.retraining.contract import Request
from tests.streams import START

CADENCE = 60.0
LEVELS = np.array([0.0, 3.0, 1.0, -2.0, 4.0, 0.5, -3.0, 2.0, -1.0, 5.0, -4.0])


def pattern(rng: np.random.Generator, count: int, steps: int, *, noise: float = 0.1) -> Float64:
    """`(count, steps)`: eleven levels in an order that nobody would guess, round and round, from anywhere."""
    phase = rng.integers(0, len(LEVELS), (count, 1))
    value = LEVELS[(phase + np.arange(steps)) % len(LEVELS)] + noise * rng.normal(size=(count, steps))
    scale = 10.0 ** rng.uniform(-1, 3, (count, 1))
    result: Float64 = scale * (value + rng.normal(0, 5, (count, 1)))
    return result


def noise(rng: np.random.Generator, count: int, steps: int) -> Float64:
    """`(count, steps)` independent readings: nothing to gain."""
    return 20.0 + rng.normal(size=(count, steps))


def smooth(rng: np.random.Generator, count: int, steps: int) -> Float64:
    """`(count, steps)`: slow waves with little noise, which the shipped weights forecast well."""
    period, phase = rng.uniform(40, 90, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    wave = np.sin(2 * np.pi * np.arange(steps) / period + phase)
    return 20.0 + 5.0 * wave + 0.1 * rng.normal(size=(count, steps))


@dataclass
class Writer:
    """A journal that is written record by record."""

    directory: Path
    segment_bytes: int = 16 << 20
    changes: int = 0
    taken: int = 0
    beyond: int = 0
    """the first position"""
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        files = DiskFiles(self.directory)
        files.make()
        self.journal = Journal(files, lambda: START, segment_bytes=self.segment_bytes)
        self.journal.open(beyond=self.beyond)

    def admit(self, slots: Sequence[int], devices: Sequence[str]) -> None:
        keys = [f"{device}#{self.changes + k}" for k, device in enumerate(devices)]
        self.journal.append(Admitted(list(slots), keys, list(devices), 10.0, None))
        self.changes += len(slots)

    def fact(self, fact: Fact) -> None:
        self.journal.append(fact)

    def group(self, slot: Sequence[int] | np.ndarray, time: Float64, value: Float64, flags: int = 0) -> None:
        """One group; its readings arrive when they were measured."""
        count = len(time)
        batch = Batch(np.asarray(slot, np.int32), time, value, np.full(count, flags, np.uint8))
        ones = np.ones(count, np.uint32)
        self.journal.append(Group(batch, time, ones, ones, ones.astype(np.uint16), self.changes, self.taken))
        self.taken += count

    def rows(self, values: Float64, *, first: int = 0, slots: Sequence[int] | None = None) -> None:
        """Values `(series, steps)`, one group a step, from step `first` on."""
        count, steps = values.shape
        for k in range(steps):
            time = np.full(count, START + CADENCE * (first + k))
            self.group(range(count) if slots is None else slots, time, values[:, k])
            if k % 50 == 49:
                self.journal.sync()  # what a later record calls durable cannot be torn

    def end(self) -> int:
        """Everything is on disk; the position of the next record."""
        self.journal.sync()
        return self.journal.end


def write_site(directory: Path, values: Float64, *, series_of_device: int = 2) -> Request:
    """A journal of values `(series, steps)`, and a request that suits it."""
    writer = Writer(directory / "journal")
    count = len(values)
    writer.admit(range(count), [f"plant/{k // series_of_device}" for k in range(count)])
    writer.rows(values)
    end = writer.end()
    writer.journal.close()
    return request(directory, end)


def request(directory: Path, end: int, **others: object) -> Request:
    out = directory / "out"
    out.mkdir(exist_ok=True)
    given: dict[str, object] = {
        "journal": str(directory / "journal"),
        "begin": 0,
        "end": end,
        "incumbent": str(weights.BASE),
        "out": str(out),
        "min_readings": 500,
        "device": "cpu",
        "learning_rate": 1e-3,
        "epochs": 10,
    }
    return Request(**{**given, **others})  # type: ignore[arg-type]  # checked when it is read as JSON
