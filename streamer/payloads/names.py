"""Field names -> parts of a series key, and what a name says about its field.

A path is the names from the top of the payload down, joined by dots: `ENERGY.Power`, `readings.0.value`. Within a name
a dot, a backslash, a control character and half a surrogate pair are escaped, so that two fields of one message never
share a path, and every path is one line of valid UTF-8.
"""

from __future__ import annotations

import re

MAX_PATH_BYTES = 512
_MAX_TOPIC_BYTES = 1024

_ESCAPED = re.compile("[\\\\.\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPED_IN_HEAD = re.compile("[\\\\.,=\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TAGGED_HEAD = re.compile(r"((?:[^\\.,=]|\\.)++(?:,(?:[^\\.,=]|\\.)++=(?:[^\\.,=]|\\.)*+)++)\.")
_FORBIDDEN_IN_TOPIC = re.compile("[#+\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Numbers that name a thing and measure nothing.
# fmt: off
_IDENTIFIERS = frozenset((
    "id", "_id", "uid", "uuid", "guid", "mac", "imei", "imsi", "iccid", "eui", "address", "addr",
    "serial", "serial_number", "serialnumber",
))
# fmt: on
_IDENTIFIER_ENDING = re.compile(r"(?:_id|[a-z0-9]Id)\Z")
# Times that are not the message's own: a plausible epoch in such a field is no measurement.
_STAMP_ENDING = re.compile(
    r"(?:(?:\A|_)(?:ts|time|timestamp|at|since|until|seen|updated|changed|date|epoch)"
    r"|[a-z0-9](?:Ts|Time|Timestamp|At|Since|Until|Seen|Updated|Changed|Date))\Z"
)
# What an element of an array may call itself, the most telling first.
# fmt: off
_NAMING = (
    "name", "key", "tag", "label", "sensor", "channel", "metric", "variable", "parameter", "measurement", "point",
    "signal", "device", "node", "mac", "eui", "address", "addr", "serial",
)
# fmt: on
_NAMING_UNTIMED = (*_NAMING, "id", "_id", "uid", "uuid")


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return "\\" + character if character in "\\.,=" else f"\\u{ord(character):04x}"


def segment(name: str) -> str:
    """One name as a part of a path."""
    return _ESCAPED.sub(_escape, name)


def head(measurement: str, tags: dict[str, str]) -> str:
    """Measurement and tags as one part of a path: `weather,location=us-midwest`, tags in alphabetical order."""
    escape = _ESCAPED_IN_HEAD
    named = (f",{escape.sub(_escape, name)}={escape.sub(_escape, value)}" for name, value in sorted(tags.items()))
    return escape.sub(_escape, measurement) + "".join(named)


def tagged_head(path: str) -> str | None:
    """The part of a path that `head` made of a measurement with tags, None where it begins otherwise."""
    match = _TAGGED_HEAD.match(path)
    return None if match is None else match.group(1)


def split_path(path: str) -> tuple[str, ...]:
    """The names in a path, as an operator writes it in a rule: a backslash takes the next character as it is."""
    names = [""]
    characters = iter(path)
    for character in characters:
        if character == ".":
            names.append("")
        else:
            names[-1] += next(characters, "\\") if character == "\\" else character
    return tuple(names)


def is_topic(topic: str) -> bool:
    """Whether a topic can be part of a series key."""
    if not topic or _FORBIDDEN_IN_TOPIC.search(topic) is not None:
        return False
    return len(topic.encode()) <= _MAX_TOPIC_BYTES


def is_identifier(name: str) -> bool:
    """Whether a number of this name tells things apart and measures nothing."""
    return name.lower() in _IDENTIFIERS or _IDENTIFIER_ENDING.search(name) is not None


def is_stamp(name: str) -> bool:
    """Whether a plausible epoch of this name is a time and not a measurement."""
    return _STAMP_ENDING.search(name) is not None


def element_names(items: list[dict[str, object]], *, timed: bool) -> list[str] | None:
    """What the elements of an array call themselves, None where they have no names.

    Elements that are readings at several times may share a name, others may not. A running number is not a name for
    a reading: with it every reading would be a series of its own.
    """
    for field in _NAMING if timed else _NAMING_UNTIMED:
        if field not in items[0]:
            continue
        found = [_name(item.get(field), field) for item in items]
        names = [name for name in found if name is not None]
        if len(names) == len(items) and (timed or len(set(names)) == len(names)):
            return names
    return None


def _name(value: object, field: str) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and is_identifier(field) and abs(value) < 1 << 64:
        return str(value)
    return None
