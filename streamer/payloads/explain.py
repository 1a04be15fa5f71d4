"""How one message is read, for a person: what `streamer explain` shows."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from streamer.payloads.columns import Columns, Rejection, Trace
from streamer.payloads.decoder import Decoder
from streamer.payloads.names import segment
from streamer.payloads.words import parse_number
from streamer.topics import is_matched

_ADVICE = {
    Rejection.EMPTY: "An empty payload clears a retained message; it holds no reading.",
    Rejection.TOO_LARGE: "Raise input.max_payload_bytes if such messages are meant to be read.",
    Rejection.BAD_TOPIC: "Publish on a topic of at most 1,024 bytes without #, + and control characters.",
    Rejection.BAD_UTF8: "This is a binary format. Publish JSON, a number or line protocol, or exclude the topic.",
    Rejection.BAD_JSON: "Check the payload with a JSON validator; names and texts stand in double quotes.",
    Rejection.BAD_LINE: "A line is `measurement,tag=text field=1.5 1700000000000000000`, spaces as they stand here.",
    Rejection.BAD_TIME: "Wanted: seconds, ms, us or ns since 1970, or ISO 8601 with time of day, 2000 to 2100.",
    Rejection.TOO_DEEP: "Raise input.max_depth, or name the object with the values by a rule's value_field.",
    Rejection.TOO_MANY_FIELDS: "Raise input.max_fields, or choose fields by a rule's value_field.",
    Rejection.NOT_FINITE: "NaN and Infinity are no measurements; leave the field out while there is no value.",
    Rejection.KEY_TOO_LONG: "Shorten the names of the fields; a path may have 512 bytes.",
    Rejection.NO_NUMBER: "If such messages never hold a measurement, exclude the topic by input.exclude.",
}


@dataclass(frozen=True, slots=True)
class ExplainedReading:
    """One reading and where it comes from."""

    key: str
    device: str
    value: float
    time: float
    """epoch seconds"""
    time_origin: str
    """path of the field that holds the time, or `arrival`"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one message is read; `msgspec.json.encode` makes JSON of it."""

    topic: str
    taken: bool
    """the daemon would hear it and take at least one reading from it"""
    subscribed: bool
    """False: no filter of `mqtt.subscribe` matches the topic, so that the broker sends no such message"""
    wanted: bool
    """False: `include`, `exclude` or the daemon's own prefix leave the topic out"""
    rule: str | None
    """pattern of the rule that holds"""
    levels: dict[str, str]
    """levels of the topic that the rule names"""
    format: str | None
    """None where no format was recognised"""
    readings: tuple[ExplainedReading, ...]
    rejected: dict[str, int]
    """numbers in it that are no readings, by reason"""
    left_out: dict[str, str]
    """fields of a JSON object that are no series, by path: why"""
    rejection: str | None
    """why there is no reading at all"""
    advice: str | None
    """what would help, one sentence"""

    def text(self) -> str:
        """The explanation as lines for a terminal."""
        lines = [f"topic     {self.topic}"]
        if not self.subscribed:
            lines.append("heard     no: mqtt.subscribe has no filter that matches")
        if not self.wanted:
            lines.append("wanted    no: input.include, input.exclude or our own output")
        if self.rule is not None:
            named = ", ".join(f"{name}={level}" for name, level in self.levels.items())
            lines.append(f"rule      {self.rule}" + (f"  ({named})" if named else ""))
        if self.rejection is not None:
            lines.append(f"rejected  {self.rejection}")
        elif self.format is not None:
            lines.append(f"format    {self.format}")
        for reading in self.readings:
            lines.append(f"series    {reading.key} = {reading.value!r}")
            lines.append(f"          at {_moment(reading.time)} ({reading.time_origin}), device {reading.device}")
        lines += [f"left out  {count} x {reason}" for reason, count in self.rejected.items()]
        lines += [f"left out  {_printable(path)}: {why}" for path, why in self.left_out.items()]
        if self.advice is not None:
            lines.append(f"advice    {self.advice}")
        return "\n".join(lines)


