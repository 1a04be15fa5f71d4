"""The HTTP server: few paths, two methods, and nobody who can stall it; streams, TLS and a password."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamer.answers import Answer, Request, Stream
from streamer.errors import ServiceError
from streamer.exposition import SeriesTable
from streamer.http import Limits, Server, tls_context
from streamer.metrics import Metrics
from tests.conftest import StartPrometheus
from tests.servers import HOST, Certificates, free_port
from tests.test_exposition import HOSTILE
from tests.waiting import wait_until


@dataclass
class Daemon:
    """What the server asks: answers that a test can change."""

    body: bytes = b"streamer_up 1\n"
    healthy: tuple[bool, str] = (True, "the engine makes progress")
    ready: tuple[bool, str] = (False, "not subscribed")
    accepts: list[str] = field(default_factory=list)

    def render(self, accept: str) -> tuple[bytes, str]:
        self.accepts.append(accept)
        return self.body, "text/plain; version=0.0.4; charset=utf-8"

    def was_asked(self, times: int) -> bool:
        return len(self.accepts) == times

    def server(
        self, host: str = HOST, port: int = 0, limits: Limits | None = None, names: tuple[str, ...] = ()
    ) -> Server:
        return Server(host, port, self.render, lambda: self.healthy, lambda: self.ready, limits=limits, names=names)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(
    port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes | None = None
) -> Response:
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=10)) as connection:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())


def connect(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(10)
    client.connect((HOST, port))
    return client


def exchange(port: int, request: bytes) -> bytes:
    """Everything that comes back for these bytes until the server closes; b"" where it breaks the connection off."""
    with connect(port) as client, contextlib.suppress(ConnectionError):
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while more := client.recv(65536):
            answer += more
        return answer
    return b""


# --- Paths and methods ---


def test_metrics_come_as_the_accept_header_asks() -> None:
    """The header reaches the renderer, its body and content type reach the client."""
    daemon = Daemon()
    with running(daemon.server()) as server:
        response = ask(server.port, "/metrics?x=y", headers={"Accept": "application/openmetrics-text"})
    assert (response.status, response.body) == (200, b"streamer_up 1\n")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert daemon.accepts == ["application/openmetrics-text"]


def test_healthy_and_ready_are_200_or_503_with_a_sentence() -> None:
    """A probe reads the status, a person the sentence."""
    daemon = Daemon()
    with running(daemon.server()) as server:
        well = ask(server.port, "/-/healthy")
        unwell = ask(server.port, "/-/ready")
        daemon.ready = (True, "subscribed")
        assert ask(server.port, "/-/ready").status == 200
    assert (well.status, well.body) == (200, b"the engine makes progress\n")
    assert (unwell.status, unwell.body) == (503, b"not subscribed\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"])
@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready"])
def test_other_methods_are_405_and_say_what_is_allowed(method: str, path: str) -> None:
    """Nothing can be changed from here."""
    with running(Daemon().server()) as server:
        response = ask(server.port, path, method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/", "/metrics/", "//metrics", "/-/healthy/..", "/favicon.ico", "/METRICS", "*", "/%6detrics"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_paths_are_404(path: str, method: str) -> None:
    """Three paths, spelt as they are."""
    with running(Daemon().server()) as server:
        assert ask(server.port, path, method).status == 404


def test_head_has_the_headers_of_get_and_no_body() -> None:
    """What a monitor asks that only wants to know."""
    with running(Daemon().server()) as server:
        got, head = ask(server.port, "/metrics"), ask(server.port, "/metrics", "HEAD")
        whole = exchange(server.port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
        assert whole.endswith(b"\r\n\r\n")
    assert head.headers["Content-Length"] == got.headers["Content-Length"] == "14"


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/other"])
def test_every_answer_is_guarded_and_names_no_version(path: str) -> None:
    """Nothing is kept, guessed, framed or run by a browser; no product, no version for a scanner."""
    with running(Daemon().server()) as server:
        headers = ask(server.port, path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "Server" not in headers
    assert "ython" not in str(headers)


def test_a_large_body_of_a_refused_request_does_not_take_the_answer_with_it() -> None:
    """The client reads 405, not a reset connection."""
    with running(Daemon().server()) as server:
        assert ask(server.port, "/metrics", "POST", body=b"x" * 8_000_000).status == 405


@pytest.mark.parametrize(
    ("accept_encoding", "is_compressed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, br", False),
        ("identity", False),
    ],
)
def test_a_large_answer_is_compressed_for_who_asks(accept_encoding: str, is_compressed: bool) -> None:
    """And for nobody else; a small one never."""
    daemon = Daemon(body=b"streamer_y 1\n" * 1000)
    with running(daemon.server()) as server:
        response = ask(server.port, "/metrics", headers={"Accept-Encoding": accept_encoding})
        small = ask(server.port, "/-/healthy", headers={"Accept-Encoding": accept_encoding})
    assert response.headers.get("Content-Encoding") == ("gzip" if is_compressed else None)
    assert (gzip.decompress(response.body) if is_compressed else response.body) == daemon.body
    assert "Content-Encoding" not in small.headers


# --- Who asks ---


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9479", 200),
        ("localhost", 200),
        ("LOCALHOST:9479", 200),
        ("[::1]:9479", 200),
        ("192.0.2.7", 200),
        ("evil.example", 421),
        ("evil.example:9479", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("[::1].evil.example", 421),
        ("é", 421),
    ],
)
def test_on_loopback_a_web_page_cannot_read_it_under_its_own_name(host: str, status: int) -> None:
    """DNS rebinding: the browser connects to 127.0.0.1 and asks for evil.example."""
    with running(Daemon().server()) as server:
        assert ask(server.port, "/metrics", headers={"Host": host}).status == status


def test_on_a_network_any_name_may_be_asked_for() -> None:
    """In a container network Prometheus asks for `streamer:9479`, a name that the daemon does not know."""
    with running(Daemon().server(host="0.0.0.0")) as server:  # noqa: S104 - for the test's own client
        assert ask(server.port, "/metrics", headers={"Host": f"streamer:{server.port}"}).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("streamer:9479", 200), ("Streamer", 200), ("localhost", 200), ("10.0.0.5", 200), ("evil.example", 421)],
)
def test_on_a_network_a_server_that_knows_its_names_answers_to_no_other(host: str, status: int) -> None:
    """In a container it listens on all addresses, and its port is published on the loopback of browsers."""
    with running(Daemon().server(host="0.0.0.0", names=("STREAMER",))) as server:  # noqa: S104 - for the test's own client
        assert ask(server.port, "/metrics", headers={"Host": host}).status == status


def test_the_configured_host_is_a_name_of_its_own() -> None:
    """`http.host = "localhost"` listens on 127.0.0.1."""
    with running(Daemon().server(host="localhost")) as server:
        assert ask(server.port, "/metrics", headers={"Host": "localhost"}).status == 200


def test_a_client_without_a_host_header_is_no_browser() -> None:
    """An HTTP/1.0 probe is answered."""
    with running(Daemon().server()) as server:
        assert exchange(server.port, b"GET /-/healthy HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


# --- Life ---


def test_a_port_in_use_is_an_error_that_says_what_to_do() -> None:
    """Found, wanted, what to do; and the server can be started once the port is free."""
    server = Daemon().server()
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        server = Daemon().server(port=port)
        with pytest.raises(ServiceError, match=rf"port {port} on 127.0.0.1 is in use.*http.port to another port"):
            server.start()
        server.stop()
    with running(server):
        assert ask(port, "/-/healthy").status == 200


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 300])
def test_an_address_that_is_not_ours_is_an_error_that_says_what_to_do(host: str) -> None:
    """A typo in http.host."""
    with pytest.raises(ServiceError, match=r"no address of this machine.*http\.host"):
        Daemon().server(host=host).start()


def test_it_stops_at_once_with_clients_in_every_state_and_starts_again() -> None:
    """A stop waits for no client, frees the port and leaves no thread."""
    threads_before = threading.active_count()
    daemon = Daemon(body=b"x" * 50_000_000)
    server = daemon.server(port=free_port())
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            server.start()
            for request in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
                stack.enter_context(connect(server.port)).sendall(request)
            wait_until(lambda: threading.active_count() == threads_before + 4, 10, "every client to have a thread")
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 1
            assert threading.active_count() == threads_before
    server.stop()


def test_a_bug_in_the_renderer_is_answered_and_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets 500, `threading.excepthook` gets the exception, an OSError of ours too."""
    caught: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: caught.append(args.exc_type))

    def render(_: str) -> tuple[bytes, str]:
        raise FileNotFoundError

    server = Server(HOST, 0, render, lambda: (True, ""), lambda: (True, ""))
    with running(server):
        assert ask(server.port, "/metrics").status == 500
        assert ask(server.port, "/-/healthy").status == 200
    assert caught == [FileNotFoundError]


