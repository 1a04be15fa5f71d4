"""Stock paho, the standard library's JSON, and a number for each series."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from streamer.bench.peers.receiving import by_paho

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

slots: dict[tuple[str, str], int] = {}


def handle(_client: Client, _userdata: object, message: MQTTMessage) -> None:
    for name, value in json.loads(message.payload).items():
        if name != "ts" and isinstance(value, float):
            slots.setdefault((message.topic, name), len(slots))


if __name__ == "__main__":
    by_paho(handle)
