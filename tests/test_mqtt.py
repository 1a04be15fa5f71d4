"""The link to the broker, against a real mosquitto and against brokers that misbehave."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from streamer.clock import SystemClock
from streamer.errors import ServiceError
from streamer.mqtt import OUTGOING_BYTES, SHORTEST_LINGER_SECONDS, SMALL_BATCH, Linger, LinkStatus, MqttLink
from streamer.readings import Message
from streamer.topics import is_own_output
from streamer.wire import Wire, tls_context
from tests.conftest import StartBroker
from tests.end_to_end.daemon import client, send
from tests.fake_broker import FakeBroker, Peer, connack, publish, suback
from tests.proxy import Proxy
from tests.servers import Certificates
from tests.waiting import wait_until

SECONDS = 20.0
STATUS = "streamer/test/status"
PASSWORD = "correct horse"  # noqa: S105  of a broker that lives for a test


class Options(TypedDict, total=False):
    """What a test may set of a link."""

    instance: str
    client_id: str
    filters: list[str]
    protocol: str
    qos: int
    username: str
    password: str
    tls: ssl.SSLContext | None
    keep_alive_seconds: int
    session_expiry_seconds: int
    connect_timeout_seconds: float
    reconnect_min_seconds: float
    reconnect_max_seconds: float
    max_packet_bytes: int
    outgoing_bytes: int
    unwanted: list[str]
    commands: str
    besides: list[str]
    fast: bool


@dataclass
class Linked:
    """A link and what it has delivered."""

    link: MqttLink
    messages: list[Message] = field(default_factory=list)

    def wait_for(self, condition: Callable[[LinkStatus], bool], what: str) -> LinkStatus:
        try:
            wait_until(lambda: condition(self.link.status()), SECONDS, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.link.status()}") from error
        return self.link.status()

    def wait_subscribed(self, generation: int = 0) -> LinkStatus:
        return self.wait_for(lambda s: s.subscribed and s.generation > generation, "the subscription")

    def wait_detail(self, words: str) -> LinkStatus:
        return self.wait_for(lambda s: words in s.detail, words)

    def wait_messages(self, count: int) -> list[Message]:
        wait_until(lambda: len(self.messages) >= count, SECONDS, f"{count} messages")
        return self.messages

    def payloads(self, topic: str) -> list[bytes]:
        return [message.payload for message in list(self.messages) if message.topic == topic]

    def wait_payload(self, topic: str, payload: bytes) -> None:
        wait_until(lambda: payload in self.payloads(topic), SECONDS, f"{payload!r} on {topic}")


class StartLink(Protocol):
    """Starts a link that the test's end stops."""

    def __call__(self, port: int, **options: Unpack[Options]) -> Linked: ...


@pytest.fixture
def link() -> Iterator[StartLink]:
    started: list[MqttLink] = []

    def start(port: int, **options: Unpack[Options]) -> Linked:
        used: Options = {
            "instance": "test",
            "client_id": "streamer-test",
            "filters": ["#"],
            "reconnect_min_seconds": 0.02,
            "reconnect_max_seconds": 0.1,
            **options,
        }
        messages: list[Message] = []
        made = MqttLink(host="127.0.0.1", port=port, deliver=messages.extend, clock=SystemClock(), **used)
        started.append(made)
        made.start()
        return Linked(made, messages)

    yield start
    for each in started:
        each.stop(2.0)


@pytest.fixture
def observer(link: StartLink) -> Callable[[int], Linked]:
    """Another client, which also publishes what a test wants to have published."""

    def start(port: int) -> Linked:
        seen = link(port, instance="observer", client_id="observer")
        seen.wait_subscribed()
        return seen

    return start


def welcome_and_stay(peer: Peer) -> None:
    """A broker without fault."""
    peer.welcome()
    peer.stay()


# --- What is said besides a message ---


@dataclass
class Reader:
    """A client that looks at the properties of MQTT 5."""

    heard: dict[str, MQTTMessage] = field(default_factory=dict)

    def told(self, topic: str) -> dict[str, object]:
        """By name, empty where there are none."""
        wait_until(lambda: topic in self.heard, SECONDS, topic)
        properties = self.heard[topic].properties
        return {} if properties is None else dict(properties.json())


@pytest.fixture
def reader() -> Iterator[Callable[[int], Reader]]:
    started: list[Client] = []

    def start(port: int) -> Reader:
        found = Reader()
        made = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        made.on_message = lambda _client, _data, message: found.heard.update({message.topic: message})
        started.append(made)
        made.connect("127.0.0.1", port)
        made.subscribe("streamer/test/#", qos=1)
        made.loop_start()
        return found

    yield start
    for each in started:
        each.disconnect()
        each.loop_stop()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_mqtt_5_says_what_a_message_is_and_how_long_it_holds(
    mosquitto: StartBroker, link: StartLink, reader: Callable[[int], Reader], protocol: str
) -> None:
    """Content type, UTF-8 and expiry with JSON; of the status what it is; of nothing nothing; all of it on 5 alone."""
    broker = mosquitto()
    sent = link(broker.port, protocol=protocol)
    sent.wait_subscribed()
    json = "application/json"
    assert sent.link.publish("streamer/test/alarm/x", b"{}", content_type=json)
    assert sent.link.publish("streamer/test/series/x", b"{}", retain=True, expiry_seconds=7200, content_type=json)
    assert sent.link.publish("streamer/test/series/y", b"", retain=True)
    assert sent.link.publish("streamer/test/z", b"last")
    wait_until(lambda: sent.link.counters().published >= 5, SECONDS, "the confirmations")
    late = reader(broker.port)  # what is retained has it too
    kept = late.told("streamer/test/series/x")
    status = late.told(STATUS)
    sent.link.publish("streamer/test/alarm/x", b"{}", content_type=json)
    sent.link.publish("streamer/test/series/y", b"", retain=True)
    alarm, nothing = late.told("streamer/test/alarm/x"), late.told("streamer/test/series/y")
    sent.link.stop(2.0)
    wait_until(lambda: late.heard[STATUS].payload == b"offline", SECONDS, "offline")
    goodbye = late.told(STATUS)
    text = {"PayloadFormatIndicator": 1, "ContentType": "text/plain"}
    if protocol == "3.1.1":
        assert [kept, status, alarm, nothing, goodbye] == [{}] * 5
        return
    assert alarm == {"PayloadFormatIndicator": 1, "ContentType": "application/json"}
    assert 7100 <= kept.pop("MessageExpiryInterval") <= 7200  # type: ignore[operator]  # an int
    assert kept == alarm
    assert status == goodbye == text
    assert nothing == {}


