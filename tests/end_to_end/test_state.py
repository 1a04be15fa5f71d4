"""`streamer state` on what the real daemon has left: what was applied, and whether two states are the same."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, START, Daemon, client, running, state_of
from tests.servers import Broker

KEEPS_ALL = ["max_queued_messages 0", "max_inflight_messages 0"]
MINUTES, DEVICES = 120, 7


def stream() -> list[tuple[str, str]]:
    """Topics and payloads in order; two devices have a fault, one of them to the end."""
    rng = random.Random(5)
    sent = []
    for k in range(MINUTES):
        for device in range(DEVICES):
            fault = 80.0 if (device == 1 and 90 <= k < 100) or (device == 2 and k >= 110) else 0.0
            document = {
                "time": START + 60 * k,
                "temperature": round(20 + math.sin(k / 9) + rng.gauss(0, 0.3) + fault, 3),
                "power": round(300 + rng.gauss(0, 9), 2),
            }
            sent.append((f"plant/{device}", json.dumps(document)))
    return sent


def publish(broker: Broker, messages: list[tuple[str, str]], kills: list[int], folder: Path) -> Path:
    """To a daemon that is killed behind these messages; gives the state that it leaves at last."""
    options = ("state.snapshot_seconds=1",)
    with client(broker) as peer:
        for begin, end in zip([0, *kills], [*kills, len(messages)], strict=True):
            with running(broker.port, folder, *options) as daemon:
                daemon.wait_ready()
                waiting = [peer.publish(topic, payload, qos=1) for topic, payload in messages[begin:end]]
                for each in waiting:
                    each.wait_for_publish(SECONDS)
                if end < len(messages):
                    daemon.process.kill()
                else:
                    wait_applied(daemon, folder / "state", sum(len(json.loads(p)) - 1 for _, p in messages))
                    assert daemon.stop() == 0
    return folder / "state"


def wait_applied(daemon: Daemon, directory: Path, readings: int) -> None:
    """By the command itself, on a directory that is in use."""
    for _ in range(60):
        found = state_of(directory)
        assert found["in_use_by"] == f"process {daemon.process.pid}"
        if found["readings"] == readings:
            return
    raise AssertionError(found)


def test_a_daemon_that_was_killed_has_the_state_of_its_twin(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Killed five times in the middle of a stream with alarms: the same SHA-256 as one that never was."""
    messages = stream()
    places = []
    for name, kills in (("killed", [50, 300, 301, 690, 800]), ("twin", [])):
        (tmp_path / name).mkdir()
        places.append(publish(mosquitto(lines=KEEPS_ALL), messages, kills, tmp_path / name))
    killed, twin = map(state_of, places)
    for same in ("sha256", "series", "readings", "readings_applied", "weights_sha256", "generation"):
        assert killed[same] == twin[same], same
    assert killed["readings_applied"] == {
        f"plant/{device}#{field}": MINUTES for device in range(DEVICES) for field in ("power", "temperature")
    }
    assert [alarm["key"] for alarm in killed["alarms"]] == ["plant/2#temperature"]
    assert killed["problems"] == []
    assert killed["in_use_by"] is None

    copy = tmp_path / "copy"
    shutil.copytree(places[0], copy)
    assert state_of(copy)["sha256_with_arrivals"] == killed["sha256_with_arrivals"]
    for path in copy.glob("*.snap"):
        path.unlink()
    from_journal = state_of(copy)
    assert from_journal["snapshot"] is None
    assert from_journal["journal_replayed"] == 2 * len(messages)
    for same in ("sha256", "sha256_with_arrivals", "readings_applied"):
        assert from_journal[same] == killed[same], same


def test_one_reading_more_is_another_state(mosquitto: StartBroker, tmp_path: Path) -> None:
    """And one value that differs."""
    found = set()
    for name, last in (("a", []), ("b", [1.0]), ("c", [2.0])):
        (tmp_path / name).mkdir()
        messages = [*stream()[:70], *(("plant/0", json.dumps({"time": START + 9e3, "power": value})) for value in last)]
        found.add(state_of(publish(mosquitto(lines=KEEPS_ALL), messages, [], tmp_path / name))["sha256"])
    assert len(found) == 3
