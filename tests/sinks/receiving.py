"""A web server that takes what is posted to it, and others that misbehave."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.servers import HOST, Certificates


class Posted(NamedTuple):
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Receiver:
    """What has come, and what is answered: `answers` one after the other, then 204."""

    port: int = 0
    posted: list[Posted] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    always: dict[str, int] = field(default_factory=dict)
    """by the event's name: what is answered to it before any of these"""
    may_answer: threading.Event = field(default_factory=threading.Event)
    """cleared it keeps everybody waiting"""

    def order(self) -> list[str]:
        """By which name the events have come."""
        return [each.headers["Idempotency-Key"].strip('"') for each in list(self.posted)]

    def will_answer(self, *statuses: int, **headers: str) -> None:
        self.answers += [(status, {k.replace("_", "-"): v for k, v in headers.items()}) for status in statuses]


@contextmanager
def receiving(tls: Certificates | None = None, port: int = 0, host: str = HOST) -> Iterator[Receiver]:
    """A server while the block lasts."""
    found = Receiver()
    found.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.posted.append(Posted(self.path, dict(self.headers), body))
            name = self.headers.get("Idempotency-Key", "").strip('"')
            usual = (found.always.get(name, 204), dict[str, str]())
            status, headers = found.answers.pop(0) if found.answers and name not in found.always else usual
            found.may_answer.wait(20)
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: pytest shows what matters."""

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Nothing: who breaks off a handshake is no news here."""

    with Quiet((host, port), Handler) as server:
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.server_cert, tls.server_key)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield found
        finally:
            found.may_answer.set()
            server.shutdown()
            thread.join()


@contextmanager
def misbehaving(treat: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """The port of a server that does `treat` to each connection; the event says that it is time to end."""
    is_over = threading.Event()
    listener = socket.create_server((HOST, 0))
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            treat(connection, is_over)

    def accept() -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        is_over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join(10)
            assert not thread.is_alive()


def drip(pieces: Sequence[bytes], seconds: float) -> Callable[[socket.socket, threading.Event], None]:
    """One piece after the other, so long apart, and then nothing for ever."""

    def treat(connection: socket.socket, is_over: threading.Event) -> None:
        for piece in pieces:
            connection.sendall(piece)
            if is_over.wait(seconds):
                return
        is_over.wait(60)

    return treat


def say(text: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """These bytes, when the request has come, and then the end."""

    def treat(connection: socket.socket, _is_over: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(text)

    return treat
