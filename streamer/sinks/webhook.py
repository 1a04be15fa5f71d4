"""Alarm events to a web server: one POST an event, in their order, until the server has it.

    2xx                              delivered
    5xx, 408, 429, no answer         again, ever more seldom; the server may say when (Retry-After)
    everything else                  refused: given up, as nothing would be gained by asking again

What the server has not taken lies in a file of the state directory as well, from before the first attempt on: a run
that is killed leaves it to the next. So an event can come twice, with the same Idempotency-Key.

The signature is that of Standard Webhooks, https://www.standardwebhooks.com, for which many languages have a library.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec

from streamer.clock import Clock
from streamer.log import SparingLog, event
from streamer.metrics import Metrics
from streamer.readings import Alarm
from streamer.sinks.post import Answer, PostError

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 600.0  # a server that says more is asked all the same
MOST_BYTES = 4 << 20  # of events that wait; one has about 1 KB
KEEP_SECONDS = 1.0  # what was delivered is crossed out in the file no more often
AGAIN = (408, 429)
SIGNED_PREFIX = "whsec_"


class Posting(Protocol):
    """What a Poster can do."""

    origin: str

    def post(self, body: bytes, headers: dict[str, str], /) -> Answer: ...

    def abort(self) -> None: ...


class Waiting(msgspec.Struct, frozen=True):
    """An event that is to be delivered."""

    key: str
    """what it is known by: the alarm's id, the event, and for `updated` how many readings the alarm then had"""
    what: str
    """opened | updated | closed"""
    at: float
    """epoch seconds at which it happened, by the daemon's clock"""
    payload: bytes


