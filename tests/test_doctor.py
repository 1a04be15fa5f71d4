"""`streamer doctor` against a real mosquitto, in the shipped configuration and in others, and against odd brokers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from streamer.clock import SystemClock
from streamer.demo.broker import broker as demo_broker
from streamer.doctor import Case, Finding, Report, Verdict, examine
from streamer.mqtt import MqttLink
from streamer.probe import FAILURE, Access, NoConnectionError, Probe
from streamer.readings import Message
from streamer.topics import is_own_output
from tests.conftest import StartBroker
from tests.fake_broker import FakeBroker, Peer, connack, publish, suback
from tests.servers import Broker, Certificates, PortTakenError, free_port, program
from tests.waiting import wait_until

DEPLOY = Path(__file__).parent.parent / "deploy" / "mosquitto"
PASSWORD = "correct horse"  # noqa: S105  of a broker that lives for a test
SECONDS = 20.0
OK, WARNING, UNKNOWN = Verdict.OK, Verdict.WARNING, Verdict.UNKNOWN


def access(broker: Broker, username: str = "") -> Access:
    return Access("127.0.0.1", broker.port, username=username, password=PASSWORD if username else "")


def case(
    where: Access,
    *,
    protocol: str = "auto",
    filters: tuple[str, ...] = ("plant/#",),
    qos: int = 1,
    session_expiry_seconds: int = 3600,
    messages: int | None = 100,
) -> Case:
    return Case(where, "test", protocol, filters, qos, session_expiry_seconds, messages)


def verdicts(report: Report) -> dict[str, Verdict]:
    return {finding.check: finding.verdict for finding in report.findings}


def warnings(report: Report) -> set[str]:
    return {finding.check for finding in report.findings if finding.verdict is WARNING}


def found(report: Report, check: str) -> Finding:
    return next(finding for finding in report.findings if finding.check == check)


def quietly(_: Finding) -> None:
    """Tell nobody."""


def remains(broker: Broker) -> bytes:
    """What a broker that was stopped has kept on its disk."""
    broker.stop()
    return (broker.directory / "mosquitto.db").read_bytes()


@pytest.fixture
def shipped(request: pytest.FixtureRequest, tmp_path: Path, mosquitto: StartBroker) -> Iterator[Broker]:
    """mosquitto with deploy/mosquitto/mosquitto.conf and its access list: only port, paths and user are replaced."""
    text = (DEPLOY / "mosquitto.conf").read_text()
    text = text.replace("/var/lib/mosquitto/", f"{tmp_path}/").replace("/etc/mosquitto/", f"{tmp_path}/")
    text, count = re.subn(r"(?m)^listener 1883 ", "listener {port} ", text)
    assert count == 1
    assert text.count(str(tmp_path)) >= 3
    shutil.copy(DEPLOY / "acl", tmp_path / "acl")
    (tmp_path / "acl").chmod(0o600)
    if os.geteuid() == 0:
        text += "user root\n"

    def on(port: int) -> Broker:
        (tmp_path / "mosquitto.conf").write_text(text.replace("{port}", str(port)))
        broker = Broker([program("mosquitto"), "-c", str(tmp_path / "mosquitto.conf")], port, tmp_path)
        broker.set_users({"streamer": PASSWORD, "zigbee2mqtt": PASSWORD})
        broker.start()
        return broker

    try:
        broker = on(free_port())
    except PortTakenError:
        broker = on(free_port())
    yield broker
    broker.stop()


@pytest.fixture
def publishing() -> Iterator[Callable[[Access, str], None]]:
    """Starts a sensor that publishes again and again."""
    is_over = threading.Event()
    threads: list[threading.Thread] = []

    def publish(where: Access, topic: str) -> None:
        with contextlib.suppress(NoConnectionError), Probe(where, "sensor", "5") as probe:
            while not is_over.is_set():
                probe.publish_all(topic, [b"21.5"])
                probe.wait(is_over.is_set, 0.05)

    def start(where: Access, topic: str) -> None:
        threads.append(threading.Thread(target=publish, args=[where, topic]))
        threads[-1].start()

    yield start
    is_over.set()
    for thread in threads:
        thread.join()


# --- mosquitto ---


def test_the_shipped_configuration_loses_nothing(shipped: Broker, publishing: Callable[[Access, str], None]) -> None:
    """All is well but what no client can see; the access list lets both the daemon and the doctor do their work."""
    publishing(access(shipped, "zigbee2mqtt"), "zigbee2mqtt/kitchen")
    where = access(shipped, "streamer")
    report = examine(Case(where, "default", "auto", ["zigbee2mqtt/#", "#"], 1, 259_200), quietly)
    assert {check: verdict for check, verdict in verdicts(report).items() if verdict is not OK} == {
        "crash of the broker": UNKNOWN
    }
    assert "messages arrive" in found(report, "subscription #").found
    assert "all 1200 messages" in found(report, "offline queue").found
    assert "mosquitto version" in found(report, "broker and daemon").found
    assert b"doctor" not in remains(shipped)


def test_what_the_access_list_forbids_is_not_called_fine(
    shipped: Broker, publishing: Callable[[Access, str], None]
) -> None:
    """mosquitto grants the subscription and delivers nothing: that is not known to be well."""
    publishing(access(shipped, "zigbee2mqtt"), "zigbee2mqtt/kitchen")
    report = examine(Case(access(shipped, "streamer"), "default", "auto", ["secret/#"], 1, 3600, 0), quietly)
    assert verdicts(report)["subscription secret/#"] is UNKNOWN
    other = examine(Case(access(shipped, "streamer"), "other", "auto", ["zigbee2mqtt/#"], 1, 3600, 10), quietly)
    assert warnings(other) == {"delivery"}
    assert "the broker refuses" in found(other, "delivery").found
    assert "streamer/other/#" in found(other, "delivery").wanted
    assert verdicts(other)["offline queue"] is UNKNOWN


def fill(broker: Broker, count: int) -> None:
    """So many confirmed messages for a session that is away."""
    with Probe(access(broker, "streamer"), "away", "5", session_expiry_seconds=3600, is_clean=False) as away:
        assert away.subscribe("zigbee2mqtt/#", 1) == 1
    with Probe(access(broker, "zigbee2mqtt"), "sensor", "5") as sensor:
        reasons = sensor.publish_all("zigbee2mqtt/a", [b"%d" % number for number in range(count)])
        assert reasons == [0] * count


def arrived(broker: Broker, count: int) -> list[bytes]:
    with Probe(access(broker, "streamer"), "away", "5", session_expiry_seconds=3600, is_clean=False) as away:
        assert away.is_session_present
        away.collect(count, 5.0)
        return away.payloads("zigbee2mqtt/a")


@pytest.mark.slow
def test_five_thousand_messages_outlive_a_broker_that_is_killed_once_it_has_saved(shipped: Broker) -> None:
    """All of them, in their order, where the default keeps 1,000. SIGKILL costs what came since the last save only."""
    fill(shipped, 5_000)
    seen: set[int] = set()

    def saves() -> int:
        with contextlib.suppress(FileNotFoundError):
            seen.add((shipped.directory / "mosquitto.db").stat().st_mtime_ns)
        return len(seen)

    before = saves()
    wait_until(lambda: saves() == before + 2, SECONDS, "two saves: the first may have begun before the last message")
    shipped.kill()
    shipped.start()
    assert arrived(shipped, 5_000) == [b"%d" % number for number in range(5_000)]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_mosquittos_defaults_are_warned_of(mosquitto: StartBroker, protocol: str) -> None:
    """A thousand messages are kept and the rest is dropped, and nothing at QoS 0; all else is well."""
    server = mosquitto()
    where = access(server)
    report = examine(case(where, protocol=protocol, messages=None), quietly)
    assert warnings(report) == {"offline queue", "QoS 0 while away"}
    assert found(report, "offline queue").found.startswith("1000 of 1200 messages")
    assert "max_queued_messages" in found(report, "offline queue").advice
    assert verdicts(report)["session expiry"] is (OK if protocol == "5" else UNKNOWN)
    assert where.traffic.messages_sent < 1_300
    assert 50_000 < where.traffic.bytes_sent < 200_000
    assert b"doctor" not in remains(server)


def test_a_running_daemon_is_not_disturbed(mosquitto: StartBroker) -> None:
    """Its connection stays, and all it hears of the doctor is its own instance's output, which it does not read."""
    server = mosquitto()
    messages: list[Message] = []
    link = MqttLink(
        host="127.0.0.1",
        port=server.port,
        instance="test",
        client_id="streamer-test",
        filters=["#"],
        deliver=messages.extend,
        clock=SystemClock(),
    )
    link.start()
    try:
        wait_until(lambda: link.status().subscribed, SECONDS, "the subscription")
        report = examine(case(access(server), filters=("#",)), quietly)
        status = link.status()
        assert (status.connected, status.generation) == (True, 1)
        assert "the daemon is online" in found(report, "broker and daemon").found
        assert messages
        assert all(is_own_output(message.topic, "test") for message in messages)
    finally:
        link.stop(SECONDS)


