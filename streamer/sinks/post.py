"""One POST to one address, within a time that holds for the whole of it. RFC 9110.

By http.client of the standard library, which follows no redirect and asks no environment for a proxy: a library that
does more would have to be told to do less, and the daemon has one dependency less to keep. What http.client lacks is an
end to the waiting: its time-out is one of each read, so that a server that sends a byte a second never meets it. Here
the socket is shut when the time is up, and whoever reads it finds its end.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from streamer.wire import tls_context


class Answer(NamedTuple):
    """What the server has said; its body is not read."""

    status: int
    retry_after_seconds: float | None
    """None where it does not say"""


class PostError(Exception):
    """There is no answer; the text says why, for a person."""


class Poster:
    """Posts from one thread; `abort` is for any."""

    def __init__(self, url: str, *, ca_file: str, timeout_seconds: float, now: Callable[[], float] = time.time) -> None:
        """`url` is as the settings let it through. Raises ServiceError for a `ca_file` that cannot be used."""
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._netloc = parts.netloc
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._tls = tls_context(ca_file, setting="webhook") if parts.scheme == "https" else None
        self._timeout_seconds = timeout_seconds
        self._now = now
        self._lock = threading.Lock()
        self._open: socket.socket | None = None
        self._is_aborted = False
        self.origin = f"{parts.scheme}://{parts.netloc}"
        """without the path, which may be a secret"""

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Sends the body, and gives the answer. Raises PostError.

        To connect may take as long again for each further address of the host's name.
        """
        is_late = threading.Event()

        def cut() -> None:
            is_late.set()
            self._shut()

        begun_at = time.monotonic()
        timer: threading.Timer | None = None
        try:
            with contextlib.closing(http.client.HTTPConnection(self._host, self._port)) as connection:
                connection.sock = self._connect()
                timer = threading.Timer(max(begun_at + self._timeout_seconds - time.monotonic(), 0.0), cut)
                timer.daemon = True
                timer.start()
                if isinstance(connection.sock, ssl.SSLSocket):
                    connection.sock.do_handshake()
                connection.request("POST", self._target, body, {"Host": self._netloc, **headers})
                response = connection.getresponse()
                if is_late.is_set() or self._is_aborted:  # an end among the headers is none to http.client
                    raise TimeoutError
                return Answer(response.status, self._retry_after(response.getheader("Retry-After")))
        except (OSError, http.client.HTTPException, ValueError, UnicodeError) as error:
            if is_late.is_set() or isinstance(error, TimeoutError):
                raise PostError(f"no answer within {self._timeout_seconds:g} s") from error
            raise PostError(_in_words(error)) from error
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._open = None

    def abort(self) -> None:
        """Ends what is going on, and what would."""
        self._is_aborted = True
        self._shut()

    def _connect(self) -> socket.socket:
        """A socket that `abort` can shut, TLS not yet agreed upon."""
        sock = socket.create_connection((self._host, self._port), self._timeout_seconds)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self._host, do_handshake_on_connect=False)
        with self._lock:
            self._open = sock
        if self._is_aborted:
            self._shut()
        return sock

    def _shut(self) -> None:
        with self._lock:
            if self._open is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._open, socket.SHUT_RDWR)  # not TLS' own, which is for its own thread

    def _retry_after(self, text: str | None) -> float | None:
        """Seconds or a date (section 10.2.3); None for what is neither."""
        if text is None:
            return None
        if text.strip().isdecimal():
            return float(text) if len(text) < 10 else None
        try:
            return max(parsedate_to_datetime(text).timestamp() - self._now(), 0.0)
        except (ValueError, OverflowError, TypeError):
            return None


def _in_words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return "it closed the connection without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"its answer is not HTTP ({type(error).__name__})"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
