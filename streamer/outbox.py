"""What the daemon says over MQTT: alarms as events, series as retained state, both JSON. Pure functions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from streamer.alarms import Change
from streamer.readings import Alarm
from streamer.requests import Result
from streamer.topics import output_topic, result_topic


class Outgoing(NamedTuple):
    """One message to publish."""

    topic: str
    payload: bytes
    retain: bool


def alarm_event(instance: str, change: Change) -> Outgoing:
    """`alarm/<key>`: what happened, and the whole alarm; numbers that are not finite are null."""
    alarm = change.alarm
    document: dict[str, object] = {"event": change.what, "topic": topic_of(alarm), "field": field_of(alarm)}
    document |= msgspec.to_builtins(alarm)
    del document["members"]  # `series/...` says it, and there may be hundreds
    document |= {"opened": _iso(alarm.opened_at), "closed": _iso(alarm.closed_at)}
    return Outgoing(output_topic(instance, "alarm", alarm.key), msgspec.json.encode(document), retain=False)


def series_state(
    instance: str, key: str, state: str, *, time: float, figures: dict[str, float], alarm: Alarm | None
) -> Outgoing:
    """`series/<key>`: how a series stands; `figures` holds score, value, expected, lower, upper."""
    document: dict[str, object] = {"key": key, "state": state, "time": time, **figures}
    document["alarm"] = alarm.id if alarm else None
    return Outgoing(output_topic(instance, "series", key), msgspec.json.encode(document), retain=True)


def no_series_state(instance: str, key: str) -> Outgoing:
    """Takes a retained state back: an empty retained message (MQTT 5, section 3.3.1.3)."""
    return Outgoing(output_topic(instance, "series", key), b"", retain=True)


def command_result(instance: str, result: Result) -> Outgoing:
    """`command/result`: what has become of a command."""
    return Outgoing(result_topic(instance), msgspec.json.encode(result), retain=False)


def topic_of(alarm: Alarm) -> str:
    """The MQTT topic that the series comes from."""
    return alarm.key.partition("#")[0]


def field_of(alarm: Alarm) -> str:
    """The field path in the payload; empty for a bare number, `*` for a whole device."""
    return alarm.key.partition("#")[2]


def _iso(time: float | None) -> str | None:
    if time is None:
        return None
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # an event time outside the years 1 to 9999
        return None
