"""What the journal holds, as bytes and back: groups of readings, and the facts that a replay could not know.

A replay has no wall clock, no broker and no operator: whatever they have changed in the state is a record, in its place
between the groups. A group is what the shard takes at once, so that a replay takes the same.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.readings import Batch, Float64, Message

T = TypeVar("T", bound=np.generic)
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]

GROUP, FACT = 1, 2
"""the kinds of record, as they stand in the file"""

# Little-endian on any machine.
_F8: np.dtype[np.float64] = np.dtype("<f8")
_I4: np.dtype[np.int32] = np.dtype("<i4")
_U4: np.dtype[np.uint32] = np.dtype("<u4")
_U2: np.dtype[np.uint16] = np.dtype("<u2")
_U1: np.dtype[np.uint8] = np.dtype("u1")
_COUNTS = struct.Struct("<IIQQ")
_ROW_BYTES = 8 + 8 + 4 + 1  # time, value, slot, flags
_MESSAGE_BYTES = 8 + 4 + 4 + 2  # arrival, readings, digest, mid


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Readings with the messages that brought them, both in the order in which they came."""

    batch: Batch
    arrival: Float64
    """(messages,) epoch seconds of the daemon's clock"""
    readings: UInt32
    """(messages,) how many rows of the batch each has, one after the other"""
    digest: UInt32
    """(messages,) `digest` of topic and payload"""
    mid: UInt16
    """(messages,) packet identifier, 0 at QoS 0"""
    changes: int = 0
    """of the registry that its slots are of: it tells what a slot means behind records that are missing"""
    before: int = 0
    """readings of all groups before it: it tells how many are missing"""

    def arrivals(self) -> Float64:
        """(readings,) when each came."""
        return np.repeat(self.arrival, self.readings)


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """New series have got their slots; and what is left of the admission's bucket."""

    slots: list[int]
    keys: list[str]
    devices: list[str]
    """the device of each, as the rules were then"""
    tokens: float
    refilled_at: float | None


class Evicted(msgspec.Struct, frozen=True, tag=True):
    """Series were forgotten, their alarms closed."""

    slots: list[int]
    now: float


class Heard(msgspec.Struct, frozen=True, tag=True):
    """Series have sent something that was no reading: they are not silent."""

    slots: list[int]
    now: float


class Listening(msgspec.Struct, frozen=True, tag=True):
    """Silence is counted from here on at the earliest."""

    since: float


class Swept(msgspec.Struct, frozen=True, tag=True):
    """A look for silent series has found some."""

    now: float


class Budget(msgspec.Struct, frozen=True, tag=True):
    """The alarm budget from here on: it decides what counts as an alarm, and so what is learned."""

    per_series_month: float


class Lateness(msgspec.Struct, frozen=True, tag=True):
    """How late a reading may be from here on: for so long readings wait."""

    seconds: float


class Released(msgspec.Struct, frozen=True, tag=True):
    """Readings that have waited enough go on, though no other has come."""

    now: float


class Abnormal(msgspec.Struct, frozen=True, tag=True):
    """A series has left a value alarm: its readings of these event times, both included, were none of its normal.

    It changes no state. Training leaves them out; none is written where a person has said that they are normal.
    """

    slot: int
    since: float
    until: float


class Paused(msgspec.Struct, frozen=True, tag=True):
    """Series are in maintenance from here on, their alarms closed."""

    slots: list[int]
    now: float


class Resumed(msgspec.Struct, frozen=True, tag=True):
    """They are no longer; silence is counted from `now`."""

    slots: list[int]
    now: float


class MarkedNormal(msgspec.Struct, frozen=True, tag=True):
    """A person has said that what these series do is normal: their alarms closed, their old normal forgotten."""

    slots: list[int]
    now: float


class SessionLost(msgspec.Struct, frozen=True, tag=True):
    """The broker has forgotten the session: no message before this one will come again under its identifier."""


Fact = (
    Admitted | Evicted | Heard | Listening | Swept | Budget | Lateness | Released | SessionLost
    | Abnormal | Paused | Resumed | MarkedNormal
)  # fmt: skip
Record = Group | Fact


def digest(message: Message) -> int:
    """Tells apart two messages that had the same packet identifier one after the other."""
    return zlib.crc32(message.payload, zlib.crc32(message.topic.encode("utf-8", "surrogatepass")))


def encode(record: Record) -> tuple[int, list[bytes]]:
    """Its kind, and its body in pieces."""
    if not isinstance(record, Group):
        return FACT, [msgspec.json.encode(record)]
    batch = record.batch
    return GROUP, [
        _COUNTS.pack(len(batch), len(record.arrival), record.changes, record.before),
        # The wide columns first: then every array lies at a multiple of its own size.
        np.asarray(batch.time, _F8).tobytes(),
        np.asarray(batch.value, _F8).tobytes(),
        np.asarray(record.arrival, _F8).tobytes(),
        np.asarray(batch.slot, _I4).tobytes(),
        np.asarray(record.readings, _U4).tobytes(),
        np.asarray(record.digest, _U4).tobytes(),
        np.asarray(record.mid, _U2).tobytes(),
        np.asarray(batch.flags, _U1).tobytes(),
    ]


def decode(kind: int, body: memoryview) -> Record:
    """The record; its arrays are views of `body`. Raises ValueError for what no `encode` has made."""
    if kind == FACT:
        return _FACT.decode(body)
    if kind != GROUP or len(body) < _COUNTS.size:
        raise ValueError(f"a record of kind {kind} with {len(body)} bytes")
    rows, messages, changes, before = _COUNTS.unpack_from(body)
    if len(body) != _COUNTS.size + rows * _ROW_BYTES + messages * _MESSAGE_BYTES:
        raise ValueError(f"a group of {rows} readings and {messages} messages in {len(body)} bytes")
    columns = _Columns(body, _COUNTS.size)
    time, value, arrival = columns.take(_F8, rows), columns.take(_F8, rows), columns.take(_F8, messages)
    slot, readings, digests = columns.take(_I4, rows), columns.take(_U4, messages), columns.take(_U4, messages)
    mid, flags = columns.take(_U2, messages), columns.take(_U1, rows)
    return Group(Batch(slot, time, value, flags), arrival, readings, digests, mid, changes, before)


class _Columns:
    """Arrays that lie one behind the other."""

    def __init__(self, body: memoryview, offset: int) -> None:
        self._body = body
        self._offset = offset

    def take(self, dtype: np.dtype[T], count: int) -> NDArray[T]:
        array = np.frombuffer(self._body, dtype, count, self._offset)
        self._offset += array.nbytes
        return array


_FACT: msgspec.json.Decoder[Fact] = msgspec.json.Decoder(Fact)
