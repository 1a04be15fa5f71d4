"""The real daemon retrains itself: journal to process to verdict to swap, watched and taken back by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paho.mqtt.client import Client

from streamer.generations import Generations
from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, Daemon, client, message, running, send, state_of
from tests.end_to_end.strace import hanging
from tests.servers import processes_of
from tests.streams import START
from tests.waiting import wait_until

SERIES, ROUNDS, BEAT = 8, 700, 30.0
SMALL = ("retrain.min_readings=500", "state.snapshot_seconds=3600")
TRAINING_SECONDS = 300.0  # a machine that does other things too


def readings(k: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Machines that switch in cycles of their own, which the shipped weights do not know."""
    time = START + BEAT * k
    return {
        f"plant/{n}": {"time": time, "value": 20 + 3.0 * ((k // (5 + n)) % 2) + 0.1 * float(rng.normal())}
        for n in range(SERIES)
    }


def make_history(peer: Client, daemon: Daemon, rng: np.random.Generator) -> None:
    """Enough readings to train on, in the journal."""
    for k in range(ROUNDS):
        for topic, payload in readings(k, rng).items():
            send(peer, topic, json.dumps(payload))
    daemon.wait_settled(SERIES * ROUNDS, TRAINING_SECONDS)
    daemon.wait_durable()


def ask(folder: Path, *words: str) -> tuple[int, str]:
    """What the command line says; to whom, the state directory tells."""
    command = [sys.executable, "-m", "streamer", *words, "--set", f"state.directory={folder / 'state'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    return done.returncode, done.stdout + done.stderr


def trained(daemon: Daemon) -> dict[str, float]:
    """Retrainings that have ended, by result."""
    return {result: n for (name, result), n in daemon.numbers().items() if name == "retrain_total" and n}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_retrains_on_command_and_what_is_better_serves(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Nothing is lost meanwhile; a kill keeps the new generation; `models` shows it, and takes it back."""
    rng, broker = np.random.default_rng(2), mosquitto(lines=["max_queued_messages 0"])
    with client(broker) as peer:
        with running(broker.port, tmp_path, *SMALL) as daemon:
            daemon.wait_ready()
            make_history(peer, daemon, rng)
            assert ask(tmp_path, "train")[0] == 0
            assert "runs already" in ask(tmp_path, "train")[1]
            wait_until(lambda: trained(daemon), TRAINING_SECONDS, "a verdict")
            assert trained(daemon) == {"promoted": 1}, daemon.log()
            wait_until(lambda: daemon.numbers()["model_generation", ""] == 2, SECONDS, "generation 2")
            for k in range(ROUNDS, ROUNDS + 100):
                for topic, payload in readings(k, rng).items():
                    send(peer, topic, json.dumps(payload))
            daemon.wait_settled(SERIES * (ROUNDS + 100), TRAINING_SECONDS)
            daemon.wait_durable()
            assert "torch" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()
            daemon.process.kill()
        with running(broker.port, tmp_path, *SMALL) as daemon:
            daemon.wait_ready()
            assert daemon.numbers()["model_generation", ""] == 2
            status, listed = ask(tmp_path, "models", "ls")
            assert status == 0
            assert [line.split()[3] for line in listed.splitlines()] == ["shipped", "trained"]
            assert "loss_before" in ask(tmp_path, "models", "show", "2")[1]
            assert ask(tmp_path, "models", "rollback") == (0, "generation 1 comes to serve\n")
            wait_until(lambda: daemon.numbers()["model_generation", ""] == 1, SECONDS, "generation 1")
            status, refused = ask(tmp_path, "models", "promote", "7")
            assert status == 1
            assert "found no generation 7" in refused
            assert ask(tmp_path, "models", "promote", "2")[0] == 0
            wait_until(lambda: daemon.numbers()["model_generation", ""] == 2, SECONDS, "generation 2 again")
            assert daemon.stop() == 0
    found = state_of(tmp_path / "state")
    assert (found["generation"], found["readings"]) == (2, SERIES * (ROUNDS + 100))
    about = Generations(tmp_path / "state").about(2)
    assert about is not None
    assert about.trained_until > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trainer_that_is_killed_or_stands_still_harms_nothing(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The verdict is `failed`, scoring goes on, the weights stay, and the next one runs; a stop takes it along."""
    rng, broker = np.random.default_rng(2), mosquitto(lines=["max_queued_messages 0"])
    with client(broker) as peer, running(broker.port, tmp_path, *SMALL) as daemon:
        daemon.wait_ready()
        make_history(peer, daemon, rng)
        for blow in (signal.SIGKILL, signal.SIGTERM):
            before = failures(daemon)
            assert ask(tmp_path, "train")[0] == 0
            os.kill(wait_until(lambda: children(daemon), SECONDS, "the trainer")[0], blow)
            wait_until(lambda: failures(daemon) > before, SECONDS, "the verdict")  # noqa: B023 (it ends in here)
        assert trained(daemon) == {"failed": 2}
        assert daemon.numbers()["model_generation", ""] == 1
        assert ask(tmp_path, "train")[0] == 0
        (pid,) = wait_until(lambda: children(daemon), SECONDS, "the trainer")
        os.kill(pid, signal.SIGSTOP)
        for topic, payload in readings(ROUNDS, rng).items():
            send(peer, topic, json.dumps(payload))
        daemon.wait_settled(SERIES * (ROUNDS + 1))
        assert daemon.stop() == 0
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), SECONDS, "the end of the trainer")


@pytest.mark.slow
@pytest.mark.server("strace")
def test_a_disk_that_hangs_keeps_retraining_waiting_and_nobody_else(mosquitto: StartBroker, tmp_path: Path) -> None:
    """It cannot write its request: scoring goes on, the watchdog is fed, and SIGTERM is obeyed within five seconds."""
    broker = mosquitto()
    with client(broker) as peer, running(broker.port, tmp_path, *SMALL) as daemon:
        daemon.wait_ready()
        send(peer, "plant/oven", message(0, 20.0))
        daemon.wait_settled(1)
        daemon.wait_durable()
        with hanging(daemon.process, "fsync"):
            assert ask(tmp_path, "train")[0] == 0
            wait_until(lambda: "retraining" in os.listdir(tmp_path / "state"), SECONDS, "the retraining's directory")
            send(peer, "plant/oven", message(1, 20.0))
            daemon.wait_settled(2)
            assert daemon.get("/-/healthy")[0] == 200
            assert ask(tmp_path, "pause", "plant/oven#temperature")[0] == 0
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_log(" stopped ", 5.0)  # its last word: strace holds the thread that hangs, and so the process
        daemon.process.wait(SECONDS)


def children(daemon: Daemon) -> list[int]:
    return processes_of(daemon.process.pid)


def failures(daemon: Daemon) -> float:
    return trained(daemon).get("failed", 0.0)