# --- Bad clients ---


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nname : value\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n folded: line\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\na: \x00\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 421),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 5_000 + b"\r\n", 431),
    ],
)
def test_a_malformed_or_endless_request_is_refused(request_bytes: bytes, status: int) -> None:
    """With the status that HTTP has for it."""
    with running(Daemon().server()) as server:
        assert exchange(server.port, request_bytes).split(b"\r\n")[0].split()[1] == str(status).encode()
        assert ask(server.port, "/-/healthy").status == 200


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_it(garbage_server: Server, garbage: bytes, is_complete: bool) -> None:
    """Whatever comes: an answer of HTTP or none, and the next client is served."""
    answer = exchange(garbage_server.port, garbage + (b"\r\n\r\n" if is_complete else b""))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert ask(garbage_server.port, "/-/healthy").status == 200


@pytest.fixture
def garbage_server() -> Iterator[Server]:
    with running(Daemon().server()) as server:
        yield server


def test_a_request_has_a_deadline_as_a_whole() -> None:
    """One byte now and then does not keep a connection: 408 when the time is over."""
    with running(Daemon().server(limits=Limits(request_seconds=0.3))) as server, connect(server.port) as client:
        client.settimeout(0.02)
        answer = b""
        sent = 0

        def answered() -> bool:
            nonlocal answer, sent
            with contextlib.suppress(TimeoutError):
                answer += client.recv(4096)
                return True
            client.sendall(b"G")
            sent += 1
            return False

        wait_until(answered, 5, "the server to lose patience")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert sent > 3


