"""What the daemon publishes as JSON, field by field, and the JSON Schema of it.

msgspec writes these documents and makes the schema out of the same lines, so that the two cannot differ; `streamer
schema` prints it, docs/alarms.md explains it. Fields may be added: whoever reads leaves alone what he does not know.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from streamer import requests


def _one_of(*words: str) -> Meta:
    return Meta(extra_json_schema={"enum": list(words)})


Number = float | None
"""null where it is not known, or not finite"""
KINDS = _one_of("value", "silent")
STATES = _one_of("normal", "warming", "gap", "paused", "alarm", "silent")
Direction = Annotated[str, _one_of("above", "below")] | None
View = Annotated[str, _one_of("error", "level", "drift", "pattern")]
Reason = Annotated[str, _one_of("evicted", "lost", "paused", "marked normal")] | None
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})] | None
AlarmId = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]

Key = Annotated[str, Meta(description="The series: topic, # and field path; the topic alone for a bare number.")]
Value = Annotated[Number, Meta(description="The reading, in the series' own unit.")]
Expected = Annotated[Number, Meta(description="The median of the forecast for that reading, in the same unit.")]
Lower = Annotated[Number, Meta(description="Lower end of the forecast's 99 % band.")]
Upper = Annotated[Number, Meta(description="Upper end of the forecast's 99 % band.")]
Score = Annotated[Number, Meta(description="How rare the reading is: 1 is the rarity that the alarm budget allows.")]
Usual = Annotated[
    Number,
    Meta(description="What this time of day usually holds, where the view judges by it: expected may be the fault."),
]


class Contribution(msgspec.Struct, frozen=True):
    """What one series contributes to an alarm: its worst reading, and what would have been normal then."""

    key: Key
    share: Annotated[float, Meta(ge=0, description="Of the rarity of all channels that are named; they add up to 1.")]
    score: Score
    view: Annotated[View, Meta(description="Which view of the detector gave the score.")]
    value: Value
    expected: Expected
    lower: Lower
    upper: Upper
    usual: Usual


class AlarmEvent(msgspec.Struct, frozen=True):
    """Something that has become of an alarm: one event of its life, with the whole of it."""

    event: Annotated[
        str,
        _one_of("opened", "updated", "closed"),
        Meta(description="What has happened. updated: joined by another series, or a quarter worse than last told."),
    ]
    id: Annotated[AlarmId, Meta(description="The same from opening to closing, of one alarm only.")]
    kind: Annotated[str, KINDS, Meta(description="value: odd readings; silent: none, although they are due.")]
    key: Annotated[
        str, Meta(description="The series that opened it; of a whole device that is silent the device's name and #*.")
    ]
    topic: Annotated[str, Meta(description="The part of the key before #: where the series comes from.")]
    field: Annotated[
        str, Meta(description="The part of the key after #: empty for a bare number, * for a whole device.")
    ]
    opened: Annotated[Moment, Meta(description="opened_at as ISO 8601; null outside the years 1 to 9999.")]
    opened_at: Annotated[
        float, Meta(description="Epoch seconds by the readings' own time; for silent by the daemon's clock.")
    ]
    updated_at: Annotated[float, Meta(description="Epoch seconds of what was last heard of it.")]
    closed: Annotated[Moment, Meta(description="closed_at as ISO 8601.")]
    closed_at: Annotated[Number, Meta(description="Epoch seconds; null while it is open.")]
    reason: Annotated[Reason, Meta(description="Why it was closed, where the series has not come back by itself.")]
    value: Annotated[
        Number, Meta(description="The worst reading so far of the series key, in its own unit; null for silent.")
    ]
    expected: Expected
    lower: Lower
    upper: Upper
    usual: Usual
    score: Annotated[
        Number, Meta(description="Of that reading, the highest of the series: 1 is what the alarm budget allows.")
    ]
    direction: Annotated[Direction, Meta(description="Of that reading: above or below what is usual or expected.")]
    view: Annotated[View | None, Meta(description="Which view of the detector gave the score.")]
    readings: Annotated[int, Meta(ge=0, description="How many since it opened, of all series in it.")]
    channels: Annotated[
        tuple[Contribution, ...],
        Meta(max_length=8, description="The series of the device that contribute, the largest share first."),
    ]
    detail: Annotated[
        dict[str, float],
        Meta(description="For silent: quiet_seconds and allowed_seconds when it opened; else empty."),
    ]


class SeriesState(msgspec.Struct, frozen=True):
    """How a series stands."""

    key: Key
    state: Annotated[
        str, STATES, Meta(description="warming: no verdict yet; gap: none after a gap; paused: in maintenance.")
    ]
    time: Annotated[float, Meta(description="Epoch seconds of what it says.")]
    score: Score = None
    value: Value = None
    expected: Expected = None
    lower: Lower = None
    upper: Upper = None
    alarm: Annotated[AlarmId | None, Meta(description="Id of the open alarm that the series is in.")] = None


class AlarmBrief(msgspec.Struct, frozen=True):
    """The alarm of a device, in a few words: attributes of the binary sensor."""

    id: AlarmId
    kind: Annotated[str, KINDS]
    key: Key
    opened: Moment
    value: Value
    expected: Expected
    score: Score


class FieldState(msgspec.Struct, frozen=True):
    """The last reading of a series of a device, and its verdict."""

    key: Key
    score: Score = None
    value: Value = None
    expected: Expected = None
    lower: Lower = None
    upper: Upper = None


class DeviceState(msgspec.Struct, frozen=True):
    """How a device stands, for Home Assistant."""

    device: Annotated[str, Meta(description="What the device is called: its topic, or what a rule makes of it.")]
    problem: Annotated[bool, Meta(description="An alarm of one of its series is open.")]
    score: Annotated[Number, Meta(description="The highest of its series that are listed here.")]
    alarm: Annotated[
        AlarmBrief | None, Meta(description="The open alarm with the highest score; of several silent ones the first.")
    ]
    series: Annotated[
        dict[str, FieldState], Meta(description="By an id that is made from the key; at most 16 of the device's.")
    ]


DOCUMENTS: dict[str, object] = {
    "alarm": AlarmEvent,
    "series": SeriesState,
    "device": DeviceState,
    "command": requests.Command,
    "result": requests.Result,
}
"""By the name that `streamer schema` has for it."""


def schema(name: str) -> dict[str, object]:
    """The JSON Schema, draft 2020-12, of one of DOCUMENTS."""
    (found,), parts = msgspec.json.schema_components([DOCUMENTS[name]], ref_template="#/$defs/{name}")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:streamer:schema:{name}"}
    return {**head, **found, "$defs": parts}
