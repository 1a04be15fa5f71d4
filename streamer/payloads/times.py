"""Numbers and texts -> epoch seconds, by rules that leave no room for doubt.

A number is a time if it falls between 2000 and 2100 as seconds, milliseconds, microseconds or nanoseconds since 1970.
Those four ranges are a factor of nearly 250 apart from each other, so at most one fits. A clock that was never set
says 1970 and is therefore no time. A text is a time if it is such a number or ISO 8601 with date and time of day;
without a zone it is local to the zone handed in, and of an hour that a clock change repeats it is the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo

EARLIEST = 946_684_800.0  # 2000-01-01T00:00:00Z
LATEST = 4_102_444_800.0  # 2100-01-01T00:00:00Z
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}

# Names of fields that hold a message's time, the best first, by their words.
# fmt: off
_TIME_NAMES = (
    "time", "timestamp", "ts", "date time", "@timestamp", "_time", "time stamp", "event time", "measured at",
    "observed at", "sampled at", "recorded at", "created at", "sent at", "sent on", "received at", "unix time",
    "epoch", "utc", "date", "dt", "last seen", "last updated",
)
# fmt: on


def _spellings(name: str) -> set[str]:
    words = name.split()
    pascal = "".join(word.capitalize() for word in words)
    camel = words[0] + pascal[len(words[0]) :]
    snake = "_".join(words)
    joined = "".join(words)
    return {pascal, camel, snake, snake.upper(), joined, joined.upper()}


def _ranks() -> dict[str, int]:
    ranks: dict[str, int] = {}
    for rank, name in enumerate(_TIME_NAMES):
        for spelling in _spellings(name):
            ranks.setdefault(spelling, rank)
    return ranks | {"t": len(_TIME_NAMES)}  # only so: `T` is a temperature


TIME_RANK = _ranks()
"""Name of a time field, as it may be spelt -> its rank; the smallest wins within one object."""


def from_number(number: float) -> float | None:
    """Epoch seconds of a number in the unit that its size betrays, None where it cannot be a time."""
    if EARLIEST <= number < LATEST:
        return float(number)
    for factor in (1e3, 1e6, 1e9):
        if EARLIEST * factor <= number < LATEST * factor:
            return number / factor
    return None


def is_in_seconds(numbers: Sequence[float]) -> bool:
    """Whether `from_number` leaves all of them as they are; there is at least one."""
    return min(numbers) >= EARLIEST and max(numbers) < LATEST


def unit_of(number: float) -> str | None:
    """The unit that `from_number` reads a number in: s, ms, us or ns; None where it cannot be a time."""
    for unit, factor in _UNITS.items():
        if EARLIEST * factor <= number < LATEST * factor:
            return unit
    return None


def from_text(text: str, zone: tzinfo) -> float | None:
    """Epoch seconds of a text, None where it is no time between 2000 and 2100; `zone` holds where the text has none."""
    if not 9 <= len(text) <= 64:
        return None
    if text[4] != "-" and text.replace(".", "", 1).isdecimal() and text.isascii():
        moment = from_number(float(text))
        if moment is not None:
            return moment
    if len(text) < len("20000101T0000"):  # a date alone would be midnight whenever it was measured
        return None
    try:
        parsed = datetime.fromisoformat(text)
        epoch = (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        return None
    return epoch if EARLIEST <= epoch < LATEST else None


def from_value(value: object, zone: tzinfo) -> float | None:
    """Epoch seconds of a decoded JSON value, None where it is no time."""
    if isinstance(value, str):
        return from_text(value, zone)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return from_number(value)
    return None


def find_time(fields: dict[str, object], zone: tzinfo) -> tuple[float, str] | None:
    """The time that an object carries in a field of its own, and that field's name."""
    best: tuple[int, float, str] | None = None
    for name, value in fields.items():
        rank = TIME_RANK.get(name)
        if rank is not None and (best is None or rank < best[0]):
            moment = from_value(value, zone)
            if moment is not None:
                best = (rank, moment, name)
    return None if best is None else best[1:]
