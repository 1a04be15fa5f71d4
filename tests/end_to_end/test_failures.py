"""The real daemon when something is wrong: with what it finds at the start, with the broker, with what devices send."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from paho.mqtt.client import MQTTMessage

from models.features import Narrow
from models.weights import BASE, manifest_path
from streamer import snapshot
from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, client, message, running, send
from tests.scrapes import total
from tests.servers import free_port, program
from tests.waiting import wait_until

MEGABYTE = 2**20


# --- At the start ---


def damaged_weights(folder: Path) -> tuple[list[str], list[str]]:
    """One bit of the shipped file is another."""
    path = folder / "mine.safetensors"
    content = bytearray(BASE.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    shutil.copy(manifest_path(BASE), manifest_path(path))
    return [f"model.weights={path}"], [str(path), "damaged", "SHA-256"]


def no_weights(folder: Path) -> tuple[list[str], list[str]]:
    """A file without its manifest."""
    path = folder / "weights.safetensors"
    path.write_bytes(b"nonsense")
    return [f"model.weights={path}"], ["weights.json"]


def state_that_is_a_file(folder: Path) -> tuple[list[str], list[str]]:
    path = folder / "file"
    path.write_text("")
    return [f"state.directory={path}"], ["state.directory", str(path), "expected a directory"]


def state_below_a_file(folder: Path) -> tuple[list[str], list[str]]:
    (folder / "file").write_text("")
    return [f"state.directory={folder / 'file' / 'state'}"], ["state.directory", "expected a directory"]


def an_authority_that_is_none(folder: Path) -> tuple[list[str], list[str]]:
    path = folder / "ca.pem"
    path.write_text("no certificate")
    return ["mqtt.tls.enabled=true", f"mqtt.tls.ca_file={path}"], [str(path)]


@pytest.mark.parametrize(
    "wrong",
    [
        damaged_weights,
        no_weights,
        state_that_is_a_file,
        state_below_a_file,
        an_authority_that_is_none,
    ],
)
def test_what_a_person_must_mend_ends_the_start_with_exit_status_2(
    tmp_path: Path, wrong: Callable[[Path], tuple[list[str], list[str]]]
) -> None:
    """Refused by name, without a traceback and without a connection."""
    settings, named = wrong(tmp_path)
    with running(free_port(), tmp_path, *settings) as daemon:
        assert daemon.process.wait(SECONDS) == 2
        said = daemon.log()
        assert all(each in said for each in named), said
        assert "Traceback" not in said


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    """By its number; the state directory is free again afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(free_port(), tmp_path, f"http.port={port}") as daemon:
            assert daemon.process.wait(SECONDS) == 2
            assert str(port) in daemon.log()
            assert "Traceback" not in daemon.log()


def test_a_second_daemon_on_the_same_state_is_refused(tmp_path: Path) -> None:
    """By the process that has it; that one goes on. After kill -9 nothing has to be cleaned up."""
    with running(free_port(), tmp_path) as first:
        first.wait_log("started")
        with running(free_port(), tmp_path) as second:
            assert second.process.wait(SECONDS) == 2
            assert f"is in use by process {first.process.pid}" in second.log()
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait()
        with running(free_port(), tmp_path) as third:
            wait_until(lambda: third.get("/-/healthy")[0] == 200, SECONDS, "healthy")
            assert third.stop() == 0