def test_the_last_will_says_what_it_is(
    mosquitto: StartBroker, link: StartLink, reader: Callable[[int], Reader]
) -> None:
    """The broker speaks it when the connection breaks without a word."""
    broker = mosquitto()
    with Proxy(broker.port) as proxy:
        sent = link(proxy.port, reconnect_min_seconds=60.0, reconnect_max_seconds=60.0)
        sent.wait_subscribed()
        late = reader(broker.port)
        late.told(STATUS)
        proxy.cut()
        wait_until(lambda: late.heard[STATUS].payload == b"offline", SECONDS, "the last will")
        assert late.told(STATUS) == {"PayloadFormatIndicator": 1, "ContentType": "text/plain"}


def test_several_threads_may_publish(mosquitto: StartBroker, link: StartLink) -> None:
    """Every message goes out once, and the room that they take is free again."""
    broker = mosquitto()
    sent = link(broker.port)
    sent.wait_subscribed()
    room = sent.link._outgoing_bytes

    def publish() -> None:
        for _ in range(500):
            assert sent.link.publish("streamer/test/x", b"1234")

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: sent.link.counters().published == 2001, SECONDS, "all of them")
    assert sent.link._put_bytes == sent.link._sent_bytes < room


# --- Messages in ---


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_messages_arrive_and_are_acknowledged(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked], protocol: str, fast: bool
) -> None:
    """Every QoS, both versions, both ways of receiving; nothing is acknowledged before the engine says so."""
    server = mosquitto()
    linked = link(server.port, protocol=protocol, fast=fast, qos=2, filters=["plant/#"])
    status = linked.wait_subscribed()
    assert (status.connected, status.protocol) == (True, "3.1.1" if protocol == "3.1.1" else "5")
    sender = observer(server.port)
    for number in range(21):
        assert sender.link.publish(f"plant/{number}", b"%d" % number, qos=number % 3)
    messages = linked.wait_messages(21)
    assert sorted((m.topic, m.payload, m.qos) for m in messages) == sorted(
        (f"plant/{n}", b"%d" % n, n % 3) for n in range(21)
    )
    assert not any(m.retain or m.dup for m in messages)
    assert {m.connection for m in messages} == {status.generation}
    assert linked.link.counters().acknowledged == 0
    linked.link.ack(messages)
    wait_until(lambda: linked.link.counters().acknowledged == 14, SECONDS, "the acknowledgements")
    linked.link.stop(SECONDS)
    server.stop()
    assert server.log().count("Received PUBACK from streamer-test") == 7
    assert server.log().count("Received PUBCOMP from streamer-test") == 7
    counters = linked.link.counters()
    assert counters.messages_received == 21
    assert counters.bytes_received > 21 * 10
    assert (counters.acknowledgements_stale, counters.reconnects) == (0, 0)


def test_retained_messages_are_marked_in_mqtt_3_and_not_sent_in_mqtt_5(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]
) -> None:
    """An old value is never taken for a new reading."""
    server = mosquitto()
    sender = observer(server.port)
    sender.link.publish("plant/old", b"1", retain=True)
    wait_until(lambda: sender.link.counters().published == 2, SECONDS, "the retained message")
    old = link(server.port, protocol="3.1.1", client_id="old")
    new = link(server.port, protocol="5", client_id="new")
    old.wait_payload("plant/old", b"1")
    new.wait_subscribed()
    sender.link.publish("plant/new", b"2", retain=True)
    for each in (old, new):
        each.wait_payload("plant/new", b"2")
    assert [m.retain for m in old.messages if m.topic == "plant/old"] == [True]
    assert [m.retain for m in old.messages if m.topic == "plant/new"] == [False]
    assert new.payloads("plant/old") == []


