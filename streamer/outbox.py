"""What the daemon says over MQTT: alarms as events, series as retained state, both JSON. Pure functions.

What is retained ends by itself where the daemon does not come back: MQTT 5 lets it expire, and what still holds is told
again in half of that time. An alarm event does not expire: it carries its time, and whoever keeps a session at the
broker wants all of them, `closed` never without its `opened`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from streamer.alarms import Change
from streamer.documents import AlarmEvent, Contribution, SeriesState
from streamer.readings import Alarm
from streamer.requests import Result
from streamer.topics import output_topic, result_topic

JSON = "application/json"
STATE_SECONDS = 48 * 3600  # as long as a series may be quiet before it may be forgotten: limits.idle_hours
RESULT_SECONDS = 3600  # nobody waits longer for an answer


class Outgoing(NamedTuple):
    """One message to publish: JSON, or nothing, which takes a retained one back."""

    topic: str
    payload: bytes
    retain: bool
    expiry_seconds: int | None = None
    """None: never"""


def alarm_event(instance: str, change: Change) -> Outgoing:
    """`alarm/<key>`: what happened, and the whole alarm; numbers that are not finite are null."""
    alarm = change.alarm
    document = AlarmEvent(
        event=change.what,
        id=alarm.id,
        kind=alarm.kind,
        key=alarm.key,
        topic=topic_of(alarm),
        field=field_of(alarm),
        opened=iso(alarm.opened_at),
        opened_at=alarm.opened_at,
        updated_at=alarm.updated_at,
        closed=iso(alarm.closed_at),
        closed_at=alarm.closed_at,
        reason=alarm.reason,
        value=alarm.value,
        expected=alarm.expected,
        lower=alarm.lower,
        upper=alarm.upper,
        usual=alarm.usual,
        score=alarm.score,
        direction=alarm.direction,
        view=alarm.view,
        readings=alarm.readings,
        channels=tuple(
            Contribution(**{name: getattr(channel, name) for name in Contribution.__struct_fields__})
            for channel in alarm.channels
        ),
        detail=alarm.detail,
    )  # not its members: `series/...` says it, and there may be hundreds
    return Outgoing(output_topic(instance, "alarm", alarm.key), msgspec.json.encode(document), retain=False)


def series_state(
    instance: str, key: str, state: str, *, time: float, figures: dict[str, float], alarm: Alarm | None
) -> Outgoing:
    """`series/<key>`: how a series stands; `figures` holds score, value, expected, lower, upper."""
    document = SeriesState(key, state, time, **figures, alarm=alarm.id if alarm else None)
    return Outgoing(output_topic(instance, "series", key), msgspec.json.encode(document), True, STATE_SECONDS)


def no_series_state(instance: str, key: str) -> Outgoing:
    """Takes a retained state back: an empty retained message (MQTT 5, section 3.3.1.3)."""
    return Outgoing(output_topic(instance, "series", key), b"", retain=True)


def command_result(instance: str, result: Result) -> Outgoing:
    """`command/result`: what has become of a command."""
    return Outgoing(result_topic(instance), msgspec.json.encode(result), False, RESULT_SECONDS)


def topic_of(alarm: Alarm) -> str:
    """The MQTT topic that the series comes from."""
    return alarm.key.partition("#")[0]


def field_of(alarm: Alarm) -> str:
    """The field path in the payload; empty for a bare number, `*` for a whole device."""
    return alarm.key.partition("#")[2]


def iso(time: float | None) -> str | None:
    """Epoch seconds in ISO 8601; None outside of its years."""
    if time is None:
        return None
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # an event time outside the years 1 to 9999
        return None
