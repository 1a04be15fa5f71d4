"""The server of /metrics, /-/healthy, /-/ready and the page: GET and HEAD, nothing else, and nobody can stall it.

A thread a connection, one answer a connection. A request has a deadline as a whole, however slowly its bytes come, and
so has the reading of the answer. When the connections, or the answers that wait to be read, become too many, the oldest
makes room: a scrape takes milliseconds, so it is never the oldest, and a client that holds a place on purpose is.
Streams go on for as long as a page is open, and have places of their own: with all of them taken, the next is refused.
Scrapes that come at the same time share one text: to write one of 100,000 series takes the interpreter from the engine.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import gzip
import hashlib
import hmac
import ipaddress
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus

from streamer.answers import Answer, Headers, Request, Stream
from streamer.errors import ServiceError
from streamer.metrics import wants_openmetrics
from streamer.sharing import Shared

STOP_SECONDS = 0.5
BACKLOG = 128
GZIP_FROM_BYTES = 1024
SEND_BYTES = 262_144
SCRAPE_AGAIN_SECONDS = 1  # 100,000 series take about half of it
WRONG_PASSWORD_SECONDS = 0.5  # before it is said: a guess more takes so long

HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer; there is no `Server`: the version is in /metrics for those who may see it."""
_REQUEST_LINE = re.compile(r"([!-~]+) ([!-~]+) HTTP/1\.[01]")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
"""RFC 9110, section 5.6.2 (token) and 5.5"""
_HOST_PORT = re.compile(r":[0-9]*\Z")

Render = Callable[[str], tuple[bytes, str]]
"""From an Accept header to a body and its content type."""
Check = Callable[[], tuple[bool, str]]
"""Whether all is well, and a sentence for people."""
Page = Callable[[Request], Answer | Stream | None]
"""Everything else; None: there is no such thing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take, all of them together."""

    connections: int = 32
    threads: int = 80
    """of streams too; one whose connection made room may still be busy with its answer"""
    streams: int = 16
    scrapes: int = 16
    """that wait for their text"""
    waiting_bytes: int = 256 * 2**20
    """of answers that wait to be read; one with 100,000 series has about 60 MiB"""
    head_bytes: int = 8192
    request_seconds: float = 5.0
    answer_seconds: float = 30.0
    piece_seconds: float = 10.0
    """of a stream: who has not taken one by then is too slow"""
    farewell_seconds: float = 1.0
    """how long the client has to close"""


