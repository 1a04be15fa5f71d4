"""One message -> readings: which format it is, and what an operator's rule says about its topic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamer.payloads import influx, lorawan, senml, telegraf
from streamer.payloads.columns import Columns, Rejection, Trace
from streamer.payloads.globs import compile_globs
from streamer.payloads.jsontext import UNREPRESENTABLE, parse, parse_plain
from streamer.payloads.names import tagged_head
from streamer.payloads.rules import CompiledRule, Rule, zone_of
from streamer.payloads.runs import parse_run, read_run
from streamer.payloads.sources import Node, Source, Sources
from streamer.payloads.times import find_time, from_value
from streamer.payloads.tree import ARRIVAL, ARRIVAL_TIME, Reading, Refused, Tree
from streamer.payloads.words import WORDS, parse_number
from streamer.readings import Message

_ABSENT = object()
_SCALARS = ("auto", "number", "json")
RUN = 256  # messages that are parsed at once; one that is odd makes so many slow (by eye)
_STRIPPED = " \t\r\n\x00\ufeff"  # C programs send the terminator, Windows programs the byte order mark


class Decoder:
    """Reads payloads: pure but for a bounded cache of keys, and total. For one thread.

    The arguments are the settings of the same names, see docs/payloads.md. Raises SettingsError for a rule or a zone
    that makes no sense.
    """

    def __init__(
        self,
        *,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        own_prefix: str = "",
        rules: tuple[Rule, ...] = (),
        booleans: bool = True,
        time_zone: str = "UTC",
        max_payload_bytes: int = 262_144,
        max_depth: int = 16,
        max_fields: int = 256,
        cache_bytes: int = 1 << 28,
    ) -> None:
        zone = zone_of(time_zone)
        self._sources = Sources(
            include=compile_globs(include, "/"),
            exclude=compile_globs(exclude, "/"),
            own_prefix=own_prefix,
            rules=tuple(CompiledRule(rule, zone) for rule in rules),
            zone=zone,
            cache_bytes=cache_bytes,
        )
        self._words = WORDS if booleans else {}
        self._tree = Tree(self._sources, self._words, max_depth=max_depth, max_fields=max_fields)
        self._max_payload_bytes = max_payload_bytes
        self._max_fields = max_fields

    @property
    def cached_bytes(self) -> int:
        """About how much memory the known topics take; at most the argument `cache_bytes`."""
        return self._sources.cached_bytes

    def is_wanted(self, topic: str) -> bool:
        """Whether messages of a topic are readings: `include` and `exclude`, and never the daemon's own output."""
        source = self._sources.young.get(topic) or self._sources.get(topic)
        return source.is_wanted

    def device(self, key: str) -> str:
        """The device of a series: as the topic's rule says, else the topic, with its tags where the key has some."""
        topic, _, path = key.partition("#")
        source = self._sources.get(topic)
        device = None if source.rule is None else source.rule.device(source.levels)
        if device is not None:
            return device
        tagged = tagged_head(path)
        return f"{topic}#{tagged}" if tagged else topic

    def source(self, topic: str) -> Source:
        """What is known of a topic."""
        return self._sources.get(topic)

    def decode(
        self, topic: str, payload: bytes, arrival: float, out: Columns, trace: Trace | None = None
    ) -> Rejection | None:
        """Append the readings of one message, or append nothing and say why.

        `arrival` is in epoch seconds and is the time of readings without one.
        """
        source = self._sources.young.get(topic) or self._sources.get(topic)
        if len(payload) > self._max_payload_bytes:
            return Rejection.TOO_LARGE
        if not source.is_valid:
            return Rejection.BAD_TOPIC
        if payload[:1] == b"{":
            if source.is_flat and trace is None:
                return self._decode_flat(source, payload, arrival, out)
            return self._decode_json(source, payload, arrival, out, trace)
        return self._decode_text(source, payload, arrival, out, trace)

    def decode_all(self, messages: Sequence[Message], out: Columns) -> list[int | Rejection]:
        """As `decode`, one after the other, but faster: the length of `out` after each, or why it is rejected."""
        ends: list[int | Rejection] = []
        for start in range(0, len(messages), RUN):
            ends += self._decode_run(messages[start : start + RUN], out)
        return ends

    def _decode_run(self, run: Sequence[Message], out: Columns) -> Sequence[int | Rejection]:
        """Flat objects are parsed together, and read together if they have one shape."""
        young = self._sources.young
        topics, payloads, _, _, _, arrivals, *_ = zip(*run, strict=True)
        sources = [source for source in map(young.get, topics) if source is not None and source.is_flat]
        documents = None
        if len(sources) == len(run) and max(map(len, payloads)) <= self._max_payload_bytes:
            documents = parse_run(payloads)
        if documents is None:
            return [
                self.decode(topic, payload, arrival, out) or len(out.value)
                for topic, payload, arrival in zip(topics, payloads, arrivals, strict=True)
            ]
        if len(documents[0]) <= self._max_fields:
            ends = read_run(documents, sources, arrivals, self._words, out)
            if ends is not None:
                return ends
        return [
            self._read_flat(source, document, payload, arrival, out) or len(out.value)
            for source, document, payload, arrival in zip(sources, documents, payloads, arrivals, strict=True)
        ]

    def _decode_flat(self, source: Source, payload: bytes, arrival: float, out: Columns) -> Rejection | None:
        """The short way for an object of leaves; what turns out to be more is read again, the long way."""
        try:
            document: object = parse_plain(payload)
        except (ValueError, RecursionError):
            return self._decode_json(source, payload, arrival, out, None)
        if not isinstance(document, dict):  # never: it begins with a brace
            return Rejection.BAD_JSON
        return self._read_flat(source, document, payload, arrival, out)

    def _read_flat(
        self, source: Source, document: dict[str, object], payload: bytes, arrival: float, out: Columns
    ) -> Rejection | None:
        if len(document) > self._max_fields:
            return Rejection.TOO_MANY_FIELDS
        start = len(out.value)
        bad: list[Rejection] = []
        time, _, nested = self._tree.read_leaves(source, source.root, document, out, bad)
        if nested is not None:
            source.is_flat = False
            del out.key[start:], out.value[start:]
            return self._decode_json(source, payload, arrival, out, None)
        count = len(out.value) - start
        if count == 0:
            return bad[0] if bad else Rejection.NO_NUMBER
        out.time += [arrival if time is None else time] * count
        out.flags += [ARRIVAL_TIME if time is None else 0] * count
        for reason in bad:
            out.rejected[reason] = out.rejected.get(reason, 0) + 1
        return None

    def _decode_json(
        self, source: Source, payload: bytes, arrival: float, out: Columns, trace: Trace | None
    ) -> Rejection | None:
        document = parse(payload)
        if isinstance(document, Rejection):
            return document
        reading = Reading(source, arrival, out, trace)
        try:
            if source.rule is None:
                self._read_document(reading, document)
            else:
                self._read_by_rule(reading, source.rule, document)
        except Refused as refused:
            reading.undo()
            return refused.reason
        return self._finish(reading)

    def _read_document(self, reading: Reading, document: object, wanted: str = "auto") -> None:
        """Recognise a format by its shape, or take the one that is wanted."""
        tree, root = self._tree, reading.source.root
        if isinstance(document, dict):
            if wanted in ("auto", "telegraf") and ("fields" in document or "metrics" in document):
                metrics = telegraf.metrics_of(document)
                if metrics is not None:
                    reading.note("telegraf")
                    telegraf.read(tree, reading, metrics)
                    return
            if wanted in ("auto", "lorawan") and ("uplink_message" in document or "deviceInfo" in document):
                uplink = lorawan.uplink_of(document, reading.source.zone)
                if uplink is not None:
                    reading.note("lorawan")
                    lorawan.read(tree, reading, uplink)
                    return
        elif isinstance(document, list) and wanted in ("auto", "senml") and senml.is_pack(document):
            reading.note("senml")
            senml.read(tree, reading, document)
            return
        if wanted in ("auto", "json"):
            reading.note("json")
            tree.read(reading, root, document)

    def _read_by_rule(self, reading: Reading, rule: CompiledRule, document: object) -> None:
        if not rule.time_path and not rule.value_path:
            self._read_document(reading, document, rule.format)
            return
        reading.note("json")
        reading.timed_arrays = isinstance(document, list)
        for element in document if isinstance(document, list) else [document]:
            if isinstance(element, dict):
                reading.fields = 0
                self._read_named(reading, rule, element)

    def _read_named(self, reading: Reading, rule: CompiledRule, element: dict[str, object]) -> None:
        """Read an object whose time or value a rule names."""
        source = reading.source
        when = ARRIVAL
        if rule.time_path:
            reading.fixed_time = True
            found = _look_up(element, rule.time_path)
            if found is not _ABSENT or reading.timed_arrays:
                when = from_value(found, rule.zone), source.root.prefix + ".".join(rule.time_path)
                if when[0] is None:
                    reading.bad.append(Rejection.BAD_TIME)
                    return
        elif (own := find_time(element, rule.zone)) is not None:
            when = own[0], source.root.prefix + own[1]
        if not rule.value_path:
            self._tree.read_object(reading, source.root, element, when)
            return
        value = _look_up(element, rule.value_path)
        if value is _ABSENT:
            return
        node: Node = source.root
        for name in rule.value_path[:-1]:
            node = self._tree.sources.child(source, node, name)
        if isinstance(value, str) and (number := parse_number(value.strip())) is not None:
            value = number if math.isfinite(number) else UNREPRESENTABLE
        self._tree.read_object(reading, node, {rule.value_path[-1]: value}, when, len(rule.value_path))

    def _finish(self, reading: Reading) -> Rejection | None:
        """Settle the account of a message that has been read to its end."""
        out, bad = reading.out, reading.bad
        count = len(out.value) - reading.start
        if count == 0:
            return bad[0] if bad else Rejection.NO_NUMBER
        if reading.timed_arrays and count > self._max_fields and len(set(out.key[reading.start :])) > self._max_fields:
            reading.undo()
            return Rejection.TOO_MANY_FIELDS
        for reason in bad:
            out.rejected[reason] = out.rejected.get(reason, 0) + 1
        return None

    def _decode_text(
        self, source: Source, payload: bytes, arrival: float, out: Columns, trace: Trace | None
    ) -> Rejection | None:
        """Read what does not begin like a JSON object or array: a number, a word, lines."""
        wanted = "auto" if source.rule is None else source.rule.format
        value = parse_number(payload) if wanted in _SCALARS else None
        if value is None:
            try:
                text = payload.decode().strip(_STRIPPED)
            except UnicodeDecodeError:
                return Rejection.BAD_UTF8
            if not text:
                return Rejection.EMPTY
            if text[0] in "{[" and wanted != "influx":
                return self._decode_json(source, text.encode(), arrival, out, trace)
            if wanted in _SCALARS:
                value = self._parse_scalar(text)
            if value is None:
                if wanted in ("auto", "influx") and (wanted == "influx" or "=" in text):
                    return self._decode_lines(source, text, arrival, out, trace)
                return Rejection.NO_NUMBER
        if not math.isfinite(value):
            return Rejection.NOT_FINITE
        if trace is not None:
            trace.format = "number"
            trace.origins.append("arrival")
        out.key.append(source.topic)
        out.value.append(value)
        out.time.append(arrival)
        out.flags.append(ARRIVAL_TIME)
        return None

    def _parse_scalar(self, text: str) -> float | None:
        """A number or a word, perhaps in the quotes that Home Assistant's statestream puts around it."""
        if text[0] == '"' and text[-1] == '"' and len(text) > 2:
            text = text[1:-1]
        value = parse_number(text)
        return self._words.get(text) if value is None else value

    def _decode_lines(
        self, source: Source, text: str, arrival: float, out: Columns, trace: Trace | None
    ) -> Rejection | None:
        reading = Reading(source, arrival, out, trace)
        reading.note("influx")
        try:
            influx.read(self._tree, reading, text)
        except Refused as refused:
            reading.undo()
            return refused.reason
        rejection = self._finish(reading)
        if rejection is Rejection.BAD_LINE and source.rule is None:
            return Rejection.NO_NUMBER  # some other text with an equals sign in it
        return rejection


def _look_up(element: object, path: tuple[str, ...]) -> object:
    """The value at a path of names and array indices, _ABSENT where there is none."""
    for name in path:
        if isinstance(element, dict):
            element = element.get(name, _ABSENT)
        elif isinstance(element, list):
            element = element[int(name)] if name.isdecimal() and len(name) < 7 and int(name) < len(element) else _ABSENT
        else:
            return _ABSENT
    return element
