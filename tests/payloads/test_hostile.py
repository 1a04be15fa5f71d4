"""Whatever the bytes: readings with finite values and valid keys, or a reason; and never an exception."""

from __future__ import annotations

import json
import math
import unicodedata

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.payloads import Columns, Decoder, Rejection, Rule, explain
from tests.payloads.reading import ARRIVAL, columns
from tests.payloads.test_decoder import WILD

RULES = (
    Rule("number/#", format="number"),
    Rule("json/#", format="json", include=("a*", "**.b"), exclude=("a.c",)),
    Rule("influx/#", format="influx"),
    Rule("senml/#", format="senml"),
    Rule("telegraf/#", format="telegraf"),
    Rule("lorawan/#", format="lorawan"),
    Rule("named/#", value_field="a.b", time_field="t"),
    Rule("value/#", value_field="0.v"),
    Rule("time/#", time_field="params.ts"),
)
TOPICS = ("plain", *(rule.pattern.replace("#", "x") for rule in RULES))
PAYLOADS = [payload.encode() for _, payload, _ in WILD]
# One decoder for all: what one message taught it must not mislead it in the next.
DECODER = Decoder(rules=RULES, max_fields=20, max_depth=5, max_payload_bytes=5_000, cache_bytes=1 << 17)

NAMES = st.one_of(
    st.sampled_from(
        ["a", "b", "a.b", "time", "ts", "t", "id", "name", "n", "v", "bn", "bt", "fields", "tags", "value"]
    ),
    st.text(max_size=6),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["ON", "closed", "2017-02-16T10:13:52", "1700000000", 1700000000, 1.7e12, 10**400, -(10**30), 1e308]
    ),
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=25
)


def check(topic: str, payload: bytes) -> None:
    """Everything that holds for every message."""
    out = columns(DECODER, topic, payload)
    explanation = explain(DECODER, topic, payload, ARRIVAL)
    assert msgspec.json.decode(msgspec.json.encode(explanation))["topic"] == topic
    assert len(explanation.text().splitlines()) >= 2
    if isinstance(out, Rejection):
        assert explanation.rejection == out.value
        assert explanation.advice
        assert explanation.readings == ()
        return
    told = [(reading.key, reading.value, reading.time) for reading in explanation.readings]
    assert told == list(zip(out.key, out.value, out.time, strict=True))
    assert explanation.rejected == {reason.value: count for reason, count in out.rejected.items()}
    assert explanation.rejection is None
    for key, time, value, flags in zip(out.key, out.time, out.value, out.flags, strict=True):
        assert isinstance(value, float)
        assert math.isfinite(value)
        assert isinstance(time, float)
        assert math.isfinite(time)
        assert flags in (0, 1)
        assert key == topic or key.startswith(topic + "#")
        assert len(key.encode()) <= len(topic) + 513
        assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in key)
        assert key.splitlines() == [key]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_every_truncation(payload: bytes) -> None:
    """A message that was cut short anywhere is read as far as it makes sense or is refused."""
    for topic in TOPICS if len(payload) < 100 else TOPICS[:1]:
        for length in range(len(payload) + 1):
            check(topic, payload[:length])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TOPICS), st.binary(max_size=60) | st.text(alphabet='{}[]",:=. \\\n#tn10eEinf-+', max_size=60))
def test_garbage(topic: str, payload: bytes | str) -> None:
    """Random bytes and random punctuation."""
    check(topic, payload if isinstance(payload, bytes) else payload.encode())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutations(data: st.DataObject) -> None:
    """Messages of the wild with a few bytes replaced, doubled or inserted."""
    payload = bytearray(data.draw(st.sampled_from(PAYLOADS)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload) - 1))
        length = data.draw(st.integers(0, 8))
        piece = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"[", b",", b"NaN", b"1e999", b"\\", b"="])
        )
        payload[place : place + length] = piece * data.draw(st.integers(1, 3))
        payload = payload or bytearray(b" ")
    check(data.draw(st.sampled_from(TOPICS)), bytes(payload))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TOPICS), DOCUMENTS)
