"""A TCP proxy between a client and a server, to break what lies between them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65_536


class Proxy:
    """Listens on a port of its own and passes everything on to `target_port`; any thread may change how."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        """each end of a connection and the other one"""
        self._lock = threading.Lock()
        self._bell, self._rope = socket.socketpair()
        self._is_blackhole = False
        self._slice_bytes = CHUNK_BYTES
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

    def blackhole(self) -> None:
        """Keep connections open but pass nothing on any more, as a router that has forgotten them."""
        self._is_blackhole = True
        self._ring()

    def slice(self, size: int) -> None:
        """Pass on so many bytes at a time."""
        self._slice_bytes = size

    def heal(self) -> None:
        """Be a plain proxy again; what was held back is passed on."""
        self._is_blackhole = False
        self._slice_bytes = CHUNK_BYTES
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

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs |= {near: far, far: near}

    def _pass_on(self, end: socket.socket) -> None:
        with self._lock:
            other = self._pairs.get(end)
            if other is None:
                return
            try:
                data = end.recv(self._slice_bytes)
                if data:
                    other.sendall(data)
                    return
            except OSError:
                pass
            for side in (end, other):
                self._pairs.pop(side, None)
                side.close()