def test_an_answer_has_a_deadline_as_a_whole() -> None:
    """A client that does not read is closed, and its thread ends."""
    threads_before = threading.active_count()
    daemon = Daemon(body=b"x" * 20_000_000)
    limits = Limits(answer_seconds=0.2)
    with running(daemon.server(limits=limits)) as server, connect(server.port, receive_buffer=4096) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: daemon.accepts, 5, "the request to be read")
        wait_until(lambda: threading.active_count() == threads_before + 1, 5, "the thread to end")


def test_a_hundred_slow_clients_do_not_stall_a_scrape() -> None:
    """Half-open, a byte at a time, not reading the answer: whoever scrapes is answered within a second."""
    daemon = Daemon(body=b"streamer_y 1\n" * 500_000)
    threads_before = threading.active_count()
    with running(daemon.server()) as server, contextlib.ExitStack() as stack:
        clients = []
        for number in range(102):
            client = stack.enter_context(connect(server.port, receive_buffer=4096))
            client.sendall([b"", b"G", b"GET /metrics HTTP/1.1\r\n\r\n"][number % 3])
            clients.append(client)
        for _ in range(5):
            began = time.monotonic()
            assert ask(server.port, "/metrics").body == daemon.body
            assert ask(server.port, "/-/healthy").status == 200
            assert time.monotonic() - began < 1
            for client in clients[1::3]:
                with contextlib.suppress(ConnectionError):
                    client.sendall(b"E")
            assert threading.active_count() <= threads_before + 1 + Limits().threads


