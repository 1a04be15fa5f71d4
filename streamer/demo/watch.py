"""The daemon seen from outside, as any user sees it: its alarms over MQTT, its counters by HTTP."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from prometheus_client.parser import text_string_to_metric_families

from streamer.demo.broker import HOST

HTTP_SECONDS = 2.0


class AlarmEvent(msgspec.Struct, frozen=True):
    """What the daemon publishes on `alarm/<key>`, as far as it is shown here."""

    event: str
    """opened | updated | closed"""
    id: str
    kind: str
    key: str
    opened_at: float
    """event time, epoch seconds"""
    closed_at: float | None = None
    value: float | None = None
    expected: float | None = None
    lower: float | None = None
    upper: float | None = None
    score: float | None = None
    detail: dict[str, float] = {}
    usual: float | None = None
    """what a level or a drift was judged by"""


class Offline(NamedTuple):
    """The daemon has said goodbye: no more alarms will come."""


@contextmanager
def subscription(port: int, instance: str, deliver: Callable[[AlarmEvent | Offline], None]) -> Iterator[None]:
    """Delivers what the daemon says while the block lasts, by a thread of its own."""
    alarms, status = f"streamer/{instance}/alarm/#", f"streamer/{instance}/status"

    def on_connect(
        client: Client, _userdata: object, _flags: ConnectFlags, _reason: ReasonCode, _properties: Properties | None
    ) -> None:
        client.subscribe([(alarms, 1), (status, 1)])

    def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.topic != status:
            deliver(msgspec.json.decode(message.payload, type=AlarmEvent))
        elif message.payload == b"offline" and not message.retain:
            deliver(Offline())

    client = Client(CallbackAPIVersion.VERSION2, "watch", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = on_connect
    client.on_message = on_message
    client.connect(HOST, port)
    client.loop_start()
    try:
        yield
    finally:
        client.disconnect()
        client.loop_stop()


class Counters(NamedTuple):
    """Some of the daemon's metrics."""

    scored: int
    """readings, since its start"""
    series: int
    alarms_open: int


def counters(http_port: int) -> Counters:
    """Scrapes the daemon. Raises OSError where it does not answer."""
    connection = http.client.HTTPConnection(HOST, http_port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    names = ("streamer_readings_scored_total", "streamer_series", "streamer_alarms_open")
    return Counters(*(int(sums[name]) for name in names))
