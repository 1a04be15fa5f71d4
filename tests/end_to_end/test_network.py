"""The real daemon behind a network that fails and a broker that dies: back in time, nothing lost, nothing doubled.

What was said on the wire is looked at too: each acknowledgement is for a message of its own connection, and for one
that the journal has.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, Daemon, client, running
from tests.end_to_end.ledger import KEEPS_ALL, Ledger
from tests.proxy import Conversation, Proxy
from tests.servers import Broker
from tests.waiting import wait_until

BACK_SECONDS = 35.0  # the promise
KEEP_ALIVE_SECONDS = {"quick": 5, "as shipped": 30}
SETTINGS = {
    "quick": (
        "mqtt.keep_alive_seconds=5",
        "mqtt.connect_timeout_seconds=1",
        "mqtt.reconnect_min_seconds=0.1",
        "mqtt.reconnect_max_seconds=1",
    ),
    "as shipped": (),
}
PACES = ["quick", pytest.param("as shipped", marks=[pytest.mark.long, pytest.mark.timeout(600)])]
SLOW_COMMITS = "journal.commit_ms=500"  # so that acknowledgements are owed when a connection ends


# --- The wire ---


def packets(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """First byte and body of each packet that is whole (MQTT 5, section 2.1)."""
    at = 0
    while at < len(stream):
        first, size, shift = stream[at], 0, 0
        at += 1
        while at < len(stream):
            digit = stream[at]
            size |= (digit & 127) << shift
            at, shift = at + 1, shift + 7
            if not digit & 128:
                break
        if at + size > len(stream):
            return
        yield first, stream[at : at + size]
        at += size


def deliveries(conversation: Conversation) -> Iterator[tuple[int, int]]:
    """Packet identifier and number of each message of QoS 1 that the broker has sent."""
    for first, body in packets(bytes(conversation.answered)):
        if first & 0xF6 == 0x32:
            at = 2 + int.from_bytes(body[:2], "big")
            properties = body[at + 2]
            yield int.from_bytes(body[at : at + 2], "big"), json.loads(body[at + 3 + properties :])["value"]


def delivered(proxy: Proxy) -> set[int]:
    return {number for conversation in proxy.conversations for _, number in deliveries(conversation)}


def check_acknowledgements(proxy: Proxy, ledger: Ledger) -> None:
    """None is late or for nothing, and none is for a message that is not safe."""
    safe = set(ledger.values)
    for conversation in proxy.conversations:
        sent = list(deliveries(conversation))
        acknowledged = Counter(
            int.from_bytes(body[:2], "big") for first, body in packets(bytes(conversation.asked)) if first == 0x40
        )
        assert acknowledged <= Counter(mid for mid, _ in sent)
        assert {number for mid, number in sent if acknowledged[mid]} <= safe


# --- The daemon behind it ---


@dataclass(frozen=True)
class Scene:
    broker: Broker
    proxy: Proxy
    daemon: Daemon
    ledger: Ledger

    def wait_delivered(self, count: int) -> None:
        wait_until(lambda: len(delivered(self.proxy)) >= count, SECONDS, f"{count} messages delivered")

    def is_taken(self, messages: int) -> bool:
        """So many messages are decoded, and nothing waits; both sums are right at this scrape."""
        numbers = self.daemon.numbers()
        waits = numbers["messages_queued", ""] + numbers["readings_pending", ""]
        return numbers["messages_decoded_total", ""] == messages and not waits

    def wait_taken(self, healed_at: float, lost_by_broker: Collection[int] = ()) -> float:
        """All messages that the broker has not lost; gives after how many seconds from a moment on."""
        left = self.ledger.sent - len(lost_by_broker)
        wait_until(lambda: self.is_taken(left), healed_at + BACK_SECONDS - time.monotonic(), "all messages")
        return time.monotonic() - healed_at

    def end(self, lost_by_broker: Collection[int] = ()) -> None:
        """What the journal, the state and the wire say."""
        self.daemon.numbers()
        assert self.daemon.stop() == 0
        self.ledger.check(lost_by_broker)
        check_acknowledgements(self.proxy, self.ledger)


@contextmanager
def scene(broker: Broker, folder: Path, pace: str = "quick") -> Iterator[Scene]:
    """A daemon that is ready."""
    with (
        Proxy(broker.port) as proxy,
        client(broker) as peer,
        running(proxy.port, folder, SLOW_COMMITS, *SETTINGS[pace]) as daemon,
    ):
        daemon.wait_ready()
        yield Scene(broker, proxy, daemon, Ledger(peer, folder / "state"))


def report(pace: str, fault: str, **seconds: float) -> None:
    """The figures of docs/reliability.md, which `-s` shows."""
    figures = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    print(f"\n{fault}, {pace}: {figures}")  # noqa: T201


def is_past(moment: float) -> bool:
    return time.monotonic() >= moment


def wait_for(seconds: float) -> None:
    """An outage lasts so long."""
    wait_until(partial(is_past, time.monotonic() + seconds), seconds + SECONDS, "the end of the outage")


# --- Faults ---


@pytest.mark.parametrize("pace", PACES)
def test_a_half_open_connection(mosquitto: StartBroker, tmp_path: Path, pace: str) -> None:
    """Noticed within two keep-alives, and all is taken in time after it heals."""
    keep_alive = KEEP_ALIVE_SECONDS[pace]
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, pace) as on:
        on.ledger.publish(300)
        on.wait_delivered(50)
        on.proxy.blackhole()
        began = time.monotonic()
        on.ledger.publish(300)
        wait_until(lambda: on.daemon.get("/-/ready")[0] == 503, 3 * keep_alive, "not ready")
        noticed = time.monotonic() - began
        wait_for(keep_alive)  # attempts are in vain
        on.proxy.heal()
        back = on.wait_taken(time.monotonic())
        report(pace, "half-open", noticed=noticed, back=back)
        assert noticed <= 2 * keep_alive
        on.end()


@pytest.mark.parametrize("pace", PACES)
def test_a_broker_that_is_restarted(mosquitto: StartBroker, tmp_path: Path, pace: str) -> None:
    """However long it was away, and with all that it kept."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, pace) as on:
        on.proxy.throttle(20_000)
        on.ledger.publish(1000)
        on.wait_delivered(50)
        on.ledger.wait_published()
        on.broker.stop()
        on.proxy.reset()
        on.proxy.heal()
        wait_until(lambda: on.daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        wait_for(2 if pace == "quick" else 150)  # until its attempts are as rare as they get
        healed_at = time.monotonic()
        on.broker.start()
        report(pace, "broker restarted", back=on.wait_taken(healed_at))
        on.end()


def test_a_broker_that_is_killed_and_has_lost_the_session(mosquitto: StartBroker, tmp_path: Path) -> None:
    """What it lost is lost; identifiers begin anew, and no acknowledgement of the old ones is sent."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path) as on:
        on.proxy.throttle(20_000)
        on.ledger.publish(1000)
        on.wait_delivered(50)
        on.ledger.wait_published()
        on.broker.kill()
        on.proxy.reset()
        on.proxy.heal()
        wait_until(lambda: on.daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        lost = set(range(on.ledger.sent)) - delivered(on.proxy)
        assert lost
        healed_at = time.monotonic()
        on.broker.start()
        on.daemon.wait_ready()  # what comes before it has subscribed, a broker without the session gives to nobody
        on.ledger.publish(300)
        report("quick", "broker killed", back=on.wait_taken(healed_at, lost))
        assert on.daemon.numbers()["mqtt_stale_acknowledgements_total", ""] > 0
        on.end(lost)


def test_connections_that_are_reset(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Again and again, each time with acknowledgements owed: those are not sent on the next connection."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path) as on:
        for _ in range(5):
            on.ledger.publish(200)
            on.wait_delivered(on.ledger.sent - 100)
            on.proxy.reset()
            healed_at = time.monotonic()
            wait_until(lambda: on.daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
            on.daemon.wait_ready()
        report("quick", "reset", back=on.wait_taken(healed_at))
        assert on.daemon.numbers()["mqtt_stale_acknowledgements_total", ""] > 0
        on.end()


def slices(proxy: Proxy) -> None:
    """Of one byte."""
    proxy.slice(1)


def throttle(proxy: Proxy) -> None:
    proxy.throttle(10_000)


@pytest.mark.parametrize("fault", [slices, throttle])
def test_a_network_that_is_slow(mosquitto: StartBroker, tmp_path: Path, fault: Callable[[Proxy], None]) -> None:
    """Slow is not broken: the connection stays, and all comes through it."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path) as on:
        fault(on.proxy)
        on.ledger.publish(500)
        report("quick", fault.__name__, back=on.wait_taken(time.monotonic()))
        assert on.daemon.numbers()["mqtt_reconnects_total", ""] == 0
        on.end()