def test_own_output_never_comes_back_in_mqtt_5_and_is_known_in_mqtt_3(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]
) -> None:
    """No-local keeps it away; where there is no such thing its topic tells."""
    server = mosquitto()
    new = link(server.port, protocol="5", instance="new", client_id="new")
    old = link(server.port, protocol="3.1.1", instance="old", client_id="old")
    new.wait_subscribed()
    old.wait_subscribed()
    new.link.publish("streamer/new/alarm/a", b"{}")
    old.link.publish("streamer/old/alarm/a", b"{}")
    old.wait_payload("streamer/new/alarm/a", b"{}")
    new.wait_payload("streamer/old/alarm/a", b"{}")
    old.wait_payload("streamer/old/alarm/a", b"{}")
    observer(server.port).link.publish("plant/last", b"1")
    new.wait_payload("plant/last", b"1")
    assert not any(is_own_output(message.topic, "new") for message in new.messages)
    assert all(is_own_output(m.topic, "old") for m in old.messages if m.topic.startswith("streamer/old/"))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_huge_payload_never_fills_the_memory(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked], protocol: str
) -> None:
    """MQTT 5 brokers do not send it; from others it arrives cut, to be rejected and counted."""
    server = mosquitto()
    linked = link(server.port, protocol=protocol, max_packet_bytes=100_000)
    linked.wait_subscribed()
    sender = observer(server.port)
    sender.link.publish("plant/huge", b"9" * 10_000_000)
    sender.link.publish("plant/next", b"1")
    linked.wait_payload("plant/next", b"1")
    sizes = [len(payload) for payload in linked.payloads("plant/huge")]
    assert sizes == ([100_001] if protocol == "3.1.1" else [])


@pytest.mark.parametrize("fast", [True, False])
def test_a_flood_over_tls(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked], certificates: Certificates, fast: bool
) -> None:
    """TLS holds bytes that no poll reports: not one message may get stuck in it."""
    server = mosquitto(tls=certificates)
    context = tls_context(str(certificates.ca))
    linked = link(server.port, tls=context, fast=fast, filters=["plant/#"])
    linked.wait_subscribed()
    sender = link(server.port, tls=context, instance="sender", client_id="sender", filters=["none"])
    sender.wait_subscribed()
    for number in range(2_000):
        sender.link.publish("plant/1", b"%06d" % number * 20, qos=0)
    assert [m.payload[:6] for m in linked.wait_messages(2_000)] == [b"%06d" % n for n in range(2_000)]


def test_lingering_lasts_as_long_as_it_is_worth() -> None:
    """Twice as long when more came meanwhile, half as long when nothing did; never after a large batch or none."""
    near, far = socket.socketpair()
    with near, far:
        wire, poll, linger = Wire(near, is_buffered=True), select.poll(), Linger(0.004)
        poll.register(near, select.POLLIN)
        for count in (0, SMALL_BATCH):
            linger.begin(count)
            assert linger.end(poll, wire) == {}
        assert linger.seconds == 0.004
        for _ in range(10):
            linger.begin(1)
            assert linger.end(poll, wire) == {}
        assert linger.seconds == SHORTEST_LINGER_SECONDS
        far.send(b"!")
        for _ in range(10):
            linger.begin(1)
            assert linger.end(poll, wire) == {near.fileno(): select.POLLIN}
        assert linger.seconds == 0.004


# --- Who we are ---


def test_a_wrong_password_is_said_and_does_not_hammer(mosquitto: StartBroker, link: StartLink) -> None:
    """One attempt, a long pause, a sentence that names the cause; the right password is tried at once."""
    server = mosquitto(users={"gateway": PASSWORD})
    linked = link(
        server.port,
        username="gateway",
        password=PASSWORD[1:],
        reconnect_min_seconds=30.0,
        reconnect_max_seconds=120.0,
    )
    status = linked.wait_detail("mqtt.username or password")
    assert (status.connected, status.subscribed, status.is_alive) == (False, False, True)
    assert status.generation == 1  # one attempt, and not a second one with MQTT 3.1.1
    linked.link.set_password(PASSWORD)
    linked.wait_subscribed()


def test_a_password_that_the_broker_learns_later_works_soon(
    mosquitto: StartBroker, link: StartLink, caplog: pytest.LogCaptureFixture
) -> None:
    """The first pause is some four of the shortest ones, whatever the longest is; it was half of the longest."""
    server = mosquitto(users={"somebody": PASSWORD})
    linked = link(
        server.port, username="gateway", password=PASSWORD, reconnect_min_seconds=0.1, reconnect_max_seconds=3600.0
    )
    linked.wait_detail("mqtt.username or password")
    server.set_users({"gateway": PASSWORD})
    server.reload()
    linked.wait_subscribed()
    assert [record.levelname for record in caplog.records if "no connection" in record.message]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_user_and_password(mosquitto: StartBroker, link: StartLink, protocol: str) -> None:
    """They are accepted, and a missing one is refused, in both versions."""
    server = mosquitto(users={"gateway": PASSWORD})
    link(server.port, protocol=protocol, username="gateway", password=PASSWORD).wait_subscribed()
    link(server.port, protocol=protocol, client_id="nobody").wait_detail("the broker refuses us")


def test_tls_with_the_right_authority(mosquitto: StartBroker, link: StartLink, certificates: Certificates) -> None:
    """The broker's certificate and name are verified."""
    server = mosquitto(tls=certificates)
    link(server.port, tls=tls_context(str(certificates.ca))).wait_subscribed()


def test_tls_with_another_authority_is_refused_by_us(
    mosquitto: StartBroker, link: StartLink, certificates: Certificates
) -> None:
    """Whoever answers there is not trusted, and the sentence says which setting decides."""
    server = mosquitto(tls=certificates)
    linked = link(server.port, tls=tls_context(str(certificates.other_ca)), reconnect_max_seconds=120.0)
    linked.wait_detail("is not trusted")
    assert "mqtt.tls.ca_file" in linked.link.status().detail
    assert "New client connected" not in server.log()


