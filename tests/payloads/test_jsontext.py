"""JSON with the numbers that JSON has no word for."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.payloads.columns import Rejection
from streamer.payloads.jsontext import UNREPRESENTABLE, parse

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
def test_values_are_those_of_the_standard_library(value: object) -> None:
    """Also in a message that needs mending."""
    text = json.dumps(value)
    assert parse(text.encode()) == json.loads(text)
    assert parse(f"[NaN,{text}]".encode()) == [UNREPRESENTABLE, json.loads(text)]


@pytest.mark.parametrize(
    "number", ["NaN", "nan", "-nan", "Infinity", "-Infinity", "inf", "+INF", "1e999", "-1e400", "9" * 309, "9" * 9000]
)
def test_numbers_without_a_value(number: str) -> None:
    """They come back as one that no float can hold, and texts keep their words."""
    value = parse(f'{{"nan":{number},"b":"NaN, \\"inf\\"","c":[{number},1.5]}}'.encode())
    assert isinstance(value, dict)
    assert value["b"] == 'NaN, "inf"'
    assert value["c"][1] == 1.5
    for odd in (value["nan"], value["c"][0]):
        with pytest.raises(OverflowError):
            float(odd)


@pytest.mark.parametrize(
    "payload", [b"{", b'{"a":nano}', b"[nan nan]", b'"\\ud800"', b"[1,]", b'"a', b'["nan]', b'"\\']
)
def test_what_is_not_json(payload: bytes) -> None:
    """Mending makes no JSON of what is none."""
    assert parse(payload) is Rejection.BAD_JSON


@pytest.mark.parametrize("piece", [b'"', b'\\"', b'"\\', b"nan", b"-", b"9", b'"nan"\\'])
def test_mending_takes_linear_time(piece: bytes) -> None:
    """A payload of the largest size made of what the mending looks for does not hold up the engine."""
    began = time.perf_counter()
    assert isinstance(parse(b"[" + piece * (262_000 // len(piece))), Rejection)
    assert time.perf_counter() - began < 2.0
