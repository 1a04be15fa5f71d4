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

MOST_HELD = 1 << 19  # 21 MB, and three times that while a turn adds to them
FIELDS = {"slot": "i4", "flags": "u1", "time": "f8", "value": "f8", "arrival": "f8", "number": "i8"}
ROW = np.dtype(list(FIELDS.items()), align=True)
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
        self._released = np.empty(0)
        """by slot: the greatest event time that has gone on"""
        self._newest = np.empty(0)
        """by slot: the greatest that has come"""
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
        return len(self.held) > 0 and bool(self._due(now).any())

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
        slot, time = came["slot"], came["time"]
        count, lateness = len(came), self.lateness_seconds
        self._make_room(int(slot.max()) + 1)
        before = self._newest[slot]
        # How the newest time of each series grows: series by series, in each in the order in which they came. One
        # number stands for series and time, so that all are searched at once.
        by_slot = np.argsort(slot, kind="stable")
        is_first = np.append(True, slot[by_slot][1:] != slot[by_slot][:-1])
        place = np.cumsum(is_first) - 1
        times, rank = np.unique(np.maximum(time, before)[by_slot], return_inverse=True)
        base = place * (len(times) + 1)
        newest = np.maximum.accumulate(base + rank)
        elapsed = np.empty(count)
        known = np.where(is_first, before[by_slot], times[np.roll(newest - base, 1)])
        elapsed[by_slot] = np.where(known > -np.inf, time[by_slot] - known, np.nan)
        np.maximum.at(self._newest, slot, time)

        # Only what can go now is looked at: what is due at the end of these, and all that is no younger.
        last_arrival, last_number = came["arrival"][-1], came["number"][-1]
        limit = np.full(len(self._newest), -np.inf)
        for rows in (self.held, came):
            is_due = rows["time"] + lateness <= self._newest[rows["slot"]]
            is_due |= (rows["arrival"] + lateness <= last_arrival) | (rows["number"] + MOST_HELD <= last_number)
            is_due |= (rows["flags"] & Flag.ARRIVAL_TIME) != 0
            np.maximum.at(limit, rows["slot"][is_due], rows["time"][is_due])
        looked_at = self.held["time"] <= limit[self.held["slot"]]
        rows = np.concatenate([self.held[looked_at], came])
        own = np.concatenate([np.full(len(rows) - count, -1), np.arange(count)])
        """position in `came`; -1: it has waited"""
        slot, time = np.ascontiguousarray(rows["slot"]), np.ascontiguousarray(rows["time"])

        # When each is due: the position of the reading that makes it so, `count` if none of these does.
        place_of = np.full(len(self._newest), -1)
        place_of[came["slot"][by_slot]] = place
        wanted = place_of[slot] * (len(times) + 1) + np.searchsorted(times, time + lateness)
        found = np.searchsorted(newest, wanted)
        is_own = np.append(place, -1)[found] == place_of[slot]
        by_time = np.where(is_own, np.append(by_slot, count)[found], count)
        by_arrival = np.searchsorted(came["arrival"], rows["arrival"] + lateness)
        by_number = rows["number"] + MOST_HELD - came["number"][0]
        at_once = ((rows["flags"] & Flag.ARRIVAL_TIME) != 0) | (time <= self._released[slot])
        due = np.minimum(np.where(at_once, own, by_time), by_arrival)
        self.early += int((by_number < np.minimum(due, count)).sum())
        due = np.clip(np.minimum(due, by_number), np.maximum(own, 0), count)

        # With it goes what is no younger: the least `due` of those of the series that are no older.
        youngest = np.lexsort((-time, slot))
        is_other = np.append(True, slot[youngest][1:] != slot[youngest][:-1])
        is_older = np.append(True, time[youngest][1:] != time[youngest][:-1]) | is_other
        weight = -(count + 1) * np.cumsum(is_other)
        least = np.minimum.accumulate(due[youngest] + weight) - weight
        last_of_time = np.append(np.flatnonzero(is_older)[1:], len(rows)) - 1
        goes = np.empty(len(rows), np.intp)
        goes[youngest] = least[last_of_time[np.cumsum(is_older) - 1]]
        goes = np.maximum(goes, own)

        ready = np.flatnonzero(goes < count)
        ready = ready[np.lexsort((rows["number"][ready], time[ready], goes[ready]))]
        np.maximum.at(self._released, slot[ready], time[ready])
        self.held = np.concatenate([self.held[~looked_at], rows[goes >= count]])
        return rows[ready], elapsed

    def _make_room(self, slots: int) -> None:
        if slots > len(self._released):
            more = np.full(max(slots, 2 * len(self._released)) - len(self._released), -np.inf)
            self._released = np.concatenate([self._released, more])
            self._newest = np.concatenate([self._newest, more])

    def evict(self, slots: NDArray[np.intp]) -> None:
        """Forgets these series. None of their readings waits any more: they are idle for longer than any may wait."""
        known = slots[slots < len(self._released)]
        self._released[known] = self._newest[known] = -np.inf
        self.held = self.held[~np.isin(self.held["slot"], slots)]

    def state(self, slots: int) -> dict[str, NDArray[np.generic]]:
        """Everything, copied, for a registry of so many slots; nothing where it has never been on."""
        if not self.is_used:
            return {}
        released = np.full(slots, -np.inf)
        known = min(slots, len(self._released))
        released[:known] = self._released[:known]
        in_order = self.held[np.argsort(self.held["number"])]
        held: dict[str, NDArray[np.generic]] = {PREFIX + name: in_order[name].copy() for name in FIELDS}
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
        self._newest = self._released.copy()
        np.maximum.at(self._newest, held["slot"], held["time"])
        self.is_used = True


def _taken(rows: Rows, elapsed: Float64) -> Taken:
    slot, flags, time, value, arrival, _ = (np.ascontiguousarray(rows[name]) for name in FIELDS)
    return Taken(Batch(slot, time, value, flags), arrival, elapsed)
