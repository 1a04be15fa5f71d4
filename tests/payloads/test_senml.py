"""SenML, after the examples of RFC 8428, section 5."""

from __future__ import annotations

import json

from streamer.payloads import Columns, Decoder, Rejection
from tests.payloads.reading import ARRIVAL, columns, read, refusal, values

DECODER = Decoder()


def test_one_record() -> None:
    """Section 5.1.1: no time, so now."""
    assert read(DECODER, "s", '[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]') == [
        ("s#urn:dev:ow:10e2073a01080063", 23.1, None)
    ]


def test_base_time_and_relative_times() -> None:
    """Section 5.1.2: times before a base time, and one that is the base time."""
    pack = [{"bn": "urn:dev:ow:1:", "bt": 1.276020076001e9, "bu": "A", "bver": 5, "n": "voltage", "u": "V", "v": 120.1}]
    pack += [{"n": "current", "t": t, "v": v} for t, v in ((-5, 1.2), (-4, 1.3), (0, 1.7))]
    assert read(DECODER, "s", json.dumps(pack)) == [
        ("s#urn:dev:ow:1:voltage", 120.1, 1276020076.001),
        ("s#urn:dev:ow:1:current", 1.2, 1276020071.001),
        ("s#urn:dev:ow:1:current", 1.3, 1276020072.001),
        ("s#urn:dev:ow:1:current", 1.7, 1276020076.001),
    ]


def test_times_relative_to_now() -> None:
    """Section 4.5.3: below 2^28 a time counts from the arrival."""
    assert read(DECODER, "s", '[{"n":"a","t":-60,"v":1},{"n":"a","v":2}]') == [
        ("s#a", 1.0, ARRIVAL - 60),
        ("s#a", 2.0, None),
    ]


def test_base_values_sums_and_other_types() -> None:
    """Sections 4.1 and 4.2: base value and sum are added, a boolean is a number, text and data are not."""
    pack = '[{"bn":"x/","bv":20,"bs":100,"n":"a","v":1.5,"s":7},{"n":"b","vb":true},{"n":"c","vs":"text"}'
    pack += ',{"n":"d","vd":"a"}]'
    assert values(DECODER, "s", pack) == {"s#x/a": 21.5, "s#x/a.s": 107.0, "s#x/b": 1.0}


def test_bad_records_cost_only_themselves() -> None:
    """Wrong types count as absent, a number without a value is counted."""
    out = columns(
        DECODER, "s", '[{"bn":5,"bt":"x","n":"a","v":1},{"n":"b","v":1e999},{"n":"c","v":[1]},{"n":[],"v":2}]'
    )
    assert isinstance(out, Columns)
    assert dict(zip(out.key, out.value, strict=True)) == {"s#a": 1.0, "s#": 2.0}
    assert out.rejected == {Rejection.NOT_FINITE: 1}
    assert refusal(DECODER, "s", '[{"bn":"a"}]') is Rejection.NO_NUMBER


def test_a_record_twice_is_one_reading() -> None:
    """The last one holds."""
    assert read(DECODER, "s", '[{"n":"a","v":1},{"n":"a","v":2}]') == [("s#a", 2.0, None)]


def test_other_arrays_are_not_taken_for_it() -> None:
    """A label that SenML does not have, or no name anywhere."""
    assert values(DECODER, "s", '[{"n":"a","v":1,"x":2}]') == {"s#0.v": 1.0, "s#0.x": 2.0}
    assert read(DECODER, "s", '[{"t":1700000000,"v":1}]') == [("s#v", 1.0, 1700000000.0)]
