"""MQTT packets by hand, and a broker on loopback that does exactly what a test tells it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

PINGRESP = b"\xd0\x00"
SUBACK = b"\x90\x03\x00\x01\x01"


def encode_length(value: int) -> bytes:
    """A variable byte integer (MQTT 5, section 1.5.5)."""
    encoded = bytearray()
    while True:
        value, digit = divmod(value, 128)
        encoded.append(digit | (128 if value else 0))
        if not value:
            return bytes(encoded)


def publish(
    topic: str | bytes,
    payload: bytes,
    *,
    qos: int = 0,
    mid: int = 0,
    retain: bool = False,
    dup: bool = False,
    properties: bytes = b"",
) -> bytes:
    """A PUBLISH; `properties` with their length, b"\\x00" for none in MQTT 5, b"" in 3.1.1."""
    name = topic if isinstance(topic, bytes) else topic.encode()
    body = len(name).to_bytes(2, "big") + name
    body += (mid.to_bytes(2, "big") if qos else b"") + properties + payload
    return bytes([0x30 | dup << 3 | qos << 1 | retain]) + encode_length(len(body)) + body


def connack(level: int, reason: int = 0, *, session_present: bool = False) -> bytes:
    """The answer to a CONNECT of this protocol level, in its form."""
    return bytes([0x20, 3 if level == 5 else 2, session_present, reason]) + (b"\x00" if level == 5 else b"")


def suback(level: int, mid: int, *codes: int) -> bytes:
    """The answer to a SUBSCRIBE."""
    body = mid.to_bytes(2, "big") + (b"\x00" if level == 5 else b"") + bytes(codes)
    return b"\x90" + encode_length(len(body)) + body


class Peer:
    """One client's connection, seen from the broker."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.level = 0
        """protocol level of its CONNECT: 5, or 4 for MQTT 3.1.1"""
        self.packets: list[tuple[int, bytes]] = []
        """what it has sent: first byte and body"""

    def read(self) -> tuple[int, bytes]:
        """The next packet; raises EOFError when the client has gone."""
        head = self._read_exactly(1)[0]
        length = shift = 0
        while True:
            byte = self._read_exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        packet = (head, self._read_exactly(length))
        if head == 0x10:
            self.level = packet[1][6]
        self.packets.append(packet)
        return packet

    def read_until(self, head: int) -> bytes:
        """The body of the next packet that begins so."""
        while True:
            found, body = self.read()
            if found == head:
                return body

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def welcome(self, *, session_present: bool = False) -> None:
        """Accept CONNECT and grant the first subscription."""
        self.read_until(0x10)
        self.send(connack(self.level, session_present=session_present))
        mid = int.from_bytes(self.read_until(0x82)[:2], "big")
        self.send(suback(self.level, mid, 1))

    def stay(self) -> None:
        """Read, and confirm what is published at QoS 1, until the client goes."""
        while True:
            head, body = self.read()
            if head & 0xF6 == 0x32:
                end = 2 + int.from_bytes(body[:2], "big")
                self.send(b"\x40\x02" + body[end : end + 2])

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data


class FakeBroker:
    """Serves every connection by `behave`, which returns or raises EOFError or OSError to end it."""

    def __init__(self, behave: Callable[[Peer], None]) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.peers: list[Peer] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.peers.append(Peer(sock))
            self._threads.append(threading.Thread(target=self._serve, args=[self.peers[-1]]))
            self._threads[-1].start()

    def _serve(self, peer: Peer) -> None:
        with peer.sock, contextlib.suppress(EOFError, OSError):
            self._behave(peer)