def test_the_oldest_connection_makes_room() -> None:
    """Not the newest: that one may be a scrape."""
    with running(Daemon().server(limits=Limits(connections=2))) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server.port)) for _ in range(3)]
        assert clients[0].recv(1) == b""
        for client in clients[:0:-1]:
            client.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


def test_threads_are_bounded_even_when_they_do_not_hear_that_they_made_room() -> None:
    """Clients that ask for what takes long, and ask again, get no more threads than the limit."""
    asked = threading.Semaphore(0)
    go_on = threading.Event()

    def is_ready() -> tuple[bool, str]:
        asked.release()
        return go_on.wait(10), ""

    limits = Limits(connections=1, threads=2)
    server = Server(HOST, 0, Daemon().render, lambda: (True, ""), is_ready, limits=limits)
    with running(server), contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(server.port)).sendall(b"GET /-/ready HTTP/1.1\r\n\r\n")
            assert asked.acquire(timeout=10)
        assert exchange(server.port, b"") == b""
        assert not asked.acquire(blocking=False)
        go_on.set()
        wait_until(lambda: ask_or_none(server.port) == HTTPStatus.OK, 10, "the threads to end")


def ask_or_none(port: int) -> int | None:
    """The status, or None where the connection is broken off."""
    with contextlib.suppress(ConnectionError):
        return ask(port, "/-/healthy").status
    return None