class Webhook:
    """`put` is for any thread and never waits; the rest happens in a thread of its own."""

    def __init__(
        self,
        poster: Posting,
        *,
        instance: str,
        version: str,
        token: str,
        secret: str,
        most_events: int,
        retry_seconds: float,
        kept: bytes | None,
        keep: Callable[[bytes], None],
        metrics: Metrics,
        clock: Clock,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`kept` is what the last run gave to `keep`, which may raise OSError; `jitter` gives numbers in [0, 1)."""
        self._poster = poster
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"streamer/{version}",
            "Streamer-Instance": instance,
        }
        self._most_events = most_events
        self._retry_seconds = retry_seconds
        self._keep = keep
        self._metrics = metrics
        self._clock = clock
        self._first_pause_seconds = first_pause_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._jitter = jitter
        self._sparing = SparingLog(log, 60.0, clock.monotonic)
        self._bell = threading.Condition()
        self._queue: OrderedDict[int, Waiting] = OrderedDict()
        self._updates: OrderedDict[int, None] = OrderedDict()  # those that may go first where there is no room
        self._current: Waiting | None = None
        self._bytes = self._count = 0
        self._is_changed = False
        """the file does not say what waits"""
        self._kept_at = -float("inf")
        self._leave_by: float | None = None
        self._has_given_up = False
        self._thread: threading.Thread | None = None
        self.has_failed = False
        """a bug has ended the thread"""
        self.use(token, secret)
        for each in _events(kept):
            self._append(each)
        self._is_changed = False

    # --- For other threads ---

    def use(self, token: str, secret: str) -> None:
        """These from the next attempt on; empty: none."""
        self._token, self._secret = token, _key(secret)

    def put(self, what: str, alarm: Alarm, payload: bytes) -> None:
        """Something has become of an alarm: `payload` is the event as it is published."""
        key = f"{alarm.id}-{what}" + (f"-{alarm.readings}" if what == "updated" else "")
        with self._bell:
            self._append(Waiting(key, what, self._clock.now(), payload))
            self._bell.notify()

    def queued(self) -> int:
        """How many events wait, the one that is on its way included."""
        return len(self._queue) + (self._current is not None)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def leave(self, seconds: float) -> None:
        """Deliver what can be delivered within so long, and end; returns at once."""
        with self._bell:
            self._leave_by = self._clock.monotonic() + seconds
            self._bell.notify()

    def stop(self, grace_seconds: float = 0.3) -> bool:
        """Wait until the time that `leave` gave is over; False if something is left for the next run."""
        if self._thread is not None:
            left = (self._leave_by or 0.0) - self._clock.monotonic()
            self._thread.join(max(left, 0.0))
            if self._thread.is_alive():
                self._poster.abort()
                self._thread.join(grace_seconds)  # it hangs on a name look-up or a disk: it is a daemon thread
        return self.queued() == 0

    # --- The queue; under the bell ---

    def _append(self, new: Waiting) -> None:
        while self._queue and (self.queued() >= self._most_events or self._bytes + len(new.payload) > MOST_BYTES):
            number = next(iter(self._updates or self._queue))
            self._settle(self._take(number), "dropped", "there is no room for it: the server has taken none for long")
        self._count += 1
        self._queue[self._count] = new
        if new.what == "updated":
            self._updates[self._count] = None
        self._bytes += len(new.payload)
        self._is_changed = True

    def _take(self, number: int) -> Waiting:
        taken = self._queue.pop(number)
        self._updates.pop(number, None)
        self._bytes -= len(taken.payload)
        return taken

    def _settle(self, settled: Waiting, result: str, reason: str = "") -> None:
        """It has had its fate."""
        self._is_changed = True
        self._metrics.add("webhook_total", 1, result)
        if result != "delivered":
            self._sparing.event(
                logging.ERROR, "alarm event not delivered", per=result, result=result, id=settled.key, reason=reason,
                to=self._poster.origin,
            )  # fmt: skip

    # --- The thread ---

    def _run(self) -> None:
        try:
            self._deliver()
        except Exception:  # our bug: the process has to end, and `has_failed` says so
            log.exception("a bug has ended the thread of the webhook")
            self.has_failed = True

    def _deliver(self) -> None:
        failures = 0
        while (waiting := self._next()) is not None:
            self._keep_all()
            age_seconds = self._clock.now() - waiting.at
            pause, reason = None, f"it could not be delivered for {age_seconds / 3600:.1f} hours"
            result = "given_up" if age_seconds > self._retry_seconds else ""
            if not result:
                result, pause, reason = self._attempt(waiting)
            with self._bell:
                self._current = None
                if result:
                    self._settle(waiting, result, reason)
                else:
                    self._put_back(waiting)
            if result:
                if failures and result == "delivered":
                    event(log, logging.INFO, "the webhook delivers again", to=self._poster.origin)
                failures = 0
                self._keep_now_and_then()
                continue
            failures += 1
            self._pause(self._pause_seconds(failures, pause), reason)
        self._keep_all()

    def _next(self) -> Waiting | None:
        """The oldest event, when there is one; None if it is time to leave."""
        with self._bell:
            while not self._queue and self._leave_by is None:
                self._bell.wait()
            if not self._queue or self._is_over():
                return None
            self._current = self._take(next(iter(self._queue)))
            return self._current

    def _is_over(self) -> bool:
        return self._has_given_up or (self._leave_by is not None and self._clock.monotonic() >= self._leave_by)

    def _put_back(self, waiting: Waiting) -> None:
        """In front of all others."""
        self._count += 1
        self._queue[self._count] = waiting
        self._queue.move_to_end(self._count, last=False)
        if waiting.what == "updated":
            self._updates[self._count] = None
            self._updates.move_to_end(self._count, last=False)
        self._bytes += len(waiting.payload)

    def _attempt(self, waiting: Waiting) -> tuple[str, float | None, str]:
        """What has become of it, empty if it is to be tried again; when the server wants that; and why."""
        try:
            answer = self._poster.post(waiting.payload, self._headers_of(waiting))
        except PostError as error:
            return "", None, str(error)
        status = answer.status
        reason = f"it answered {status}"
        if 200 <= status < 300:
            return "delivered", None, ""
        if status >= 500 or status in AGAIN:
            return "", answer.retry_after_seconds, reason
        return "refused", None, reason + (", a redirect, which is not followed" if 300 <= status < 400 else "")

    def _headers_of(self, waiting: Waiting) -> dict[str, str]:
        headers = {**self._headers, "Idempotency-Key": f'"{waiting.key}"', "Streamer-Event": waiting.what}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._secret:
            at = str(int(self._clock.now()))
            headers["Webhook-Id"], headers["Webhook-Timestamp"] = waiting.key, at
            headers["Webhook-Signature"] = signature(self._secret, waiting.key, at, waiting.payload)
        return headers

    def _pause_seconds(self, failures: int, wanted_seconds: float | None) -> float:
        """Doubled with each failure, jittered down to the half; no less than the server wants, within reason."""
        doubled = self._first_pause_seconds * 2.0 ** min(failures - 1, 30)
        seconds = min(doubled, self._longest_pause_seconds) * (0.5 + 0.5 * self._jitter())
        return max(seconds, min(wanted_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS))

    def _pause(self, seconds: float, reason: str) -> None:
        """Until the next attempt; when it is time to leave there is no other."""
        self._sparing.event(
            logging.WARNING, "the webhook does not deliver", per=reason, reason=reason, to=self._poster.origin,
            next_attempt_seconds=round(seconds, 1), waiting=self.queued(),
        )  # fmt: skip
        until = self._clock.monotonic() + seconds
        with self._bell:
            while self._leave_by is None and (rest_seconds := until - self._clock.monotonic()) > 0:
                self._bell.wait(rest_seconds)
            self._has_given_up = self._leave_by is not None

    # --- The file ---

    def _keep_now_and_then(self) -> None:
        if not self._queue or self._clock.monotonic() - self._kept_at >= KEEP_SECONDS:
            self._keep_all()

    def _keep_all(self) -> None:
        """What waits, the one that is on its way first."""
        with self._bell:
            if not self._is_changed:
                return
            self._is_changed = False
            current = [] if self._current is None else [self._current]
            events = [*current, *self._queue.values()]
        try:
            self._keep(msgspec.json.encode(events))
            self._kept_at = self._clock.monotonic()
        except OSError as error:  # it delivers all the same
            self._is_changed = True
            self._sparing.event(logging.WARNING, "not written", per="webhook", file="webhook.json", reason=str(error))


def signature(secret: bytes, key: str, at: str, payload: bytes) -> str:
    """By Standard Webhooks 1.0: HMAC-SHA256 of id, time and body, joined by full stops."""
    signed = b".".join((key.encode(), at.encode(), payload))
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def _key(secret: str) -> bytes:
    """`whsec_` and base64, as other senders hand them out; any other text as it is."""
    if secret.startswith(SIGNED_PREFIX):
        try:
            return base64.b64decode(secret.removeprefix(SIGNED_PREFIX), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


def _events(kept: bytes | None) -> list[Waiting]:
    """None if the file is not as we write it."""
    try:
        return msgspec.json.decode(kept or b"[]", type=list[Waiting])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
