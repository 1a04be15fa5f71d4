"""Alarm events to a web server: one POST an event, in their order, until the server has it.

    2xx                              delivered
    5xx, 408, 429, no answer         again, ever more seldom; the server may say when (Retry-After)
    everything else                  refused: given up, as nothing would be gained by asking again

An event that is to be posted again holds up what has become of its own alarm since, and no other alarm: a server may
fail on one event for ever. When it fails on those of several alarms, and has taken none in between, it is in trouble:
all wait, the longer the more they are. Who goes first when it is asked again is one that it has not seen yet.

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
from itertools import chain, islice
from typing import NamedTuple, Protocol

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
KEEP_SECONDS = 1.0  # what was delivered is crossed out in the file no more often, nor what comes in a pause added
AGAIN = (408, 429)
OVERLOADED = (429, 503)  # what it says of a time is about itself; after any other status, about the event
SIGNED_PREFIX = "whsec_"


class Posting(Protocol):
    """What a Poster can do."""

    origin: str

    def post(self, body: bytes, headers: dict[str, str], /) -> Answer: ...

    def abort(self) -> None: ...


class Kept(msgspec.Struct, frozen=True):
    """An event that is to be delivered, as the file has it."""

    key: str
    """what it is known by: the alarm's id, the event, and for `updated` how many readings the alarm then had"""
    what: str
    """opened | updated | closed"""
    payload: bytes
    waited_seconds: float = 0.0
    """while a daemon ran: by no wall clock, which may be set, and is wrong after the start of many a gateway"""


class Waiting(NamedTuple):
    """The same in memory."""

    key: str
    what: str
    payload: bytes
    since: float
    """monotonic; before this run's beginning for one that an earlier run has left"""

    @property
    def alarm(self) -> str:
        return self.key.partition("-")[0]


class Rest(NamedTuple):
    """An alarm whose oldest event was not taken."""

    failures: int
    until: float
    """monotonic"""