class RefusedError(Exception):
    """A request that is not read to its end, or cannot be; `status` is the answer."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class GoneError(Exception):
    """The client has closed, was too slow, or was closed to make room: nobody is left to answer."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One that is open; the thread that serves it closes it."""

    socket: socket.socket
    waiting_bytes: int = 0
    """of an answer that the client has not yet read"""

    def break_off(self) -> None:
        """End it from another thread: what waits for the client wakes with an error."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # that of a TLS socket would be no other thread's


class Server:
    """Listens from `start` to `stop`."""

    def __init__(
        self,
        host: str,
        port: int,
        render: Render,
        is_healthy: Check,
        is_ready: Check,
        *,
        names: Collection[str] = (),
        page: Page | None = None,
        tls: ssl.SSLContext | None = None,
        username: str = "",
        password: str = "",
        limits: Limits | None = None,
    ) -> None:
        """Port 0 takes a free one. The callables are called by many threads at once. `names` are those of the server.

        With a password whoever asks for more than the health checks has to say it and the user name.
        """
        self._host = host
        self._port = port
        self._render = render
        self._checks = {"/-/healthy": is_healthy, "/-/ready": is_ready}
        self._names = {"localhost", host.lower(), *(name.lower() for name in names)}
        self._is_known_by_names = bool(names)
        self._page = page
        self._tls = tls
        self._username = username
        self._wanted: bytes | None = None
        """digest of user name and password; None: whoever comes is answered"""
        self.set_password(password)
        self._limits = limits or Limits()
        self._scrapes = Shared[Answer](self._limits.scrapes)
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: list[_Connection] = []  # oldest first
        self._streams: list[_Connection] = []  # no longer among the open
        self._threads: set[threading.Thread] = set()
        self._accepting: threading.Thread | None = None
        self._own_names: set[str] | None = None

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return self._port

    def set_password(self, password: str) -> None:
        """From now on, also for streams that go on; empty: none."""
        self._wanted = _digest(f"{self._username}:{password}".encode()) if password else None

    # --- Life ---

    def start(self) -> None:
        """Raises ServiceError when the address cannot be had."""
        self._listener = _listen(self._host, self._port)
        self._port = self._listener.getsockname()[1]
        self._stopping.clear()
        is_private = ipaddress.ip_address(self._listener.getsockname()[0]).is_loopback
        self._own_names = self._names if is_private or self._is_known_by_names else None
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), name="http", daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Closes every connection and waits for the threads; does nothing on a server that does not run."""
        if self._listener is None or self._accepting is None:
            return
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() would not
        with self._lock:
            for connection in (*self._open, *self._streams):
                connection.break_off()
            threads = [self._accepting, *self._threads]
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        self._listener = None

    # --- Connections ---

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                accepted, _ = listener.accept()
            except OSError:
                # Out of file descriptors, most likely: the connection stays in the backlog and would wake us at once.
                self._stopping.wait(0.1)
            else:
                self._admit(_Connection(accepted))

    def _admit(self, connection: _Connection) -> None:
        """Serve it in a thread of its own; the oldest makes room."""
        thread = threading.Thread(target=self._serve, args=(connection,), name="http-answer", daemon=True)
        with self._lock:
            if self._stopping.is_set() or len(self._threads) >= self._limits.threads:
                connection.socket.close()
                return
            while len(self._open) >= self._limits.connections:
                self._open.pop(0).break_off()
            self._open.append(connection)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            self._leave(connection, thread)

    def _serve(self, connection: _Connection) -> None:
        try:
            if self._tls is not None:
                self._encrypt(connection, self._tls)
            self._converse(connection)
            _say_farewell(connection.socket, self._limits.farewell_seconds)
        except GoneError:
            pass
        finally:
            self._leave(connection, threading.current_thread())

    def _leave(self, connection: _Connection, thread: threading.Thread) -> None:
        connection.socket.close()
        with self._lock:
            for places in (self._open, self._streams):
                if connection in places:
                    places.remove(connection)
            self._threads.discard(thread)

    def _make_room(self, connection: _Connection, size_bytes: int) -> None:
        """Count an answer that is about to be sent; the oldest that are still being read make room for it."""
        with self._lock:
            connection.waiting_bytes = size_bytes
            waiting = [one for one in self._open if one.waiting_bytes and one is not connection]
            total = size_bytes + sum(one.waiting_bytes for one in waiting)
            while total > self._limits.waiting_bytes and waiting:
                oldest = waiting.pop(0)
                total -= oldest.waiting_bytes
                self._open.remove(oldest)
                oldest.break_off()

    def _encrypt(self, connection: _Connection, tls: ssl.SSLContext) -> None:
        """Shakes hands, within the time of a request."""
        try:
            # This detaches the socket from its object: who breaks the connection off needs the new one from here on.
            with self._lock:
                connection.socket = tls.wrap_socket(
                    connection.socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
                )
            connection.socket.settimeout(self._limits.request_seconds)
            if isinstance(connection.socket, ssl.SSLSocket):
                connection.socket.do_handshake()
        except (OSError, ValueError) as error:  # ValueError: it was closed at this very moment
            raise GoneError from error

    def _take_stream_place(self, connection: _Connection) -> bool:
        """A page that is open would always be the oldest; False: there is no place left."""
        with self._lock:
            if len(self._streams) >= self._limits.streams or connection not in self._open:
                return False
            self._open.remove(connection)
            self._streams.append(connection)
            return True

    # --- Requests ---

    def _converse(self, connection: _Connection) -> None:
        is_head, wanted = False, self._wanted
        answer: Answer | Stream
        try:
            request = _read(connection.socket, self._limits)
            is_head = request.method == "HEAD"
            answer = self._answer(request)
        except GoneError:
            raise
        except RefusedError as refusal:
            answer = Answer(refusal.status, f"{refusal}\n".encode())
        except Exception:  # our bug: the client is told, and it goes on up to end this thread loudly
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"This is a bug; the log tells more.\n")
            with contextlib.suppress(GoneError):
                _send(connection.socket, answer, is_head, self._limits.answer_seconds)
            raise
        if isinstance(answer, Stream):
            if self._take_stream_place(connection):
                self._send_stream(connection, answer, is_head, wanted)
                return
            answer = Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"All places of open pages are taken.\n")
        if answer.status is HTTPStatus.UNAUTHORIZED:
            _pause(connection.socket, WRONG_PASSWORD_SECONDS)
        self._make_room(connection, len(answer.body))
        _send(connection.socket, answer, is_head, self._limits.answer_seconds)
        connection.waiting_bytes = 0

    def _send_stream(self, connection: _Connection, stream: Stream, is_head: bool, wanted: bytes | None) -> None:
        """Until the client is gone or too slow, or the server stops, or wants another password than `wanted`."""
        head = _head(HTTPStatus.OK, {"Content-Type": stream.content_type}, stream.headers)
        _send_whole(connection.socket, head, self._limits.piece_seconds)
        while not is_head and not self._stopping.is_set() and self._wanted == wanted:
            for piece in stream.pieces():
                if self._wanted != wanted:
                    return
                _send_whole(connection.socket, piece, self._limits.piece_seconds)
            self._stopping.wait(stream.pause_seconds)

    def _answer(self, request: Request) -> Answer | Stream:
        self._require_own_name(request.headers.get("host", ""))
        path, is_check = request.path, request.path in self._checks
        if not is_check and not self._is_known(request.headers.get("authorization", "")):
            challenge = ("WWW-Authenticate", 'Basic realm="streamer", charset="UTF-8"')
            return Answer(HTTPStatus.UNAUTHORIZED, b"User name and password, please.\n", headers=(challenge,))
        if not is_check and path != "/metrics" and self._page is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "Here are /metrics, /-/healthy and /-/ready.")
        if request.method not in ("GET", "HEAD"):
            status = HTTPStatus.METHOD_NOT_ALLOWED
            return Answer(status, b"Only GET and HEAD.\n", headers=(("Allow", "GET, HEAD"),))
        if is_check:
            is_well, sentence = self._checks[path]()
            status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
            return Answer(status, f"{sentence}\n".encode(errors="replace"))
        if path == "/metrics" or self._page is None:
            return self._scrape(request)
        self._require_own_page(request)
        answer = self._page(request)
        if answer is None:
            raise RefusedError(
                HTTPStatus.NOT_FOUND,
                "Here are /, /api/{series,alarms,health,events}, /metrics, /-/healthy and /-/ready.",
            )
        return _compressed(answer, request) if isinstance(answer, Answer) else answer

    def _scrape(self, request: Request) -> Answer:
        accept = request.headers.get("accept", "")
        kind = f"{_accepts_gzip(request)} {wants_openmetrics(accept)}"  # however many ways there are to say so
        scraped = self._scrapes.get(kind, lambda: _compressed(Answer(HTTPStatus.OK, *self._render(accept)), request))
        if scraped is not None:
            return scraped
        again = (("Retry-After", str(SCRAPE_AGAIN_SECONDS)),)
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"Too many scrape at once.\n", headers=again)

    def _is_known(self, authorization: str) -> bool:
        """RFC 7617. Digests are compared, in constant time: neither content nor length can be measured."""
        if self._wanted is None:
            return True
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        return hmac.compare_digest(_digest(given), self._wanted)

    def _require_own_page(self, request: Request) -> None:
        """Another site's page could not read the answer, but it could take the places of those that may.

        Browsers say where a request comes from (https://www.w3.org/TR/fetch-metadata); a link may lead here.
        """
        site, mode = request.headers.get("sec-fetch-site", "none"), request.headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and mode != "navigate":
            raise RefusedError(HTTPStatus.FORBIDDEN, "This is for the server's own page.")

    def _require_own_name(self, host: str) -> None:
        """On loopback, or with names, a request must ask for an address, for localhost, or for a name of the settings.

        A web page can make a browser ask 127.0.0.1 under the page's own name (DNS rebinding), and then read the
        answer. Whoever listens on a network has names that we cannot know unless we are told.
        """
        name = _HOST_PORT.sub("", host.lower()).strip("[]")
        if self._own_names is None or not name or name in self._own_names:
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            reason = f"This server is not {name!r}: ask for its address, or add that name to http.names."
            raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, reason) from None


