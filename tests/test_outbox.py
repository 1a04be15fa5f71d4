"""What is published: alarms as events, series as retained state, both JSON that anybody can read."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest

from streamer import outbox
from streamer.alarms import Change
from streamer.readings import Alarm, Channel

ALARM = Alarm(
    id="0123456789abcdef",
    kind="value",
    key="plant/oven#temp.core",
    opened_at=1_767_225_600.25,
    updated_at=1_767_225_660.0,
    value=90.0,
    expected=20.5,
    lower=18.0,
    upper=23.0,
    usual=20.5,
    score=1.7,
    direction="above",
    view="level",
    readings=2,
    channels=(
        Channel("plant/oven#temp.core", 0.8, 1.7, "level", 90.0, 88.0, 85.0, 91.0, 20.5),
        Channel("plant/oven#power", 0.2, 0.6, "error", 3.0, math.inf, 1.0, 2.0, None),
    ),
    members=("plant/oven#temp.core",),
)


def document(message: outbox.Outgoing) -> dict[str, object]:
    return msgspec.json.decode(message.payload, type=dict[str, object])


def test_an_alarm_event_says_everything_about_the_alarm() -> None:
    """Times as epoch seconds and as ISO 8601; where it is and what was expected; an event is not retained."""
    message = outbox.alarm_event("gate", Change("opened", ALARM))
    assert message.topic == "streamer/gate/alarm/plant/oven%23temp.core"
    assert not message.retain
    assert message.expiry_seconds is None
    assert document(message) == {
        "event": "opened",
        "id": "0123456789abcdef",
        "kind": "value",
        "key": "plant/oven#temp.core",
        "topic": "plant/oven",
        "field": "temp.core",
        "opened_at": 1_767_225_600.25,
        "opened": "2026-01-01T00:00:00.250Z",
        "updated_at": 1_767_225_660.0,
        "closed_at": None,
        "closed": None,
        "reason": None,
        "value": 90.0,
        "expected": 20.5,
        "lower": 18.0,
        "upper": 23.0,
        "usual": 20.5,
        "score": 1.7,
        "direction": "above",
        "view": "level",
        "readings": 2,
        "channels": [
            {
                "key": "plant/oven#temp.core",
                "share": 0.8,
                "score": 1.7,
                "view": "level",
                "value": 90.0,
                "expected": 88.0,
                "lower": 85.0,
                "upper": 91.0,
                "usual": 20.5,
            },
            {
                "key": "plant/oven#power",
                "share": 0.2,
                "score": 0.6,
                "view": "error",
                "value": 3.0,
                "expected": None,
                "lower": 1.0,
                "upper": 2.0,
                "usual": None,
            },
        ],
        "detail": {},
    }


def test_a_closed_alarm_says_when() -> None:
    """The same document with the time of its end."""
    closed = replace(ALARM, closed_at=1_767_225_700.0)
    found = document(outbox.alarm_event("gate", Change("closed", closed)))
    assert found["event"] == "closed"
    assert (found["closed_at"], found["closed"]) == (1_767_225_700.0, "2026-01-01T00:01:40.000Z")


def test_a_silent_device_has_its_figures_and_no_value() -> None:
    """The joint key of a device ends in `#*`."""
    alarm = Alarm("1", "silent", "plant/oven#*", 1e9, 1e9, detail={"quiet_seconds": 400.0, "allowed_seconds": 300.0})
    message = outbox.alarm_event("gate", Change("opened", alarm))
    found = document(message)
    assert message.topic == "streamer/gate/alarm/plant/oven%23*"
    assert (found["topic"], found["field"], found["value"]) == ("plant/oven", "*", None)
    assert found["detail"] == {"quiet_seconds": 400.0, "allowed_seconds": 300.0}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_know_is_null(number: float) -> None:
    """Strict parsers must not fail on an alarm."""
    found = document(outbox.alarm_event("gate", Change("opened", replace(ALARM, expected=number, upper=number))))
    assert found["expected"] is None
    assert found["upper"] is None


@pytest.mark.parametrize("opened_at", [1e300, -1e300, 1e12])
def test_an_event_time_outside_the_calendar_has_no_iso_form(opened_at: float) -> None:
    """A device may claim any time; the event goes out all the same."""
    found = document(outbox.alarm_event("gate", Change("opened", replace(ALARM, opened_at=opened_at))))
    assert found["opened"] is None
    assert found["opened_at"] == opened_at


def test_the_state_of_a_series_is_retained() -> None:
    """Whoever subscribes later sees it at once; figures that are absent are null."""
    figures = {"score": math.nan, "value": 1.0}
    message = outbox.series_state("gate", "plant/x", "warming", time=5.0, figures=figures, alarm=None)
    assert message.retain
    assert message.topic == "streamer/gate/series/plant/x"
    wanted = {"key": "plant/x", "state": "warming", "time": 5.0, "score": None, "value": 1.0, "alarm": None}
    assert document(message) == wanted | {"expected": None, "lower": None, "upper": None}
    assert message.expiry_seconds == outbox.STATE_SECONDS
    alarmed = outbox.series_state("gate", "plant/x", "alarm", time=5.0, figures={}, alarm=ALARM)
    assert document(alarmed)["alarm"] == ALARM.id


def test_a_state_is_taken_back_by_an_empty_retained_message() -> None:
    """The broker forgets it (MQTT 5, section 3.3.1.3)."""
    assert outbox.no_series_state("gate", "plant/x") == ("streamer/gate/series/plant/x", b"", True, None)


def test_a_key_without_a_field_is_a_bare_number() -> None:
    """Then the key is the topic."""
    alarm = replace(ALARM, key="plant/x")
    assert (outbox.topic_of(alarm), outbox.field_of(alarm)) == ("plant/x", "")
