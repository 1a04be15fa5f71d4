"""Stock paho and rrcf: 40 robust random cut trees of 256 points, of which the oldest is forgotten, for each series."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections import Counter, defaultdict
from types import ModuleType
from typing import TYPE_CHECKING

# rrcf 0.4.4 asks setuptools' pkg_resources, which is no more since setuptools 82, for its own version, and no more.
sys.modules["pkg_resources"] = stub = ModuleType("pkg_resources")
vars(stub)["get_distribution"] = importlib.metadata.distribution

import rrcf  # noqa: E402  after what it asks for

from streamer.bench.peers.receiving import by_paho  # noqa: E402

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

TREES, POINTS = 40, 256
forests: defaultdict[str, list[rrcf.RCTree]] = defaultdict(lambda: [rrcf.RCTree() for _ in range(TREES)])
counts: Counter[str] = Counter()
scores: dict[str, float] = {}


def handle(_client: Client, _userdata: object, message: MQTTMessage) -> None:
    topic, value, displaced = message.topic, json.loads(message.payload)["value"], 0.0
    number = counts[topic]
    counts[topic] += 1
    for tree in forests[topic]:
        if number >= POINTS:
            tree.forget_point(number - POINTS)
        tree.insert_point((value,), index=number)
        displaced += tree.codisp(number)
    scores[topic] = displaced / TREES


if __name__ == "__main__":
    by_paho(handle)
