"""Pausing and marking normal as operators do it: the command line and MQTT, on the real daemon; and kills behind it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, STREAMER, Daemon, client, message, running, send, state_of
from tests.servers import Broker
from tests.waiting import wait_until

COMMAND, RESULT = "streamer/default/command", "streamer/default/command/result"
SHIPPED_ACL = Path(__file__).parent.parent.parent / "deploy" / "mosquitto" / "acl"


def ask(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`streamer pause ...` on the state in `folder`."""
    command = [*STREAMER, *arguments, "--set", f"state.directory={folder / 'state'}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def with_a_series(broker: Broker, daemon: Daemon) -> None:
    """The daemon knows plant/1#temperature."""
    daemon.wait_ready()
    with client(broker) as peer:
        send(peer, "plant/1", message(0, 20.0))
    daemon.wait_settled(1)


def test_a_command_by_file_outlives_a_kill_right_behind_its_result(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Each of the three: the state of the next start has it; without a daemon nobody is left to wait."""
    broker = mosquitto()
    with running(broker.port, tmp_path, "state.snapshot_seconds=3600") as daemon:
        with_a_series(broker, daemon)
        unknown = ask(tmp_path, "pause", "plant/2")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "found no such series and no such device" in unknown.stderr
        done = ask(tmp_path, "pause", "plant/1#*", "--json")
        daemon.process.kill()
    result: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, result["done"], result["series"]) == (0, True, 1)
    assert state_of(tmp_path / "state")["paused"] == ["plant/1#temperature"]
    alone = ask(tmp_path, "resume", "plant/1")
    assert alone.returncode == 2
    assert "no daemon runs on" in alone.stderr

    requests = tmp_path / "state" / "requests"
    (requests / "left.json").write_text('{"command": "resume", "key": "plant/1", "id": "left"}')
    with running(broker.port, tmp_path, "state.snapshot_seconds=3600") as daemon:
        daemon.wait_ready()
        assert daemon.numbers()["series_paused", ""] == 1
        assert not json.loads((requests / "left.result.json").read_text())["done"]
        done = ask(tmp_path, "resume", "plant/1%23temperature")  # as in a topic
        assert (done.returncode, done.stdout.split(":")[0]) == (0, "1 series resumed")
        done = ask(tmp_path, "mark-normal", "plant/1#temperature")
        daemon.process.kill()
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "1 series marked normal")
    found = state_of(tmp_path / "state")
    assert (found["paused"], found["problems"]) == ([], [])


class Operator:
    """A client of MQTT 5 that commands and hears the results."""

    def __init__(self, broker: Broker, user: str) -> None:
        self.results: list[dict[str, Any]] = []
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.username_pw_set(user, user)
        self._client.on_message = self._hear
        self._client.connect(broker.host, broker.port)
        self._client.subscribe(RESULT, 1)
        self._client.loop_start()

    def _hear(self, _client: Client, _userdata: object, said: MQTTMessage) -> None:
        self.results.append(json.loads(said.payload))

    def command(self, payload: str, *, retain: bool = False) -> None:
        self._client.publish(COMMAND, payload, qos=1, retain=retain).wait_for_publish(SECONDS)

    def wait_result(self, ident: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            return next((result for result in self.results if result["id"] == ident), None)

        return wait_until(found, SECONDS, f"the result {ident}") or {}

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_commands_by_mqtt_are_guarded_by_the_access_list_of_the_broker(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The shipped one: its operator may command, its gateway may not; what is garbage or kept is answered, not obeyed.

    And a kill right behind the result.
    """
    users = dict.fromkeys(("streamer", "operator", "zigbee2mqtt"))
    broker = mosquitto(users={name: name for name in users}, acl=SHIPPED_ACL.read_text())
    secrets = tmp_path / "secrets"
    secrets.mkdir(0o700)
    (secrets / "mqtt.password").write_text("streamer")
    (secrets / "mqtt.password").chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[mqtt]\nusername = "streamer"\npassword_file = "{secrets / "mqtt.password"}"\ncommands = true\n'
    )
    with running(broker.port, tmp_path, "state.snapshot_seconds=3600", config=config) as daemon:
        daemon.wait_ready()
        operator, gateway = Operator(broker, "operator"), Operator(broker, "zigbee2mqtt")
        gateway._client.publish("zigbee2mqtt/k", message(0, 20.0), qos=1).wait_for_publish(SECONDS)
        daemon.wait_settled(1)
        gateway.command('{"command": "pause", "key": "zigbee2mqtt/k", "id": "intruder"}')
        operator.command("garbage")
        refused = operator.wait_result("")
        assert (refused["done"], "expected JSON" in refused["detail"]) == (False, True)
        operator.command('{"command": "pause", "key": "zigbee2mqtt/k", "id": "right"}')
        assert operator.wait_result("right") == {
            "id": "right", "command": "pause", "key": "zigbee2mqtt/k", "series": 1, "done": True,
            "detail": "1 series paused",
        }  # fmt: skip
        daemon.process.kill()
        assert [result["id"] for result in operator.results] == ["", "right"]
        operator.command('{"command": "resume", "key": "zigbee2mqtt/k", "id": "missed"}')
    assert state_of(tmp_path / "state", "--config", str(config))["paused"] == ["zigbee2mqtt/k#temperature"]
    with running(broker.port, tmp_path, config=config) as daemon:
        daemon.wait_ready()
        missed = operator.wait_result("missed")
        assert (missed["done"], "the broker had kept" in missed["detail"]) == (False, True)
        numbers = daemon.numbers()
        assert (numbers["series_paused", ""], numbers["commands_total", "refused"]) == (1, 1)
    operator.leave()
    gateway.leave()


def test_commands_by_mqtt_are_off_unless_they_are_switched_on(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Although the filter `#` brings them: nobody who may publish can silence an alarm by default."""
    broker = mosquitto()
    with running(broker.port, tmp_path) as daemon, client(broker) as peer:
        with_a_series(broker, daemon)
        send(peer, COMMAND, '{"command": "pause", "key": "plant/1"}')
        numbers = daemon.wait_settled(2)
        assert numbers["messages_ignored_total", ""] == 1
        assert numbers["series_paused", ""] == 0
