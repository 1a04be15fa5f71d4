"""What Home Assistant is told is what it takes: by its own rules as others have written them down, and by Jinja."""

from __future__ import annotations

import json
import re
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
from ha_mqtt_models_pydantic import parse_component_payload, parse_device_discovery_payload
from hypothesis import given
from hypothesis import strategies as st

from streamer.documents import FieldState
from streamer.outbox import STATE_SECONDS
from streamer.payloads.globs import compile_globs
from streamer.readings import Alarm
from streamer.sinks import discovery
from tests import schemas
from tests.test_outbox import ALARM

# Home Assistant's own, homeassistant/components/mqtt/discovery.py: what is behind the prefix.
THEIRS = re.compile(r"(?P<component>\w+)/(?:(?P<node_id>[a-zA-Z0-9_-]+)/)?(?P<object_id>[a-zA-Z0-9_-]+)/config")
HOSTILE = [
    "plant/oven", "zigbee2mqtt/Küche 1", "a" * 65_000, "{{ states('sensor.secret') }}", "<script>alert(1)</script>",
    '"},"x":{"', "//", "\u202egnp.exe", "%23%2B", "a\nb", "telegraf/x#cpu,host=a", "ÄÖÜ", " ",
]  # fmt: skip
NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50))


def config(device: str, series: list[str], gone: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        discovery.config("homeassistant", "gate", "1.2", device, series, gone or []).payload
    )
    return found


def check(document: dict[str, Any]) -> None:
    """As Home Assistant would: the whole, and each component with what it inherits."""
    parse_device_discovery_payload(document)
    shared = {name: document[name] for name in ("state_topic", "availability", "qos", "device", "origin")}
    for component in document["components"].values():
        assert re.fullmatch(r"\w+", component["platform"])
        if len(component) > 1:  # else it is removed
            assert component["unique_id"]  # without it a component of a device is refused
            parse_component_payload(component["platform"], shared | component)


@given(NAMES, st.lists(NAMES, max_size=16, unique=True))
def test_home_assistant_takes_every_device(device: str, fields: list[str]) -> None:
    """Whatever its topic and its fields are called: ids of allowed characters, no stranger's word in a template."""
    message = discovery.config("homeassistant", "gate", "1.2", device, [f"{device}#{name}" for name in fields], [])
    assert message.retain
    assert message.expiry_seconds is None
    match = THEIRS.fullmatch(message.topic.removeprefix("homeassistant/"))
    assert match is not None
    assert match["component"] == "device"
    assert match["node_id"] is None
    document = json.loads(message.payload)
    check(document)
    (own,) = document["device"]["identifiers"]
    assert own == match["object_id"]
    ids = [component["unique_id"] for component in document["components"].values()]
    assert len(set(ids)) == len(ids) == 2 + len(fields)
    for component in document["components"].values():
        for name in ("value_template", "json_attributes_template"):
            assert re.fullmatch(r"\{\{ [\w.'() |{}]+ \}\}", component.get(name, "{{ x }}"))
    for topic in (document["state_topic"], document["components"]["problem"]["json_attributes_topic"]):
        assert not set(topic) & set("+#\0")
        assert len(topic.encode()) <= 65_535
    for name in (document["device"]["name"], *(c["name"] for c in document["components"].values())):
        assert name
        assert name.isprintable()
        assert len(name) <= discovery.MOST_NAME + len(" expected")


@given(st.lists(NAMES, min_size=2, max_size=30, unique=True))
def test_two_devices_are_never_one(devices: list[str]) -> None:
    """Nor do two instances, or two series, share an id; the same device always has the same."""
    ids = [discovery.object_id(instance, device) for instance in ("a", "a-b") for device in devices]
    assert len(set(ids)) == len(ids)
    assert len({discovery.series_id(key) for key in devices}) == len(devices)


def test_ids_stay_what_they_are() -> None:
    """Home Assistant keeps names, rooms and history by them: a change would lose them all."""
    assert discovery.object_id("default", "plant/oven") == "streamer_default_plant_oven_4f71c95534"
    assert discovery.series_id("plant/oven#temp") == "sa90148ffb0f2"
    assert discovery.config_topic("homeassistant", "default", "plant/oven") == (
        "homeassistant/device/streamer_default_plant_oven_4f71c95534/config"
    )


