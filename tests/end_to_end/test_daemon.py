"""The real daemon behind a real mosquitto: scores, alarms, counters, signals, state."""

from __future__ import annotations

import csv
import json
import math
import random
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StartBroker
from tests.servers import Broker, free_port
from tests.waiting import wait_until

START = 1_790_000_000.0
Numbers = dict[tuple[str, str], float]


class Daemon:
    """`streamer run` as a process of its own."""

    def __init__(self, broker_port: int, folder: Path, *settings: str) -> None:
        self.http_port = free_port()
        self.log = folder / "log"
        options = [f"mqtt.port={broker_port}", f"http.port={self.http_port}", f"state.directory={folder / 'state'}"]
        arguments = [part for option in (*options, *settings) for part in ("--set", option)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "streamer", "run", *arguments], stderr=log)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def numbers(self) -> Numbers:
        """Every sample of our own by name and its label value, after both identities have been checked."""
        found: Numbers = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name.startswith("streamer_"):
                    found[sample.name.removeprefix("streamer_"), ",".join(sample.labels.values())] = sample.value
        check_identities(found)
        return found

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.get("/-/ready")[0] == 200

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(5)


def total(numbers: Numbers, name: str) -> float:
    return sum(value for (other, _), value in numbers.items() if other == name)


def check_identities(numbers: Numbers) -> None:
    """Nothing is lost between two counters."""
    fates = ("decoded_total", "retained_total", "ignored_total", "rejected_total", "dropped_total", "queued")
    assert numbers["messages_received_total", ""] == sum(total(numbers, f"messages_{fate}") for fate in fates)
    verdicts = ("scored_total", "unscored_total", "rejected_total", "pending")
    assert numbers["readings_decoded_total", ""] == sum(total(numbers, f"readings_{each}") for each in verdicts)


@contextmanager
def running(broker_port: int, folder: Path, *settings: str) -> Iterator[Daemon]:
    daemon = Daemon(broker_port, folder, *settings)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.wait()


@contextmanager
def client(broker: Broker) -> Iterator[Client]:
    connected = Client(CallbackAPIVersion.VERSION2)
    connected.connect(broker.host, broker.port)
    connected.loop_start()
    yield connected
    connected.disconnect()
    connected.loop_stop()


def send(to: Client, topic: str, payload: str | bytes, *, retain: bool = False) -> None:
    to.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)


def course(n: int, seed: int = 1) -> list[float]:
    """A calm sensor: a slow wave and a little noise."""
    rng = random.Random(seed)
    return [20 + 3 * math.sin(k / 30) + rng.gauss(0, 0.1) for k in range(n)]


def message(k: int, value: float) -> str:
    return json.dumps({"time": START + 60 * k, "temperature": value})


def processed(daemon: Daemon, messages: int) -> Numbers:
    """The numbers once so many messages are settled; nothing before."""
    numbers = daemon.numbers()
    is_done = numbers["messages_received_total", ""] >= messages and not numbers["messages_queued", ""]
    return numbers if is_done else {}


def test_a_fault_becomes_one_alarm_and_every_message_is_accounted_for(mosquitto: StartBroker, tmp_path: Path) -> None:
    """From a payload to an alarm event, a retained state and counters that add up at every scrape."""
    broker = mosquitto()
    heard: list[MQTTMessage] = []
    with running(broker.port, tmp_path) as daemon, client(broker) as peer:
        wait_until(daemon.is_ready, 20, "ready")
        peer.on_message = lambda _client, _data, got: heard.append(got)
        peer.subscribe("streamer/#", qos=1)
        values = course(420)
        values[400:405] = [60.0] * 5
        for k, value in enumerate(values):
            peer.publish("plant/oven", message(k, value), qos=1)
            if k % 50 == 0:
                daemon.numbers()
        for bad in ("", "{", '{"a": 1e999}', "no number", b"\xff\xfe"):
            send(peer, "plant/bad", bad)
        numbers = wait_until(lambda: processed(daemon, 425), 20, "everything processed")
        assert numbers["messages_decoded_total", ""] == 420
        assert total(numbers, "messages_rejected_total") == 5
        assert numbers["messages_retained_total", ""] == 0
        assert numbers["readings_unscored_total", "warming"] == 20
        assert numbers["readings_scored_total", ""] == 400
        assert numbers["alarms_opened_total", "value"] == 1
        events = wait_until(
            lambda: [json.loads(m.payload) for m in heard if "/alarm/" in m.topic], 10, "an alarm event"
        )
        assert events[0]["event"] == "opened"
        assert events[0]["key"] == "plant/oven#temperature"
        assert events[0]["direction"] == "above"
        assert events[0]["opened_at"] == START + 60 * 400
        assert {event["id"] for event in events} == {events[0]["id"]}
        assert any(m.topic == "streamer/default/series/plant/oven%23temperature" and m.payload for m in heard)
        assert any(m.topic == "streamer/default/status" and m.payload == b"online" for m in heard)
        assert daemon.stop() == 0
        wait_until(lambda: any(m.payload == b"offline" for m in heard), 10, "the word offline")


