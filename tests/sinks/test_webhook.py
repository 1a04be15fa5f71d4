"""The webhook: every event once and in order while all is well, and what becomes of each while it is not."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from streamer import outbox
from streamer.alarms import Change
from streamer.clock import ManualClock, SystemClock
from streamer.metrics import WEBHOOK_RESULTS, Metrics
from streamer.sinks import webhook
from streamer.sinks.post import Poster
from streamer.sinks.webhook import LONGEST_PAUSE_SECONDS, Webhook, signature
from streamer.statedir import StateDirectory
from tests import schemas, scrapes
from tests.servers import HOST, Certificates, free_port
from tests.sinks.receiving import drip, misbehaving, receiving
from tests.test_outbox import ALARM
from tests.waiting import wait_until

SECONDS = 20.0
TOKEN = "t0ken"  # noqa: S105  of a server that lives for a test
REASONS = {"messages_rejected_total": ["x"], "readings_rejected_total": ["x"]}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105  of the specification's example


@dataclass
class Hook:
    """A webhook and what lies in its file."""

    sink: Webhook
    metrics: Metrics
    kept: list[bytes] = field(default_factory=list)

    def put(self, number: int, what: str = "opened", readings: int = 1) -> None:
        alarm = replace(ALARM, id=f"{number:016x}", readings=readings)
        self.sink.put(what, alarm, outbox.alarm_event("gate", Change(what, alarm)).payload)

    def waiting(self) -> list[str]:
        """Keys of what the file says."""
        return [each["key"] for each in json.loads(self.kept[-1] if self.kept else b"[]")]

    def counts(self) -> dict[str, float]:
        """What is not 0, by result."""
        numbers = scrapes.parse(self.metrics.render("")[0].decode())
        found = {result: numbers["webhook_total", result] for result in WEBHOOK_RESULTS}
        return {result: count for result, count in found.items() if count}

    def wait(self, **counts: float) -> None:
        wait_until(lambda: self.counts() == counts, SECONDS, f"{counts}, not {self.counts()}")

    def end(self, seconds: float = 5.0) -> bool:
        self.sink.leave(seconds)
        return self.sink.stop()


class MakeHook:
    """Makes hooks, which the test's end stops."""

    def __init__(self) -> None:
        self.made: list[Hook] = []

    def __call__(
        self,
        port: int,
        *,
        scheme: str = "http",
        ca_file: str = "",
        token: str = "",
        secret: str = "",
        most_events: int = 1000,
        retry_seconds: float = 3600.0,
        timeout_seconds: float = 20.0,
        kept: bytes | None = None,
        keep: Callable[[bytes], None] | None = None,
        pause_seconds: float = 0.01,
        jitter: Callable[[], float] = random.random,
        clock: SystemClock | ManualClock | None = None,
    ) -> Hook:
        poster = Poster(f"{scheme}://{HOST}:{port}/hook", ca_file=ca_file, timeout_seconds=timeout_seconds)
        metrics = Metrics("0", 0.0, REASONS)
        written: list[bytes] = []
        sink = Webhook(
            poster,
            instance="gate",
            version="1.2",
            token=token,
            secret=secret,
            most_events=most_events,
            retry_seconds=retry_seconds,
            kept=kept,
            keep=keep or written.append,
            metrics=metrics,
            clock=clock or SystemClock(),
            first_pause_seconds=pause_seconds,
            longest_pause_seconds=4 * pause_seconds,
            jitter=jitter,
        )
        metrics.measured("webhook_queued", sink.queued)
        self.made.append(Hook(sink, metrics, written))
        return self.made[-1]


def key(number: int, what: str = "opened") -> str:
    return f"{number:016x}-{what}"


@pytest.fixture
def hook() -> Iterator[MakeHook]:
    make = MakeHook()
    yield make
    for each in make.made:
        each.end(0.0)


# --- While all is well ---


