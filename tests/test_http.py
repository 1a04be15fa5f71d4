"""The HTTP server: three paths, two methods, and nobody who can stall it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamer.errors import ServiceError
from streamer.exposition import SeriesTable
from streamer.http import Limits, Server
from streamer.metrics import Metrics
from tests.conftest import StartPrometheus
from tests.servers import HOST, free_port
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

    def server(self, host: str = HOST, port: int = 0, limits: Limits | None = None) -> Server:
        return Server(host, port, self.render, lambda: self.healthy, lambda: self.ready, limits=limits)


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

    def render(_: str) -> tuple[bytes, str]:
        asked.release()
        assert go_on.wait(10)
        return b"streamer_up 1\n", "text/plain"

    limits = Limits(connections=1, threads=2)
    server = Server(HOST, 0, render, lambda: (True, ""), lambda: (True, ""), limits=limits)
    with running(server), contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(server.port)).sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
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
