"""Which weights serve the real daemon: those that made its state, until others are named."""

from __future__ import annotations

from pathlib import Path

from models import weights as weights_files
from models.weights import ForecasterConfig
from streamer.generations import Generations
from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, Daemon, client, message, running, send, state_of
from tests.streams import random_weights, shipped_weights
from tests.waiting import wait_until


def serves(daemon: Daemon, generation: int) -> bool:
    numbers = daemon.numbers()
    return numbers["model_generation", ""] == generation and not numbers["model_swapping", ""]


def test_other_weights_that_are_named_come_to_serve_and_outlive_a_kill(mosquitto: StartBroker, tmp_path: Path) -> None:
    """With the state of the old ones carried over; taken back, the old ones serve again."""
    other, state = tmp_path / "other.safetensors", tmp_path / "state"
    sha256 = weights_files.save(random_weights(ForecasterConfig(input_size=18, hidden_size=8)), other).sha256
    broker, named = mosquitto(), f"model.weights={other}"
    with client(broker) as peer:
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            for k in range(100):
                send(peer, "plant/oven", message(k, 20.0))
            daemon.wait_settled(100)
            assert serves(daemon, 1)
            assert daemon.stop() == 0
        with running(broker.port, tmp_path, named) as daemon:
            daemon.wait_ready()
            wait_until(lambda: serves(daemon, 2), SECONDS, "generation 2")
            send(peer, "plant/oven", message(100, 20.0))
            assert daemon.wait_settled(1)["readings_scored_total", ""] == 1  # no warm-up anew
            daemon.wait_durable()
            daemon.process.kill()
        found = state_of(state, "--set", named)
        assert (found["generation"], found["weights_sha256"], found["readings"]) == (2, sha256, 101)
        other.unlink()
        with running(broker.port, tmp_path) as daemon:  # the copy in the state directory is as good
            daemon.wait_ready()
            wait_until(lambda: serves(daemon, 1), SECONDS, "generation 1")
            assert daemon.stop() == 0
    assert state_of(state)["weights_sha256"] == shipped_weights().sha256
    assert [each.origin for each in Generations(state).all()] == ["shipped", "named"]
    serving = Generations(state).serving()
    assert serving is not None
    assert (serving.number, serving.before) == (1, 2)
