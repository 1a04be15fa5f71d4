"""Synthetic devices for long tests: several channels at one steady cadence, with faults put in; seeded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import synthetic
from streamer.readings import Float64
from streamer.replay import COLUMNS
from streamer.rows import JOINT, Row
from tests.streams import START

FAULTS = ("spike", "step", "burst", "drift")
FAULT_ROWS = {"spike": 1, "step": 80, "burst": 30, "drift": 150}
EVERY_ROWS = 400  # from one fault of a device to the next
FIRST_ROW = 600


class Fault(NamedTuple):
    """What was put in: rows `start` to `stop - 1` of a channel."""

    kind: str
    channel: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """What a device has measured, whenever it is told."""

    interval: float
    """seconds"""
    values: Float64
    """(rows, channels)"""
    faults: list[Fault]

    @property
    def time(self) -> Float64:
        """Epoch seconds of each row."""
        return START + self.interval * np.arange(len(self.values), dtype=np.float64)


def steady(rng: np.random.Generator, count: int, steps: int, interval: float) -> Float64:
    """Values `(count, steps)` of clean synthetic series at one cadence, in units of their own."""
    start = rng.uniform(0, 7 * 86_400, (count, 1))
    time = START + start + interval * np.arange(steps, dtype=np.float64)
    value = synthetic.distort(rng, synthetic.signal(rng, time))
    return value * 10.0 ** rng.uniform(-3, 5, (count, 1))


def make(seed: int, *, count: int, rows: int, channels: int, interval: float) -> list[Device]:
    """Devices with a fault every `EVERY_ROWS`, each on one channel, of 20 to 60 of its standard deviations."""
    rng = np.random.default_rng(seed)
    values = steady(rng, count * channels, rows, interval)
    spread = values.std(axis=1) + 1e-9
    devices = []
    for at in range(count):
        mine = values[at * channels : (at + 1) * channels].T.copy()
        faults = []
        for begin in range(FIRST_ROW, rows - EVERY_ROWS, EVERY_ROWS):
            kind, channel = FAULTS[rng.integers(len(FAULTS))], int(rng.integers(channels))
            start = int(begin + rng.integers(0, 100))
            fault = Fault(kind, channel, start, start + FAULT_ROWS[kind])
            size = rng.choice([-1.0, 1.0]) * rng.uniform(20, 60) * spread[at * channels + channel]
            mine[fault.start : fault.stop, channel] += size * _shape(rng, kind)
            faults.append(fault)
        devices.append(Device(interval, mine, faults))
    return devices


def _shape(rng: np.random.Generator, kind: str) -> Float64:
    rows = FAULT_ROWS[kind]
    if kind == "burst":
        return rng.normal(size=rows)
    return np.linspace(0, 1, rows) if kind == "drift" else np.ones(rows)


def tell(device: Device, time: Float64, values: Float64, order: Iterable[int]) -> Iterator[Row]:
    """The device's rows in this order, under the numbers that they have in the recording; NaN: an empty cell."""
    names = [f"c{channel}" for channel in range(values.shape[1])]
    for row in order:
        cells = [None if np.isnan(value) else float(value) for value in values[row]]
        yield Row(str(row), float(time[row]), names, cells)


class Heard:
    """Stands where the writer of an output file stands; keeps what the engine made of a device, by row and channel."""

    def __init__(self, device: Device) -> None:
        rows, channels = device.values.shape
        self.scores = np.full((rows, channels), np.nan)
        """NaN: no verdict"""
        self.joint = np.full(rows, np.nan)
        self.told = np.zeros((rows, channels), np.bool_)
        """there was such a reading"""
        self.alarmed = np.zeros((rows, channels), np.bool_)
        """an alarm was open on the channel"""
        self.opened: dict[str, tuple[int, int]] = {}
        """alarm id -> row at which it opened, channel"""
        self._order: list[int] = []

    @property
    def order(self) -> NDArray[np.intp]:
        """Rows as they came."""
        return np.array(self._order, np.intp)

    def writerow(self, cells: Iterable[object], /) -> None:
        cell = dict(zip(COLUMNS, map(str, cells), strict=True))
        row, score = int(cell["time"]), float(cell["score"] or "nan")
        if cell["series"] == JOINT:
            self.joint[row] = score
            self._order.append(row)
            return
        channel = int(cell["series"].removeprefix("c"))
        self.scores[row, channel] = score
        self.told[row, channel] = True
        if cell["alarm"]:
            self.alarmed[row, channel] = True
            self.opened.setdefault(cell["alarm"], (row, channel))
