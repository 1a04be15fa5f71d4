"""Many messages at once: what is read is what `decode` reads, one message after the other, whatever the others say."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.payloads import Columns, Decoder, Rejection
from streamer.payloads.decoder import RUN
from streamer.payloads.runs import parse_run
from streamer.readings import Message

Rows = list[tuple[str, float, float, int]]
Read = list[Rows | Rejection]

TOPICS = ("plant/a", "plant/b", "plant/c")
NAMES = ("value", "t", "ts", "TS", "time", "state", "id", "createdAt")
# Pieces that could close, or open, what stands before or behind them when payloads are joined.
PIECES = (
    '{"x":1}',
    '{"x":[1',
    '{"x":"',
    "{",
    "}",
    "},{",
    '"}',
    ',"y":2}',
    '{"y":2}]}',
    "5",
    ",",
    "[1]",
    '{"":"{"}',
    "",
)


def message(topic: str, payload: bytes, arrival: float = 7.0) -> Message:
    return Message(topic, payload, 0, 0, False, arrival)


def one_by_one(decoder: Decoder, messages: Sequence[Message]) -> tuple[Read, dict[Rejection, int]]:
    """By `decode`."""
    out, read = Columns(), Read()
    for each in messages:
        start = len(out)
        read.append(decoder.decode(each.topic, each.payload, each.arrival, out) or rows(out, start, len(out)))
    return read, out.rejected


def together(decoder: Decoder, messages: Sequence[Message]) -> tuple[Read, dict[Rejection, int]]:
    """By `decode_all`."""
    out, read, start = Columns(), Read(), 0
    for end in decoder.decode_all(messages, out):
        if isinstance(end, Rejection):
            read.append(end)
        else:
            read.append(rows(out, start, end))
            start = end
    assert {len(out.key), len(out.time), len(out.flags), len(out.value)} == {start}
    return read, out.rejected


def rows(out: Columns, start: int, end: int) -> Rows:
    """In the order of their keys: of the fields of one object any order will do."""
    columns = (out.key, out.time, out.value, out.flags)
    return sorted(zip(*(column[start:end] for column in columns), strict=True))


numbers = st.one_of(st.floats(-1e9, 1e9), st.integers(-(10**9), 10**9), st.sampled_from([1.7e9, 1.7e12, 10**400]))
leaves = st.one_of(
    numbers, st.sampled_from(["ON", "ok", "2026-01-01T00:00:00Z", "1700000000"]), st.booleans(), st.none()
)
objects = st.dictionaries(st.sampled_from(NAMES), leaves, max_size=4).map(lambda found: json.dumps(found).encode())
hostile = st.lists(st.sampled_from(PIECES), max_size=3).map(lambda found: "".join(found).encode())
shaped = st.builds(lambda value, time: b'{"value": %.3f, "ts": %d}' % (value, time), st.floats(-99, 99), st.just(1.7e9))
payloads = st.one_of(
    shaped, st.one_of(objects, hostile, st.just(b"21.5"), st.just(b'{"a": {"b": 1}}'), st.just(b"{\xff}"))
)
streams = st.lists(st.builds(message, st.sampled_from(TOPICS), payloads, st.floats(0, 1e9)), max_size=12)
uniform = st.sets(st.sampled_from(NAMES), min_size=1, max_size=3).flatmap(
    lambda names: st.lists(
        st.builds(
            lambda topic, found: message(topic, json.dumps(found).encode()),
            st.sampled_from(TOPICS),
            st.fixed_dictionaries(dict.fromkeys(sorted(names), st.one_of(numbers, leaves))),
        ),
        max_size=8,
    )
)


@settings(max_examples=600, deadline=None)
@given(st.one_of(streams, uniform), st.booleans())
def test_a_run_is_read_as_its_messages_are(stream: list[Message], booleans: bool) -> None:
    """The same readings, rejections and counts; for topics that are new, and for those that are known."""
    quick, sure = Decoder(booleans=booleans), Decoder(booleans=booleans)
    for _ in range(2):
        assert together(quick, stream) == one_by_one(sure, stream)


@settings(max_examples=600)
@given(st.lists(hostile, min_size=1, max_size=6))
def test_joined_payloads_keep_to_themselves(found: list[bytes]) -> None:
    """Each object is its own payload's, or there is none."""
    documents = parse_run(found)
    if documents is not None:
        assert documents == [json.loads(each) for each in found]


@pytest.mark.parametrize(
    "found",
    [
        [b'{"x":[1', b'{"y":2}]}', b'{"a":1},{"b":2}'],
        [b'{"a":1},{"b":2', b'"c":3}'],
        [b'{"x":"}', b'{"}'],
        [b'{"a":1},5', b'{"b":2}'],
        [b'{"a":1}', b""],
        [b'{"a":1}', b'{"a":"}"}'],
        [b'{"a":1}', b' {"a":1}'],
    ],
)
def test_what_could_be_two_is_left_alone(found: list[bytes]) -> None:
    """Pieces that only together are JSON; and what is not beyond doubt, though it may be good."""
    assert parse_run(found) is None


def test_a_long_run_of_one_shape_is_read_by_columns() -> None:
    """Whole, across the pieces in which it is parsed, the order of the messages kept; a message may have two fields."""
    decoder, out = Decoder(), Columns()
    sent = [message(TOPICS[n % 3], b'{"t": %d, "ts": 1700000000, "v": 2.5}' % n) for n in range(3 * RUN + 5)]
    decoder.decode_all(sent[:3], out)  # the first of a topic teaches
    out.clear()
    assert decoder.decode_all(sent, out) == [*range(2, 2 * len(sent) + 1, 2)]
    assert out.value[::2] == [float(n) for n in range(len(sent))]
    assert set(out.value[1::2]) == {2.5}
    assert out.key[:4] == ["plant/a#t", "plant/a#v", "plant/b#t", "plant/b#v"]
    assert (set(out.time), set(out.flags)) == ({1.7e9}, {0})


def test_one_bad_payload_costs_its_run_time_and_nothing_else() -> None:
    """It is rejected, the others are read."""
    sent = [message(TOPICS[n % 3], b'{"v": %d}' % n) for n in range(RUN)]
    sent[7] = message(TOPICS[1], b'{"v": 7}}')
    read, _ = together(Decoder(), sent)
    assert [n for n, each in enumerate(read) if isinstance(each, Rejection)] == [7]


def test_limits_hold_in_a_run() -> None:
    """Of bytes and of fields."""
    decoder = Decoder(max_payload_bytes=20, max_fields=2)
    for payload, reason in (
        (b'{"v": %s}' % (b"1" * 30), Rejection.TOO_LARGE),
        (b'{"a":1,"b":2,"c":3}', Rejection.TOO_MANY_FIELDS),
    ):
        for _ in range(2):
            assert together(decoder, [message("plant/a", b'{"v": 1}'), message("plant/a", payload)])[0][1] is reason
            assert together(decoder, [message("plant/a", payload)])[0] == [reason]
