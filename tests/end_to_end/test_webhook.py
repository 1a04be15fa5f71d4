"""The real daemon and a web server: an alarm arrives as it is on MQTT, over kills and with a server that hangs."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTProtocolVersion

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, Daemon, client, message, running
from tests.end_to_end.strace import hanging, kill_in_delay
from tests.end_to_end.test_daemon import course
from tests.servers import HOST, free_port
from tests.sinks.receiving import Receiver, drip, misbehaving, receiving
from tests.waiting import wait_until

CALM = 120


def calm(daemon: Daemon, peer: Client) -> None:
    """A sensor that is known by now."""
    for k, value in enumerate(course(CALM)):
        peer.publish("plant/oven", message(k, value), qos=1)
    daemon.wait_settled(CALM)


def fault(peer: Client) -> None:
    """The next reading is none that it ever had."""
    peer.publish("plant/oven", message(CALM, 600.0), qos=1)


def properties(message: MQTTMessage) -> dict[str, Any]:
    """What MQTT 5 says of it."""
    return {} if message.properties is None else dict(message.properties.json())


def opened(receiver: Receiver) -> bytes:
    wait_until(lambda: receiver.posted, SECONDS, "the event at the web server")
    return receiver.posted[0].body


def test_a_fault_reaches_the_web_server_as_it_is_on_mqtt(mosquitto: StartBroker, tmp_path: Path) -> None:
    """With the token of its file, and another one after SIGHUP; the counters say so."""
    broker, heard = mosquitto(), dict[str, MQTTMessage]()
    (tmp_path / "token").write_text("first\n")
    with receiving() as receiver:
        settings = (f"webhook.url=http://{HOST}:{receiver.port}/", f"webhook.token_file={tmp_path / 'token'}")
        with running(broker.port, tmp_path, *settings) as daemon, client(broker, MQTTProtocolVersion.MQTTv5) as peer:
            daemon.wait_ready()
            peer.on_message = lambda _client, _data, got: heard.update({got.topic.split("/")[2]: got})
            peer.subscribe("streamer/default/#", qos=1)
            calm(daemon, peer)
            fault(peer)
            assert json.loads(opened(receiver))["event"] == "opened"
            wait_until(lambda: {"alarm", "series"} <= heard.keys(), SECONDS, "event and state on MQTT")
            assert heard["alarm"].payload == receiver.posted[0].body
            text = {"PayloadFormatIndicator": 1, "ContentType": "application/json"}
            assert properties(heard["alarm"]) == text
            assert 172_000 < properties(heard["series"]).pop("MessageExpiryInterval") <= 172_800
            assert receiver.posted[0].headers["Authorization"] == "Bearer first"
            wait_until(lambda: daemon.numbers()["webhook_total", "delivered"] == 1, SECONDS, "the counter")
            assert daemon.numbers()["webhook_queued", ""] == 0
            (tmp_path / "token").write_text("second\n")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_log("applied=webhook.token")
            peer.publish("plant/oven", message(CALM + 1, 6000.0), qos=1)
            wait_until(lambda: len(receiver.posted) == 2, SECONDS, "another event")
            assert receiver.posted[1].headers["Authorization"] == "Bearer second"
            assert daemon.stop() == 0
        assert (tmp_path / "state" / "webhook.json").read_bytes() == b"[]"


def test_an_alarm_that_no_server_took_survives_a_kill(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The next run delivers it, although it is not told on MQTT again."""
    broker, port = mosquitto(), free_port()
    url = f"webhook.url=http://{HOST}:{port}/"
    path = tmp_path / "state" / "webhook.json"
    with running(broker.port, tmp_path, url) as daemon, client(broker) as peer:
        daemon.wait_ready()
        calm(daemon, peer)
        fault(peer)
        wait_until(lambda: path.exists() and json.loads(path.read_bytes()), SECONDS, "the file")
        wait_until((tmp_path / "state" / "alarms.json").exists, SECONDS, "what was told")
        daemon.process.kill()
        daemon.process.wait()
    with receiving(port=port) as receiver, running(broker.port, tmp_path, url) as daemon:
        daemon.wait_ready()
        assert json.loads(opened(receiver))["event"] == "opened"
        wait_until(lambda: daemon.numbers()["webhook_total", "delivered"] >= 1, SECONDS, "the counter")
        assert daemon.stop() == 0
    assert len(set(receiver.order())) == 1


