"""Nested JSON -> readings: every numeric leaf is a series, and every leaf has the time that lies nearest.

Covers as it stands: plain and nested objects, zigbee2mqtt, Tasmota, Shelly Gen2 events, and arrays of {time, value}.

A time field holds for the object it is in and for all below it, unless one of those has its own. An object without one
takes it from a header beside its values (`{"header": {"ts": ...}, "data": {...}}`), or from the object around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo

from streamer.payloads.columns import Columns, Rejection, Trace
from streamer.payloads.names import element_names
from streamer.payloads.sources import Node, Source, Sources
from streamer.payloads.times import TIME_RANK, find_time, from_number, from_text
from streamer.readings import Flag

_HEADERS = ("header", "head", "meta", "metadata", "envelope", "sys")
NO_RANK = 1 << 30
ARRIVAL_TIME = int(Flag.ARRIVAL_TIME)  # a plain int: the enumeration costs more than all the rest

When = tuple[float | None, str]
"""Epoch seconds and the field they come from; None for the arrival."""
ARRIVAL: When = (None, "")


class Refused(Exception):
    """The whole message is rejected."""

    def __init__(self, reason: Rejection) -> None:
        super().__init__(reason)
        self.reason = reason


class Reading:
    """One message on its way: where it comes from and where its readings go."""

    __slots__ = ("arrival", "bad", "fields", "fixed_time", "out", "source", "start", "timed_arrays", "trace")

    def __init__(self, source: Source, arrival: float, out: Columns, trace: Trace | None) -> None:
        self.source = source
        self.arrival = arrival
        self.out = out
        self.trace = trace
        self.start = len(out.value)
        self.bad: list[Rejection] = []
        """numbers that are no readings"""
        self.fields = 0
        """series so far, the elements of a timed array counted once"""
        self.timed_arrays = False
        self.fixed_time = False
        """the time is known from elsewhere: no field may change it"""

    def note(self, format_name: str) -> None:
        """Tell `explain` which format this is."""
        if self.trace is not None:
            self.trace.format = format_name

    def undo(self) -> None:
        """Take back what has been appended."""
        self.out.truncate(self.start)
        if self.trace is not None:
            self.trace.origins.clear()

    def keep_last(self) -> None:
        """Of readings of one series at one time keep the last, as a time series database would."""
        out, start = self.out, self.start
        last = {place: row for row, place in enumerate(zip(out.key[start:], out.time[start:], strict=True), start)}
        if len(last) == len(out.value) - start:
            return
        rows = sorted(last.values())
        out.key[start:] = [out.key[row] for row in rows]
        out.time[start:] = [out.time[row] for row in rows]
        out.value[start:] = [out.value[row] for row in rows]
        out.flags[start:] = [out.flags[row] for row in rows]
        if self.trace is not None:
            self.trace.origins[:] = [self.trace.origins[row - start] for row in rows]


class Tree:
    """Reads JSON values; holds only what an operator has set."""

    def __init__(self, sources: Sources, words: dict[str, float], *, max_depth: int, max_fields: int) -> None:
        self.sources = sources
        self._words = words
        self._max_depth = max_depth
        self._max_fields = max_fields

    def read(self, reading: Reading, node: Node, value: object, when: When = ARRIVAL, depth: int = 1) -> None:
        """Append the readings below a place, an object or an array. Raises Refused.

        `when` is what holds around it; `depth` is how deep the place lies, 1 for a whole message.
        """
        if isinstance(value, dict):
            self.read_object(reading, node, value, when, depth)
        elif isinstance(value, list):
            self._read_array(reading, node, value, when, depth)

    def read_object(
        self, reading: Reading, node: Node, fields: dict[str, object], when: When = ARRIVAL, depth: int = 1
    ) -> None:
        """Append the readings of an object. Raises Refused."""
        if depth > self._max_depth:
            raise Refused(Rejection.TOO_DEEP)
        if len(fields) > self._max_fields:
            raise Refused(Rejection.TOO_MANY_FIELDS)
        out = reading.out
        start = len(out.value)
        own, name, nested = self.read_leaves(reading.source, node, fields, out, reading.bad)
        if not reading.fixed_time:
            if own is None and nested:
                own, name = _header_time(nested, reading.source.zone)
            if own is not None:
                when = own, node.prefix + name
        added = len(out.value) - start
        if added:
            time, origin = when
            out.time += [reading.arrival if time is None else time] * added
            out.flags += [ARRIVAL_TIME if time is None else 0] * added
            if reading.trace is not None:
                reading.trace.origins += ["arrival" if time is None else origin] * added
            reading.fields += added
            if reading.fields > self._max_fields:
                raise Refused(Rejection.TOO_MANY_FIELDS)
        if nested:
            for name, value in nested:
                self.read(reading, self.sources.child(reading.source, node, name), value, when, depth + 1)

    def read_leaves(
        self, source: Source, node: Node, fields: dict[str, object], out: Columns, bad: list[Rejection]
    ) -> tuple[float | None, str, list[tuple[str, object]] | None]:
        """Append key and value of each number, not yet time and flags.

        Gives the object's own time, the name of its field, and what is nested in it. This is the hot loop.
        """
        add_key = out.key.append
        add_value = out.value.append
        keys = node.keys
        stamps = node.stamps
        words = self._words
        rank = NO_RANK
        time: float | None = None
        time_name = ""
        nested: list[tuple[str, object]] | None = None
        moment: float | None
        for name, value in fields.items():
            if isinstance(value, float):
                number = value
            elif isinstance(value, str):
                word = words.get(value)
                if word is None:
                    if name in TIME_RANK and TIME_RANK[name] < rank:
                        moment = from_text(value, source.zone)
                        if moment is not None:
                            rank, time, time_name = TIME_RANK[name], moment, name
                    continue
                number = word
            elif isinstance(value, int):
                if not words and isinstance(value, bool):
                    continue
                try:
                    number = float(value)
                except OverflowError:
                    if self._key(source, node, name) != "":
                        bad.append(Rejection.NOT_FINITE)
                    continue
            elif value is None:
                continue
            else:
                if nested is None:
                    nested = []
                nested.append((name, value))
                continue
            key = keys.get(name)
            if key is None:
                if name not in stamps:
                    key = self.sources.learn(source, node, name)
                    if key is None:
                        bad.append(Rejection.KEY_TOO_LONG)
                if name in stamps:
                    moment = from_number(number)
                    if moment is None:
                        key = stamps[name]
                    else:
                        key = ""
                        if TIME_RANK.get(name, NO_RANK) < rank:
                            rank, time, time_name = TIME_RANK[name], moment, name
            if key:
                add_key(key)
                add_value(number)
        return time, time_name, nested

    def _key(self, source: Source, node: Node, name: str) -> str | None:
        key = node.keys.get(name)
        if key is None:
            key = node.stamps.get(name)
        return self.sources.learn(source, node, name) if key is None else key

    def _read_array(self, reading: Reading, node: Node, items: list[object], when: When, depth: int) -> None:
        if depth > self._max_depth:
            raise Refused(Rejection.TOO_DEEP)
        objects = [item for item in items if isinstance(item, dict)]
        names: list[str] | None = None
        if objects and len(objects) == len(items):
            found = [] if reading.fixed_time else [find_time(item, reading.source.zone) for item in objects]
            timed = 2 * sum(time is not None for time in found) > len(objects)
            names = element_names(objects, timed=timed)
            if timed:
                self._read_timed(reading, node, zip(objects, found, strict=True), names, depth)
                return
        if len(items) > self._max_fields:
            raise Refused(Rejection.TOO_MANY_FIELDS)
        labels: Iterable[str] = names if names is not None else map(str, range(len(items)))
        self.read_object(reading, node, dict(zip(labels, items, strict=True)), when, depth)

    def _read_timed(
        self,
        reading: Reading,
        node: Node,
        items: Iterable[tuple[dict[str, object], tuple[float, str] | None]],
        names: list[str] | None,
        depth: int,
    ) -> None:
        """Elements that carry their own times are so many messages of one shape: the index is no part of the path."""
        reading.timed_arrays = True
        before = most = reading.fields
        for row, (item, found) in enumerate(items):
            reading.fields = before
            if found is None:
                reading.bad.append(Rejection.BAD_TIME)
                continue
            place = node if names is None else self.sources.child(reading.source, node, names[row])
            self.read_object(reading, place, item, (found[0], place.prefix + found[1]), depth + 1)
            most = max(most, reading.fields)
        reading.fields = most


def _header_time(nested: list[tuple[str, object]], zone: tzinfo) -> tuple[float | None, str]:
    for name, value in nested:
        if name in _HEADERS and isinstance(value, dict):
            found = find_time(value, zone)
            if found is not None:
                return found[0], f"{name}.{found[1]}"
    return None, ""
