"""Cuts a broker's bytes into PUBLISHes and the rest, a whole read in one pass (MQTT 3.1.1 and 5, sections 2.1 and 3.3).

Only what is beyond doubt is read here: a well-formed PUBLISH of QoS 0 or 1 whose topic is UTF-8. Everything else goes
on untouched and in its place to the client library, which also judges what is malformed. So both ways of receiving give
the same messages, and tests/test_packets.py holds them to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from streamer.readings import Message

TWO_BYTE_LENGTH = 16_383  # the largest remaining length in two bytes (section 1.5.5)
LONGEST_HEADER = 2 + 65_535 + 2 + 4  # topic with its length, packet identifier, length of the properties
MOST_TOPICS = 262_144  # by eye: 20-40 MB of topics, twice as many as there may be series by default
MOST_PROPERTIES = 1_024  # by eye: brokers send a handful of different property blocks

MOST_SHAPES = 65_536  # by eye: 10 MB at most; a plant has some hundreds
SHAPE_BYTES = 5  # type, length in one or two bytes, length of the topic: a PUBLISH has no fewer

_Shape = tuple[int, int, int, int, int, bool, bool]
"""Offsets of topic, its end, payload and end; QoS, retain, dup."""
_AS_MESSAGE = partial(tuple.__new__, Message)
PLAIN_HEADS = {
    0x30 | dup << 3 | qos << 1 | retain: (qos, bool(retain), bool(dup))
    for dup in (0, 1)
    for qos in (0, 1)
    for retain in (0, 1)
}
"""The first byte of a PUBLISH of QoS 0 or 1, and what it says (section 3.3.1)."""


class PublishReader:
    """Reads one connection after another; it belongs to the network thread."""

    def __init__(self, max_packet_bytes: int, is_valid_properties: Callable[[bytes], bool]) -> None:
        """`is_valid_properties` judges the property block of a PUBLISH, its length included.

        The payload of a packet above `max_packet_bytes` is cut to one byte more and never held whole in memory: a
        decoder that allows payloads of at most `max_packet_bytes` refuses it as too large.
        """
        self._largest = max(max_packet_bytes, TWO_BYTE_LENGTH)
        self._is_valid_properties = is_valid_properties
        self._valid_properties: set[bytes] = set()
        self._topics: dict[bytes, str] = {}
        self.begin(connection=0, is_v5=True)

    @property
    def cut_bytes(self) -> int:
        """The size at which a payload is cut."""
        return self._largest + 1

    def begin(self, connection: int, is_v5: bool) -> None:
        """A new connection: what was left of the old one is void."""
        self._connection = connection
        self._is_v5 = is_v5
        self._shapes: dict[bytes, _Shape] = {}
        self._held: list[bytes] = []
        """pieces of a PUBLISH that is not complete"""
        self._held_bytes = 0
        self._wanted_bytes = 0
        """no use in looking at `_held` before it has so many"""
        self._passing_bytes = 0
        """still to come of a packet that the library reads"""
        self._skipping_bytes = 0
        """still to come of a payload that is too large to keep"""

    def feed(self, data: bytes, arrival: float) -> list[list[Message] | bytes]:
        """What `data` completes, in the order of the stream: messages, and bytes for the library."""
        if self._held:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._wanted_bytes:
                return []
            data = b"".join(self._held)
            self._held = []
        parts: list[list[Message] | bytes] = []
        position = min(self._skipping_bytes, len(data))
        self._skipping_bytes -= position
        if self._passing_bytes and position < len(data):
            parts.append(data[position : position + self._passing_bytes])
            position += len(parts[0])
            self._passing_bytes -= len(parts[0])
        while position < len(data):
            messages, position = self._read_quick(data, position, arrival)
            if position < len(data):
                more, position = self._read_run(data, position, arrival, self._largest)
                messages += more
            if messages:
                parts.append(messages)
            if position < len(data):
                part, position = self._read_odd(data, position, arrival)
                if part:
                    parts.append(part)
        return parts

    def _read_quick(self, data: bytes, position: int, arrival: float) -> tuple[list[Message], int]:
        """As `_read_run`, as long as packets have a shape and a topic that are known; in three quarters of its time.

        The hot loop: two lookups and three slices a message, no attribute, no exception. `tuple.__new__` makes a
        Message in a third of the time that its constructor takes.
        """
        found: list[tuple[str, bytes, int, int, bool, float, int, bool]] = []
        append, shape_of, known = found.append, self._shapes.get, self._topics.get
        connection, is_v5, size = self._connection, self._is_v5, len(data)
        while True:
            head = data[position : position + SHAPE_BYTES]
            shape = shape_of(head) or self._learn_shape(head)
            if shape is None:
                break
            name, name_end, start, whole, qos, retain, dup = shape
            end, mid_at, start = position + whole, position + name_end, position + start
            topic = known(data[position + name : mid_at])
            if end > size or topic is None or (is_v5 and data[start - 1]):
                break
            mid = data[mid_at] << 8 | data[mid_at + 1] if qos else 0
            append((topic, data[start:end], qos, mid, retain, arrival, connection, dup))
            position = end
        return list(map(_AS_MESSAGE, found)), position

    def _learn_shape(self, head: bytes) -> _Shape | None:
        """Where the parts of a PUBLISH are that begins so, with properties that are none; None where that is open."""
        plain = PLAIN_HEADS.get(head[0]) if len(head) == SHAPE_BYTES else None
        if plain is None:
            return None
        length, body = head[1], 2
        if length > 127:
            if head[2] > 127:
                return None
            length, body = length & 127 | head[2] << 7, 3
        qos, retain, dup = plain
        name = body + 2
        name_end = name + (head[body] << 8 | head[body + 1])
        start = name_end + (2 if qos else 0) + self._is_v5
        if start > body + length:
            return None
        if len(self._shapes) >= MOST_SHAPES:
            self._shapes.clear()
        self._shapes[head] = shape = name, name_end, start, body + length, qos, retain, dup
        return shape

    def _read_run(self, data: bytes, position: int, arrival: float, largest: int) -> tuple[list[Message], int]:
        """The messages that stand complete and in order from `position`, and where the first other byte stands.

        The careful way, which `_read_quick` is held to; topics become known here.
        """
        messages: list[Message] = []
        topics, connection, is_v5 = self._topics, self._connection, self._is_v5
        size, heads = len(data), PLAIN_HEADS
        try:
            while position < size:
                plain = heads.get(data[position])
                if plain is None:
                    break
                qos, retain, dup = plain
                length = data[position + 1]
                body = position + 2
                if length > 127:
                    high = data[body]
                    body += 1
                    length = length & 127 | high << 7
                    if high > 127:
                        length, body = variable_length(data, position + 1)
                        if length > largest:
                            break
                end = body + length
                if end > size:
                    break
                start = body + 2 + (data[body] << 8 | data[body + 1])
                name = data[body + 2 : start]
                mid = 0
                if qos:
                    if start + 2 > end:
                        break
                    mid = data[start] << 8 | data[start + 1]
                    start += 2
                if is_v5:
                    if start >= end:
                        break
                    start = start + 1 if data[start] == 0 else self._end_of_properties(data, start)
                if start > end:
                    break
                topic = topics.get(name)
                if topic is None:
                    topic = self._learn(name)
                    if topic is None:
                        break
                messages.append(Message(topic, data[start:end], qos, mid, retain, arrival, connection, dup))
                position = end
        except (IndexError, ValueError):  # the header goes on in the next read, or is no header
            pass
        return messages, position

    def _read_odd(self, data: bytes, position: int, arrival: float) -> tuple[list[Message] | bytes, int]:
        """What `_read_run` left at `position`, empty if it has to wait, and where it may go on."""
        size = len(data)
        try:
            if data[position] == 0:
                raise ValueError("no packet has type and flags 0")
            length, body = variable_length(data, position + 1)
        except IndexError:
            return self._hold(data, position, size - position + 1)
        except ValueError:  # the stream has lost its frame: the library will end the connection
            self._passing_bytes = sys.maxsize
            return data[position:], size
        end = body + length
        if data[position] in PLAIN_HEADS:
            if length > self._largest:
                return self._read_too_large(data, position, body, end, arrival)
            if end > size:
                return self._hold(data, position, end - position)
        self._passing_bytes = max(end - size, 0)
        return data[position:end], min(end, size)

    def _read_too_large(
        self, data: bytes, position: int, body: int, end: int, arrival: float
    ) -> tuple[list[Message] | bytes, int]:
        """Take header and start of the payload for the whole packet; its other bytes are skipped as they come."""
        kept = min(end, body + LONGEST_HEADER + self.cut_bytes)
        if kept > len(data):
            return self._hold(data, position, kept - position)
        self._skipping_bytes = max(end - len(data), 0)
        shortened = data[position : position + 1] + _encode_length(kept - body) + data[body:kept]
        messages, _ = self._read_run(shortened, 0, arrival, sys.maxsize)
        cut = [message._replace(payload=message.payload[: self.cut_bytes]) for message in messages]
        return cut or shortened, min(end, len(data))

    def _hold(self, data: bytes, position: int, wanted_bytes: int) -> tuple[bytes, int]:
        """Keep what is there of a packet until `wanted_bytes` of it are there."""
        self._held = [data[position:]]
        self._held_bytes = len(data) - position
        self._wanted_bytes = wanted_bytes
        return b"", len(data)

    def _end_of_properties(self, data: bytes, start: int) -> int:
        """Where the payload begins; `sys.maxsize` if the library has to judge. Blocks once found valid are known."""
        length, body = variable_length(data, start)
        block = data[start : body + length]
        if block not in self._valid_properties:
            if not self._is_valid_properties(block):
                return sys.maxsize
            if len(self._valid_properties) >= MOST_PROPERTIES:
                self._valid_properties.clear()
            self._valid_properties.add(block)
        return body + length

    def _learn(self, name: bytes) -> str | None:
        """The topic as text, remembered; None for one that is empty or not UTF-8."""
        try:
            topic = name.decode()
        except UnicodeDecodeError:
            return None
        if topic:
            if len(self._topics) >= MOST_TOPICS:
                self._topics.clear()
            self._topics[name] = topic
        return topic or None


def variable_length(data: bytes, position: int) -> tuple[int, int]:
    """A variable byte integer and the position behind it (section 1.5.5).

    Raises IndexError if it goes on behind the end of `data`, ValueError if it has more than four bytes.
    """
    value = 0
    for place in range(4):
        byte = data[position + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, position + place + 1
    raise ValueError("a variable byte integer of more than four bytes")


def _encode_length(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