@pytest.mark.slow
def test_the_queue_of_a_daemon_that_is_away_is_not_filled(mosquitto: StartBroker) -> None:
    """What is published now would take up its room; who names a number wants it all the same."""
    server = mosquitto()
    with Probe(access(server), "daemon", "5") as daemon:
        assert daemon.publish_all("streamer/test/status", [b"offline"], retain=True)[0] < FAILURE
    where = access(server)
    report = examine(case(where, messages=None), quietly)
    assert verdicts(report)["offline queue"] is UNKNOWN
    assert where.traffic.messages_sent < 20
    report = examine(case(access(server), messages=50), quietly)
    assert "all 50 messages" in found(report, "offline queue").found


def test_a_broker_that_takes_users_for_client_ids_does_not_cost_the_daemon_its_session(mosquitto: StartBroker) -> None:
    """The doctor finds itself in a session that was there, and leaves it as it is."""
    server = mosquitto(users={"gateway": PASSWORD}, lines=["use_username_as_clientid true"])
    where = access(server, "gateway")

    def daemon() -> Probe:
        return Probe(where, "streamer-test", "5", session_expiry_seconds=3600, is_clean=False)

    with daemon() as first:
        first.subscribe("plant/#", 1)
    report = examine(case(where), quietly)
    assert warnings(report) == {"client id"}
    assert "use_username_as_clientid" in found(report, "client id").advice
    with daemon() as second:
        assert second.is_session_present