def test_a_client_certificate(mosquitto: StartBroker, link: StartLink, certificates: Certificates) -> None:
    """A broker that wants one gets it."""
    server = mosquitto(tls=certificates, require_client_certificate=True)
    context = tls_context(str(certificates.ca), str(certificates.client_cert), str(certificates.client_key))
    link(server.port, tls=context).wait_subscribed()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_missing_client_certificate_is_said(
    mosquitto: StartBroker, link: StartLink, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    """TLS 1.3 reports it only after the handshake, 1.2 within it."""
    server = mosquitto(tls=certificates, require_client_certificate=True)
    context = tls_context(str(certificates.ca))
    context.maximum_version = version
    linked = link(server.port, tls=context, reconnect_max_seconds=120.0)
    assert "mqtt.tls.cert_file" in linked.wait_detail("refuses TLS").detail


def test_a_port_without_tls_is_said(mosquitto: StartBroker, link: StartLink, certificates: Certificates) -> None:
    """The broker is there, so it is not out of reach: the sentence is about TLS and names both settings."""
    server = mosquitto()
    linked = link(server.port, tls=tls_context(str(certificates.ca)))
    detail = linked.wait_detail("does not answer TLS").detail
    assert "mqtt.port" in detail
    assert "mqtt.tls.enabled = false" in detail
    assert "cannot be reached" not in detail


def test_a_port_that_is_silent_to_tls_is_said(link: StartLink, certificates: Certificates) -> None:
    """A server that waits for something else is told apart from one that is not there."""
    with FakeBroker(lambda peer: peer.stay()) as fake:
        context = tls_context(str(certificates.ca))
        link(fake.port, tls=context, connect_timeout_seconds=0.2).wait_detail("does not answer TLS")


def test_certificates_that_cannot_be_loaded_are_named(certificates: Certificates, tmp_path: Path) -> None:
    """An operator reads which file, what is wrong and what was expected, before anything connects."""
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(ServiceError, match=r"mqtt\.tls\.ca_file: .*absent.* No such file"):
        tls_context(str(tmp_path / "absent.pem"))
    with pytest.raises(ServiceError, match=r"mqtt\.tls\.ca_file: .*empty.*PEM"):
        tls_context(str(empty))
    with pytest.raises(ServiceError, match=r"mqtt\.tls\.cert_file: .*own private key"):
        tls_context(str(certificates.ca), str(certificates.client_cert), str(certificates.server_key))


def test_another_client_with_our_client_id_is_named(link: StartLink) -> None:
    """MQTT 5 says that the session was taken over: we do not fight over it, but say so and wait long."""

    def behave(peer: Peer) -> None:
        peer.welcome()
        peer.send(b"\xe0\x02\x8e\x00")
        peer.stay()

    with FakeBroker(behave) as fake:
        linked = link(fake.port, reconnect_min_seconds=30.0, reconnect_max_seconds=120.0)
        status = linked.wait_detail("another client has connected with our client id streamer-test")
        assert "mqtt.client_id that no other client uses" in status.detail
        assert status.generation == 1


def test_a_session_that_is_lost_again_and_again_raises_a_suspicion(mosquitto: StartBroker, link: StartLink) -> None:
    """MQTT 3.1.1 and mosquitto 2.0.11 do not say that another client has taken the session; the pattern does."""
    server = mosquitto()
    one = link(server.port)
    two = link(server.port)
    for each in (one, two):
        each.wait_detail(
            "2 times in a row soon after it was made; does another client use the client id streamer-test?"
        )


def test_a_broker_that_comes_back_slowly_raises_no_suspicion(link: StartLink) -> None:
    """Attempts that reached nobody are no sessions that somebody took."""
    answers = iter([b"", b"", b"", connack(5)])

    def behave(peer: Peer) -> None:
        peer.read_until(0x10)
        answer = next(answers, None)
        if answer is None:
            peer.stay()
        elif answer:
            peer.send(answer)
            peer.read_until(0x82)

    with FakeBroker(behave) as fake:
        linked = link(fake.port, protocol="5", reconnect_min_seconds=0.02, reconnect_max_seconds=3600.0)
        linked.wait_for(lambda s: s.generation > 3 and s.detail.endswith("closed the connection"), "one loss")


# --- Versions ---


@pytest.mark.parametrize("answer", [connack(5, 0x84), connack(4, 1), b""])
def test_a_broker_without_mqtt_5_is_spoken_to_in_mqtt_3(link: StartLink, answer: bytes) -> None:
    """It may refuse the version in new form or old, or close; the other version is tried at once."""

    def behave(peer: Peer) -> None:
        if peer.read()[0] == 0x10 and peer.level == 5:
            peer.send(answer)
            return
        peer.send(connack(4))
        mid = int.from_bytes(peer.read_until(0x82)[:2], "big")
        peer.send(suback(4, mid, 1) + publish("plant/1", b"21.5", qos=1, mid=7))
        peer.stay()

    with FakeBroker(behave) as fake:
        linked = link(fake.port, reconnect_min_seconds=60.0, reconnect_max_seconds=60.0)
        assert linked.wait_subscribed().protocol == "3.1.1"
        linked.link.ack(linked.wait_messages(1))
        wait_until(lambda: (0x40, b"\x00\x07") in fake.peers[-1].packets, SECONDS, "PUBACK")


def test_a_broker_that_is_silent_to_mqtt_5_is_spoken_to_in_mqtt_3(link: StartLink) -> None:
    """The connect time-out ends the wait."""

    def behave(peer: Peer) -> None:
        peer.read()
        if peer.level == 5:
            peer.read()
        peer.packets.clear()
        peer.send(connack(4))
        peer.send(suback(4, int.from_bytes(peer.read_until(0x82)[:2], "big"), 1))
        peer.stay()

    with FakeBroker(behave) as fake:
        linked = link(fake.port, connect_timeout_seconds=0.2, reconnect_min_seconds=60.0, reconnect_max_seconds=60.0)
        assert linked.wait_subscribed().protocol == "3.1.1"


def test_a_broker_that_has_spoken_mqtt_5_is_not_spoken_to_in_mqtt_3_when_it_hangs(
    mosquitto: StartBroker, link: StartLink, caplog: pytest.LogCaptureFixture
) -> None:
    """Its silence says nothing of the version, and the limits that only MQTT 5 knows must hold when it is back."""
    server = mosquitto()
    with Proxy(server.port) as proxy, caplog.at_level("INFO"):
        linked = link(proxy.port, connect_timeout_seconds=0.1, reconnect_max_seconds=0.02)
        generation = linked.wait_subscribed().generation
        proxy.blackhole()
        proxy.cut()
        linked.wait_for(lambda status: status.generation >= generation + 4, "attempts in vain")
        proxy.heal()
        assert linked.wait_subscribed(generation).protocol == "5"
    assert "this version of MQTT brings no connection" not in caplog.text


def test_a_version_that_was_asked_for_is_not_left(link: StartLink) -> None:
    """An operator who wants MQTT 5 gets it or an error."""

    def behave(peer: Peer) -> None:
        peer.read()
        peer.send(connack(5, 0x84))

    with FakeBroker(behave) as fake:
        link(fake.port, protocol="5").wait_detail("does not speak MQTT 5")
        assert {peer.level for peer in fake.peers if peer.level} == {5}


@pytest.mark.parametrize("level", [5, 4])
def test_connect_says_what_we_want(link: StartLink, level: int) -> None:
    """A session that outlives the connection, a will, the limits of what may be sent to us."""
    with FakeBroker(welcome_and_stay) as fake:
        protocol = "5" if level == 5 else "3.1.1"
        linked = link(
            fake.port,
            protocol=protocol,
            username="gateway",
            password=PASSWORD,
            keep_alive_seconds=17,
            max_packet_bytes=77_777,
        )
        linked.wait_subscribed()
        connect = fake.peers[0].packets[0][1]
        assert connect[7] == 0b1110_1100  # user, password, will retained at QoS 1, no clean start
        assert connect[8:10] == struct.pack(">H", 17)
        if level == 5:  # MQTT 5.0, section 3.1.2.11: session expiry, receive maximum, maximum packet size
            numbers = {0x11: ">I", 0x21: ">H", 0x27: ">I"}
            found, at = dict[int, int](), 11
            while at < 11 + connect[10]:
                form = numbers[connect[at]]
                (found[connect[at]],) = struct.unpack_from(form, connect, at + 1)
                at += 1 + struct.calcsize(form)
            assert found == {0x11: 259_200, 0x21: 1000, 0x27: 77_777}
        for text in (b"streamer-test", STATUS.encode(), b"offline", b"gateway", PASSWORD.encode()):
            assert len(text).to_bytes(2, "big") + text in connect
        subscribe = next(body for head, body in fake.peers[0].packets if head == 0x82)
        assert subscribe.endswith(b"\x00\x01#" + (b"\x25" if level == 5 else b"\x01"))  # no local, no retained ones


# --- Lost and found again ---


def test_a_broker_that_appears_later(mosquitto: StartBroker, link: StartLink) -> None:
    """The link lives without one, says so, and finds it."""
    server = mosquitto()
    server.stop()
    linked = link(server.port)
    status = linked.wait_detail("cannot be reached")
    assert (status.connected, status.is_alive) == (False, True)
    assert linked.link.publish("plant/early", b"1")
    server.start()
    linked.wait_subscribed()
    wait_until(lambda: linked.link.counters().published == 2, SECONDS, "what was queued meanwhile")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_was_sent_while_we_were_away_arrives(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked], protocol: str
) -> None:
    """The session outlives us and a restart of the broker."""
    server = mosquitto()
    linked = link(server.port, protocol=protocol, filters=["plant/#"])
    assert not linked.wait_subscribed().is_session_present
    assert linked.link.stop(SECONDS)
    sender = observer(server.port)
    for number in range(20):
        sender.link.publish("plant/1", b"%d" % number)
    wait_until(lambda: sender.link.counters().published == 21, SECONDS, "20 messages at the broker")
    server.restart()
    again = link(server.port, protocol=protocol, filters=["plant/#"])
    status = again.wait_subscribed()
    assert (status.is_session_present, status.session_began) == (True, 0)
    wait_until(lambda: len(again.payloads("plant/1")) == 20, SECONDS, "20 messages")
    assert again.payloads("plant/1") == [b"%d" % number for number in range(20)]


