"""The obvious program: in paho's callback one step of nn.LSTM with a batch of one, and a labelled gauge of its error.

The network is as large as the one that is shipped; what it forecasts, how it scales and that it scores are left out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from prometheus_client import Gauge

from models import weights
from streamer.bench.peers.receiving import by_paho

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

torch.set_num_threads(1)
config = weights.load().config
lstm = torch.nn.LSTM(config.input_size, config.hidden_size, config.num_layers)
head = torch.nn.Linear(config.hidden_size, 1)
states: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
forecasts: dict[str, float] = {}
error = Gauge("anomaly_error", "Of the forecast.", ["topic"])


@torch.inference_mode()
def handle(_client: Client, _userdata: object, message: MQTTMessage) -> None:
    topic, value = message.topic, json.loads(message.payload)["value"]
    error.labels(topic=topic).set(abs(value - forecasts.get(topic, value)))
    inputs = torch.full((1, 1, config.input_size), value)
    output, states[topic] = lstm(inputs, states.get(topic))
    forecasts[topic] = head(output).item()


if __name__ == "__main__":
    by_paho(handle)