def test_damaged_state_is_set_aside_and_the_one_before_is_used(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The start never fails on state; with nothing sound left every series begins anew, and that is said."""
    broker, alone = mosquitto(), "state.durability=snapshot"
    with client(broker) as peer:
        for start in range(2):
            with running(broker.port, tmp_path, alone) as daemon:
                daemon.wait_ready()
                for k in range(30):
                    send(peer, "plant/oven", message(30 * start + k, 20.0))
                daemon.wait_settled(30)
                assert daemon.stop() == 0
    for left, restored in ((1, 1.0), (0, 0.0)):
        snapshots = sorted((tmp_path / "state").glob("*.snap"))
        for newest in snapshots[left:]:
            content = bytearray(newest.read_bytes())
            content[-100] ^= 1
            newest.write_bytes(content)
        with running(broker.port, tmp_path, alone) as daemon:
            daemon.wait_ready()
            assert daemon.numbers()["state_restored", ""] == restored
            assert "snapshot set aside" in daemon.log()
            daemon.process.kill()
    assert "every series begins anew" in daemon.log()


# --- The broker ---


def test_a_wrong_password_is_said_and_not_hammered(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Live, not ready, one attempt and then a pause; never the password itself."""
    broker = mosquitto(users={"ann": "secret"})
    password = tmp_path / "password"
    password.write_text("swordfish\n")
    with running(broker.port, tmp_path, "mqtt.username=ann", f"mqtt.password_file={password}") as daemon:
        daemon.wait_log("no connection to the broker")
        wait_until(lambda: "password" in daemon.get("/-/ready")[1], SECONDS, "the reason")
        assert daemon.get("/-/ready")[0] == 503
        assert daemon.get("/-/healthy")[0] == 200
        assert daemon.numbers()["mqtt_connected", ""] == 0
        assert "swordfish" not in daemon.log() + daemon.get("/-/ready")[1]
        assert broker.log().count("not authorised") <= 3
        assert daemon.stop() == 0


def test_a_new_password_is_taken_at_sighup(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Refused, then the file is mended and the daemon told so: connected, without a restart and at once."""
    broker = mosquitto(users={"ann": "secret"})
    password = tmp_path / "password"
    password.write_text("wrong")
    with running(broker.port, tmp_path, "mqtt.username=ann", f"mqtt.password_file={password}") as daemon:
        daemon.wait_log("no connection to the broker")
        password.write_text("secret")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_ready()
        assert "secret" not in daemon.log()
        assert daemon.stop() == 0


def test_when_the_broker_goes_it_is_not_ready_and_nobody_is_silent(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Live all the time, ready again when the broker is back; the readings in between are nobody's fault."""
    broker = mosquitto()
    with running(broker.port, tmp_path, "mqtt.reconnect_min_seconds=0.2", "mqtt.reconnect_max_seconds=1") as daemon:
        daemon.wait_ready()
        broker.stop()
        wait_until(lambda: daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        assert daemon.get("/-/healthy")[0] == 200
        broker.start()
        daemon.wait_ready()
        with client(broker) as peer:
            send(peer, "plant/oven", "21.5")
        daemon.wait_settled(1)
        assert daemon.numbers()["mqtt_reconnects_total", ""] >= 1
        assert total(daemon.numbers(), "alarms_opened_total") == 0
        assert daemon.stop() == 0


def test_open_alarms_are_retained_again_by_a_broker_that_has_lost_them(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Killed, a broker forgets what it had retained; who asks it afterwards finds the open alarm all the same."""
    broker = mosquitto()
    topic = "streamer/default/series/plant/oven%23temperature"
    with running(broker.port, tmp_path, "mqtt.reconnect_min_seconds=0.2", "mqtt.reconnect_max_seconds=1") as daemon:
        daemon.wait_ready()
        with client(broker) as peer:
            for k in range(60):
                send(peer, "plant/oven", message(k, 20 + k % 3))
            send(peer, "plant/oven", message(60, 500.0))
        daemon.wait_settled(61)
        broker.kill()
        wait_until(lambda: daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        broker.start()
        daemon.wait_ready()
        heard: list[MQTTMessage] = []
        with client(broker) as peer:
            peer.on_message = lambda _client, _data, got: heard.append(got)
            peer.subscribe(topic, qos=1)
            wait_until(lambda: heard, SECONDS, "the retained state")
        assert json.loads(heard[0].payload)["value"] == 500.0
        assert daemon.stop() == 0


@pytest.mark.server("strace")
def test_a_disk_that_hangs_holds_up_neither_scoring_nor_the_end(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Snapshots are left out and counted, readings are scored; SIGTERM is obeyed in time, and the loss is said."""
    broker = mosquitto()
    tracer = program("strace")
    with running(broker.port, tmp_path, "state.snapshot_seconds=1") as daemon, client(broker) as peer:
        daemon.wait_ready()
        slow = [tracer, "-qq", "-f", "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=30000000"]
        with subprocess.Popen([*slow, "-p", str(daemon.process.pid)], stderr=subprocess.DEVNULL) as tracing:
            wait_until(lambda: daemon.numbers()["snapshot_total", "failed"] >= 1, SECONDS, "a snapshot left out")
            for k in range(30):
                send(peer, "plant/oven", message(k, 20.0))
            assert daemon.wait_settled(30)["readings_scored_total", ""] == 10
            assert daemon.get("/-/healthy")[0] == 200
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_log("state_saved=false", seconds=5)
            tracing.kill()  # the kernel lets no process go that the disk, here strace, still has in its hands
            assert daemon.process.wait(SECONDS) == 1


def test_a_daemon_that_is_killed_is_said_to_be_offline(mosquitto: StartBroker, tmp_path: Path) -> None:
    """By the broker: that is the last will."""
    broker = mosquitto()
    heard: list[MQTTMessage] = []
    with client(broker) as peer, running(broker.port, tmp_path) as daemon:
        peer.on_message = lambda _client, _data, got: heard.append(got)
        peer.subscribe("streamer/default/status", qos=1)
        wait_until(lambda: [got.payload for got in heard] == [b"online"], SECONDS, "online")
        daemon.process.kill()
        wait_until(lambda: [got.payload for got in heard] == [b"online", b"offline"], SECONDS, "offline")


def test_nothing_is_lost_over_a_restart_in_the_middle_of_a_stream(mosquitto: StartBroker, tmp_path: Path) -> None:
    """At QoS 1 the broker keeps what the daemon has not taken; what it has taken is in its state."""
    broker = mosquitto(lines=["max_queued_messages 0", "max_inflight_messages 0"])
    n = 10_000
    with client(broker) as peer:
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            sent = [peer.publish(f"plant/{k % 100}", message(k // 100, 20.0), qos=1) for k in range(n)]
            wait_until(lambda: daemon.numbers()["readings_decoded_total", ""] > 0, SECONDS, "the first readings")
            assert daemon.stop() == 0
        for each in sent:
            each.wait_for_publish(SECONDS)
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            send(peer, "plant/end", "1")
            wait_until(lambda: daemon.numbers()["series", ""] == 101, SECONDS, "the end")
            numbers = daemon.numbers()
            assert numbers["state_restored", ""] == 1
            assert numbers["messages_received_total", ""] > 1000  # the first one had not taken all
            assert daemon.stop() == 0
    assert learned(tmp_path / "state") == n + 1


def learned(directory: Path) -> int:
    """How many readings the newest snapshot has learned."""
    found = snapshot.read_newest(directory).snapshot
    assert found is not None
    return int(found.arrays["statistics.narrow"][:, Narrow.COUNT].sum())


# --- What devices send ---


def test_ten_megabytes_in_a_message_do_not_fill_the_memory(mosquitto: StartBroker, tmp_path: Path) -> None:
    """They are refused and counted where the operator lets such packets through, and the stream goes on."""
    broker = mosquitto(lines=["max_packet_size 100000000"])
    limits = ("mqtt.max_packet_bytes=12000000", "limits.inbox_bytes=30000000")
    with running(broker.port, tmp_path, *limits) as daemon, client(broker) as peer:
        daemon.wait_ready()
        send(peer, "plant/oven", "21.5")
        daemon.wait_settled(1)
        before = daemon.memory_bytes()
        payload = b"[" + b"1," * (5 * MEGABYTE) + b"1]"
        for _ in range(20):
            peer.publish("plant/huge", payload, qos=1)
        send(peer, "plant/oven", "21.6")
        wait_until(lambda: daemon.numbers()["messages_decoded_total", ""] == 2, 60, "the reading after them")
        numbers = daemon.numbers()
        assert numbers["messages_rejected_total", "too_large"] + numbers["messages_dropped_total", "inbox_full"] == 20
        assert daemon.memory_bytes() - before < 100 * MEGABYTE
        assert daemon.stop() == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_packet_above_the_limit_does_not_end_the_stream(
    mosquitto: StartBroker, tmp_path: Path, protocol: str
) -> None:
    """An MQTT 5 broker leaves it out; from others the connection ends, and is made again."""
    broker = mosquitto(lines=["max_packet_size 100000000"])
    quick = ("mqtt.reconnect_min_seconds=0.1", "mqtt.reconnect_max_seconds=0.5")
    with running(broker.port, tmp_path, f"mqtt.protocol={protocol}", *quick) as daemon, client(broker) as peer:
        daemon.wait_ready()
        send(peer, "plant/huge", b"1" * (10 * MEGABYTE))
        send(peer, "plant/oven", "21.5")
        wait_until(lambda: daemon.numbers()["messages_decoded_total", ""] >= 1, SECONDS, "the reading after it")
        assert daemon.memory_bytes() < 200 * MEGABYTE
        assert daemon.stop() == 0


@pytest.mark.parametrize("topics", [3000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_flood_of_new_topics_is_refused_and_the_known_series_go_on(
    mosquitto: StartBroker, tmp_path: Path, topics: int
) -> None:
    """Admission has a limit; what it refuses is counted, and memory does not grow with it."""
    broker = mosquitto(lines=["max_queued_messages 0"])
    limits = ("limits.new_series_burst=500", "limits.new_series_per_minute=1")
    with running(broker.port, tmp_path, *limits) as daemon, client(broker) as peer:
        daemon.wait_ready()
        for k in range(30):
            send(peer, "plant/oven", message(k, 20.0))
        numbers = daemon.wait_settled(30)
        scored, before = numbers["readings_scored_total", ""], daemon.memory_bytes()
        for k in range(topics):
            peer.publish(f"flood/{k}", "1", qos=0)
            if k % (topics // 10) == 0:
                peer.publish("plant/oven", message(30 + 10 * k // topics, 20.0), qos=1)
        numbers = daemon.wait_settled(30 + topics + 10, 100)
        refused = numbers["series_refused_total", "rate"]
        assert topics - 510 <= refused <= topics - 490
        assert refused == numbers["readings_rejected_total", "admission_rate"]
        assert numbers["readings_scored_total", ""] == scored + 10
        assert daemon.memory_bytes() - before < 150 * MEGABYTE
        assert daemon.stop() == 0