def test_a_restart_of_the_broker(mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]) -> None:
    """The link comes back by itself with its session; what was not acknowledged comes again, marked so."""
    server = mosquitto()
    linked = link(server.port)
    first = linked.wait_subscribed()
    sender = observer(server.port)
    sender.link.publish("plant/1", b"1")
    linked.wait_payload("plant/1", b"1")
    server.restart()
    status = linked.wait_subscribed(first.generation)
    assert (status.is_session_present, status.reconnects) == (True, 1)
    assert (first.session_began, status.session_began) == (first.generation, first.generation)
    wait_until(lambda: len(linked.payloads("plant/1")) == 2, SECONDS, "the message again")
    messages = [message for message in linked.messages if message.topic == "plant/1"]
    assert [(m.dup, m.connection) for m in messages] == [(False, first.generation), (True, status.generation)]
    assert linked.link.counters().reconnects == 1


def test_a_late_acknowledgement_is_not_sent(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]
) -> None:
    """After a reconnect its identifier may mean another message; it is counted, and the message comes again."""
    server = mosquitto()
    with Proxy(server.port) as proxy:
        linked = link(proxy.port, filters=["plant/#"])
        generation = linked.wait_subscribed().generation
        sender = observer(server.port)
        sender.link.publish("plant/1", b"1")
        old = linked.wait_messages(1)[:]
        proxy.cut()
        linked.wait_subscribed(generation)
        new = linked.wait_messages(2)[1:]
        linked.link.ack(old)
        wait_until(lambda: linked.link.counters().acknowledgements_stale == 1, SECONDS, "the stale one")
        assert linked.link.counters().acknowledged == 0
        linked.link.ack(new)
        wait_until(lambda: linked.link.counters().acknowledged == 1, SECONDS, "the other one")
        linked.link.stop(SECONDS)
        server.stop()
        assert server.log().count("Received PUBACK from streamer-test") == 1


