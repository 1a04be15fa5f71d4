"""The bytes between us and the broker: TCP, TLS, and a socket for the client library that we can read past.

Knows nothing of MQTT. One thread uses a wire at a time.
"""

from __future__ import annotations

import socket
import ssl

from streamer.errors import ServiceError

READ_BYTES = 262_144  # one read; larger ones bring nothing (measured)


class HandshakeError(OSError):
    """The other side took the connection, and then ended it or was silent instead of speaking TLS; `__cause__` says."""


def tls_context(
    ca_file: str = "", cert_file: str = "", key_file: str = "", *, setting: str = "mqtt.tls"
) -> ssl.SSLContext:
    """Verification of the other side's certificate and name, with a certificate of our own where one is given.

    Raises ServiceError for a file that cannot be read or is not what it should be. An empty `ca_file` means the
    authorities that this machine trusts.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ServiceError(
                f"{setting}.ca_file: {ca_file} cannot be used: {in_words(error)}; expected certificates in PEM form"
            ) from error
    else:
        context.load_default_certs()
    if cert_file:
        try:
            context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
        except OSError as error:
            raise ServiceError(
                f"{setting}.cert_file: {cert_file} with the key {key_file} cannot be used: {in_words(error)}; "
                "expected a certificate and its own private key, in PEM form, without a passphrase"
            ) from error
    return context


class Wire:
    """A connection with the methods of a socket that paho calls.

    Buffered, somebody else reads it by `read` and leaves to paho what is paho's: `recv` gives nothing else.
    """

    def __init__(self, sock: socket.socket, is_buffered: bool) -> None:
        self._sock = sock
        self._is_buffered = is_buffered
        self._rest = b""
        self._has_failed_to_send = False
        self.bytes_received = 0
        self.bytes_sent = 0
        self.is_closed = False
        self.is_drained = False
        """nothing more has come than what was read"""
        self.end: OSError | EOFError | None = None
        """what ended the stream, once it has ended; `close` is no such end"""

    def read(self) -> bytes:
        """All that has come, at most READ_BYTES and a TLS record; empty: the stream has ended, `end` says why.

        Raises BlockingIOError when nothing has come.
        """
        try:
            data = self._receive(READ_BYTES)
        except BlockingIOError:
            raise
        except OSError:
            return b""
        if not isinstance(self._sock, ssl.SSLSocket):
            return data
        records = [data]  # TLS gives one record at a time, 16 KiB at most
        size = len(data)
        while data and size < READ_BYTES:
            try:
                data = self._receive(READ_BYTES)
            except OSError:  # mostly BlockingIOError; an end is found again by the next read
                break
            records.append(data)
            size += len(data)
        return b"".join(records)

    def leave(self, data: bytes) -> None:
        """Let `recv` give these bytes."""
        self._rest += data

    @property
    def has_rest(self) -> bool:
        """True while `recv` has bytes to give."""
        return bool(self._rest)

    def has_pending(self) -> bool:
        """True if TLS holds bytes that no poll reports."""
        return isinstance(self._sock, ssl.SSLSocket) and not self.is_closed and self._sock.pending() > 0

    def _receive(self, size: int) -> bytes:
        try:
            data = self._sock.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            self.is_drained = True
            raise BlockingIOError from None
        except OSError as error:
            self.end = error
            raise
        self.is_drained = False
        if not data:
            self.end = EOFError()
        self.bytes_received += len(data)
        return data

    # --- What paho calls ---

    def recv(self, buffer_size: int) -> bytes:
        if not self._is_buffered:
            return self._receive(buffer_size)
        if self._rest:
            data, self._rest = self._rest[:buffer_size], self._rest[buffer_size:]
            return data
        if self.end is None:
            raise BlockingIOError
        return b""

    def send(self, buffer: bytes | bytearray) -> int:
        """Raises BlockingIOError while the socket takes no more, and once when it never will.

        The broker's last words, why it closes, may still wait to be read; they say more than a broken pipe.
        """
        try:
            sent = self._sock.send(buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except BlockingIOError:
            raise
        except OSError as error:
            if self._has_failed_to_send:
                self.end = self.end or error
                raise
            self._has_failed_to_send = True
            raise BlockingIOError from error
        self.bytes_sent += sent
        return sent

    def close(self) -> None:
        self.is_closed = True
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)


def connect(host: str, port: int, timeout_seconds: float, tls: ssl.SSLContext | None, is_buffered: bool) -> Wire:
    """Connect, with the handshake of TLS where it is asked for.

    Raises OSError, of which HandshakeError is one, and UnicodeError for a host name that no DNS can hold.
    """
    raw = socket.create_connection((host, port), timeout=timeout_seconds)
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else acknowledgements wait for the broker's own
        return Wire(raw if tls is None else tls.wrap_socket(raw, server_hostname=host), is_buffered)
    except (ConnectionError, TimeoutError, ssl.SSLEOFError) as error:
        raw.close()
        raise HandshakeError(in_words(error)) from error
    except BaseException:
        raw.close()
        raise


def in_words(error: OSError | EOFError | UnicodeError) -> str:
    """The system's words for an error, without its number."""
    if isinstance(error, ssl.SSLError):
        reason: str | None = getattr(error, "reason", None)  # absent where Python raises it, not OpenSSL
        return reason.replace("_", " ").lower() if reason else str(error)
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _no_passphrase() -> str:
    """Keeps OpenSSL from asking for one on the terminal."""
    return ""
