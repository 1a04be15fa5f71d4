"""Which time a leaf has, what arrays are, what is no measurement."""

from __future__ import annotations

import json

from streamer.payloads import Columns, Decoder, Rejection
from tests.payloads.reading import columns, read, refusal, values

DECODER = Decoder()


def test_the_nearest_time_holds() -> None:
    """An object's own, else its header's, else that of the object around it, else the arrival."""
    assert read(DECODER, "t", '{"a":1,"x":{"b":2,"ts":1700000000},"y":{"c":3}}') == [
        ("t#a", 1.0, None),
        ("t#x.b", 2.0, 1700000000.0),
        ("t#y.c", 3.0, None),
    ]
    assert read(DECODER, "t", '{"ts":1700000000,"x":{"b":2,"time":"2023-11-14T22:13:21Z"},"y":{"z":{"c":3}}}') == [
        ("t#x.b", 2.0, 1700000001.0),
        ("t#y.z.c", 3.0, 1700000000.0),
    ]
    assert read(DECODER, "t", '{"header":{"timestamp":1700000000},"data":{"a":1}}') == [("t#data.a", 1.0, 1700000000.0)]


def test_a_time_that_cannot_be_one_is_a_value() -> None:
    """A response time, an uptime, a temperature called T."""
    assert read(DECODER, "t", '{"time":12.5,"ts":86400,"T":21}') == [
        ("t#time", 12.5, None),
        ("t#ts", 86400.0, None),
        ("t#T", 21.0, None),
    ]


def test_times_are_no_series() -> None:
    """Neither the message's own nor any other with a name for times."""
    assert values(DECODER, "t", '{"a":1,"ts":1700000000,"last_seen":1700000000123,"minute_ts":1700000000}') == {
        "t#a": 1.0
    }
    assert values(DECODER, "t", '{"minute_ts":5,"total":1700000000}') == {"t#minute_ts": 5.0, "t#total": 1700000000.0}


def test_a_clock_that_was_never_set_is_no_time() -> None:
    """1970 means that the device does not know."""
    assert read(DECODER, "t", '{"Time":"1970-01-01T00:00:15","a":1}') == [("t#a", 1.0, None)]


def test_arrays_of_timed_objects_are_messages_in_a_row() -> None:
    """No index in the key, at any depth, with one element or many, with several values, in any unit."""
    assert read(DECODER, "t", '[{"ts":1700000000000,"a":1,"b":2}]') == [
        ("t#a", 1.0, 1700000000.0),
        ("t#b", 2.0, 1700000000.0),
    ]
    assert read(DECODER, "t", '{"dev":[{"ts":1700000000,"values":{"a":1}},{"ts":1700000060,"values":{"a":2}}]}') == [
        ("t#dev.values.a", 1.0, 1700000000.0),
        ("t#dev.values.a", 2.0, 1700000060.0),
    ]


def test_elements_that_say_who_they_are_are_series_of_their_own() -> None:
    """With and without times; what distinguishes the readings of one sensor is not its name."""
    assert read(DECODER, "t", '[{"name":"in","ts":1700000000,"v":1},{"name":"out","ts":1700000000,"v":2}]') == [
        ("t#in.v", 1.0, 1700000000.0),
        ("t#out.v", 2.0, 1700000000.0),
    ]
    assert values(DECODER, "t", '{"s":[{"id":7,"v":1},{"id":9,"v":2}]}') == {"t#s.7.v": 1.0, "t#s.9.v": 2.0}
    assert read(DECODER, "t", '[{"id":1,"ts":1700000000,"v":1},{"id":2,"ts":1700000060,"v":2}]') == [
        ("t#v", 1.0, 1700000000.0),
        ("t#v", 2.0, 1700000060.0),
    ]


def test_long_logs_are_read_and_gaps_in_them_counted() -> None:
    """The limit of fields counts series; an element without a time is one number that is no reading."""
    decoder = Decoder(max_fields=3)
    log = [{"ts": 1_700_000_000 + i, "a": i, "b": i} for i in range(100)]
    assert len(read(decoder, "t", json.dumps(log))) == 200
    out = columns(decoder, "t", json.dumps([*log, {"ts": "noon", "a": 1}]))
    assert isinstance(out, Columns)
    assert out.rejected == {Rejection.BAD_TIME: 1}
    named = [{"ts": 1_700_000_000, "name": str(i), "a": i} for i in range(4)]
    assert refusal(decoder, "t", json.dumps(named)) is Rejection.TOO_MANY_FIELDS
    assert refusal(decoder, "t", json.dumps([{"ts": 1_700_000_000, "a": 1, "c": {"d": 3, "e": 4, "f": 5}}])) is (
        Rejection.TOO_MANY_FIELDS
    )


def test_other_arrays_go_by_index() -> None:
    """Numbers, arrays and objects without names; at the top and below."""
    assert values(DECODER, "t", '[1,[2,3],{"a":4}]') == {"t#0": 1.0, "t#1.0": 2.0, "t#1.1": 3.0, "t#2.a": 4.0}
    assert values(DECODER, "t", '{"x":[{"a":1},{"a":2}]}') == {"t#x.0.a": 1.0, "t#x.1.a": 2.0}


def test_repeated_names_and_large_integers() -> None:
    """The last of two equal names holds; an integer beyond 2^53 is rounded, beyond float64 it is no reading."""
    assert values(DECODER, "t", '{"a":1,"a":2}') == {"t#a": 2.0}
    assert values(DECODER, "t", '{"a":18446744073709551617}') == {"t#a": 2.0**64}
    assert refusal(DECODER, "t", '{"a":' + "9" * 309 + "}") is Rejection.NOT_FINITE
