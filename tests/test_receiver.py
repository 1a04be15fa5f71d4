"""The fast way of receiving and paho's own are one: the same bytes give the same messages, answers and endings."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Iterable, Sequence

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from streamer.clock import ManualClock
from streamer.readings import Message
from streamer.receiver import PahoClient, Receiver, acknowledgements
from streamer.wire import Wire
from tests.fake_broker import PINGRESP, connack, encode_length, publish, suback

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
LIMIT = 20_000
Outcome = tuple[list[Message], bytes, bool, bool]


def receive(chunks: Iterable[bytes], version: MQTTProtocolVersion, *, is_fast: bool) -> Outcome:
    """Messages, what was sent back if the connection stayed open, whether it was open before and after the end.

    How many answers leave before a malformed packet ends the connection depends on how much a read brings.
    """
    near, far = socket.socketpair()
    with far:
        wire = Wire(near, is_buffered=is_fast)
        client = PahoClient(version, "streamer-test", True, lambda: wire)
        receiver = Receiver(LIMIT, ManualClock(1_000.5), is_fast)
        receiver.begin(connection=3, is_v5=version == V5)
        client.on_message = receiver.on_message
        client.connect("broker", 1883)
        client.loop_write()
        far.recv(65_536)
        messages: list[Message] = []

        def take_what_has_come() -> None:
            while client.is_open() and select.select([wire.fileno()], [], [], 0)[0]:
                messages.extend(receiver.receive(client, wire))
                if client.want_write():
                    client.loop_write()

        for chunk in chunks:
            if client.is_open():
                far.sendall(chunk)
                take_what_has_come()
        was_open = client.is_open()
        packets = acknowledgements(messages, connection=3)
        if was_open and packets:
            client.queue_acknowledgements(packets)
            client.loop_write()
        answers = b""
        while was_open and select.select([far], [], [], 0)[0]:
            answers += far.recv(65_536)
        far.shutdown(socket.SHUT_WR)
        take_what_has_come()
        outcome = messages, answers, was_open, client.is_open()
        wire.close()
        return outcome


def assert_same(chunks: Sequence[bytes], version: MQTTProtocolVersion) -> Outcome:
    fast = receive(chunks, version, is_fast=True)
    slow = receive(chunks, version, is_fast=False)
    assert fast == slow, chunks
    return fast


def properties(*pieces: bytes) -> bytes:
    block = b"".join(pieces)
    return encode_length(len(block)) + block


CONTENT_TYPE = b"\x03\x00\x04json"
EXPIRY = b"\x02\x00\x00\x01\x00"
USER = b"\x26\x00\x01k\x00\x05value"
SUBSCRIPTION = b"\x0b\x85\x02"


def stream(version: MQTTProtocolVersion) -> list[bytes]:
    """Packets of a lively connection, from CONNACK on."""
    level = 5 if version == V5 else 4
    none = b"\x00" if version == V5 else b""
    packets = [
        connack(level, session_present=True),
        publish("plant/1", b"21.5", properties=none),
        publish("plant/2", b'{"temperature": 21.5}', qos=1, mid=1, properties=none),
        suback(level, 1, 1, 0),
        publish("plant/3", b"old", retain=True, properties=none),
        publish("plant/4", b"again", qos=1, mid=2, dup=True, properties=none),
        publish("plant/5", b"twice at most", qos=2, mid=3, properties=none),
        b"\x62\x02\x00\x03",
        PINGRESP,
        publish("plant/6", b"x" * 200, qos=1, mid=65_535, properties=none),
        publish("plant/7", b"", qos=1, mid=4, properties=none),
        publish("größe/温度", b"\xff\x00\xfe", properties=none),
        b"\x62\x02\x00\x09",
        publish("plant/8", b"y" * 16_500, properties=none),
        publish("plant/9", b"too large" * 3_000, qos=1, mid=5, properties=none),
        publish("plant/1", b"22", qos=1, mid=6, properties=none),
    ]
    if version == V5:
        packets += [
            publish("plant/1", b"p", properties=properties(CONTENT_TYPE, EXPIRY, USER, USER)),
            publish("plant/1", b"q", qos=1, mid=7, properties=properties(SUBSCRIPTION)),
            publish("plant/1", b"r", qos=2, mid=8, properties=properties(SUBSCRIPTION)),
            publish("plant/1", b"s", properties=properties(b"\x26\x00\x01k" + b"\x01\x2c" + b"v" * 300)),
            publish("plant/1", b"t", properties=b"\x80\x00"),
        ]
    return packets


@pytest.mark.parametrize("version", [V311, V5])
def test_a_lively_connection(version: MQTTProtocolVersion) -> None:
    """Every kind of message arrives, and each is acknowledged as its QoS asks for."""
    packets = stream(version)
    messages, answers, was_open, is_open = assert_same(packets, version)
    assert [message.topic for message in messages][:5] == ["plant/1", "plant/2", "plant/3", "plant/4", "plant/5"]
    assert len(messages) == (15 if version == V5 else 11)
    assert [m.mid for m in messages if m.qos == 2] == [3]
    assert b"\x50\x02\x00\x03" in answers  # PUBREC of paho's
    assert b"\x70\x02\x00\x09" in answers  # a PUBREL that nobody knows is answered all the same
    assert answers.endswith(acknowledgements(messages, 3))
    assert (was_open, is_open) == (True, False)


@pytest.mark.parametrize("version", [V311, V5])
def test_packets_in_one_piece_or_each_alone(version: MQTTProtocolVersion) -> None:
    """A read may bring many packets or one."""
    packets = stream(version)
    assert assert_same([b"".join(packets)], version) == assert_same(packets, version)


@pytest.mark.parametrize("version", [V311, V5])
def test_every_truncation(version: MQTTProtocolVersion) -> None:
    """Wherever the connection breaks, the messages before it have arrived and nothing else."""
    whole = b"".join(packet for packet in stream(version) if len(packet) < 1_000)
    for size in range(len(whole)):
        assert_same([whole[:size]], version)


@pytest.mark.parametrize("version", [V311, V5])
def test_every_split_across_two_reads(version: MQTTProtocolVersion) -> None:
    """Wherever TCP cuts the stream, the outcome is the same."""
    whole = b"".join(packet for packet in stream(version) if len(packet) < 1_000)
    expected = receive([whole], version, is_fast=False)
    for size in range(1, len(whole)):
        assert receive([whole[:size], whole[size:]], version, is_fast=True) == expected


def mutate(packet: bytes, rng: random.Random) -> bytes:
    """A packet with a few bytes changed, dropped, doubled or added."""
    data = bytearray(packet)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(min(len(data), 40)) if data else 0
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and data:
            del data[at : at + rng.randrange(1, 4)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 4))
        else:
            data[at:at] = data[at : at + rng.randrange(1, 5)]
    return bytes(data)


def assert_mutants_are_judged_alike(seeds: range) -> None:
    small = {version: [p for p in stream(version) if len(p) < 1_000] for version in (V311, V5)}
    ends = 0
    for seed in seeds:
        rng = random.Random(seed)
        version = rng.choice([V311, V5])
        packets = [small[version][0], *rng.choices(small[version][1:], k=3)]
        packets.insert(rng.randrange(1, 4), mutate(rng.choice(small[version]), rng))
        whole = b"".join(packets)
        cut = rng.randrange(len(whole))
        ends += not assert_same(rng.choice([[whole], packets, [whole[:cut], whole[cut:]]]), version)[2]
    assert ends > len(seeds) / 10, "hardly a mutant was malformed: the test proves nothing"


def test_mutated_packets() -> None:
    """What is malformed is judged by one judge: both ways stop at the same packet, and neither raises."""
    assert_mutants_are_judged_alike(range(1_500))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_mutated_packets() -> None:
    """The same at length."""
    assert_mutants_are_judged_alike(range(10_000, 30_000))


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_topic_that_is_no_utf8_becomes_readable_text(is_fast: bool) -> None:
    """The message is counted and acknowledged like any other; no odd byte gets into a label."""
    chunks = [connack(4), publish(b"plant/\xff", b"1", qos=1, mid=1)]
    messages = receive(chunks, V311, is_fast=is_fast)[0]
    assert [message.topic for message in messages] == ["plant/\\xff"]


def test_acknowledgements_are_for_one_connection_only() -> None:
    """A message of an older connection is not acknowledged: its identifier may mean another one by now."""
    old, new = (Message("a", b"1", 1, 7, False, 0.0, connection) for connection in (1, 2))
    unconfirmed = Message("a", b"1", 0, 0, False, 0.0, 2)
    exactly_once = Message("a", b"1", 2, 258, False, 0.0, 2)
    assert acknowledgements([old, new, unconfirmed, exactly_once], 2) == b"\x40\x02\x00\x07\x70\x02\x01\x02"


def test_the_keep_alive_sees_bytes_that_paho_did_not_read() -> None:
    """A broker that sends without pause is alive, though paho reads none of it."""
    near, far = socket.socketpair()
    with far:
        wire = Wire(near, is_buffered=True)
        client = PahoClient(V311, "streamer-test", True, lambda: wire)
        receiver = Receiver(LIMIT, ManualClock(), is_fast=True)
        receiver.begin(connection=1, is_v5=False)
        client.connect("broker", 1883)
        before = client._last_bytes_received
        far.sendall(publish("a", b"1"))
        assert receiver.receive(client, wire)
        assert client._last_bytes_received > before
        wire.close()