def test_a_broker_without_retained_messages_is_warned_of(mosquitto: StartBroker) -> None:
    """Status and open alarms would be gone for whoever comes later."""
    report = examine(case(access(mosquitto(lines=["retain_available false"]))), quietly)
    assert "retained messages" in warnings(report)


# --- Others ---


def test_limits_that_lose_data_are_warned_of() -> None:
    """What CONNACK grants less of than the daemon wants, and what it refuses, each with a line; none hides the next."""
    properties = b"\x11\x00\x00\x00\x3c"  # session expiry 60 s
    properties += b"\x13\x01\x2c\x24\x00\x25\x00\x28\x00"  # keep-alive 300 s, QoS 0, neither retained nor wildcards
    properties += b"\x27\x00\x00\x10\x00"  # packets of 4,096 bytes
    properties += b"\x12\x00\x03abc"  # another client id

    def behave(peer: Peer) -> None:
        peer.read()
        body = b"\x00\x00" + bytes([len(properties)]) + properties
        peer.send(b"\x20" + bytes([len(body)]) + body)
        while True:
            head, body = peer.read()
            if head == 0x82:
                peer.send(suback(5, int.from_bytes(body[:2], "big"), 0x87))
            if head & 0xF6 == 0x32:
                end = 2 + int.from_bytes(body[:2], "big")
                peer.send(b"\x40\x03" + body[end : end + 2] + b"\x87")

    with FakeBroker(behave) as fake:
        report = examine(case(Access("127.0.0.1", fake.port, timeout_seconds=2.0)), quietly)
    assert warnings(report) == {
        "client id", "session expiry", "maximum QoS", "maximum packet", "retained messages", "wildcards", "keep-alive",
        "subscription plant/#",
    }  # fmt: skip
    assert found(report, "session expiry").found == "60 s granted"
    assert verdicts(report)["delivery"] is UNKNOWN  # a publish at QoS 1 would break the protocol
    assert "0x87" in found(report, "subscription plant/#").found
    for finding in report.findings:
        if finding.verdict is WARNING:
            assert finding.wanted
            assert finding.advice