def test_a_half_open_connection_is_noticed(mosquitto: StartBroker, link: StartLink) -> None:
    """A network that swallows everything is found by keep-alive, and the link is back when it heals."""
    server = mosquitto()
    with Proxy(server.port) as proxy:
        linked = link(proxy.port, keep_alive_seconds=1, connect_timeout_seconds=0.5)
        generation = linked.wait_subscribed().generation
        proxy.blackhole()
        linked.wait_for(lambda s: not s.connected, "the loss")
        proxy.heal()
        linked.wait_subscribed(generation)


def test_single_bytes_on_the_way(mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]) -> None:
    """A network that delivers byte by byte delivers all the same."""
    server = mosquitto()
    with Proxy(server.port) as proxy:
        proxy.slice(1)
        linked = link(proxy.port, filters=["plant/#"])
        linked.wait_subscribed()
        sender = observer(server.port)
        for number in range(20):
            sender.link.publish("plant/1", b"%d" % number)
        assert [m.payload for m in linked.wait_messages(20)] == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize("level", [5, 4])
def test_a_refused_filter_is_named_and_tried_again(link: StartLink, level: int) -> None:
    """Connected but not ready: the sentence names the filter; a broker that changes its mind is noticed."""
    codes = iter([b"\x80", b"\x80", b"\x01"])

    def behave(peer: Peer) -> None:
        peer.read_until(0x10)
        peer.send(connack(peer.level))
        for code in codes:
            mid = int.from_bytes(peer.read_until(0x82)[:2], "big")
            peer.send(suback(level, mid, 1, code[0]))
        peer.stay()

    with FakeBroker(behave) as fake:
        protocol = "5" if level == 5 else "3.1.1"
        linked = link(fake.port, protocol=protocol, filters=["plant/#", "secret/#"], reconnect_max_seconds=0.02)
        status = linked.wait_detail("secret/#")
        assert "plant/#" not in status.detail
        linked.wait_subscribed()
        assert len(fake.peers) == 1


def test_filters_of_an_earlier_run_are_taken_back(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]
) -> None:
    """The broker's session remembers them, whatever the settings say now."""
    server = mosquitto()
    before = link(server.port, filters=["plant/#", "hall/#"])
    before.wait_subscribed()
    before.link.stop(SECONDS)
    linked = link(server.port, filters=["plant/#"], unwanted=["plant/#", "hall/#"])
    linked.wait_subscribed()
    sender = observer(server.port)
    sender.link.publish("hall/1", b"1")
    sender.link.publish("plant/1", b"2")
    linked.wait_payload("plant/1", b"2")
    assert linked.payloads("hall/1") == []


COMMAND = "streamer/test/command"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_command_of_now_is_told_from_one_that_was_kept(
    mosquitto: StartBroker, link: StartLink, protocol: str, fast: bool
) -> None:
    """What the session has kept while we were away comes as retained, in its place among readings that do not."""
    server = mosquitto()
    options: Options = {"filters": ["plant/#"], "commands": COMMAND, "protocol": protocol, "fast": fast}
    before = link(server.port, **options)
    before.wait_subscribed()
    with client(server) as sender:
        send(sender, COMMAND, b"now")
        (live,) = before.wait_messages(1)
        assert (live.topic, live.payload, live.qos, live.retain) == (COMMAND, b"now", 1, False)
        before.link.ack([live])
        before.link.stop(SECONDS)
        send(sender, "plant/1", b"1")
        send(sender, COMMAND, b"missed")
        linked = link(server.port, **options)
        linked.wait_subscribed()
        send(sender, COMMAND, b"again")
        linked.wait_payload(COMMAND, b"again")
    kept = {message.payload: message.retain for message in linked.messages}
    assert kept == {b"1": False, b"missed": True, b"again": False}