def test_it_waits_for_a_broker_and_keeps_its_state_over_a_restart(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Live but not ready without a broker; ready when it appears; what is known survives a restart."""
    broker = mosquitto()
    broker.stop()
    with running(broker.port, tmp_path, "mqtt.reconnect_max_seconds=1") as daemon:
        wait_until(lambda: daemon.get("/-/healthy")[0] == 200, 20, "healthy")
        assert daemon.get("/-/ready")[0] == 503
        broker.start()
        wait_until(daemon.is_ready, 20, "ready")
        assert daemon.numbers()["state_restored", ""] == 0
        with client(broker) as peer:
            for k, value in enumerate(course(30)):
                send(peer, "plant/oven", message(k, value))
        wait_until(lambda: processed(daemon, 30), 20, "everything processed")
        assert daemon.stop() == 0
    with running(broker.port, tmp_path) as daemon:
        wait_until(daemon.is_ready, 20, "ready again")
        with client(broker) as peer:
            send(peer, "plant/oven", message(30, 20.0))
            send(peer, "streamer/default/alarm/x", "21.5")
        numbers = wait_until(lambda: processed(daemon, 1), 20, "one more message")
        assert numbers["state_restored", ""] == 1
        assert numbers["readings_scored_total", ""] == 1
        assert daemon.stop() == 0


def test_a_file_replayed_and_published_gives_the_same_scores(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Whatever way the readings come, and however they are cut into turns, the scores agree to 1e-6."""
    broker = mosquitto()
    values = course(120, seed=3)
    recording = tmp_path / "recording.csv"
    recording.write_text("time,temperature\n" + "".join(f"{START + 60 * k},{v!r}\n" for k, v in enumerate(values)))
    command = [sys.executable, "-m", "streamer", "replay", str(recording), "--output", str(tmp_path / "scores.csv")]
    subprocess.run(command, check=True, capture_output=True)
    with (tmp_path / "scores.csv").open(newline="") as file:
        wanted = float(list(csv.DictReader(file))[-1]["score"])
    heard: list[float] = []
    with running(broker.port, tmp_path, "alarms.publish_series=all") as daemon, client(broker) as peer:
        wait_until(daemon.is_ready, 20, "ready")
        peer.on_message = lambda _client, _data, got: heard.append(json.loads(got.payload)["score"])
        peer.subscribe("streamer/default/series/#", qos=1)
        for k, value in enumerate(values):
            peer.publish("plant/oven", message(k, value), qos=1)
        wait_until(lambda: processed(daemon, 120), 20, "everything processed")
        wait_until(lambda: heard and heard[-1] == pytest.approx(wanted, rel=1e-6), 10, f"the score {wanted}")


def test_sighup_applies_what_it_can_and_names_the_rest(mosquitto: StartBroker, tmp_path: Path) -> None:
    """A changed budget holds at once; a changed port is named as waiting for a restart."""
    broker = mosquitto()
    config = tmp_path / "streamer.toml"
    config.write_text("[alarms]\nbudget_per_series_month = 1.0\n")
    http_port = free_port()
    options = [f"mqtt.port={broker.port}", f"http.port={http_port}", f"state.directory={tmp_path / 'state'}"]
    arguments = [part for option in options for part in ("--set", option)]
    log = tmp_path / "reload.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamer", "run", "--config", str(config), *arguments], stderr=file
        )
    try:
        wait_until(lambda: "subscribed" in log.read_text(), 20, "subscribed")
        config.write_text("[alarms]\nbudget_per_series_month = 3.0\n[mqtt]\nkeep_alive_seconds = 77\n")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "settings need a restart" in log.read_text(), 10, "the reload")
        assert "settings=mqtt.keep_alive_seconds" in log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics") as answer:
            assert "streamer_alarm_budget_per_series_month 3.0" in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()


def test_what_a_person_must_mend_ends_the_start_with_exit_status_2(tmp_path: Path) -> None:
    """A damaged weights file, a state directory that is a file, a port in use: each refused by name."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"nonsense")
    (tmp_path / "file").write_text("")
    for settings, named in (
        ((f"model.weights={weights}",), "weights.json"),
        ((f"state.directory={tmp_path / 'file'}",), str(tmp_path / "file")),
    ):
        with running(free_port(), tmp_path, *settings) as daemon:
            assert daemon.process.wait(20) == 2
            assert named in daemon.log.read_text()