def test_what_a_person_sees_of_an_oven() -> None:
    """A problem, a score, an expected value for each field, available while the daemon is."""
    document = config("plant/oven", ["plant/oven#temp.core", "plant/oven#power"])
    check(document)
    assert document["device"]["name"] == "plant/oven"
    assert document["availability"] == [{"topic": "streamer/gate/status"}]
    assert document["state_topic"] == "streamer/gate/device/plant/oven"
    assert document["origin"] == {"name": "Streamer", "sw_version": "1.2"}
    names = {(c["platform"], c["name"]) for c in document["components"].values()}
    assert names == {
        ("binary_sensor", "Problem"), ("sensor", "Score"),
        ("sensor", "temp.core expected"), ("sensor", "power expected"),
    }  # fmt: skip
    assert document["components"]["problem"]["device_class"] == "problem"
    assert [c["name"] for c in config("plant/x", ["plant/x"])["components"].values()] == [
        "Problem",
        "Score",
        "Expected",
    ]


def test_a_series_that_is_gone_is_removed() -> None:
    """By a component that has nothing but its platform."""
    document = config("plant/oven", ["plant/oven#a"], [discovery.series_id("plant/oven#b")])
    check(document)
    assert document["components"][f"{discovery.series_id('plant/oven#b')}_expected"] == {"platform": "sensor"}


@pytest.mark.parametrize(("alarm", "problem"), [(ALARM, "ON"), (None, "OFF")])
def test_the_templates_find_what_the_state_holds(alarm: Alarm | None, problem: str) -> None:
    """Rendered in Jinja's sandbox, as Home Assistant does; what is not known is None, which it shows as unknown."""
    keys = ["plant/oven#temp.core", "plant/oven#power"]
    fields = {
        discovery.series_id(keys[0]): FieldState(keys[0], score=1.7, value=90.0, expected=20.5, lower=18.0, upper=23.0),
        discovery.series_id(keys[1]): FieldState(keys[1], score=0.2, value=3.0, expected=float("nan")),
    }
    message = discovery.state("gate", "plant/oven", alarm, fields)
    assert message.retain
    assert message.expiry_seconds == STATE_SECONDS
    assert schemas.complaints(message.topic, message.payload) == []
    document = config("plant/oven", keys)
    assert message.topic == document["state_topic"]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    rendered = {
        c["name"]: environment.from_string(c["value_template"]).render(value_json=json.loads(message.payload))
        for c in document["components"].values()
    }
    assert rendered == {"Problem": problem, "Score": "1.7", "temp.core expected": "20.5", "power expected": "None"}
    older = environment.from_string(
        document["components"][f"{discovery.series_id(keys[0])}_expected"]["value_template"]
    )
    assert older.render(value_json={"series": {}}) == "None"
    template = document["components"]["problem"]["json_attributes_template"]
    attributes = json.loads(environment.from_string(template).render(value_json=json.loads(message.payload)))
    if alarm is None:
        assert attributes == {}
    else:
        assert (attributes["key"], attributes["value"], attributes["kind"]) == (ALARM.key, 90.0, "value")
        assert attributes["opened"] == "2026-01-01T00:00:00.250Z"


def test_a_device_without_figures_has_no_score() -> None:
    """Null, not 0."""
    message = discovery.state("gate", "x", None, {"s1": FieldState("x")})
    assert json.loads(message.payload)["score"] is None


@given(st.sampled_from(["homeassistant", "ha/test"]), NAMES)
def test_configs_are_told_from_sensors(prefix: str, device: str) -> None:
    """A broker of 3.1.1 sends them back to us, and any those of another instance; a kitchen's stay what they are."""
    globs = compile_globs((discovery.all_configs(prefix),), "/")
    assert globs is not None
    for instance in ("gate", "other-1"):
        assert globs.fullmatch(discovery.config_topic(prefix, instance, device))
    assert not globs.fullmatch(f"{prefix}/device/kitchen/config")