def test_each_event_is_posted_once_and_in_order(hook: MakeHook) -> None:
    """As it is published on MQTT, with a header by which a receiver knows one that comes twice."""
    with receiving() as receiver:
        one = hook(receiver.port, token=TOKEN)
        one.sink.start()
        for number in range(30):
            one.put(number)
        one.put(3, "updated", readings=5)
        one.put(3, "updated", readings=9)
        one.put(3, "closed", readings=30)
        one.wait(delivered=33)
    assert receiver.order() == [
        *map(key, range(30)),
        f"{key(3, 'updated')}-5",
        f"{key(3, 'updated')}-9",
        key(3, "closed"),
    ]
    posted = receiver.posted[0]
    assert schemas.of_document("alarm", posted.body) == []
    assert posted.headers["Content-Type"] == "application/json"
    assert posted.headers["Streamer-Event"] == "opened"
    assert posted.headers["Streamer-Instance"] == "gate"
    assert posted.headers["User-Agent"] == "streamer/1.2"
    assert posted.headers["Authorization"] == f"Bearer {TOKEN}"
    assert "Webhook-Signature" not in posted.headers
    assert one.waiting() == []
    assert one.sink.queued() == 0


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of Standard Webhooks 1.0."""
    found = signature(webhook._key(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert webhook._key("any text") == b"any text"
    assert webhook._key("whsec_no base64") == b"whsec_no base64"


def test_an_event_is_signed_and_a_changed_secret_holds_at_once(hook: MakeHook) -> None:
    """Whoever has the secret can tell who has sent it and when, and that nobody has changed it."""
    with receiving() as receiver:
        one = hook(receiver.port, secret=SECRET)
        one.sink.start()
        one.put(1)
        one.wait(delivered=1)
        one.sink.use("new", "another")
        one.put(2)
        one.wait(delivered=2)
    for posted, secret in zip(receiver.posted, (webhook._key(SECRET), b"another"), strict=True):
        headers = posted.headers
        wanted = signature(secret, headers["Webhook-Id"], headers["Webhook-Timestamp"], posted.body)
        assert headers["Webhook-Signature"] == wanted
        assert f'"{headers["Webhook-Id"]}"' == headers["Idempotency-Key"]
        assert abs(time.time() - int(headers["Webhook-Timestamp"])) < 60
    assert receiver.posted[1].headers["Authorization"] == "Bearer new"


# --- While it is not ---


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 429])
def test_a_server_in_trouble_is_asked_again(hook: MakeHook, status: int) -> None:
    """As often as it takes; of one alarm the order holds."""
    with receiving() as receiver:
        receiver.will_answer(status, status, status)
        one = hook(receiver.port)
        one.put(1)
        one.put(1, "closed")
        one.sink.start()
        one.wait(delivered=2)
    assert receiver.order() == [key(1)] * 4 + [key(1, "closed")]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 410, 413, 422])
def test_a_server_that_does_not_want_it_is_not_asked_again(
    hook: MakeHook, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and logged with its reason; the next event has its own chance."""
    with receiving() as receiver:
        receiver.will_answer(status)
        one = hook(receiver.port)
        one.put(1)
        one.put(2)
        one.sink.start()
        one.wait(refused=1, delivered=1)
    assert receiver.order() == [key(1), key(2)]
    (record,) = (record for record in caplog.records if record.message == "alarm event not delivered")
    assert f"it answered {status}" in str(record.__dict__["fields"]["reason"])


def test_a_server_says_when_it_wants_to_be_asked_again(hook: MakeHook) -> None:
    """Then the pause is no shorter than that."""
    with receiving() as receiver:
        receiver.will_answer(429, Retry_After="1")
        one = hook(receiver.port)
        one.put(1)
        one.sink.start()
        wait_until(lambda: len(receiver.posted) == 1, SECONDS, "the first attempt")
        first_at = time.monotonic()
        one.wait(delivered=1)
        assert time.monotonic() - first_at > 0.8


def test_the_pauses_grow_are_jittered_and_bounded(hook: MakeHook) -> None:
    """1, 2, 4 ... 60 seconds, each between the half of it and the whole; the server's word up to ten minutes."""

    def pauses(jitter: float, wanted: float | None) -> list[float]:
        sink = hook(1, pause_seconds=1.0, jitter=lambda: jitter).sink
        sink._longest_pause_seconds = LONGEST_PAUSE_SECONDS
        return [sink._pause_seconds(failures, wanted) for failures in (1, 2, 3, 6, 7, 5000)]

    assert pauses(0.0, None) == [0.5, 1.0, 2.0, 16.0, 30.0, 30.0]
    assert pauses(1.0, None) == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]
    assert pauses(0.0, 45.0) == [45.0] * 6
    assert pauses(0.0, 1e9) == [600.0] * 6