def test_without_file_descriptors_it_waits_and_then_serves() -> None:
    """A connection that cannot be accepted keeps no core busy, and is answered once it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running(Daemon().server()) as server, socket.socket() as silent, socket.socket() as client:
        with socket.socket() as probe:
            next_free = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
        try:
            silent.connect((HOST, server.port))  # has the descriptor that accept() took before it began to wait
            client.settimeout(0.4)
            client.connect((HOST, server.port))
            client.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
            busy = time.process_time()
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert time.process_time() - busy < 0.1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.settimeout(10)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


def test_answers_that_nobody_reads_do_not_fill_memory() -> None:
    """The oldest waiting answer makes room for the newest, which the one who reads gets whole."""
    daemon = Daemon(body=b"x" * 10_000_000)
    limits = Limits(waiting_bytes=25_000_000)
    with running(daemon.server(limits=limits)) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server.port, receive_buffer=4096)) for _ in range(6)]
        for number, client in enumerate(clients, 1):
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            wait_until(partial(daemon.was_asked, number), 10, "the answer to be made")
        wait_until(lambda: sum(one.waiting_bytes for one in server._open) <= 25_000_000, 10, "room to be made")
        assert ask(server.port, "/metrics").body == daemon.body

        def received(client: socket.socket) -> int:
            size = 0
            with contextlib.suppress(ConnectionError):
                while more := client.recv(1 << 20):
                    size += len(more)
            return size

        sizes = [received(client) for client in clients]
    assert all(size < len(daemon.body) for size in sizes[:4])
    assert sizes[5] > len(daemon.body)


# --- Scrapes at once ---


OPEN = "application/openmetrics-text"


class Scribe:
    """Writes when it may, and says how often, and whether two were at it at once."""

    def __init__(self) -> None:
        self.begun = self.at_it = self.most_at_it = 0
        self.may_end = threading.Event()

    def render(self, accept: str) -> tuple[bytes, str]:
        self.begun += 1
        self.at_it += 1
        self.most_at_it = max(self.most_at_it, self.at_it)
        number = self.begun
        assert self.may_end.wait(20)
        self.at_it -= 1
        return b"streamer_up %d %s\n" % (number, accept.encode()), "text/plain"

    def server(self, limits: Limits | None = None) -> Server:
        return Server(HOST, 0, self.render, lambda: (True, ""), lambda: (True, ""), limits=limits)


def scrape(port: int, stack: contextlib.ExitStack, *headers: str) -> socket.socket:
    client = stack.enter_context(connect(port))
    client.sendall("\r\n".join(["GET /metrics HTTP/1.1", *headers, "", ""]).encode())
    return client


def whole(client: socket.socket) -> bytes:
    answer = b""
    while more := client.recv(65_536):
        answer += more
    return answer


def test_scrapes_at_once_share_what_is_written_after_all_have_asked() -> None:
    """The one that is being written is news to who asked before, and the next is for all the others."""
    scribe = Scribe()
    with running(scribe.server()) as server, contextlib.ExitStack() as stack:
        first = scrape(server.port, stack)
        wait_until(lambda: scribe.begun == 1, 10, "the first")
        others = [scrape(server.port, stack) for _ in range(10)]
        wait_until(lambda: server._scrapes._asking == 11, 10, "the others")
        scribe.may_end.set()
        assert whole(first).endswith(b"streamer_up 1 \n")
        assert all(whole(other).endswith(b"streamer_up 2 \n") for other in others)
    assert (scribe.begun, scribe.most_at_it) == (2, 1)


def test_each_gets_the_format_that_it_asked_for() -> None:
    """Those who ask for another share another, and none is written beside one that is being written."""
    scribe = Scribe()
    with running(scribe.server()) as server, contextlib.ExitStack() as stack:
        first = scrape(server.port, stack)
        wait_until(lambda: scribe.begun == 1, 10, "the first")
        pairs = [(scrape(server.port, stack, f"Accept: {kind}"), kind) for kind in ("*/*", OPEN, "*/*", OPEN)]
        wait_until(lambda: server._scrapes._asking == 5, 10, "the others")
        scribe.may_end.set()
        assert b"200 OK" in whole(first)
        for client, kind in pairs:
            assert whole(client).endswith(f" {kind}\n".encode())
    assert (scribe.begun, scribe.most_at_it) == (3, 1)


def test_too_many_scrapes_are_told_to_come_again() -> None:
    """Health is answered meanwhile, and so is the next scrape once the others are done."""
    scribe = Scribe()
    with running(scribe.server(Limits(scrapes=4))) as server, contextlib.ExitStack() as stack:
        first = scrape(server.port, stack)
        wait_until(lambda: scribe.begun == 1, 10, "the first")
        some = [scrape(server.port, stack, f"Accept: {number}") for number in range(3)]
        wait_until(lambda: server._scrapes._asking == 4, 10, "the others")
        refused = whole(scrape(server.port, stack, f"Accept: {OPEN}"))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in refused
        assert ask(server.port, "/-/healthy").status == 200
        scribe.may_end.set()
        assert all(whole(each).startswith(b"HTTP/1.1 200 ") for each in [first, *some])
        assert scribe.begun == 2  # who asks for one format in many ways shares one text
        assert whole(scrape(server.port, stack)).startswith(b"HTTP/1.1 200 ")


def test_a_storm_of_scrapes_is_answered() -> None:
    """A hundred clients: each has a whole text or is told to come again, by far fewer renderings than there are."""
    scribe = Scribe()
    scribe.may_end.set()
    found: list[int] = []

    def one() -> None:
        with contextlib.suppress(OSError):  # it made room for a newer one
            found.append(ask(server.port, "/metrics").status)

    with running(scribe.server()) as server:
        threads = [threading.Thread(target=one) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert ask(server.port, "/metrics").status == 200
    assert set(found) <= {200, 503}
    assert found.count(200) >= 1
    assert scribe.most_at_it == 1


# --- The page: other paths, and answers that go on ---


@dataclass
class PageStub:
    """Two paths; the stream goes on with whatever is put into `said`."""

    said: list[bytes] = field(default_factory=lambda: [b"data: 1\n\n"])
    asked: list[Request] = field(default_factory=list)

    def answer(self, request: Request) -> Answer | Stream | None:
        self.asked.append(request)
        if request.path == "/":
            return Answer(HTTPStatus.OK, b"<p>", "text/html", (("Content-Security-Policy", "default-src 'self'"),))
        return Stream(lambda: iter(self.said), "text/event-stream", 0.05) if request.path == "/follow" else None

    def server(self, **options: object) -> Server:
        daemon = Daemon()
        return Server(HOST, 0, daemon.render, lambda: daemon.healthy, lambda: daemon.ready, page=self.answer, **options)  # type: ignore[arg-type]  # tls, password, limits


FOLLOW = b"GET /follow HTTP/1.1\r\n\r\n"


def begins(client: socket.socket) -> bytes:
    """What has come once the first piece is there."""
    answer = b""
    while b"data: 1" not in answer:
        answer += client.recv(4096)
    return answer


def test_the_page_gets_what_nobody_else_answers_and_may_set_its_own_policy() -> None:
    """Path and query undecoded; its header replaces the server's, the others stay."""
    page = PageStub()
    with running(page.server()) as server:
        found = ask(server.port, "/?a=%20b")
        assert ask(server.port, "/%2e%2e/etc").status == 404
        assert ask(server.port, "/", "POST").status == 405
        assert ask(server.port, "/metrics").status == 200
    assert [(each.path, each.query) for each in page.asked] == [("/", "a=%20b"), ("/%2e%2e/etc", "")]
    assert found.headers.get_all("Content-Security-Policy") == ["default-src 'self'"]
    assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_a_stream_goes_on_and_leaves_the_places_of_others_alone() -> None:
    """Though it is the oldest connection, it makes no room; what is said later comes later."""
    page = PageStub()
    with running(page.server(limits=Limits(connections=2))) as server, connect(server.port) as client:
        client.sendall(FOLLOW)
        head = begins(client)
        for _ in range(5):
            assert ask(server.port, "/-/healthy").status == 200
        page.said = [b"data: ", b"2\n\n"]
        while b"data: 2" not in (more := client.recv(4096)):
            assert more
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/event-stream\r\n" in head
    assert b"Content-Length" not in head