def tls_context(cert_file: str, key_file: str) -> ssl.SSLContext:
    """What a server needs to be asked by https. Raises ServiceError for files that are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except OSError as error:
        raise ServiceError(
            f"http.tls.cert_file: {cert_file} with the key {key_file} cannot be used: {error}; "
            "expected a certificate with its chain and its own private key, in PEM form, without a passphrase"
        ) from error
    return context


def _no_passphrase() -> str:
    """Else OpenSSL would ask at the terminal."""
    return ""


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # localhost: 127.0.0.1
        is_dual = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=is_dual)
    except (OSError, UnicodeError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.EADDRINUSE:
            found_and_wanted = f"port {port} on {host} is in use; the HTTP server wants it for itself"
            advice = "stop the program that has it, or set http.port to another port (0 takes a free one)"
        elif code == errno.EACCES:
            found_and_wanted = (
                f"port {port} on {host} is not allowed to this user; the HTTP server wants to listen there"
            )
            advice = "set http.port to a port from 1024 on"
        else:
            found_and_wanted = f"{host!r} is no address of this machine; the HTTP server wants one to listen on"
            advice = "set http.host to 127.0.0.1, to 0.0.0.0 for all addresses, or to one that `ip address` shows"
        raise ServiceError(f"{found_and_wanted}: {advice} ({error})") from error


def _read(client: socket.socket, limits: Limits) -> Request:
    """The head of a request; a body is left unread, no request here has a use for one."""
    deadline = time.monotonic() + limits.request_seconds
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) > limits.head_bytes:
            reason = f"The head of a request has at most {limits.head_bytes} bytes."
            raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)
        try:
            client.settimeout(max(deadline - time.monotonic(), 1e-6))  # 0 would mean not to wait at all
            more = client.recv(4096)
        except TimeoutError:
            reason = f"A request has {limits.request_seconds:g} s to come."
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, reason) from None
        except OSError as error:
            raise GoneError from error
        if not more:
            raise GoneError
        head += more
    line, *fields = head[: head.index(b"\r\n\r\n")].decode("latin-1").split("\r\n")
    asked = _REQUEST_LINE.fullmatch(line)
    if asked is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "The first line is not that of an HTTP/1 request.")
    headers: dict[str, str] = {}
    for header in fields:
        named = _FIELD.fullmatch(header)
        if named is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "A header has no name and colon.")
        name = named[1].lower()
        headers[name] = f"{headers[name]}, {named[2]}" if name in headers else named[2]
    path, _, query = asked[2].partition("?")
    return Request(asked[1], path, headers, query)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _compressed(answer: Answer, request: Request) -> Answer:
    """A large one, for who can read that."""
    if len(answer.body) < GZIP_FROM_BYTES or not _accepts_gzip(request):
        return answer
    body = gzip.compress(answer.body, compresslevel=1, mtime=0)
    return replace(answer, body=body, headers=(*answer.headers, ("Content-Encoding", "gzip")))


def _accepts_gzip(request: Request) -> bool:
    for coding in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = coding.replace(" ", "").partition(";")
        if name in ("gzip", "*"):
            return not re.fullmatch(r"q=0(\.0*)?", quality)
    return False


def _send(client: socket.socket, answer: Answer, is_head: bool, seconds: float) -> None:
    own = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
    _send_whole(client, _head(answer.status, own, answer.headers), seconds)
    if not is_head:
        _send_whole(client, answer.body, seconds)


def _head(status: HTTPStatus, own: dict[str, str], others: Headers) -> bytes:
    headers = {"Date": formatdate(usegmt=True), **own, **HEADERS, **dict(others)}
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _send_whole(client: socket.socket, data: bytes, seconds: float) -> None:
    """`seconds` are for all of it: `sendall` of a TLS socket would take so long for each record."""
    deadline, rest = time.monotonic() + seconds, memoryview(data)
    try:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # several writes, one of them perhaps huge
        while rest:
            client.settimeout(max(deadline - time.monotonic(), 1e-6))  # 0 would mean not to wait at all
            rest = rest[client.send(rest[:SEND_BYTES]) :]
    except OSError as error:
        raise GoneError from error


def _pause(client: socket.socket, seconds: float) -> None:
    """Less when the connection is over: who makes room must not go on holding a thread."""
    poll = select.poll()
    poll.register(client.fileno(), 0)  # its end is told without being asked for; more bytes are none
    poll.poll(seconds * 1000)


def _say_farewell(client: socket.socket, seconds: float) -> None:
    """Let the client close first: closing with bytes unread would reset the connection and take the answer with it."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError, ValueError):
        if isinstance(client, ssl.SSLSocket):
            client.settimeout(seconds)
            client = client.unwrap()
        client.shutdown(socket.SHUT_WR)
        while (rest_seconds := deadline - time.monotonic()) > 0:
            client.settimeout(rest_seconds)
            if not client.recv(65536):
                return