def test_a_server_that_hangs_keeps_neither_the_scores_nor_the_end_waiting(
    mosquitto: StartBroker, tmp_path: Path
) -> None:
    """SIGTERM is obeyed within five seconds, exit status 0, and what was not delivered is there for the next run."""
    broker = mosquitto()
    with misbehaving(drip([b"HTTP/1.1 200 OK\r\n"], 0.2)) as port:
        url = f"webhook.url=http://{HOST}:{port}/"
        with running(broker.port, tmp_path, url) as daemon, client(broker) as peer:
            daemon.wait_ready()
            calm(daemon, peer)
            fault(peer)
            wait_until(lambda: daemon.numbers()["webhook_queued", ""] == 1, SECONDS, "the event")
            for k in range(20):
                peer.publish("plant/oven", message(CALM + 1 + k, 20.0), qos=1)
            daemon.wait_settled(CALM + 21)
            assert daemon.stop() == 0
    waiting = json.loads((tmp_path / "state" / "webhook.json").read_bytes())
    assert [each["what"] for each in waiting][:1] == ["opened"]


def test_an_alarm_that_the_server_never_takes_holds_up_no_other(mosquitto: StartBroker, tmp_path: Path) -> None:
    """It fails on the first for ever; the second, of another sensor, arrives all the same."""
    broker = mosquitto()
    with receiving() as receiver:
        receiver.will_answer(500)
        url = f"webhook.url=http://{HOST}:{receiver.port}/"
        with running(broker.port, tmp_path, url) as daemon, client(broker) as peer:
            daemon.wait_ready()
            calm(daemon, peer)
            for k, value in enumerate(course(CALM)):
                peer.publish("plant/mill", message(k, value), qos=1)
            daemon.wait_settled(2 * CALM)
            fault(peer)
            poisoned = json.loads(opened(receiver))["id"]
            receiver.always[f"{poisoned}-opened"] = 500
            peer.publish("plant/mill", message(CALM, 600.0), qos=1)
            wait_until(lambda: daemon.numbers()["webhook_total", "delivered"] >= 1, SECONDS, "the other alarm")
            assert daemon.numbers()["webhook_queued", ""] == 1
            assert daemon.stop() == 0
    assert {each.partition("-")[0] for each in receiver.order()} > {poisoned}
    waiting = json.loads((tmp_path / "state" / "webhook.json").read_bytes())
    assert [each["key"] for each in waiting] == [f"{poisoned}-opened"]


def test_a_disk_that_hangs_does_not_hold_up_an_alarm(mosquitto: StartBroker, tmp_path: Path) -> None:
    """What waits for the server is synced; when that does not return, the event goes out without."""
    broker = mosquitto()
    with receiving() as receiver:
        url = f"webhook.url=http://{HOST}:{receiver.port}/"
        with running(broker.port, tmp_path, url) as daemon, client(broker) as peer:
            daemon.wait_ready()
            calm(daemon, peer)
            with hanging(daemon.process, "fsync"):
                fault(peer)
                assert json.loads(opened(receiver))["event"] == "opened"
                daemon.wait_log("the disk has not answered")
                kill_in_delay(daemon.process)


@pytest.mark.parametrize(
    ("bug", "setting"),
    [
        ("streamer.sinks.webhook.Webhook._deliver", "webhook.url=http://127.0.0.1:1/"),
        ("streamer.sinks.home_assistant.HomeAssistant.look", "home_assistant.enabled=true"),
    ],
)
def test_a_bug_that_ends_a_sink_ends_the_daemon(mosquitto: StartBroker, tmp_path: Path, bug: str, setting: str) -> None:
    """Loudly, with the traceback in the log: a service manager starts it anew, nobody misses alarms in silence."""
    of_whom, _, what = bug.rpartition(".")
    module = of_whom.rpartition(".")[0]
    code = f"import streamer.__main__, {module}; {of_whom}.{what} = lambda self: 1 // 0; "
    program = (sys.executable, "-c", f"{code}raise SystemExit(streamer.__main__.main())")
    with running(mosquitto().port, tmp_path, setting, program=program) as daemon:
        assert daemon.process.wait(SECONDS) == 1
        assert "a part has failed" in daemon.log()
        assert "ZeroDivisionError" in daemon.log()
