"""Influx line protocol: `weather,location=us-midwest temperature=82,humidity=71i 1465839830100400200`.

Source: InfluxData, "Line protocol" reference. Measurement and tags become one part of the series key, so that each
tagged source is a series of its own: `topic#weather,location=us-midwest.temperature`. Lines are read one by one: a
broken one costs only itself. The time may be in any unit, see `times`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import NamedTuple

from streamer.payloads.columns import Rejection
from streamer.payloads.jsontext import UNREPRESENTABLE
from streamer.payloads.names import head
from streamer.payloads.times import from_number
from streamer.payloads.tree import Reading, Tree

# Possessive throughout: no line, however hostile, is scanned twice.
_HEAD = re.compile(r"((?:[^\\ ,\n]|\\.)++)((?:,(?:[^\\ ,=\n]|\\.)++=(?:[^\\ ,=\n]|\\.)++)*+) ++")
_TAG = re.compile(r",((?:[^\\ ,=\n]|\\.)++)=((?:[^\\ ,=\n]|\\.)++)")
_FIELD = re.compile(r'((?:[^\\ ,=\n]|\\.)++)=(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]++))', re.DOTALL)
_END = re.compile(r"(?: ++(-?[0-9]{1,20}+))?+[ \r]*+(?:\n|\Z)")
_NUMBER = re.compile(r"([-+]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][-+]?[0-9]++)?+)[iu]?")
_ODD_NUMBER = re.compile(r"[-+]?(?:nan|inf(?:inity)?)", re.IGNORECASE)
_ESCAPE = re.compile(r"\\([,= \\])")
_TEXT_ESCAPE = re.compile(r'\\(["\\])')
_BOOLEANS = dict.fromkeys(("t", "T", "true", "True", "TRUE"), True) | dict.fromkeys(
    ("f", "F", "false", "False", "FALSE"), False
)


class Line(NamedTuple):
    """One point as it is written."""

    written: str
    """measurement and tags as they stand in the line"""
    head: str
    """the same as part of a path; empty where `known` has it already"""
    fields: dict[str, object]
    time: int | None


def parse(text: str, known: Container[str] = ()) -> Iterator[Line | None]:
    """The lines of a payload in order; None for one that is not line protocol. Comments and empty lines are none."""
    position = 0
    while position < len(text):
        if text[position] in " \r\n":
            position += 1
        elif text[position] == "#":
            position = _next_line(text, position)
        else:
            line, position = _parse_line(text, position, known)
            yield line


def read(tree: Tree, reading: Reading, text: str) -> None:
    """Append the readings of all lines. Raises Refused."""
    sources, source = tree.sources, reading.source
    reading.fixed_time = True
    for line in parse(text, source.heads):
        if line is None:
            reading.bad.append(Rejection.BAD_LINE)
            continue
        reading.fields = 0  # the limit is for one line
        time = None if line.time is None else from_number(line.time)
        node = source.heads.get(line.written) or sources.tagged(source, line.written, line.head)
        tree.read_object(reading, node, line.fields, (time, "the line's timestamp"))
    reading.keep_last()


def _next_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end + 1


def _parse_line(text: str, start: int, known: Container[str]) -> tuple[Line | None, int]:
    match = _HEAD.match(text, start)
    if match is None:
        return None, _next_line(text, start)
    written = match.group()
    path = "" if written in known else _head(match.group(1), match.group(2))
    fields: dict[str, object] = {}
    position = match.end()
    while True:
        match = _FIELD.match(text, position)
        if match is None:
            return None, _next_line(text, position)
        name, quoted, literal = match.groups()
        value = _TEXT_ESCAPE.sub(r"\1", quoted) if quoted is not None else _parse_value(literal)
        if value is None:
            return None, _next_line(text, position)
        fields[_unescape(name)] = value
        position = match.end()
        if not text.startswith(",", position):
            break
        position += 1
    match = _END.match(text, position)
    if match is None:
        return None, _next_line(text, position)
    time = None if match.group(1) is None else int(match.group(1))
    return Line(written, path, fields, time), match.end()


def _head(measurement: str, tags: str) -> str:
    pairs = {_unescape(name): _unescape(value) for name, value in _TAG.findall(tags)}
    return head(_unescape(measurement), pairs)


def _parse_value(literal: str) -> object:
    number = _NUMBER.fullmatch(literal)
    if number is not None:
        value = float(number.group(1))
        return UNREPRESENTABLE if value in (float("inf"), float("-inf")) else value
    if _ODD_NUMBER.fullmatch(literal) is not None:
        return UNREPRESENTABLE
    return _BOOLEANS.get(literal)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text
