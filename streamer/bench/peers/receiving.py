"""What the programs have in common: stock paho as its documentation shows it, and the account at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from streamer.bench.generator import HOST

FILTER = "bench/#"


class Received(msgspec.Struct, frozen=True):
    """What the messages after the first `SKIP` have cost the process."""

    messages: int
    cpu_seconds: float
    ended: float
    """CLOCK_MONOTONIC, which all processes share"""


class Wanted(NamedTuple):
    """The command line."""

    port: int
    messages: int
    qos: int
    skip: int


def wanted() -> Wanted:
    port, messages, qos, *skip = map(int, sys.argv[1:])
    return Wanted(port, messages, qos, *skip or [0])


class Meter:
    """Says that the program is ready, and what it has used since."""

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._cpu = 0.0

    def begin(self) -> None:
        print("ready", flush=True)
        self._cpu = time.process_time()

    def skipped(self) -> None:
        """From here on it counts."""
        self._cpu = time.process_time()

    def end(self, messages: int) -> None:
        cpu, now = time.process_time() - self._cpu, time.monotonic()
        print(msgspec.json.encode(Received(messages - self._skip, cpu, now)).decode(), flush=True)


def by_paho(handle: Callable[[Client, object, MQTTMessage], None] | None) -> None:
    """Stock paho calls `handle` with every message; None: an empty callback."""
    port, messages, qos, skip = wanted()
    client, meter, count = Client(CallbackAPIVersion.VERSION2, "bench-peer"), Meter(skip), 0

    def on_message(client: Client, userdata: object, message: MQTTMessage) -> None:
        nonlocal count
        if handle is not None:
            handle(client, userdata, message)
        count += 1
        if count == skip:
            meter.skipped()
        if count == messages:
            meter.end(messages)
            client.disconnect()

    client.on_message = on_message
    client.on_subscribe = lambda *_: meter.begin()
    client.connect(HOST, port)
    client.subscribe(FILTER, qos)
    client.loop_forever()
