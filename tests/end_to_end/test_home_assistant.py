"""The real daemon and a real mosquitto, and a client that does with the messages what Home Assistant does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
from ha_mqtt_models_pydantic import parse_component_payload, parse_device_discovery_payload
from paho.mqtt.client import Client, MQTTMessage

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, client, message, running, send
from tests.end_to_end.test_daemon import course
from tests.servers import Broker
from tests.waiting import wait_until

CALM = 120
JINJA = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)


class Home:
    """Devices by their discovery, and the states of their entities by name."""

    def __init__(self, peer: Client) -> None:
        self.peer = peer
        self.configs: dict[str, dict[str, Any]] = {}
        """by topic"""
        self.payloads: dict[str, str] = {}
        """the last one of each topic"""
        peer.on_message = self.hear
        peer.subscribe("homeassistant/device/+/config", qos=1)

    def hear(self, _client: Client, _data: object, got: MQTTMessage) -> None:
        if not got.topic.startswith("homeassistant/"):
            self.payloads[got.topic] = got.payload.decode()
        elif not got.payload:
            self.configs.pop(got.topic, None)
        else:
            config = json.loads(got.payload)
            parse_device_discovery_payload(config)
            shared = {name: config[name] for name in ("state_topic", "availability", "qos", "device", "origin")}
            for component in config["components"].values():
                parse_component_payload(component["platform"], shared | component)
            self.configs[got.topic] = config
            self.peer.subscribe([(config["state_topic"], 1), (config["availability"][0]["topic"], 1)])

    def entity(self, device: str, name: str) -> str | None:
        """What a person sees of it; None while there is nothing."""
        for config in list(self.configs.values()):
            state = self.payloads.get(config["state_topic"])
            if config["device"]["name"] != device or not state:
                continue
            if self.payloads.get(config["availability"][0]["topic"]) != "online":
                return "unavailable"
            for component in config["components"].values():
                if component["name"] == name:
                    return JINJA.from_string(component["value_template"]).render(value_json=json.loads(state))
        return None

    def number(self, device: str, name: str) -> float:
        """Of a sensor; NaN while it is unknown."""
        found = self.entity(device, name)
        return math.nan if found in (None, "None") else float(str(found))

    def wait(self, device: str, name: str, wanted: str) -> None:
        wait_until(lambda: self.entity(device, name) == wanted, SECONDS, f"{wanted}, not {self.entity(device, name)}")


@contextmanager
def home_at(broker: Broker) -> Iterator[Home]:
    """A Home Assistant that has just been started."""
    with client(broker) as peer:
        yield Home(peer)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_fault_is_a_problem_in_home_assistant(mosquitto: StartBroker, tmp_path: Path, protocol: str) -> None:
    """Discovered, fed, available; told again after a birth; and nothing is left when it is switched off."""
    broker = mosquitto()
    settings = [f"mqtt.protocol={protocol}", "home_assistant.every_seconds=1"]
    with home_at(broker) as home, client(broker) as plant:
        with running(broker.port, tmp_path, *settings, "home_assistant.enabled=true") as daemon:
            daemon.wait_ready()
            for k, value in enumerate(course(CALM)):
                plant.publish("plant/oven", message(k, value), qos=1)
            daemon.wait_settled(CALM)
            home.wait("plant/oven", "Problem", "OFF")
            wait_until(lambda: home.number("plant/oven", "Score") < 1, SECONDS, "a score")
            assert 10 < home.number("plant/oven", "temperature expected") < 30
            plant.publish("plant/oven", message(CALM, 600.0), qos=1)
            home.wait("plant/oven", "Problem", "ON")
            wait_until(lambda: home.number("plant/oven", "Score") > 1, SECONDS, "the score of the fault")

            with home_at(broker) as late:  # retained
                late.wait("plant/oven", "Problem", "ON")
            (topic,) = home.configs
            send(plant, topic, b"", retain=True)
            wait_until(lambda: not home.configs, SECONDS, "a broker that has forgotten")
            send(plant, "homeassistant/status", "online")
            home.wait("plant/oven", "Problem", "ON")

            numbers = daemon.numbers()
            assert numbers["series", ""] == 1  # neither a birth nor a config is a sensor
            assert numbers["home_assistant_devices", ""] == 1
            assert daemon.stop() == 0
        home.wait("plant/oven", "Problem", "unavailable")
        with running(broker.port, tmp_path, *settings) as daemon:
            daemon.wait_ready()
            wait_until(lambda: not home.configs, SECONDS, "the removal")
            wait_until(lambda: (tmp_path / "state" / "home_assistant.json").read_bytes() == b"[]", SECONDS, "the file")
            assert daemon.stop() == 0
        with home_at(broker) as late:
            send(plant, "homeassistant/device/last/config", b"")
            send(plant, "plant/x", "1")
            late.peer.subscribe("#", qos=1)
            wait_until(lambda: late.payloads.get("streamer/default/status") == "offline", SECONDS, "what is retained")
            assert not late.configs
            assert not [topic for topic in late.payloads if "/device/" in topic]


def test_a_broker_that_refuses_the_birth_refuses_nothing_else(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The devices are told all the same; the daemon is ready."""
    acl = (
        "topic read plant/#\ntopic write plant/#\ntopic readwrite streamer/#\ntopic readwrite homeassistant/device/#\n"
    )
    broker = mosquitto(acl=acl)
    with running(broker.port, tmp_path, "home_assistant.enabled=true", 'mqtt.subscribe=["plant/#"]') as daemon:
        daemon.wait_ready()
        with home_at(broker) as home:
            send(home.peer, "plant/oven", "20")
            home.wait("plant/oven", "Problem", "OFF")
            assert home.entity("plant/oven", "Expected") == "None"  # one reading is no series yet
        assert daemon.stop() == 0
