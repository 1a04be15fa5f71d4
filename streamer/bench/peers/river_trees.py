"""Stock paho and river: half-space trees (10 trees of height 8) for each series, on values scaled to [0, 1]."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

from river import anomaly

from streamer.bench.peers.receiving import by_paho

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

detectors: defaultdict[str, anomaly.HalfSpaceTrees] = defaultdict(
    lambda: anomaly.HalfSpaceTrees(n_trees=10, height=8, seed=1)
)
scores: dict[str, float] = {}


def handle(_client: Client, _userdata: object, message: MQTTMessage) -> None:
    reading = {"value": json.loads(message.payload)["value"] / 100}
    detector = detectors[message.topic]
    scores[message.topic] = detector.score_one(reading)
    detector.learn_one(reading)


if __name__ == "__main__":
    by_paho(handle)