def test_the_brokers_words_are_no_commands_to_the_terminal() -> None:
    """A finding is one line of printable characters, whatever the broker is called."""
    assert str(Finding("broker", OK, "mosquitto\x1b[2J\n\u202e", "nothing", "go")) == (
        "ok           broker: mosquitto [2J  ; wanted: nothing; go"
    )


def test_settings_that_lose_data_are_warned_of(mosquitto: StartBroker) -> None:
    """QoS 0 and a session that ends with the connection are the operator's own choice."""
    report = examine(case(access(mosquitto()), qos=0, session_expiry_seconds=0, messages=0), quietly)
    assert {"maximum QoS", "session expiry"} <= warnings(report)


def test_a_broker_without_mqtt_5_that_drops_us_all_the_time() -> None:
    """It is spoken to in MQTT 3.1.1, and each check that loses its connection says so."""

    def behave(peer: Peer) -> None:
        peer.read()
        peer.send(connack(5, 0x84) if peer.level == 5 else connack(4))

    with FakeBroker(behave) as fake:
        report = examine(case(Access("127.0.0.1", fake.port, timeout_seconds=2.0)), quietly)
    assert report.is_reached
    assert "does not speak MQTT 5" in found(report, "connection").found
    assert "closed the connection" in found(report, "subscription plant/#").found


def test_the_demos_broker(tmp_path: Path) -> None:
    """Another kind: it closes for $SYS, knows neither no-local nor retain handling, and all of that is well."""
    with demo_broker(tmp_path, 0) as port:
        report = examine(case(Access("127.0.0.1", port)), quietly)
    assert warnings(report) == set()
    assert "the daemon sets them aside" in found(report, "retained messages").found
    assert "the daemon knows them by their topic" in found(report, "own messages").found


def test_a_broker_that_hangs_is_given_up() -> None:
    """Every wait has an end."""
    with FakeBroker(lambda peer: peer.stay()) as fake:
        report = examine(case(Access("127.0.0.1", fake.port, timeout_seconds=0.2)), quietly)
    assert not report.is_reached
    assert "did not answer CONNECT within 0.2 s" in found(report, "connection").found


def test_what_cannot_be_cleaned_up_is_named(mosquitto: StartBroker) -> None:
    """A broker that dies meanwhile: every check that is left says so, and what it may still hold is told."""
    server = mosquitto()

    def tell(finding: Finding) -> None:
        if finding.check == "delivery":
            server.kill()

    report = examine(case(access(server)), tell)
    assert {"retained", "own messages", "subscription plant/#", "offline queue", "left behind"} == warnings(report)
    assert "streamer-doctor-" in found(report, "left behind").found