@pytest.mark.parametrize("level", [4, 5])
def test_a_refused_subscription_to_commands_harms_nothing(
    link: StartLink, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    """The filters are granted, and that is what readiness asks for; it is said why no command will come."""

    def behave(peer: Peer) -> None:
        peer.read_until(0x10)
        peer.send(connack(peer.level))
        for code in (0x80 if level == 4 else 0x87, 1):
            mid = int.from_bytes(peer.read_until(0x82)[:2], "big")
            peer.send(suback(level, mid, code))
        peer.stay()

    with FakeBroker(behave) as fake:
        protocol = "5" if level == 5 else "3.1.1"
        linked = link(fake.port, protocol=protocol, filters=["plant/#"], commands=COMMAND)
        linked.wait_subscribed()
        assert "no commands by MQTT" in caplog.text


def test_a_topic_of_commands_that_is_no_longer_wanted_is_taken_back(
    mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]
) -> None:
    """Switched off, it is off at the broker too; one that is wanted is not taken back, whatever an earlier run had."""
    server = mosquitto()
    sender = observer(server.port)
    for commands, expected in ((COMMAND, [b"1"]), (None, [])):
        options: Options = {"filters": ["plant/#"], "unwanted": [COMMAND, "plant/#"]}
        linked = link(server.port, **options, **({"commands": commands} if commands else {}))
        linked.wait_subscribed()
        sender.link.publish(COMMAND, b"1")
        sender.link.publish("plant/1", b"2")
        linked.wait_payload("plant/1", b"2")
        assert linked.payloads(COMMAND) == expected
        linked.link.ack(linked.messages)
        linked.link.stop(SECONDS)


BIRTH = "homeassistant/status"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_further_topics_are_heard_and_taken_back_when_they_are_no_longer_wanted(
    mosquitto: StartBroker, link: StartLink, protocol: str
) -> None:
    """What comes there is delivered like anything else; what the broker has retained there comes on 3.1.1 alone."""
    server = mosquitto()
    with client(server) as sender:
        send(sender, BIRTH, b"kept", retain=True)
        for besides, expected in (([BIRTH], [b"1"]), ([], [])):
            options: Options = {"filters": ["plant/#"], "unwanted": [BIRTH], "besides": besides, "protocol": protocol}
            linked = link(server.port, **options)
            linked.wait_subscribed()
            send(sender, BIRTH, b"1")
            send(sender, "plant/1", b"2")
            linked.wait_payload("plant/1", b"2")
            assert [m.payload for m in linked.messages if m.topic == BIRTH and not m.retain] == expected
            assert any(m.retain for m in linked.messages) == (protocol == "3.1.1" and bool(besides))
            linked.link.ack(linked.messages)
            linked.link.stop(SECONDS)


@pytest.mark.parametrize("level", [4, 5])
def test_a_further_topic_that_is_refused_harms_nothing(
    link: StartLink, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    """Each has a subscription of its own; the log says which one it was."""

    def behave(peer: Peer) -> None:
        peer.read_until(0x10)
        peer.send(connack(peer.level))
        for code in (1, 0x80 if level == 4 else 0x87, 1, 1):
            mid = int.from_bytes(peer.read_until(0x82)[:2], "big")
            peer.send(suback(level, mid, code))
        peer.stay()

    with FakeBroker(behave) as fake:
        protocol = "5" if level == 5 else "3.1.1"
        linked = link(fake.port, protocol=protocol, filters=["plant/#"], commands=COMMAND, besides=[BIRTH, "other"])
        linked.wait_subscribed()
        (record,) = (record for record in caplog.records if record.message == "not subscribed")
        assert BIRTH in str(record.__dict__["fields"]["reason"])


# --- Messages out ---


def test_birth_and_last_will(mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]) -> None:
    """Others see that we are there, that we have died, that we are back, and that we have left."""
    server = mosquitto()
    with Proxy(server.port) as proxy:
        seen = observer(server.port)
        linked = link(proxy.port)
        seen.wait_payload(STATUS, b"online")
        proxy.cut()
        seen.wait_payload(STATUS, b"offline")
        wait_until(lambda: seen.payloads(STATUS) == [b"online", b"offline", b"online"], SECONDS, "the return")
        assert linked.link.stop(SECONDS)
        wait_until(lambda: seen.payloads(STATUS)[3:] == [b"offline"], SECONDS, "the farewell")
        late = link(server.port, instance="late", client_id="late", protocol="3.1.1")
        late.wait_payload(STATUS, b"offline")
        assert [message.retain for message in late.messages if message.topic == STATUS] == [True]


def test_stop_sends_what_waits(mosquitto: StartBroker, link: StartLink, observer: Callable[[int], Linked]) -> None:
    """Acknowledgements and alarms of the last turn reach the broker before the goodbye."""
    server = mosquitto()
    seen = observer(server.port)
    linked = link(server.port, filters=["plant/#"])
    linked.wait_subscribed()
    for number in range(50):
        seen.link.publish("plant/1", b"%d" % number)
    linked.link.ack(linked.wait_messages(50))
    for number in range(100):
        linked.link.publish("streamer/test/alarm/a", b"%d" % number)
    assert linked.link.stop(SECONDS)
    assert linked.link.status().detail == "stopped"
    wait_until(lambda: len(seen.payloads("streamer/test/alarm/a")) == 100, SECONDS, "100 alarms")
    server.stop()
    assert server.log().count("Received PUBACK from streamer-test") == 50
    assert linked.link.counters().published == 102  # online and offline too
    assert not linked.link.publish("streamer/test/alarm/a", b"late")


