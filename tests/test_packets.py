"""PUBLISHes out of a byte stream: whole, split anywhere, cut when too large, and nothing else touched."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.packets import TWO_BYTE_LENGTH, PublishReader, variable_length
from streamer.readings import Message
from tests.fake_broker import PINGRESP, SUBACK, encode_length, publish

ARRIVAL = 1_700_000_000.25


def read(chunks: list[bytes], *, is_v5: bool = False, max_packet_bytes: int = 1_048_576) -> list[Message | bytes]:
    """The messages and, joined, the bytes between them that are the library's."""
    reader = PublishReader(max_packet_bytes, lambda block: block != b"\x01\xff")
    reader.begin(connection=7, is_v5=is_v5)
    found: list[Message | bytes] = []
    for chunk in chunks:
        for part in reader.feed(chunk, ARRIVAL):
            if isinstance(part, list):
                found += part
            elif found and isinstance(found[-1], bytes):
                found[-1] += part
            else:
                found.append(part)
    return found


def test_a_message_has_everything_that_the_packet_says() -> None:
    """Topic, payload, QoS, identifier, flags, the time of the read and the connection."""
    packet = publish("plant/1", b"21.5", qos=1, mid=258, retain=True, dup=True)
    assert read([packet]) == [Message("plant/1", b"21.5", 1, 258, True, ARRIVAL, 7, True)]


def test_properties_are_skipped() -> None:
    """MQTT 5 may send a block between identifier and payload."""
    packets = [publish("a", b"1", properties=block) for block in (b"\x00", b"\x02\x01\x01", b"\x02\x01\x01")]
    assert [message[1] for message in read(packets, is_v5=True)] == [b"1", b"1", b"1"]


@pytest.mark.parametrize(
    "packet",
    [
        PINGRESP,
        SUBACK,
        publish("a", b"1", qos=2, mid=1),
        publish("", b"1"),
        publish(b"\xff", b"1"),
        b"\x30\x00",
        b"\x30\x01\x00",
        b"\x30\x03\x00\x09a",
        b"\x32\x04\x00\x01a\x00",
        b"\x36\x05\x00\x01a\x00\x01",
    ],
)
def test_everything_but_plain_publishes_is_the_librarys(packet: bytes) -> None:
    """What is no plain, well-formed PUBLISH goes on untouched, between the messages around it."""
    around = publish("a", b"1")
    one = Message("a", b"1", 0, 0, False, ARRIVAL, 7)
    assert read([around + packet + around]) == [one, packet, one]


def test_unknown_properties_are_the_librarys_to_judge() -> None:
    """A block that the judge does not take is not skipped but handed on with its packet."""
    packet = publish("a", b"1", properties=b"\x01\xff")
    assert read([packet], is_v5=True) == [packet]


def test_a_stream_that_has_lost_its_frame_goes_to_the_library_from_there_on() -> None:
    """Where the next packet would begin is unknown, so nothing more is read."""
    good = publish("a", b"1")
    broken = b"\x30\xff\xff\xff\xff\x01"
    assert read([good + broken, good, good]) == [Message("a", b"1", 0, 0, False, ARRIVAL, 7), broken + good + good]


STREAM = (
    publish("plant/1", b"21.5")
    + publish("plant/2", b'{"t": 3}' * 40, qos=1, mid=9)
    + PINGRESP
    + publish("plant/3", b"", qos=1, mid=10)
    + publish("plant/4", b"x" * 20, qos=2, mid=11)
    + publish("plant/5", b"z" * 17_000)
    + publish("plant/6", b"22")
)


def test_every_split_into_two_reads_gives_the_same() -> None:
    """Wherever TCP cuts the stream, the same messages come in the same order."""
    whole = read([STREAM])
    assert len(whole) == 7
    for cut in [*range(600), *range(600, len(STREAM) - 100, 501), *range(len(STREAM) - 100, len(STREAM))]:
        assert read([STREAM[:cut], STREAM[cut:]]) == whole, cut


def test_single_bytes_give_the_same() -> None:
    """A throttled network may deliver one byte at a time."""
    assert read([STREAM[at : at + 1] for at in range(len(STREAM))]) == read([STREAM])