class Outcome(NamedTuple):
    """What has become of an attempt."""

    result: str
    """delivered | refused; empty: it is to be tried again"""
    reason: str = ""
    wanted_seconds: float | None = None
    """so long the server wants to be left alone"""
    is_of_server: bool = False
    """with whatever event, not with this one only"""


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
        self._current: int | None = None
        """number of the one that is on its way; it stays in the queue"""
        self._resting: dict[str, Rest] = {}
        """by alarm"""
        self._failing: set[str] = set()
        """alarms that were not taken since the server took one"""
        self._paused_until = -float("inf")
        """monotonic: the server is not asked before"""
        self._bytes = self._count = 0
        self._is_changed = False
        """the file does not say what waits"""
        self._has_news = False
        """the file lacks an event: a kill would lose it, while one that it has too many only comes twice"""
        self._kept_at = -float("inf")
        self._leave_by: float | None = None
        self._thread: threading.Thread | None = None
        self.has_failed = False
        """a bug has ended the thread"""
        self.use(token, secret)
        for each in _events(kept):
            self._append(Waiting(each.key, each.what, each.payload, clock.monotonic() - max(each.waited_seconds, 0.0)))
        self._is_changed = self._has_news = False

    # --- For other threads ---

    def use(self, token: str, secret: str) -> None:
        """These from the next attempt on; empty: none."""
        self._token, self._secret = token, _key(secret)

    def put(self, what: str, alarm: Alarm, payload: bytes) -> None:
        """Something has become of an alarm: `payload` is the event as it is published."""
        key = f"{alarm.id}-{what}" + (f"-{alarm.readings}" if what == "updated" else "")
        with self._bell:
            self._append(Waiting(key, what, payload, self._clock.monotonic()))
            self._bell.notify()

    def queued(self) -> int:
        """How many events wait, the one that is on its way included."""
        return len(self._queue)

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
        while len(self._queue) >= self._most_events or self._bytes + len(new.payload) > MOST_BYTES:
            number = self._dispensable()
            if number is None:
                break
            self._settle(number, "dropped", "there is no room for it: the server has taken none for long")
        self._count += 1
        self._queue[self._count] = new
        if new.what == "updated":
            self._updates[self._count] = None
        self._bytes += len(new.payload)
        self._is_changed = self._has_news = True

    def _dispensable(self) -> int | None:
        """The oldest update, without one the oldest of all; never the one that is on its way."""
        each = chain(islice(self._updates, 2), islice(self._queue, 2))
        return next((number for number in each if number != self._current), None)

    def _choice(self) -> tuple[int | None, float]:
        """Which event is next, if one is; and how many seconds from now one may be."""
        now = self._clock.monotonic()
        if now < self._paused_until:
            return None, self._paused_until - now
        soonest, until = None, float("inf")
        for number, waiting in self._queue.items():
            rest = self._resting.get(waiting.alarm)
            if rest is None:
                return number, 0.0
            if rest.until < until:  # not of a later event of the same alarm
                soonest, until = number, rest.until
        return (soonest, 0.0) if until <= now else (None, until - now)

    def _settle(self, number: int, result: str, reason: str = "") -> None:
        """It has had its fate."""
        settled = self._queue.pop(number)
        self._updates.pop(number, None)
        self._bytes -= len(settled.payload)
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
        while (waiting := self._next()) is not None:
            result, reason, wanted_seconds, is_of_server = self._attempt(waiting)
            now = self._clock.monotonic()
            if not result and now - waiting.since > self._retry_seconds:
                result, reason = "given_up", f"for {(now - waiting.since) / 3600:.1f} hours: {reason}"
            with self._bell:
                if self._current is not None and result:
                    self._settle(self._current, result, reason)
                self._current = None
            if result in ("delivered", "refused"):
                self._has_answered(waiting, result)
            else:
                self._has_failed(waiting, reason, wanted_seconds, is_of_server)
            self._keep_now_and_then()
        self._keep_all()

    def _next(self) -> Waiting | None:
        """An event, when it is time for one; None if it is time to leave."""
        while True:
            with self._bell:
                number, seconds = self._choice()
                is_leaving = self._leave_by is not None
                if is_leaving and (number is None or self._clock.monotonic() >= (self._leave_by or 0.0)):
                    return None
                if number is None and self._is_changed:  # the file must not wait for the next attempt
                    seconds = min(seconds, self._kept_at + KEEP_SECONDS - self._clock.monotonic())
                if number is None and seconds > 0:
                    self._bell.wait(min(seconds, threading.TIMEOUT_MAX))
                    continue
                self._current = number
                has_news = self._has_news
            if number is None or has_news:
                self._keep_all()
            if number is not None:
                return self._queue[number]

    def _attempt(self, waiting: Waiting) -> Outcome:
        try:
            answer = self._poster.post(waiting.payload, self._headers_of(waiting))
        except PostError as error:
            return Outcome("", str(error))
        status = answer.status
        reason = f"it answered {status}"
        if 200 <= status < 300:
            return Outcome("delivered")
        if status >= 500 or status in AGAIN:
            return Outcome("", reason, answer.retry_after_seconds, status in OVERLOADED)
        return Outcome("refused", reason + (", a redirect, which is not followed" if 300 <= status < 400 else ""))

    def _has_answered(self, waiting: Waiting, result: str) -> None:
        """The server is well."""
        had_failed = self._resting.pop(waiting.alarm, None) is not None
        if result == "delivered" and (had_failed or len(self._failing) > 1):
            event(log, logging.INFO, "the webhook delivers again", to=self._poster.origin)
        self._failing.clear()

    def _has_failed(self, waiting: Waiting, reason: str, wanted_seconds: float | None, is_of_server: bool) -> None:
        """Its alarm rests; and all do, if it is not the only one that fails, or if the server has said so."""
        now, alarm = self._clock.monotonic(), waiting.alarm
        failures = self._resting[alarm].failures + 1 if alarm in self._resting else 1
        seconds = self._pause_seconds(failures, wanted_seconds)
        with self._bell:
            there = {each.alarm for each in self._queue.values()}
        self._resting = {each: rest for each, rest in self._resting.items() if each in there}
        self._resting[alarm] = Rest(failures, now + seconds)
        self._failing = (self._failing & there) | {alarm}
        if is_of_server and wanted_seconds is not None:
            self._paused_until = now + seconds
        elif len(self._failing) > 1:
            self._paused_until = now + self._pause_seconds(len(self._failing) - 1, None)
        self._sparing.event(
            logging.WARNING, "the webhook does not deliver", per=reason, reason=reason, to=self._poster.origin,
            id=waiting.key, next_attempt_seconds=round(seconds, 1), waiting=self.queued(),
        )  # fmt: skip

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

    # --- The file ---

    def _keep_now_and_then(self) -> None:
        if not self._queue or self._clock.monotonic() - self._kept_at >= KEEP_SECONDS:
            self._keep_all()

    def _keep_all(self) -> None:
        """What waits, in the order in which it came."""
        with self._bell:
            if not self._is_changed:
                return
            self._is_changed = self._has_news = False
            now = self._kept_at = self._clock.monotonic()
            events = [Kept(each.key, each.what, each.payload, now - each.since) for each in self._queue.values()]
        try:
            self._keep(msgspec.json.encode(events))
        except OSError as error:  # it delivers all the same
            self._is_changed = self._has_news = True
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


def _events(kept: bytes | None) -> list[Kept]:
    """What the file says; nothing waits if it is not as we write it."""
    try:
        return msgspec.json.decode(kept or b"[]", type=list[Kept])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
