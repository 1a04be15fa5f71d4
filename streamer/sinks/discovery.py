"""What Home Assistant has to know of a device, and how it stands, by its MQTT discovery. Pure functions.

    <prefix>/device/<object id>/config     what there is to show, retained
    streamer/<instance>/device/<device>    how it stands: DeviceState, retained

Names come from strangers. Home Assistant shows them as text; ids, topics and templates hold none of them as they are.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import msgspec

from streamer.documents import AlarmBrief, DeviceState, FieldState
from streamer.outbox import STATE_SECONDS, Outgoing, iso
from streamer.readings import Alarm
from streamer.topics import output_topic, status_topic

MOST_NAME = 100  # characters of a name that people see
_NOT_IN_AN_ID = re.compile("[^a-zA-Z0-9_-]+")


def object_id(instance: str, device: str) -> str:
    """The same for the same device at every start, another for every other one; of what Home Assistant takes.

    That is `[a-zA-Z0-9_-]`. The readable part may be the same for two devices, what is behind it is not.
    """
    readable = _NOT_IN_AN_ID.sub("_", device)[:40].strip("_")
    return f"streamer_{instance}_{readable}_{_digest(device, 10)}"


def series_id(key: str) -> str:
    """A name for a template, which must not hold anything that a stranger has written."""
    return f"s{_digest(key, 12)}"


def birth_topic(prefix: str) -> str:
    """Where Home Assistant says that it is there, and wants to be told."""
    return f"{prefix}/status"


def config_topic(prefix: str, instance: str, device: str) -> str:
    return f"{prefix}/device/{object_id(instance, device)}/config"


def all_configs(prefix: str) -> str:
    """A glob of those of every instance: a daemon that hears everything must take none of them for a sensor."""
    return f"{prefix}/device/streamer_*/config"


def config(
    prefix: str, instance: str, version: str, device: str, series: Sequence[str], gone: Sequence[str]
) -> Outgoing:
    """What Home Assistant has to know of a device; `gone` are ids of series that it had and has no more."""
    ours = object_id(instance, device)
    state = output_topic(instance, "device", device)
    sensor: dict[str, object] = {"platform": "sensor", "entity_category": "diagnostic", "state_class": "measurement"}
    components: dict[str, dict[str, object]] = {
        "problem": {
            "platform": "binary_sensor",
            "name": "Problem",
            "unique_id": f"{ours}_problem",
            "device_class": "problem",
            "value_template": "{{ 'ON' if value_json.problem else 'OFF' }}",
            "json_attributes_topic": state,
            "json_attributes_template": "{{ (value_json.alarm or {}) | tojson }}",
        },
        "score": sensor
        | {
            "name": "Score",
            "unique_id": f"{ours}_score",
            "value_template": "{{ value_json.score }}",
            "suggested_display_precision": 2,
            "icon": "mdi:gauge",
        },
    }
    for key in series:
        path, ident = _shown(key.partition("#")[2]), series_id(key)
        components[f"{ident}_expected"] = sensor | {
            "name": f"{path} expected" if path else "Expected",
            "unique_id": f"{ours}_{ident}_expected",
            # A state may be a moment older than the config, and know nothing of this series.
            "value_template": f"{{{{ (value_json.series.{ident} | default({{}})).expected | default(none) }}}}",
            "icon": "mdi:chart-bell-curve",
        }
    components |= {f"{ident}_expected": {"platform": "sensor"} for ident in gone}  # no more than that: remove it
    document = {
        "device": {
            "identifiers": [ours],
            "name": _shown(device) or "(no name)",
            "manufacturer": "Streamer",
            "model": f"Judged by {instance}",
            "sw_version": version,
        },
        "origin": {"name": "Streamer", "sw_version": version},
        "availability": [{"topic": status_topic(instance)}],
        "state_topic": state,
        "qos": 1,
        "components": components,
    }
    return Outgoing(config_topic(prefix, instance, device), msgspec.json.encode(document), retain=True)


def state(instance: str, device: str, alarm: Alarm | None, fields: Mapping[str, FieldState]) -> Outgoing:
    """How a device stands; `fields` by series id."""
    brief = None
    if alarm is not None:
        brief = AlarmBrief(
            alarm.id, alarm.kind, alarm.key, iso(alarm.opened_at), alarm.value, alarm.expected, alarm.score
        )
    score = max((each.score for each in fields.values() if each.score is not None), default=None)
    document = DeviceState(device, alarm is not None, score, brief, dict(fields))
    return Outgoing(output_topic(instance, "device", device), msgspec.json.encode(document), True, STATE_SECONDS)


def _shown(text: str) -> str:
    """One line of what a person can see."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MOST_NAME else text[: MOST_NAME - 1] + "…"


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
