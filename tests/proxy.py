"""A TCP proxy between a client and a server, to break what lies between them."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from types import TracebackType
from typing import NamedTuple, Self

CHUNK_BYTES = 65_536
THROTTLED_SECONDS = 0.01  # between two pieces of a throttled connection
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER for no time: `close` sends RST in place of FIN


class Conversation(NamedTuple):
    """All that was passed on over one connection."""

    asked: bytearray
    """by the client"""
    answered: bytearray
    """by the server"""


class Proxy:
    """Listens on a port of its own and passes everything on to `target_port`; any thread may change how."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        """each end of a connection and the other one"""
        self._records: dict[socket.socket, bytearray] = {}
        """what has come from an end"""
        self.conversations: list[Conversation] = []
        """of each connection, in the order in which they were made; complete when it has ended"""
        self._lock = threading.Lock()
        self._bell, self._rope = socket.socketpair()
        self._is_blackhole = False
        self._slice_bytes = CHUNK_BYTES
        self._pause_seconds = 0.0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rope.close()
        self._thread.join(10)
        self._listener.close()
        self.cut()
        self._bell.close()

    def cut(self) -> None:
        """Close every connection on both sides."""
        with self._lock:
            for end in self._pairs:
                end.close()
            self._pairs.clear()
        self._ring()

    def reset(self) -> None:
        """Break every connection off on both sides, as a router that was restarted: RST, and what was on its way is
        gone."""
        with self._lock:
            for end in self._pairs:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        self.cut()

    def blackhole(self) -> None:
        """Keep connections open but pass nothing on any more, as a router that has forgotten them."""
        self._is_blackhole = True
        self._ring()

    def slice(self, size: int) -> None:
        """Pass on so many bytes at a time."""
        self._slice_bytes = size

    def throttle(self, bytes_per_second: int) -> None:
        """Pass on no more than that, in each direction."""
        self._slice_bytes = max(int(bytes_per_second * THROTTLED_SECONDS), 1)
        self._pause_seconds = THROTTLED_SECONDS

    def heal(self) -> None:
        """Be a plain proxy again; what was held back is passed on."""
        self._is_blackhole = False
        self._slice_bytes = CHUNK_BYTES
        self._pause_seconds = 0.0
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._rope.send(b"!")

    def _run(self) -> None:
        while True:
            with self._lock:
                ends = [] if self._is_blackhole else list(self._pairs)
            try:
                ready = select.select([self._bell, self._listener, *ends], [], [])[0]
            except (OSError, ValueError):  # one of them was cut meanwhile
                continue
            if self._bell in ready and not self._bell.recv(64):
                return
            if self._listener in ready:
                self._accept()
            for end in ready:
                if end not in (self._bell, self._listener):
                    self._pass_on(end)
            if self._pause_seconds:
                select.select([self._bell], [], [], self._pause_seconds)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conversation = Conversation(bytearray(), bytearray())
        self.conversations.append(conversation)
        with self._lock:
            self._pairs |= {near: far, far: near}
            self._records |= {near: conversation.asked, far: conversation.answered}

    def _pass_on(self, end: socket.socket) -> None:
        with self._lock:
            other = self._pairs.get(end)
            if other is None:
                return
            try:
                data = end.recv(self._slice_bytes)
                if data:
                    other.sendall(data)
                    self._records[end] += data
                    return
            except OSError:
                pass
            for side in (end, other):
                self._pairs.pop(side, None)
                side.close()