def test_a_server_that_comes_later_gets_all(hook: MakeHook) -> None:
    """Each once, and those first that it was not asked for yet."""
    port = free_port()
    one = hook(port)
    one.sink.start()
    for number in range(5):
        one.put(number)
    wait_until(lambda: one.waiting() == [*map(key, range(5))], SECONDS, "the file")
    with receiving(port=port) as receiver:
        one.wait(delivered=5)
    assert sorted(receiver.order()) == [*map(key, range(5))]


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 200 OK\r\n", *[b"X-Slow: 1\r\n"] * 99]])
def test_a_server_that_hangs_or_drips_holds_nobody_up(hook: MakeHook, pieces: list[bytes]) -> None:
    """`put` returns at once, and the end comes when it must, with what was not delivered in the file."""
    with misbehaving(drip(pieces, 0.2)) as port:
        one = hook(port, timeout_seconds=300.0)
        one.sink.start()
        began_at = time.monotonic()
        for number in range(1000):
            one.put(number)
        assert time.monotonic() - began_at < 2.0  # on a slow machine
        wait_until(lambda: one.sink.queued() == 1000, SECONDS, "the queue")
        began_at = time.monotonic()
        assert not one.end(0.2)
        assert time.monotonic() - began_at < 2.0
        assert one.sink._thread is not None
        wait_until(lambda: not one.sink._thread.is_alive(), SECONDS, "the end of the thread")  # type: ignore[union-attr]
        assert one.waiting() == [*map(key, range(1000))]
        assert one.counts() == {}


def test_tls_that_fails_is_tried_again_and_the_token_stays_here(hook: MakeHook, certificates: Certificates) -> None:
    """A wrong authority is a matter of the operator's, who may mend it; nothing is sent before."""
    with receiving(certificates) as receiver:
        wrong = hook(receiver.port, scheme="https", ca_file=str(certificates.other_ca), token=TOKEN)
        wrong.put(1)
        wrong.sink.start()
        wait_until(lambda: wrong.kept, SECONDS, "the file")
        assert not wrong.end(0.1)
        assert receiver.posted == []
        right = hook(receiver.port, scheme="https", ca_file=str(certificates.ca), kept=wrong.kept[-1])
        right.sink.start()
        right.wait(delivered=1)
    assert receiver.order() == [key(1)]


def test_an_event_that_a_server_never_takes_holds_up_its_own_alarm_only(hook: MakeHook) -> None:
    """It is asked for again, ever more seldom; the others go out meanwhile, and what becomes of its alarm after it."""
    with receiving() as receiver:
        receiver.always[key(1)] = 500
        one = hook(receiver.port, pause_seconds=0.2)
        one.put(1)
        one.put(1, "closed")
        for number in range(2, 40):
            one.put(number)
            one.put(number, "closed")
        one.sink.start()
        one.wait(delivered=76)
        wait_until(lambda: receiver.order().count(key(1)) >= 3, SECONDS, "further attempts")
        for number in range(40, 60):
            one.put(number)
        one.wait(delivered=96)
        assert len(receiver.posted) < 96 + 20  # its attempts are no storm
        assert key(1, "closed") not in receiver.order()
        wait_until(lambda: one.waiting() == [key(1), key(1, "closed")], SECONDS, "the file")
        receiver.always.clear()
        one.wait(delivered=98)
    order = receiver.order()
    for number in range(2, 40):
        assert order.index(key(number)) < order.index(key(number, "closed"))
    assert order[-2:] == [key(1), key(1, "closed")]


def test_a_server_that_is_away_is_not_asked_once_for_each_alarm(hook: MakeHook) -> None:
    """When it fails on two of them, all wait."""
    with receiving() as receiver:
        receiver.will_answer(*[502] * 10_000)
        one = hook(receiver.port, pause_seconds=60.0)
        for number in range(100):
            one.put(number)
        one.sink.start()
        wait_until(lambda: len(receiver.posted) == 2, SECONDS, "two attempts")
        one.put(100)
        wait_until(lambda: len(one.waiting()) == 101, SECONDS, "the file")
        assert receiver.order() == [key(0), key(1)]


def test_some_that_are_never_taken_do_not_keep_others_from_going_out(hook: MakeHook) -> None:
    """They look like a server that is away; who has not been asked for yet goes first when it is asked again."""
    with receiving() as receiver:
        receiver.always.update({key(number): 500 for number in range(5)})
        one = hook(receiver.port)
        for number in range(5):
            one.put(number)
        one.sink.start()
        wait_until(lambda: len(receiver.posted) >= 10, SECONDS, "each of them twice")
        for number in range(5, 50):
            one.put(number)
        one.wait(delivered=45)
        assert one.sink.queued() == 5


def test_an_event_is_given_up_after_so_long(hook: MakeHook) -> None:
    """Also one that an earlier run has left, which has tried for some of the time."""
    clock = ManualClock(1_790_000_000.0)
    first = hook(free_port(), clock=clock)
    first.put(1)
    clock.advance(1800.0)
    first.put(2)
    first.sink._keep_all()
    second_clock = ManualClock(1_790_000_000.0)
    with receiving() as receiver:
        receiver.always.update({key(1): 500, key(2): 500})
        second = hook(receiver.port, clock=second_clock, kept=first.kept[-1])
        second_clock.advance(1801.0)
        second.sink.start()
        second.wait(given_up=1)
        wait_until(lambda: second.waiting() == [key(2)], SECONDS, "the file")