@pytest.mark.slow
def test_a_retained_message_is_taken_back_after_a_loss() -> None:
    """The connection breaks between publishing and taking back; another one takes it back."""
    readers: dict[bytes, Peer] = {}
    retained: list[bytes] = []

    def behave(peer: Peer) -> None:
        peer.read()
        peer.send(connack(4))
        while True:
            head, body = peer.read()
            if head == 0x82:
                readers[body[4:-1]] = peer
                peer.send(suback(4, int.from_bytes(body[:2], "big"), 1))
            elif head & 0xF6 == 0x32:
                end = 2 + int.from_bytes(body[:2], "big")
                topic, mid, payload = body[2:end], body[end : end + 2], body[end + 2 :]
                peer.send(b"\x40\x02" + mid)
                if head & 1:
                    retained.append(payload)
                    if payload:
                        return
                else:
                    readers[topic].send(publish(topic, payload))

    with FakeBroker(behave) as fake:
        report = examine(case(Access("127.0.0.1", fake.port), protocol="3.1.1", messages=0), quietly)
    assert {"retained", "session"} == warnings(report)
    assert retained == [b"doctor: an old value", b""]


def test_a_probe_whose_broker_dies_says_so(mosquitto: StartBroker) -> None:
    """Nobody waits for an answer that cannot come."""
    server = mosquitto()
    with Probe(access(server), "probe", "5") as probe:
        server.kill()
        with pytest.raises(NoConnectionError, match="closed the connection"):
            probe.wait(lambda: False, SECONDS)


# --- The command ---


class Check(msgspec.Struct):
    check: str
    verdict: str
    found: str
    wanted: str
    advice: str


class Answer(msgspec.Struct):
    broker: str
    reached: bool
    checks: list[Check]
    traffic: dict[str, int]


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamer", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.slow
def test_the_command_uses_the_daemons_settings(
    mosquitto: StartBroker, certificates: Certificates, tmp_path: Path
) -> None:
    """TLS and password file; text and JSON say the same; status 1 for a warning, 0 for none."""
    lines = ["queue_qos0_messages true"]
    server = mosquitto(tls=certificates, users={"gateway": PASSWORD}, lines=lines)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    settings = {
        "mqtt.port": str(server.port),
        "mqtt.username": "gateway",
        "mqtt.password_file": str(tmp_path / "password"),
        "mqtt.tls.enabled": "true",
        "mqtt.tls.ca_file": str(certificates.ca),
    }
    arguments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = doctor(*arguments, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    answer = msgspec.json.decode(done.stdout, type=Answer)
    assert answer.reached
    assert [check.check for check in answer.checks if check.verdict == "warning"] == ["offline queue"]
    assert answer.traffic["messages_received"] > 1_000
    done = doctor(*arguments, "--probe-messages", "20")
    assert (done.returncode, done.stderr) == (0, "")
    *findings, traffic = done.stdout.splitlines()
    assert [line[13:].split(": ")[0] for line in findings] == [check.check for check in answer.checks]
    assert traffic.startswith("traffic: connections ")


def test_the_command_without_a_broker(mosquitto: StartBroker) -> None:
    """Status 3 for one that is not there or refuses us, 2 for settings that are wrong."""
    done = doctor("--set", f"mqtt.port={free_port()}")
    assert done.returncode == 3
    assert "cannot be reached" in done.stdout
    server = mosquitto(users={"gateway": PASSWORD})
    done = doctor("--set", f"mqtt.port={server.port}", "--json")
    assert done.returncode == 3
    answer = msgspec.json.decode(done.stdout, type=Answer)
    assert not answer.reached
    assert "mqtt.username or password" in answer.checks[0].found
    assert doctor("--set", "mqtt.prot=1").returncode == 2
    assert doctor("--probe-messages", "-1").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_doctor_that_is_interrupted_leaves_nothing_behind(
    mosquitto: StartBroker, protocol: str, number: signal.Signals
) -> None:
    """Its offline session, which is just being filled, is ended."""
    server = mosquitto()
    command = [sys.executable, "-m", "streamer", "doctor", "--probe-messages", "100000"]
    command += ["--set", f"mqtt.port={server.port}", "--set", f"mqtt.protocol={protocol}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: server.log().count("/queue'") > 300, SECONDS, "the messages")
        process.send_signal(number)
        _, complaint = process.communicate(timeout=SECONDS)
        assert (process.returncode, complaint) == (130, "")
    assert b"doctor" not in remains(server)
