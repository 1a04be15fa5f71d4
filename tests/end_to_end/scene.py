"""The real daemon between a publisher and a broker, with all that is said on the wire: what was acknowledged, and when.

Each acknowledgement must be for a message of its own connection, and for one that the journal has.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.daemon import SECONDS, STREAMER, Daemon, client, running
from tests.end_to_end.ledger import Ledger
from tests.proxy import Conversation, Proxy
from tests.servers import Broker
from tests.waiting import wait_until

BACK_SECONDS = 35.0  # the promise: all is taken so soon after a fault is healed

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


def acknowledged(conversation: Conversation) -> Counter[int]:
    """How often the daemon has acknowledged each packet identifier."""
    sent = packets(bytes(conversation.asked))
    return Counter(int.from_bytes(body[:2], "big") for first, body in sent if first == 0x40)


def check_acknowledgements(proxy: Proxy, ledger: Ledger) -> None:
    """None is late or for nothing, and none is for a message that is not safe."""
    safe = set(ledger.values)
    for conversation in proxy.conversations:
        sent = list(deliveries(conversation))
        owed, done = Counter(mid for mid, _ in sent), acknowledged(conversation)
        assert done <= owed
        assert {number for mid, number in sent if done[mid]} <= safe


# --- The daemon behind it ---


@dataclass(frozen=True)
class Scene:
    broker: Broker
    proxy: Proxy
    daemon: Daemon
    ledger: Ledger

    def wait_delivered(self, count: int) -> None:
        wait_until(lambda: len(delivered(self.proxy)) >= count, SECONDS, f"{count} messages delivered")

    def acknowledged(self) -> int:
        """How many acknowledgements have gone out."""
        return sum(acknowledged(each).total() for each in self.proxy.conversations)

    def wait_owing(self) -> None:
        """Something has come since the last commit: acknowledgements are owed until the next one."""
        before = self.acknowledged()
        wait_until(lambda: self.acknowledged() > before, SECONDS, "another commit")
        self.wait_delivered(len(delivered(self.proxy)) + 1)

    def is_taken(self, messages: int) -> bool:
        """So many messages are decoded, and nothing waits; both sums are right at this scrape."""
        numbers = self.daemon.numbers()
        waits = numbers["messages_queued", ""] + numbers["readings_pending", ""]
        return numbers["messages_decoded_total", ""] == messages and not waits

    def has_reconnected(self, times: int) -> bool:
        return self.daemon.numbers()["mqtt_reconnects_total", ""] >= times

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
def scene(broker: Broker, folder: Path, *settings: str, program: Sequence[str] = STREAMER) -> Iterator[Scene]:
    """A daemon that is ready, with a proxy between it and the broker."""
    with (
        Proxy(broker.port) as proxy,
        client(broker) as peer,
        running(proxy.port, folder, *settings, program=program) as daemon,
    ):
        daemon.wait_ready()
        yield Scene(broker, proxy, daemon, Ledger(peer, folder / "state"))
