"""What a person reads about one message."""

from __future__ import annotations

import msgspec
import pytest

from streamer.payloads import Decoder, Rule, explain
from tests.payloads.reading import ARRIVAL


def test_text() -> None:
    """Rule, levels, format, series, value, time and its origin, device, and what was left out."""
    decoder = Decoder(rules=(Rule("plant/{line}/{device}", device="{line}/{device}"),))
    found = explain(decoder, "plant/1/press", b'{"ts":1700000060,"x":{"a":1.5},"b":NaN}', ARRIVAL)
    assert found.text().splitlines() == [
        "topic     plant/1/press",
        "rule      plant/{line}/{device}  (line=1, device=press)",
        "format    json",
        "series    plant/1/press#x.a = 1.5",
        "          at 2023-11-14T22:14:20.000Z (ts), device 1/press",
        "left out  1 x not_finite",
        "advice    NaN and Infinity are no measurements; leave the field out while there is no value.",
    ]


def test_json() -> None:
    """msgspec writes it as it stands."""
    found = explain(Decoder(), "t", b"21.5", ARRIVAL)
    assert msgspec.json.decode(msgspec.json.encode(found)) == {
        "topic": "t",
        "taken": True,
        "subscribed": True,
        "wanted": True,
        "rule": None,
        "levels": {},
        "format": "number",
        "readings": [{"key": "t", "device": "t", "value": 21.5, "time": ARRIVAL, "time_origin": "arrival"}],
        "rejected": {},
        "left_out": {},
        "rejection": None,
        "advice": None,
    }


def test_fields_that_are_no_series_are_named() -> None:
    """Each with why; what is a series, the time, nothing or an array is not among them."""
    payload = b'{"t":"21.5 C","id":17,"up":5,"ts":1700000060,"a.b":{"name":"x\\u001b","c":1},"n":null,"l":[1,"x"]}'
    found = explain(Decoder(), "t", payload, ARRIVAL)
    assert found.left_out.keys() == {"t", "id", "a\\.b.name"}
    assert "left out  t: a text" in found.text().splitlines()
    assert "include" in found.left_out["id"]
    assert not explain(Decoder(), "t", b'{"a":1}', ARRIVAL).left_out


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"{'a': 1}", "json.dumps"),
        (b"21.5 C", "without its unit"),
        (b'{"a":"21.5"}', "value_field"),
        (b"\xff\xfe", "binary"),
        (b"hello", "input.exclude"),
        (b"[" * 17 + b"1" + b"]" * 17, "max_depth"),
    ],
)
def test_advice_fits_the_payload(payload: bytes, said: str) -> None:
    """It names what would help."""
    found = explain(Decoder(), "t", payload, ARRIVAL)
    assert said in (found.advice or "")
    assert found.taken == bool(found.readings)


def test_unwanted_topics_say_so() -> None:
    """How it would be read is shown all the same."""
    found = explain(Decoder(exclude=("t",)), "t", b"1", ARRIVAL)
    assert not found.wanted
    assert not found.taken
    assert found.readings
    assert "wanted    no" in found.text()
    assert "exclude" in (found.advice or "")


def test_a_topic_that_is_not_subscribed_to_says_so() -> None:
    """How it would be read is shown all the same, and which filters there are."""
    found = explain(Decoder(), "t", b"1", ARRIVAL, filters=("plant/#", "lab/+"))
    assert not found.subscribed
    assert not found.taken
    assert "t = 1.0" in found.text()
    assert "heard     no" in found.text()
    assert "never see it: mqtt.subscribe is plant/#, lab/+" in (found.advice or "")
    assert "begin with $" in (explain(Decoder(), "$SYS/load", b"1", ARRIVAL).advice or "")
    assert explain(Decoder(), "lab/x", b"1", ARRIVAL, filters=("plant/#", "lab/+")).taken


def test_a_topic_of_any_characters_can_be_shown() -> None:
    """Half a surrogate pair and a line feed break neither the text nor the JSON."""
    found = explain(Decoder(), "a\ud800\nb", b"1", ARRIVAL)
    assert found.rejection == "bad_topic"
    assert msgspec.json.encode(found)
    assert found.text().encode()
    assert len(found.text().splitlines()) == 3


def test_a_time_that_run_would_reject_is_said() -> None:
    """Tasmota's local time, read as UTC by a daemon west of the plug."""
    payload = b'{"Time":"2026-03-01T13:00:00","T":21}'
    arrival = 1_772_366_400.0  # 2026-03-01T12:00:00Z
    found = explain(Decoder(), "t", payload, arrival, 300.0)
    assert "3600 seconds ahead" in (found.advice or "")
    assert not found.taken
    assert explain(Decoder(), "t", payload, arrival, 7200.0).taken
    assert explain(Decoder(), "t", payload, arrival, 7200.0).advice is None
    assert explain(Decoder(time_zone="Europe/Berlin"), "t", payload, arrival, 300.0).advice is None