def test_streams_are_bounded_and_a_place_is_free_when_a_page_is_closed() -> None:
    """The next one hears why; a client that goes away is noticed with the next piece."""
    threads_before = threading.active_count()
    with running(PageStub().server(limits=Limits(streams=2))) as server:
        with connect(server.port) as one, connect(server.port) as two:
            for client in (one, two):
                client.sendall(FOLLOW)
                begins(client)
            assert ask(server.port, "/follow").status == 503
            assert ask(server.port, "/follow", "POST").status == 405
        wait_until(lambda: threading.active_count() <= threads_before + 1, 10, "the places to be free")
        with connect(server.port) as client:
            client.sendall(FOLLOW)
            begins(client)


def test_head_of_a_stream_ends() -> None:
    """It has no body."""
    with running(PageStub().server()) as server:
        assert exchange(server.port, b"HEAD /follow HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


def test_who_does_not_read_a_stream_is_dropped() -> None:
    """And costs nothing any more."""
    threads_before = threading.active_count()
    page = PageStub([b"data: 1\n\n" * 1_000_000])
    limits = Limits(piece_seconds=0.2)
    with running(page.server(limits=limits)) as server, connect(server.port, receive_buffer=4096) as client:
        client.sendall(FOLLOW)
        wait_until(lambda: page.asked, 5, "the request to be read")
        wait_until(lambda: threading.active_count() <= threads_before + 1, 5, "the thread to end")


def test_a_stop_waits_for_no_stream() -> None:
    """Nor for the pause between two pieces."""
    threads_before = threading.active_count()
    server = PageStub().server()
    server.start()
    with connect(server.port) as client:
        client.sendall(FOLLOW)
        begins(client)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 0.4
    assert threading.active_count() <= threads_before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Host": "evil.example"}, 421),
    ],
)
def test_other_sites_may_not_use_it(headers: dict[str, str], status: int) -> None:
    """Neither under their own name nor from their own pages; a link may lead here."""
    with running(PageStub().server()) as server:
        assert ask(server.port, "/", headers=headers).status == status


# --- Who may see it ---


def basic(text: str | bytes) -> dict[str, str]:
    raw = text.encode() if isinstance(text, str) else text
    return {"Authorization": f"Basic {base64.b64encode(raw).decode()}"}