@pytest.mark.parametrize("days", [-400.0, 1.5, 400.0])
def test_a_clock_that_is_set_drops_nothing(hook: MakeHook, days: float) -> None:
    """While it runs, and over a restart: a gateway without a battery starts in the past and is put right later."""
    clock = ManualClock(1_790_000_000.0)
    port = free_port()
    first = hook(port, clock=clock)
    first.put(1)
    clock.set(clock.now() + 86_400.0 * days)
    first.sink._keep_all()
    first.sink.start()
    wait_until(lambda: first.sink._resting, SECONDS, "an attempt")
    first.put(2)
    first.end(0.0)
    assert first.counts() == {}
    clock.set(clock.now() + 86_400.0 * days)
    with receiving(port=port) as receiver:
        second = hook(port, clock=clock, kept=first.kept[-1])
        second.sink.start()
        second.wait(delivered=2)
    assert receiver.order() == [key(1), key(2)]


# --- The room ---


def test_without_room_the_oldest_update_goes_first_then_the_oldest(hook: MakeHook) -> None:
    """What opens and closes an alarm is worth more than how it has gone on; what goes is counted."""
    one = hook(free_port(), most_events=4)
    one.put(1)
    one.put(1, "updated", readings=2)
    one.put(2)
    one.put(1, "updated", readings=3)
    one.put(3)
    one.put(3, "closed")
    one.sink._keep_all()
    assert one.waiting() == [key(1), key(2), key(3), key(3, "closed")]
    one.put(4)
    one.sink._keep_all()
    assert one.waiting() == [key(2), key(3), key(3, "closed"), key(4)]
    assert one.counts() == {"dropped": 3}
    assert one.sink.queued() == 4


def test_an_event_on_its_way_is_not_dropped(hook: MakeHook) -> None:
    """It would be delivered and lost at once."""
    with receiving() as receiver:
        receiver.may_answer.clear()
        receiver.will_answer(500)
        one = hook(receiver.port, most_events=2)
        one.put(1, "updated")
        one.sink.start()
        wait_until(lambda: receiver.posted, SECONDS, "the first attempt")
        for number in (2, 3):
            one.put(number)
        assert one.counts() == {"dropped": 1}
        receiver.may_answer.set()
        one.wait(dropped=1, delivered=2)
    assert sorted(receiver.order()) == [key(1, "updated-1"), key(1, "updated-1"), key(3)]


