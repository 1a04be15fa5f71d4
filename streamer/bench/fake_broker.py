"""A broker that never limits: it serves one client on loopback and sends it a load as fast as TCP takes it.

MQTT 3.1.1 and only what a subscriber needs: CONNECT, SUBSCRIBE, PUBLISH and PINGREQ are answered, all else is ignored.
It ends with the connection, and sends no more messages than it was made with.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

from streamer.bench.generator import HOST, Load, Plan

PACKETS = 4096  # made at once
READ_BYTES = 1 << 16


class FakeBroker:
    """Its port is there from the start; `send` begins the load, once the client has subscribed."""

    def __init__(self, plan: Plan) -> None:
        load, whole = Load(plan), range(0, plan.messages, PACKETS)
        self._pieces = [load.take(min(PACKETS, plan.messages - start)) for start in whole]
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._link: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in (self._listener, self._link):
            if link is not None:
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
                link.close()
        self._thread.join(10)

    def send(self) -> None:
        """All of it; a client that has gone takes no more."""
        if self._link is None:
            raise AssertionError("nobody has subscribed")
        with contextlib.suppress(OSError):
            for piece in self._pieces:
                self._link.sendall(piece)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._link, _ = self._listener.accept()
            held = b""
            while content := self._link.recv(READ_BYTES):
                held = self._answer(self._link, held + content)

    def _answer(self, link: socket.socket, data: bytes) -> bytes:
        """Answers whole packets; gives what is left of `data`. A run of acknowledgements is passed over quickly."""
        answers, at = b"", 0
        while len(data) - at >= 2:
            length, body = data[at + 1], at + 2
            if length > 127 and len(data) > body:
                length, body = length & 127 | data[body] << 7, body + 1
            if len(data) < body + length:
                break
            kind, packet, at = data[at] & 0xF0, data[body : body + length], body + length
            if kind == 0x10:
                answers += b"\x20\x02\x00\x00"
            elif kind == 0x80:
                answers += b"\x90\x03" + packet[:2] + b"\x01"
            elif kind == 0x30 and length:
                name = 2 + int.from_bytes(packet[:2], "big")
                answers += b"\x40\x02" + packet[name : name + 2]
            elif kind == 0xC0:
                answers += b"\xd0\x00"
        if answers:
            link.sendall(answers)
        return data[at:]
