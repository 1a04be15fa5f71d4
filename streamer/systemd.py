"""What the service manager is told: sd_notify(3), lines of text to the datagram socket that $NOTIFY_SOCKET names.

Nothing is said where there is no such socket. Nothing here blocks or raises: a message that cannot be sent is tried
again with the next one.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0  # for the broker, once the state is restored: a boot must not wait for what may never come
EXTENSION_SECONDS = 120.0  # a start may take so long after the last sign that it goes on; more than the patience
SIGN_SECONDS = 5.0  # between two such signs
STATUS_SECONDS = 10.0
LONGEST_STATUS = 500  # characters; a message of more than 4 KiB is not read


class ServiceManager:
    """Whoever has started the daemon and looks after it. For one thread."""

    def __init__(self, notify_socket: str, monotonic: Callable[[], float]) -> None:
        """`notify_socket`: a path, or with `@` a name of the abstract kind; anything else, and empty: there is none."""
        self._monotonic = monotonic
        self._socket: socket.socket | None = None
        self._address = f"\0{notify_socket[1:]}" if notify_socket.startswith("@") else notify_socket
        if notify_socket.startswith(("@", "/")):
            with contextlib.suppress(OSError):
                # Kept open: a lack of descriptors must not look like a lack of progress.
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
        self._sign_at = -SIGN_SECONDS
        self._status_at: float | None = None
        self._waits_since: float | None = None
        self._fed: float | None = None  # the progress of the last WATCHDOG
        self._was_subscribed = False
        self._is_ready = False
        self._owes_ready = False

    def starting(self, status: str) -> None:
        """The start goes on, and may take more time than the unit file gives it. Call as often as it is so."""
        now = self._monotonic()
        if now - self._sign_at >= SIGN_SECONDS and self._send(_extension(), _status(status)):
            self._sign_at = now

    def tick(self, progress: float, is_subscribed: bool, status: Callable[[], str]) -> None:
        """About once a second, when the state is restored: READY, WATCHDOG and STATUS as they are due.

        `progress` is any number that stands still when the daemon's work does. READY waits for the subscription, but
        not for ever.
        """
        now, lines = self._monotonic(), list[str]()
        if self._waits_since is None:
            self._waits_since = now
            lines.append(_extension())
        if not self._is_ready:
            self._owes_ready = is_subscribed or now - self._waits_since >= PATIENCE_SECONDS
        if self._owes_ready:
            lines.append("READY=1")
        if progress != self._fed:
            lines.append("WATCHDOG=1")
        is_news = self._owes_ready or is_subscribed != self._was_subscribed
        if is_news or self._status_at is None or now - self._status_at >= STATUS_SECONDS:
            lines.append(_status(status()))
            self._status_at = now
        if lines and self._send(*lines):
            self._fed, self._was_subscribed = progress, is_subscribed
            self._is_ready = self._is_ready or self._owes_ready
            self._owes_ready = False

    def reloading(self) -> None:
        """The settings are read anew; the next `tick` says that it is done. Nothing before READY."""
        if self._is_ready:
            now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}")
            self._owes_ready = True

    def stopping(self, status: str) -> None:
        """The end begins."""
        self._send("STOPPING=1", _status(status))

    def close(self) -> None:
        """Nothing more is said."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:  # nobody reads, or nobody is there
            return False
        return True


def _extension() -> str:
    return f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1e6:.0f}"


def _status(text: str) -> str:
    """One line, whatever a broker has said."""
    return "STATUS=" + "".join(each if each.isprintable() else " " for each in text[:LONGEST_STATUS])