def explain(
    decoder: Decoder,
    topic: str,
    payload: bytes,
    arrival: float,
    max_future_seconds: float = math.inf,
    filters: Sequence[str] = ("#",),
) -> Explanation:
    """How a decoder reads one message that arrives at `arrival`, in epoch seconds, by one of these subscriptions."""
    columns, trace = Columns(), Trace()
    rejection = decoder.decode(topic, payload, arrival, columns, trace)
    source = decoder.source(topic)
    readings = tuple(
        ExplainedReading(key, decoder.device(key), value, time, origin.removeprefix(source.root.prefix))
        for key, value, time, origin in zip(columns.key, columns.value, columns.time, trace.origins, strict=True)
    )
    wanted, subscribed = decoder.is_wanted(topic), any(is_matched(each, topic) for each in filters)
    seen = {*columns.key, *trace.origins}
    left_out = dict(_left_out(payload, source.root.prefix, seen)) if trace.format == "json" else {}
    return Explanation(
        topic=_printable(topic),
        taken=subscribed and wanted and any(time - arrival <= max_future_seconds for time in columns.time),
        subscribed=subscribed,
        wanted=wanted,
        rule=None if source.rule is None else source.rule.rule.pattern,
        levels=source.levels,
        format=trace.format or None,
        readings=readings,
        rejected={reason.value: count for reason, count in columns.rejected.items()},
        left_out=left_out,
        rejection=None if rejection is None else rejection.value,
        advice=_unheard(topic, () if subscribed else filters)
        or _advice(wanted, rejection, columns, payload)
        or _future(columns, arrival, max_future_seconds),
    )


def _left_out(payload: bytes, prefix: str, seen: Container[str]) -> Iterator[tuple[str, str]]:
    """Fields that have become neither series nor time, and why; of arrays nothing is said."""
    try:
        waiting = [("", msgspec.json.decode(payload))]
    except msgspec.DecodeError:
        return
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting[:0] = [(f"{path}.{segment(name)}".lstrip("."), field) for name, field in value.items()]
        elif isinstance(value, str) and prefix + path not in seen:
            yield path, "a text"
        elif isinstance(value, bool) and prefix + path not in seen:
            yield path, "true or false, see input.booleans"
        elif isinstance(value, int | float) and prefix + path not in seen:
            yield path, "an identifier or a time by its name, or left out by a rule; a rule's include has it read"


def _unheard(topic: str, filters: Sequence[str]) -> str | None:
    if not filters:
        return None
    ours = "a filter that begins with + or # leaves out topics that begin with $; " if topic.startswith("$") else ""
    return (
        f"The daemon would never see it: {ours}mqtt.subscribe is {', '.join(map(_printable, filters))}. Add a filter "
        "that matches, or publish elsewhere."
    )


def _advice(wanted: bool, rejection: Rejection | None, columns: Columns, payload: bytes) -> str | None:
    if not wanted:
        return "Change input.include or input.exclude to have it read; our own output never is."
    if rejection is None:
        return " ".join(_ADVICE[reason] for reason in columns.rejected) or None
    text = payload[:4096].decode(errors="replace").strip()
    if rejection is Rejection.BAD_JSON and "'" in text and '"' not in text:
        return "Single quotes are Python's, not JSON's: publish json.dumps(...) and not str(...)."
    if rejection is Rejection.NO_NUMBER and text[:1] not in ("{", "[") and _begins_with_number(text):
        return "Publish the number alone, without its unit."
    if rejection is Rejection.NO_NUMBER and _has_quoted_number(text):
        return "A number in quotes is a text: take the quotes off, or name the field by a rule's value_field."
    return _ADVICE[rejection]


def _future(columns: Columns, arrival: float, max_future_seconds: float) -> str | None:
    ahead = max(columns.time, default=arrival) - arrival
    if ahead <= max_future_seconds:
        return None
    return (
        f"Its time is {ahead:.0f} seconds ahead, so `streamer run` rejects it (future): check the device's clock, and "
        "input.time_zone if the time has no zone."
    )


def _begins_with_number(text: str) -> bool:
    words = text.replace(",", ".").split()
    return len(words) == 2 and parse_number(words[0]) is not None  # value and unit


def _has_quoted_number(text: str) -> bool:
    return any(parse_number(part) is not None for part in text.split('"')[1::2])


def _moment(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(topic: str) -> str:
    return "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in topic)