@pytest.mark.parametrize(
    ("headers", "is_known"),
    [
        (basic("ann:s3:crët"), True),
        ({"Authorization": basic("ann:s3:crët")["Authorization"].replace("Basic", "bAsIc")}, True),
        ({}, False),
        (basic("ann:s3:cret"), False),
        (basic("ann:"), False),
        (basic("bob:s3:crët"), False),
        (basic(""), False),
        (basic(b"\xff\xfe"), False),
        ({"Authorization": "Basic"}, False),
        ({"Authorization": "Basic !!!"}, False),
        ({"Authorization": "Bearer " + basic("ann:s3:crët")["Authorization"][6:]}, False),
    ],
)
def test_a_password_is_asked_for_everything_but_health(
    headers: dict[str, str], is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page, its stream, /metrics, and what is not there; a probe has no password."""
    monkeypatch.setattr("streamer.http.WRONG_PASSWORD_SECONDS", 0.0)
    page = PageStub()
    with running(page.server(username="ann", password="s3:crët")) as server:  # noqa: S106 - the test's own
        for path, status in (("/", 200), ("/metrics", 200), ("/nothing", 404)):
            answer = ask(server.port, path, headers=headers)
            assert answer.status == (status if is_known else 401)
            assert is_known or answer.headers["WWW-Authenticate"] == 'Basic realm="streamer", charset="UTF-8"'
        assert ask(server.port, "/-/healthy", headers=headers).status == 200
        assert ask(server.port, "/-/ready", headers=headers).status == 503
    assert len(page.asked) == (2 if is_known else 0)


def test_a_guess_takes_its_time_but_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes late; who makes room does not go on holding a thread meanwhile."""
    guess = b"GET / HTTP/1.1\r\nAuthorization: Basic eDp5\r\n\r\n"
    limits = Limits(connections=2, threads=4)
    with running(PageStub().server(username="ann", password="x", limits=limits)) as server:  # noqa: S106 - a test's
        began = time.monotonic()
        assert exchange(server.port, guess).startswith(b"HTTP/1.1 401 ")
        assert time.monotonic() - began >= 0.4
        monkeypatch.setattr("streamer.http.WRONG_PASSWORD_SECONDS", 60.0)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(connect(server.port)).sendall(guess)
                wait_until(lambda: is_well(server.port), 10, "a thread for the health check")


def is_well(port: int) -> bool:
    """The server is healthy, and has a thread to say so: one that ends lets go of its own a moment later."""
    try:
        return ask(port, "/-/healthy").status == 200
    except ConnectionError:
        return False


def test_a_new_password_takes_the_place_of_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGHUP brings it; none at all opens the page."""
    monkeypatch.setattr("streamer.http.WRONG_PASSWORD_SECONDS", 0.0)
    with running(PageStub().server(username="ann", password="old")) as server:  # noqa: S106 - the test's own
        server.set_password("new")
        assert ask(server.port, "/", headers=basic("ann:old")).status == 401
        assert ask(server.port, "/", headers=basic("ann:new")).status == 200
        server.set_password("")
        assert ask(server.port, "/").status == 200


@pytest.mark.parametrize("before", ["old", ""])
def test_a_new_password_ends_what_was_followed_under_the_old_one(before: str) -> None:
    """Also one that was followed without any; the same one again ends nothing."""
    head = "".join(f"{name}: {value}\r\n" for name, value in basic(f"ann:{before}").items()).encode()
    with running(PageStub().server(username="ann", password=before)) as server, connect(server.port) as client:
        client.sendall(FOLLOW.replace(b"\r\n\r\n", b"\r\n" + head + b"\r\n"))
        begins(client)
        server.set_password(before)
        for _ in range(5):
            assert client.recv(4096)
        server.set_password("new")
        wait_until(lambda: not server._streams, 10, "the end of the stream")
        while client.recv(4096):
            pass


# --- TLS ---


def test_over_tls_it_serves_and_streams_and_stops_with_clients_in_every_state(certificates: Certificates) -> None:
    """A verified connection; one that never speaks, one that speaks plainly, one that leaves in the middle."""
    threads_before = threading.active_count()
    client_side = ssl.create_default_context(cafile=str(certificates.ca))
    tls = tls_context(str(certificates.server_cert), str(certificates.server_key))
    page = PageStub()
    server = page.server(tls=tls)
    with contextlib.ExitStack() as stack:
        server.start()
        stack.enter_context(connect(server.port))
        stack.enter_context(connect(server.port)).sendall(b"\x16\x03\x01")
        with contextlib.suppress(ConnectionError), connect(server.port) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert not plain.recv(4096).startswith(b"HTTP/")
        with contextlib.closing(
            http.client.HTTPSConnection(HOST, server.port, timeout=10, context=client_side)
        ) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"<p>"
        encrypted = client_side.wrap_socket(stack.enter_context(connect(server.port)), server_hostname=HOST)
        encrypted.sendall(FOLLOW)
        begins(encrypted)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1
        encrypted.close()
    wait_until(lambda: threading.active_count() <= threads_before, 5, "every thread to end")


def test_over_tls_too_who_is_slow_is_dropped(certificates: Certificates) -> None:
    """A handshake that does not come, an answer that is not read: each has its time as a whole."""
    threads_before = threading.active_count()
    client_side = ssl.create_default_context(cafile=str(certificates.ca))
    tls = tls_context(str(certificates.server_cert), str(certificates.server_key))
    page = PageStub([b"data: 1\n\n" * 1_000_000])
    limits = Limits(request_seconds=0.3, piece_seconds=0.3)
    with running(page.server(tls=tls, limits=limits)) as server, connect(server.port) as silent:
        silent.sendall(b"\x16\x03\x01")
        with client_side.wrap_socket(connect(server.port, receive_buffer=4096), server_hostname=HOST) as client:
            client.sendall(FOLLOW)
            wait_until(lambda: page.asked, 5, "the request to be read")
            wait_until(lambda: threading.active_count() <= threads_before + 1, 5, "both threads to end")


def test_a_certificate_that_cannot_be_used_is_an_error_that_says_what_to_do(
    certificates: Certificates, tmp_path: Path
) -> None:
    """No certificate, or another's key: refused before anything starts."""
    (tmp_path / "nothing.pem").write_text("nothing")
    for cert, key in (
        (tmp_path / "nothing.pem", certificates.server_key),
        (certificates.server_cert, certificates.client_key),
    ):
        with pytest.raises(ServiceError, match=r"http\.tls\.cert_file.*expected a certificate with its chain"):
            tls_context(str(cert), str(key))


# --- Prometheus itself ---


@pytest.mark.server("prometheus")
def test_prometheus_scrapes_it(prometheus: StartPrometheus) -> None:
    """The real server, with its own parser and compression, over hostile series names: up, and every series there."""
    metrics = Metrics(
        "1.2.3", 1.7e9, {"messages_rejected_total": ("no_number",), "readings_rejected_total": ("future",)}
    )
    metrics.received(41, 0)
    column = np.array([row + 0.5 for row in range(len(HOSTILE))])
    metrics.watch_series(lambda: SeriesTable(HOSTILE, column, column, column, column, column))
    metrics.show_series("all", 1)
    server = Server(HOST, 0, metrics.render, lambda: (True, ""), lambda: (True, ""))
    with running(server):
        started = prometheus(target_port=server.port)
        wait_until(lambda: started.query("up == 1"), 20, f"the first scrape; {started.log()}")
        assert [sample.value for sample in started.query("streamer_messages_received_total")] == [41]
        found = started.query("streamer_y")
        assert sorted(sample.value for sample in found) == column.tolist()
        assert (
            started.query('streamer_yhat{topic="braces{topic=\\"a\\"} 1"}')[0].value == HOSTILE.index(HOSTILE[8]) + 0.5
        )
        assert started.query("scrape_samples_scraped == scrape_samples_post_metric_relabeling")
        assert started.query("scrape_samples_scraped")[0].value > 5 * len(HOSTILE)
