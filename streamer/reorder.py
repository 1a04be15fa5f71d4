"""Readings that come out of order, put in order: each waits until no earlier one of its series can be in time any more.

What goes on when follows from the readings and their arrivals alone, one by one, however they are cut into batches.
With each reading that comes, and is then among those that wait, such are due as

- are older, by the allowance, than the newest reading of their series,
- came so long before it,
- have seen `MOST_HELD` others come: that bounds the memory.

With what is due goes all of its series that is no younger, and what goes at one moment goes in the order of time. A
reading that has no time of its own does not wait, nor one no younger than what has gone on already: it is late. Where
the clock of the arrivals is set back all goes on, since nobody knows how long it has waited.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.readings import Batch, Flag, Float64

MOST_HELD = 1 << 19  # 19 MB, and twice that while a turn adds to them
FIELDS = {"slot": "i4", "time": "f8", "value": "f8", "flags": "u1", "arrival": "f8", "number": "i8"}
ROW = np.dtype(list(FIELDS.items()))
"""`number` counts all readings of the shard: it tells who came first"""
RELEASED, LATEST = "reorder.released", "reorder.latest"
PREFIX = "reorder."

Rows = NDArray[np.void]
"""(n,) of `ROW`"""


class Taken(NamedTuple):
    """What goes on, in the order in which it is to be processed."""

    batch: Batch
    arrival: Float64
    """(n,) when each came"""
    elapsed: Float64
    """of what came, not of what goes on: seconds of event time since the newest reading of the series; NaN: none yet"""


class Reorder:
    """The readings that wait. Owned by one thread."""

    def __init__(self, lateness_seconds: float = 0.0) -> None:
        self.lateness_seconds = lateness_seconds
        self.early = 0
        """readings that went on early since too many waited"""
        self.forget()

    def forget(self) -> None:
        """Nothing waits, and nothing ever has."""
        self.is_used = self.lateness_seconds > 0
        """there is an allowance, or has been one in the time that state and journal remember"""
        self.held: Rows = np.empty(0, ROW)
        """in the order in which they came"""
        self._released = np.empty(0)
        """by slot: the greatest event time that has gone on"""
        self._latest = -np.inf
        """arrival of the last reading that came"""

    def __len__(self) -> int:
        """How many readings wait."""
        return len(self.held)

    def allow(self, lateness_seconds: float) -> None:
        """The allowance from here on."""
        self.lateness_seconds = lateness_seconds
        self.is_used |= lateness_seconds > 0

    def take(self, batch: Batch, arrival: Float64, number: int) -> Taken:
        """Readings have come, `number` in all before them; gives what goes on with them.

        The same as if they had come one by one. `arrival` `(n,)`.
        """
        came = np.empty(len(batch), ROW)
        came["slot"], came["time"], came["value"], came["flags"] = batch.slot, batch.time, batch.value, batch.flags
        came["arrival"], came["number"] = arrival, number + np.arange(len(batch))
        set_back = np.flatnonzero(arrival[1:] < arrival[:-1]) + 1
        gone, elapsed = [came[:0]], [np.empty(0)]
        for first, end in pairwise([0, *set_back.tolist(), len(came)]):
            if first == end:
                continue
            if arrival[first] < self._latest:
                gone.append(self._let_go(np.ones(len(self.held), np.bool_)))
            part = self._take(came[first:end])
            gone.append(part[0])
            elapsed.append(part[1])
            self._latest = float(arrival[end - 1])
        return _taken(np.concatenate(gone), np.concatenate(elapsed))

    def is_due(self, now: float) -> bool:
        """`release` would give something."""
        return len(self.held) > 0 and bool(self._due(now)[0])

    def release(self, now: float) -> Taken:
        """So much time has passed: gives what goes on then."""
        due = self._due(now)
        newest = np.full(len(self._released), -np.inf)
        np.maximum.at(newest, self.held["slot"][due], self.held["time"][due])
        return _taken(self._let_go(self.held["time"] <= newest[self.held["slot"]]), np.empty(0))

    def _due(self, now: float) -> NDArray[np.bool_]:
        if now < self._latest:  # the clock was set back
            return np.ones(len(self.held), np.bool_)
        return self.held["arrival"] + self.lateness_seconds <= now

    def _let_go(self, goes: NDArray[np.bool_]) -> Rows:
        gone, self.held = self.held[goes], self.held[~goes]
        np.maximum.at(self._released, gone["slot"], gone["time"])
        return gone[np.lexsort((gone["number"], gone["time"]))]

    def _take(self, came: Rows) -> tuple[Rows, Float64]:
        """`came` `(n,)`, n > 0, its arrivals not falling. Gives what goes on, and `Taken.elapsed`."""
        self._make_room(int(came["slot"].max()) + 1)
        # Only the series that are concerned are looked at: those that came, and those of which one has waited enough.
        count, first = len(came), int(came["number"][0])
        concerned = np.zeros(len(self._released), np.bool_)
        concerned[came["slot"]] = True
        arrival_due = self.held["arrival"] + self.lateness_seconds <= came["arrival"][-1]
        number_due = self.held["number"] + MOST_HELD < first + count
        concerned[self.held["slot"][arrival_due | number_due]] = True
        looked_at = concerned[self.held["slot"]]
        rows = np.concatenate([self.held[looked_at], came])
        # Positions in `came`; -1 are those that waited before. Series by series, each in the order in which it came:
        own = np.concatenate([np.full(len(rows) - count, -1), np.arange(count)])
        by_slot = np.argsort(rows["slot"], kind="stable")
        rows, own = rows[by_slot], own[by_slot]
        slot, time = np.ascontiguousarray(rows["slot"]), np.ascontiguousarray(rows["time"])
        is_same = np.concatenate([[False], slot[1:] == slot[:-1]])
        series = np.cumsum(~is_same)
        # One number for series and time, so that all series are searched at once.
        times, rank = np.unique(time, return_inverse=True)
        base = series * (len(times) + 1)
        newest = np.maximum.accumulate(base + rank)

        # When each is due: the position of the reading that makes it so, `count` if none of these does.
        found = np.searchsorted(newest, base + np.searchsorted(times, time + self.lateness_seconds))
        is_own = np.append(series, -1)[found] == series
        by_time = np.where(is_own, np.append(own, count)[found], count)
        by_arrival = np.searchsorted(came["arrival"], rows["arrival"] + self.lateness_seconds)
        by_number = rows["number"] + MOST_HELD - first
        before = self._released[slot]
        at_once = ((rows["flags"] & Flag.ARRIVAL_TIME) != 0) | (time <= before)
        due = np.minimum(np.where(at_once, own, by_time), by_arrival)
        self.early += int((by_number < np.minimum(due, count)).sum())
        due = np.clip(np.minimum(due, by_number), np.maximum(own, 0), count)

        # With it goes what is no younger: the least `due` of those of the series that are no older.
        youngest_first = np.argsort(-(base + rank), kind="stable")
        key, weight = -(base + rank)[youngest_first], series[youngest_first] * (count + 1)
        least = np.minimum.accumulate(due[youngest_first] + weight) - weight
        goes = np.empty(len(rows), np.intp)
        goes[youngest_first] = least[np.searchsorted(key, key, side="right") - 1]
        goes = np.maximum(goes, own)

        known = np.where(is_same, times[np.append(0, newest[:-1]) - np.append(0, base[:-1])], -np.inf)
        known = np.maximum(known, before)
        elapsed = np.full(count, np.nan)
        is_next = (own >= 0) & (known > -np.inf)
        elapsed[own[is_next]] = time[is_next] - known[is_next]

        ready = np.flatnonzero(goes < count)
        ready = ready[np.lexsort((rows["number"][ready], time[ready], goes[ready]))]
        np.maximum.at(self._released, slot[ready], time[ready])
        held = np.concatenate([self.held[~looked_at], rows[goes >= count]])
        self.held = held[np.argsort(held["number"])]
        return rows[ready], elapsed

    def _make_room(self, slots: int) -> None:
        if slots > len(self._released):
            more = np.full(max(slots, 2 * len(self._released)) - len(self._released), -np.inf)
            self._released = np.concatenate([self._released, more])

    def evict(self, slots: NDArray[np.intp]) -> None:
        """Forgets these series. None of their readings waits any more: they are idle for longer than any may wait."""
        self._released[slots[slots < len(self._released)]] = -np.inf
        self.held = self.held[~np.isin(self.held["slot"], slots)]

    def state(self, slots: int) -> dict[str, NDArray[np.generic]]:
        """Everything, copied, for a registry of so many slots; nothing where it has never been on."""
        if not self.is_used:
            return {}
        released = np.full(slots, -np.inf)
        known = min(slots, len(self._released))
        released[:known] = self._released[:known]
        held: dict[str, NDArray[np.generic]] = {PREFIX + name: self.held[name].copy() for name in FIELDS}
        return held | {RELEASED: released, LATEST: np.array([self._latest])}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]], slots: int) -> None:
        """Becomes what `state` saw of a registry of so many slots. Raises ValueError, and then is as new."""
        self.forget()
        if RELEASED not in arrays:
            return
        count = len(arrays.get(PREFIX + "slot", ()))
        expected = {RELEASED: ("f8", slots), LATEST: ("f8", 1)}
        expected |= {PREFIX + name: (kind, count) for name, kind in FIELDS.items()}
        for name, (kind, length) in expected.items():
            if name not in arrays or arrays[name].dtype != kind or arrays[name].shape != (length,):
                raise ValueError(f"the state's array {name} does not fit")
        held = np.empty(count, ROW)
        for name in FIELDS:
            held[name] = arrays[PREFIX + name]
        if count and not 0 <= int(held["slot"].min()) <= int(held["slot"].max()) < slots:
            raise ValueError("the state has readings that wait of series that it does not know")
        self.held = held
        self._released, latest = arrays[RELEASED].astype(np.float64), arrays[LATEST].astype(np.float64)
        self._latest = float(latest[0])
        self.is_used = True


def _taken(rows: Rows, elapsed: Float64) -> Taken:
    slot, time, value, flags, arrival, _ = (np.ascontiguousarray(rows[name]) for name in FIELDS)
    return Taken(Batch(slot, time, value, flags), arrival, elapsed)
