"""What decoding gives: readings as columns, or the reason why there are none."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Rejection(enum.StrEnum):
    """Why a message, or one number in it, is not a reading: the `reason` label of the counters."""

    EMPTY = "empty"
    """no bytes, or only white space"""
    TOO_LARGE = "too_large"
    """more bytes than `input.max_payload_bytes`"""
    BAD_TOPIC = "bad_topic"
    """a topic that MQTT forbids, has control characters or more than 1,024 bytes"""
    BAD_UTF8 = "bad_utf8"
    """text that is not UTF-8: mostly a binary format"""
    BAD_JSON = "bad_json"
    """begins like JSON and is none"""
    BAD_LINE = "bad_line"
    """a line that is not Influx line protocol among lines that are, or where a rule demands it"""
    BAD_TIME = "bad_time"
    """no time where one is needed: in a rule's `time_field`, or in an array of timed values"""
    TOO_DEEP = "too_deep"
    """nested deeper than `input.max_depth`"""
    TOO_MANY_FIELDS = "too_many_fields"
    """more than `input.max_fields` in one object, or that many series in one message"""
    NOT_FINITE = "not_finite"
    """NaN, Infinity or a number that float64 cannot hold"""
    KEY_TOO_LONG = "key_too_long"
    """a field path of more than 512 bytes"""
    NO_NUMBER = "no_number"
    """well formed, but nothing in it is a measurement"""


@dataclass(slots=True, eq=False)
class Columns:
    """Readings of one turn, appended message by message; the four lists are equally long."""

    key: list[str] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    """event time, epoch seconds"""
    value: list[float] = field(default_factory=list)
    """finite"""
    flags: list[int] = field(default_factory=list)
    """bits of `Flag`"""
    rejected: dict[Rejection, int] = field(default_factory=dict)
    """numbers that are no readings, in messages that have others which are"""

    def __len__(self) -> int:
        return len(self.value)

    def clear(self) -> None:
        """Empty every column for the next turn."""
        for column in (self.key, self.time, self.value, self.flags):
            column.clear()
        self.rejected.clear()

    def truncate(self, length: int) -> None:
        """Forget the readings from `length` on; columns may be unequal before, not after."""
        del self.key[length:], self.time[length:], self.value[length:], self.flags[length:]


@dataclass(slots=True, eq=False)
class Trace:
    """What `explain` wants to know and the hot path does not record."""

    format: str = ""
    origins: list[str] = field(default_factory=list)
    """where each reading's time comes from"""
