"""How the log is written: a constant message, its values as fields, one line each to standard error.

    2026-03-01T10:00:00.123Z INFO    streamer.mqtt connected host=127.0.0.1 port=1883 protocol=5

Topics and payloads come from strangers: whatever they hold, a record is one line, and no control character, line
break or direction mark reaches a terminal. The same records can be JSON objects, one a line.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO

LONGEST_VALUE = 512  # characters of a field that are shown; a topic may have 65,535
_PLAIN = re.compile(r"[^\s\"=\\]+")

FieldValue = str | int | float | bool | None


def event(log: logging.Logger, level: int, message: str, /, **fields: FieldValue) -> None:
    """Log a constant message with its values as fields."""
    log.log(level, message, extra={"fields": fields})


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send every record of the process to one stream, standard error by default; `style` is text or json."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)


def set_level(level: str) -> None:
    """Change what is written from now on; `level` is debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())


class TextFormatter(logging.Formatter):
    """A line for people: time, level, logger, message, key=value; a traceback is indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), f"{record.levelname:<7}", record.name, _escape(record.getMessage())]
        words += [f"{name}={_quote(value)}" for name, value in _fields(record).items()]
        lines = [" ".join(words)]
        lines += ["    " + _escape(line) for line in _traceback(record).splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, message, the fields, and exception where there was one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, FieldValue] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        traceback = _traceback(record)
        if traceback:
            line["exception"] = traceback
        for name, value in _fields(record).items():
            line[name + "_" if name in line else name] = _finite(_cut(value) if isinstance(value, str) else value)
        # ASCII only: a lone surrogate or a direction mark of a topic arrives as an escape.
        return json.dumps(line, default=str)


class SparingLog:
    """Logs an event at most once per interval and `per`, and says how many it has left out. Any thread may call."""

    def __init__(
        self, log: logging.Logger, interval_seconds: float, monotonic: Callable[[], float], max_keys: int = 1000
    ) -> None:
        self._log = log
        self._interval_seconds = interval_seconds
        self._monotonic = monotonic
        self._max_keys = max_keys
        self._lock = threading.Lock()
        self._last: OrderedDict[str, tuple[float, int]] = OrderedDict()  # key -> when it was logged, left out since

    def event(self, level: int, message: str, /, per: str = "", **fields: FieldValue) -> bool:
        """True if it was logged. Events of one message that differ in `per` do not hold each other back."""
        key = f"{message}\0{per}"
        now = self._monotonic()
        with self._lock:
            when, left_out = self._last.pop(key, (-math.inf, 0))
            due = now - when >= self._interval_seconds
            self._last[key] = (now, 0) if due else (when, left_out + 1)
            while len(self._last) > self._max_keys:
                self._last.popitem(last=False)
        if due:
            event(self._log, level, message, **fields, **({"left_out": left_out} if left_out else {}))
        return due


def _fields(record: logging.LogRecord) -> Mapping[str, FieldValue]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        return logging.Formatter().formatException(record.exc_info)
    return ""


def _quote(value: FieldValue) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.12g}"  # an epoch keeps its hundredths
    text = _cut(str(value))
    if _PLAIN.fullmatch(text) and text.isprintable():
        return text
    return '"' + _escape(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _escape(text: str) -> str:
    """The text with every character that does not print as an escape: one line, whatever it held."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def _finite(value: FieldValue) -> FieldValue:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
