"""How every series stands at one moment: copies of the shard's arrays, for those who look on.

For the engine's thread: 0.15 ms for 10,000 series, 1.7 ms for 100,000, 5 where some are late; while somebody looks.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from streamer.readings import Float64, UInt8
from streamer.shard import Shard


class SeriesState(enum.IntEnum):
    """As MQTT says it (docs/mqtt.md), what wants a person first; and one that only time brings about."""

    ALARM = 0
    SILENT = 1
    STALE = 2
    """it would be normal, or in a gap, if that were not longer ago than it usually reports"""
    NORMAL = 3
    GAP = 4
    WARMING = 5
    PAUSED = 6
    GONE = 7
    """no series holds the slot"""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """All series, by slot; never changed."""

    changes: int
    """series let in and forgotten so far: the same number means the same `keys`"""
    keys: list[str]
    """empty where the slot is free"""
    state: UInt8
    """`SeriesState`"""
    latest: Float64
    """(n, 5): score, value, expected, lower, upper of the last reading; NaN where there is nothing"""
    heard: Float64
    """when it last sent something, epoch seconds"""


def look(shard: Shard, before: Look | None, now: float) -> Look:
    """How all stand `now`, by the daemon's clock. What has not changed since `before` is taken from there."""
    registry = shard.registry
    has_changed = before is None or before.changes != registry.changes
    keys = registry.keys_by_slot() if before is None or has_changed else before.keys
    count = registry.rows
    latest = shard.detector.latest[:count].copy()
    return Look(registry.changes, keys, _states(shard, latest[:, 0], now), latest, shard.cadence.arrival(count).copy())


def state_of(shard: Shard, slot: int, now: float) -> SeriesState:
    """How one stands."""
    return SeriesState(int(_states(shard, shard.detector.latest[: shard.registry.rows, 0], now)[slot]))


def _states(shard: Shard, score: Float64, now: float) -> UInt8:
    """One a slot. Silence comes before another alarm: what the series does is not known."""
    count = len(score)
    state = np.where(np.isnan(score), SeriesState.GAP, SeriesState.NORMAL).astype(np.uint8)
    state[shard.cadence.is_late(count, now)] = SeriesState.STALE
    state[shard.detector.is_warming(count)] = SeriesState.WARMING
    state[shard.value_alarms.is_open(count)] = SeriesState.ALARM
    state[shard.silence_alarms.is_silent(np.arange(count))] = SeriesState.SILENT
    state[shard.paused()] = SeriesState.PAUSED
    state[shard.registry.devices < 0] = SeriesState.GONE
    return state