def test_large_events_have_a_limit_of_their_own(hook: MakeHook) -> None:
    """Topics have up to 64 KiB, and an event names up to nine."""
    one = hook(free_port())
    payload = b"x" * (webhook.MOST_BYTES // 4)
    for number in range(6):
        one.sink.put("opened", replace(ALARM, id=f"{number:016x}"), payload)
    assert one.sink.queued() == 4
    assert one.counts() == {"dropped": 2}


def test_a_storm_costs_the_engine_little(hook: MakeHook) -> None:
    """A hundred thousand events without room: no search, no copy."""
    one = hook(free_port(), most_events=1000)
    payload = b"x" * 1000
    alarm = replace(ALARM, id="0" * 16)
    began_at = time.monotonic()
    for number in range(100_000):
        one.sink.put("updated" if number % 3 else "opened", alarm, payload)
    assert time.monotonic() - began_at < 10.0  # 1.2 s where it was measured, logging included
    assert one.counts() == {"dropped": 99_000}


# --- The file ---


def test_what_was_not_delivered_is_left_to_the_next_run(hook: MakeHook, tmp_path: Path) -> None:
    """In a file that only its owner reads; killed at any moment, an event comes twice rather than never."""
    directory = StateDirectory(tmp_path / "state")
    directory.open()
    first = hook(free_port(), keep=lambda content: directory.keep("webhook.json", content))
    first.sink.start()
    for number in range(3):
        first.put(number)
    path = tmp_path / "state" / "webhook.json"
    wait_until(lambda: path.exists() and len(json.loads(path.read_bytes())) == 3, SECONDS, "the file")
    assert path.stat().st_mode & 0o777 == 0o600
    with receiving() as receiver:
        second = hook(receiver.port, kept=directory.kept("webhook.json"))
        second.put(9)
        second.sink.start()
        second.wait(delivered=4)
    assert receiver.order() == [key(0), key(1), key(2), key(9)]
    directory.close()


def test_the_file_has_an_event_before_the_first_attempt(hook: MakeHook) -> None:
    """And crosses it out after it was delivered."""
    with receiving() as receiver:
        receiver.may_answer.clear()
        one = hook(receiver.port)
        one.sink.start()
        one.put(1)
        wait_until(lambda: receiver.posted, SECONDS, "the attempt")
        assert one.waiting() == [key(1)]
        receiver.may_answer.set()
        wait_until(lambda: one.waiting() == [], SECONDS, "the file")


def test_what_comes_in_a_pause_is_in_the_file_before_its_end(hook: MakeHook) -> None:
    """A server that is away is asked once in a minute, and a kill in between must not lose what has come since."""
    with receiving() as receiver:
        receiver.will_answer(503, Retry_After="500")
        one = hook(receiver.port)
        one.sink.start()
        one.put(1)
        wait_until(lambda: receiver.posted, SECONDS, "the attempt")
        for number in range(2, 50):
            one.put(number)
        wait_until(lambda: len(one.waiting()) == 49, SECONDS, "the file")
        assert len(one.kept) <= 10  # a storm is not written once for each of its events
        assert len(receiver.posted) == 1


def test_what_was_delivered_is_crossed_out_though_the_next_one_is_refused(hook: MakeHook) -> None:
    """Else a kill in the pause would have it posted again."""
    with receiving() as receiver:
        receiver.will_answer(204, 204)
        receiver.will_answer(503, Retry_After="500")
        one = hook(receiver.port)
        for number in range(4):
            one.put(number)
        one.sink.start()
        wait_until(lambda: one.waiting() == [key(2), key(3)], SECONDS, "the file")


def test_a_backlog_is_not_written_anew_for_each_event_of_it(hook: MakeHook) -> None:
    """After an outage that would be gigabytes on somebody's memory card."""
    before = hook(free_port())
    for number in range(200):
        before.put(number)
    before.sink.start()
    wait_until(lambda: before.kept, SECONDS, "the file")
    before.end(0.0)
    with receiving() as receiver:
        clock = ManualClock(time.time())
        after = hook(receiver.port, kept=before.kept[-1], clock=clock)
        after.sink.start()
        after.wait(delivered=200)
        wait_until(lambda: after.kept and after.waiting() == [], SECONDS, "the file")
    assert len(after.kept) == 2  # once in a second, of which the clock here has none, and at the end


@pytest.mark.parametrize("kept", [b"", b"{", b'[{"key": 1}]', b"\xff", b"[" * 100_000])
def test_a_file_that_is_not_ours_is_no_event(hook: MakeHook, kept: bytes) -> None:
    """The start goes on without it."""
    assert hook(free_port(), kept=kept).sink.queued() == 0


def test_a_full_disk_keeps_nothing_from_being_delivered(hook: MakeHook) -> None:
    """It is logged; only a kill would lose what waits."""

    def full(_content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with receiving() as receiver:
        one = hook(receiver.port, keep=full)
        one.sink.start()
        one.put(1)
        one.put(2)
        one.wait(delivered=2)


# --- The end ---


def test_at_the_end_what_waits_is_delivered_if_the_server_takes_it(hook: MakeHook) -> None:
    """The last alarms of a run go out with it."""
    with receiving() as receiver:
        one = hook(receiver.port)
        for number in range(20):
            one.put(number)
        one.sink.start()
        assert one.end()
    assert receiver.order() == [*map(key, range(20))]
    assert one.waiting() == []


def test_at_the_end_a_server_in_trouble_is_asked_once(hook: MakeHook) -> None:
    """Not again and again without a pause; what it does not take is left to the next run."""
    with receiving() as receiver:
        receiver.will_answer(*[503] * 10_000)
        one = hook(receiver.port, pause_seconds=60.0)
        one.put(1)
        one.put(2)
        one.sink.start()
        wait_until(lambda: receiver.posted, SECONDS, "the first attempt")
        assert not one.end(1.0)
        assert len(receiver.posted) <= 2
    assert one.waiting() == [key(1), key(2)]


def test_a_bug_is_not_swallowed(hook: MakeHook, caplog: pytest.LogCaptureFixture) -> None:
    """The process has to end, and says so by `has_failed`."""

    def broken(_content: bytes) -> None:
        raise RuntimeError("a bug")

    one = hook(free_port(), keep=broken)
    one.sink.start()
    one.put(1)
    wait_until(lambda: one.sink.has_failed, SECONDS, "the failure")
    assert "RuntimeError: a bug" in caplog.text