def test_the_outgoing_queue_is_bounded(link: StartLink, mosquitto: StartBroker) -> None:
    """While the broker is away messages wait, up to a limit, and then leave in their order."""
    server = mosquitto()
    seen = link(server.port, instance="seen", client_id="seen")
    seen.wait_subscribed()
    with Proxy(server.port) as proxy:
        proxy.blackhole()
        linked = link(proxy.port, outgoing_bytes=50 * (OUTGOING_BYTES + 3))
        assert [linked.link.publish("a", b"%02d" % n) for n in range(60)] == [True] * 50 + [False] * 10
        assert linked.link.counters().publishes_dropped == 10
        proxy.heal()
        wait_until(lambda: len(seen.payloads("a")) == 50, SECONDS, "50 messages")
        assert seen.payloads("a") == [b"%02d" % n for n in range(50)]
        assert linked.link.publish("a", b"50")  # there is room again


def test_a_publish_that_the_broker_refuses_is_counted(mosquitto: StartBroker, link: StartLink) -> None:
    """An ACL that forbids our output is found out."""
    server = mosquitto(acl="topic read #\ntopic write streamer/test/status\n")
    linked = link(server.port, protocol="5")
    linked.wait_subscribed()
    linked.link.publish("streamer/test/alarm/a", b"{}")
    wait_until(lambda: linked.link.counters().publishes_refused == 1, SECONDS, "the refusal")
    assert linked.link.counters().published == 1


def test_what_was_not_confirmed_is_published_again_in_another_version(link: StartLink) -> None:
    """A broker that was replaced by an older one loses no alarm."""
    seen: list[bytes] = []

    def behave(peer: Peer) -> None:
        peer.read_until(0x10)
        if peer.level == 5 and seen:
            peer.send(connack(5, 0x84))
            return
        peer.send(connack(peer.level))
        while True:
            head, body = peer.read()
            if head & 0xF0 == 0x30 and b"alarm" in body:
                seen.append(body)
                if peer.level == 5:
                    return
            if head == 0x82:
                peer.send(suback(peer.level, int.from_bytes(body[:2], "big"), 1))

    with FakeBroker(behave) as fake:
        linked = link(fake.port)
        linked.link.publish("streamer/test/alarm/a", b"{}")
        wait_until(lambda: len(seen) == 2, SECONDS, "the alarm, twice")
        assert linked.wait_subscribed().protocol == "3.1.1"


def test_acknowledgements_of_one_turn_leave_together_and_in_order(link: StartLink) -> None:
    """The broker gets one piece, not a packet at a time."""
    pieces: list[bytes] = []
    everything = b"".join(b"\x40\x02" + mid.to_bytes(2, "big") for mid in range(1, 501))

    def behave(peer: Peer) -> None:
        peer.welcome()
        peer.send(b"".join(publish("a", b"1", qos=1, mid=mid) for mid in range(1, 501)))
        while sum(map(len, pieces)) < len(everything):
            piece = peer.sock.recv(65_536)
            if not piece:
                return
            pieces.append(piece)
        peer.stay()

    with FakeBroker(behave) as fake:
        linked = link(fake.port, protocol="3.1.1")
        linked.link.ack(linked.wait_messages(500))
        wait_until(lambda: sum(map(len, pieces)) >= len(everything), SECONDS, "500 acknowledgements")
        assert everything in pieces


# --- Our own mistakes, and the order of things ---


def test_a_bug_in_the_delivery_marks_the_link_as_dead() -> None:
    """A network thread that has died is never taken for a quiet broker."""
    delivered = threading.Event()

    def deliver(_: list[Message]) -> None:
        delivered.set()
        raise ZeroDivisionError("a bug")

    def behave(peer: Peer) -> None:
        peer.welcome()
        peer.send(publish("a", b"1"))
        peer.stay()

    with FakeBroker(behave) as fake:
        broken = MqttLink(
            host="127.0.0.1",
            port=fake.port,
            instance="test",
            client_id="x",
            filters=["#"],
            protocol="3.1.1",
            deliver=deliver,
            clock=SystemClock(),
        )
        broken.start()
        wait_until(delivered.is_set, SECONDS, "the delivery")
        wait_until(lambda: not broken.status().is_alive, SECONDS, "the link's word")
        assert "ZeroDivisionError('a bug')" in broken.status().detail
        assert not broken.status().connected
        assert not broken.publish("a", b"1")
        assert not broken.stop(1.0)


def test_a_link_that_was_never_started_stops() -> None:
    """Start-up that fails elsewhere stops what it has made."""
    link = MqttLink(
        host="127.0.0.1", port=1, instance="x", client_id="x", filters=["#"], deliver=print, clock=SystemClock()
    )
    assert link.status().detail == "not started"
    assert link.stop(1.0)


def test_stop_does_not_wait_for_a_broker_that_is_not_there(link: StartLink) -> None:
    """A pause between two attempts ends at once."""
    linked = link(1, reconnect_min_seconds=60.0, reconnect_max_seconds=60.0)
    linked.wait_detail("cannot be reached")
    assert linked.link.stop(1.0)


def test_stop_gives_up_on_a_broker_that_hangs(mosquitto: StartBroker, link: StartLink) -> None:
    """What could not be sent in time is said, not waited for."""
    server = mosquitto()
    with Proxy(server.port) as proxy:
        linked = link(proxy.port)
        linked.wait_subscribed()
        proxy.blackhole()
        assert not linked.link.stop(0.1)
        assert not linked.link.status().connected