def test_random_json(topic: str, document: object) -> None:
    """Any JSON value, with Python's NaN, Infinity and integers of any size, escaped and not."""
    check(topic, json.dumps(document).encode())
    check(topic, json.dumps(document, ensure_ascii=False).encode(errors="replace"))


# --- The same, read by the standard library ---

ORDINARY = st.text(st.sampled_from("abcxyz.\\: #é\n\x7f,=ß"), min_size=1, max_size=4).filter(
    lambda name: name not in ("a", "b")
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False), st.sampled_from(["ON", "x"])
)
TREES = st.recursive(
    st.dictionaries(ORDINARY, LEAVES, max_size=4),
    lambda inner: st.dictionaries(ORDINARY, inner | LEAVES | st.lists(inner | LEAVES, max_size=4), max_size=4),
    max_leaves=12,
)


def leaves(value: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    """Every number below a value, as the standard library reads it."""
    if isinstance(value, dict):
        return [leaf for name, below in value.items() for leaf in leaves(below, (*path, name))]
    if isinstance(value, list):
        return [leaf for index, below in enumerate(value) for leaf in leaves(below, (*path, str(index)))]
    if isinstance(value, bool | int | float):
        return [(path, float(value))]
    return [(path, 1.0)] if value == "ON" else []


def written(path: tuple[str, ...]) -> str:
    """A path as the documentation says: escaped names, joined by dots."""
    escapes = {".": "\\.", "\\": "\\\\", "\n": "\\u000a", "\x7f": "\\u007f"}
    return ".".join("".join(escapes.get(character, character) for character in name) for name in path)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_numeric_leaves_are_those_of_the_standard_library(tree: dict[str, object]) -> None:
    """Keys and values agree with `json.loads`, and no two leaves share a key."""
    payload = json.dumps(tree).encode()
    expected = leaves(json.loads(payload))
    finite = {written(path): value for path, value in expected if math.isfinite(value)}
    assert len(finite) == sum(math.isfinite(value) for _, value in expected)
    out = columns(Decoder(), "t", payload)
    if isinstance(out, Rejection):
        assert out is (Rejection.NOT_FINITE if expected else Rejection.NO_NUMBER)
        assert not finite
        return
    assert dict(zip(out.key, out.value, strict=True)) == {f"t#{path}": value for path, value in finite.items()}
    assert len(out) == len(finite)
    assert sum(out.rejected.values()) == len(expected) - len(finite)


@settings(max_examples=100, deadline=None)
@given(st.floats())
def test_bare_numbers_are_those_of_the_standard_library(number: float) -> None:
    """A number alone is the float that Python printed."""
    out = columns(Decoder(), "t", repr(number))
    if math.isfinite(number):
        assert isinstance(out, Columns)
        assert out.value == [number]
    else:
        assert out is Rejection.NOT_FINITE


@settings(max_examples=100, deadline=None)
@given(st.lists(DOCUMENTS, max_size=6))
def test_what_a_decoder_has_seen_changes_nothing(documents: list[object]) -> None:
    """A decoder that has read other messages of a topic reads the next one as a new decoder does."""
    seasoned = Decoder(max_fields=20, max_depth=5)
    for document in documents:
        payload = json.dumps(document).encode()
        fresh, used = columns(Decoder(max_fields=20, max_depth=5), "t", payload), columns(seasoned, "t", payload)
        if isinstance(fresh, Columns) and isinstance(used, Columns):
            assert (used.key, used.time, used.value, used.flags) == (fresh.key, fresh.time, fresh.value, fresh.flags)
            assert used.rejected == fresh.rejected
        else:
            assert used is fresh


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS)
def test_one_message_gives_a_series_one_reading_at_a_time(document: object) -> None:
    """Only an array of timed values may hold a series twice, whatever it says about their times."""
    out = columns(Decoder(), "t", json.dumps(document).encode())
    if isinstance(out, Columns) and len(set(out.key)) < len(out):
        assert all(flags == 0 for key, flags in zip(out.key, out.flags, strict=True) if out.key.count(key) > 1)