@settings(max_examples=300)
@given(st.data())
def test_any_packets_in_any_pieces_give_the_messages_that_were_sent(data: st.DataObject) -> None:
    """What goes in comes out, however it is cut."""
    is_v5 = data.draw(st.booleans())
    packets = data.draw(
        st.lists(
            st.builds(
                publish,
                st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
                st.binary(max_size=300),
                qos=st.integers(0, 1),
                mid=st.integers(0, 65_535),
                retain=st.booleans(),
                dup=st.booleans(),
                properties=st.just(b"\x00" if is_v5 else b""),
            ),
            max_size=8,
        )
    )
    stream = b"".join(packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    found = read(pieces, is_v5=is_v5)
    again = [
        publish(m[0], m[1], qos=m[2], mid=m[3], retain=m[4], dup=m[7], properties=b"\x00" if is_v5 else b"")
        for m in found
        if isinstance(m, Message)
    ]
    assert len(found) == len(packets)
    assert b"".join(again) == stream


@settings(max_examples=1000)
@given(st.data())
def test_known_topics_are_read_quickly_and_alike(data: st.DataObject) -> None:
    """The quick way gives the careful way's messages, of whole, damaged and cut packets, and gives up where it must."""
    is_v5 = data.draw(st.booleans())
    no_properties = b"\x00" if is_v5 else b""
    packets = st.builds(
        lambda topic, payload, qos, mid, retain, properties: publish(
            topic, payload, qos=qos, mid=mid, retain=retain, properties=properties
        ),
        st.sampled_from(("a", "b/c", "long" * 40)),
        st.sampled_from((b"", b"1", b"x" * 90, b"x" * 300, b"x" * 20_000)),
        st.integers(0, 2),
        st.integers(0, 65_535),
        st.booleans(),
        st.sampled_from((no_properties, b"\x02\x01\x01" if is_v5 else b"")),
    )
    stream = bytearray(b"".join(data.draw(st.lists(packets, max_size=6))))
    for _ in range(data.draw(st.integers(0, 2)) if stream else 0):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    stream = stream[: data.draw(st.integers(0, len(stream)))]

    reader = PublishReader(1_048_576, lambda block: block != b"\x01\xff")
    reader.begin(connection=7, is_v5=is_v5)
    careful, careful_end = reader._read_run(bytes(stream), 0, ARRIVAL, 1_048_576)  # the topics are known from here on
    quick, quick_end = reader._read_quick(bytes(stream), 0, ARRIVAL)
    rest, end = reader._read_run(bytes(stream), quick_end, ARRIVAL, 1_048_576)
    assert quick + rest == careful
    assert end == careful_end


def test_shapes_of_one_connection_are_not_those_of_another() -> None:
    """In MQTT 5 a byte more stands ahead of the payload."""
    reader = PublishReader(1_048_576, lambda _: True)
    for is_v5, properties in ((False, b""), (True, b"\x00"), (False, b"")):
        reader.begin(connection=7, is_v5=is_v5)
        for _ in range(2):
            assert reader.feed(publish("a", b"0", properties=properties) * 2, ARRIVAL) == [
                [Message("a", b"0", 0, 0, False, ARRIVAL, 7)] * 2
            ]


@pytest.mark.parametrize("is_v5", [False, True])
@pytest.mark.parametrize("piece_bytes", [1 << 30, 1_000, 4_096, 65_536])
def test_a_packet_that_is_too_large_is_cut_to_one_byte_more_than_a_decoder_takes(piece_bytes: int, is_v5: bool) -> None:
    """Its message is counted and acknowledged like others, its bytes are not kept, and the stream goes on behind it."""
    properties = b"\x00" if is_v5 else b""
    limit = 20_000
    stream = publish("big", b"9" * 500_000, qos=1, mid=5, properties=properties)
    stream += publish("a", b"1", properties=properties)
    pieces = [stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes)]
    assert read(pieces, is_v5=is_v5, max_packet_bytes=limit) == [
        Message("big", b"9" * (limit + 1), 1, 5, False, ARRIVAL, 7),
        Message("a", b"1", 0, 0, False, ARRIVAL, 7),
    ]


def test_a_large_packet_with_a_small_payload_keeps_it() -> None:
    """The limit is on the packet; only a payload above it is cut."""
    topic = "t" * 20_000
    assert read([publish(topic, b"21.5")], max_packet_bytes=20_000)[0][1] == b"21.5"


def test_a_large_packet_without_a_topic_is_the_librarys_and_still_not_kept() -> None:
    """The library sees its shortened form and ends the connection."""
    found = read([publish(b"\xff", b"9" * 500_000)], max_packet_bytes=20_000)
    assert isinstance(found[0], bytes)
    assert len(found[0]) < 100_000


def test_the_limit_never_lies_below_what_two_bytes_can_say() -> None:
    """Packets of up to 16,383 bytes are read on the short path, whatever the limit."""
    assert read([publish("a", b"1" * 16_000)], max_packet_bytes=1_024)[0][1] == b"1" * 16_000
    assert PublishReader(1_024, bool).cut_bytes == TWO_BYTE_LENGTH + 1


@given(st.integers(0, 268_435_455))
def test_lengths_are_read_as_they_are_written(value: int) -> None:
    """The variable byte integer of the specification."""
    encoded = encode_length(value)
    assert variable_length(b"?" + encoded, 1) == (value, 1 + len(encoded))
    with pytest.raises(IndexError):
        variable_length(encoded[:-1], 0)


def test_topics_are_shared_between_messages() -> None:
    """A topic's text is made once: later messages refer to it."""
    found = read([publish("a/long/topic", b"1") * 2])
    assert found[0][0] is found[1][0]
