"""The real daemon behind mosquitto, given readings that come out of order within `input.lateness_seconds`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamer import recovery, snapshot
from streamer.disk import DiskFiles
from streamer.journal import read
from streamer.readings import Batch, Float64
from streamer.records import Released
from streamer.recovery import DIGEST, MID
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.shard import Outcome, Shard, State
from tests.conftest import StartBroker
from tests.end_to_end.daemon import START, Daemon, client, running, state_of
from tests.scrapes import Numbers
from tests.streams import batch, noise, shipped_weights
from tests.test_shard import same
from tests.waiting import wait_until

READINGS = 200
LATENESS = 5.0
VALUES = noise(READINGS, 7)
VALUES[150:153] += 60.0
ORDER = np.argsort(np.arange(READINGS) + np.random.default_rng(7).uniform(0, LATENESS, READINGS)).tolist()


def payload(k: int) -> str:
    return json.dumps({"time": START + k, "value": VALUES[k]})


def journaled(state: Path) -> tuple[Shard, dict[float, float], int]:
    """A shard that has taken in the journal, the score of each reading by its time, how often time alone released."""
    twin, redelivery = Shard(Registry(8, 1e9, 1e9), shipped_weights(), 8, budget_per_series_month=1.0), Redelivery()
    scores: dict[float, float] = {}
    process: Callable[..., Outcome] = twin.process

    def noted(readings: Batch, arrival: Float64, *, is_heard: bool) -> Outcome:
        outcome = process(readings, arrival, is_heard=is_heard)
        scores.update(zip(readings.time.tolist(), outcome.scores.score.tolist(), strict=True))
        return outcome

    twin.process = noted  # type: ignore[method-assign,assignment]  # the real one, and its verdicts are kept
    records = [record for _, record in read(DiskFiles(state / "journal"), 0)]
    for record in records:
        recovery.apply(record, twin, redelivery)
    return twin, scores, sum(isinstance(record, Released) for record in records)


def wait_pending(daemon: Daemon, wanted: Callable[[float], bool]) -> Numbers:
    """A scrape, both identities of which have been checked, in which so many readings wait."""

    def found() -> Numbers:
        numbers = daemon.numbers()
        return numbers if wanted(numbers["readings_pending", ""]) else {}

    return wait_until(found, 20.0, "the readings that wait")


def check_state(state: Path, twin: Shard) -> None:
    """The state that the daemon has left is that of its journal, bit for bit."""
    kept = snapshot.read_newest(state).snapshot
    assert kept is not None
    arrays = {name: array for name, array in kept.arrays.items() if name not in (MID, DIGEST)}
    same(State(arrays, kept.meta), twin.export())


def test_readings_that_come_out_of_order_have_the_scores_of_those_in_order(
    mosquitto: StartBroker, tmp_path: Path
) -> None:
    """200 readings shuffled within the allowance: none late, each scored as it would have been in its place."""
    broker = mosquitto()
    with running(broker.port, tmp_path, f"input.lateness_seconds={LATENESS}") as daemon, client(broker) as peer:
        daemon.wait_ready()
        for k in ORDER:
            peer.publish("plant/oven", payload(k), qos=1)
        daemon.wait_settled(READINGS)
        numbers = wait_pending(daemon, lambda pending: pending == 0)
        assert numbers["readings_decoded_total", ""] == READINGS
        assert numbers["readings_unscored_total", "late"] == 0
        assert numbers["readings_scored_total", ""] == READINGS - numbers["readings_unscored_total", "warming"] > 150
        assert numbers["readings_released_early_total", ""] == 0
        assert daemon.stop() == 0
    twin, scores, released = journaled(tmp_path / "state")
    assert released > 0
    check_state(tmp_path / "state", twin)

    in_order = Shard(Registry(8, 1e9, 1e9), shipped_weights(), 8, budget_per_series_month=1.0)
    in_order.registry.resolve(["plant/oven"], START)
    expected = [in_order.process(batch(0, START + k, VALUES[k]), START + k).scores.score[0] for k in range(READINGS)]
    found = [scores[START + k] for k in range(READINGS)]
    assert sorted(ORDER) != ORDER
    assert found == pytest.approx(expected, rel=0, abs=1e-6, nan_ok=True)
    assert max(found[20:]) > 1.0


def test_a_kill_and_a_stop_keep_what_waits(mosquitto: StartBroker, tmp_path: Path) -> None:
    """It waits on after the next start, and where the allowance is gone it goes on then; each is applied once."""
    broker = mosquitto()
    state, waits = tmp_path / "state", "input.lateness_seconds=3600"
    with client(broker) as peer:
        with running(broker.port, tmp_path, waits) as daemon:
            daemon.wait_ready()
            for k in ORDER[:100]:
                peer.publish("plant/oven", payload(k), qos=1)
            daemon.wait_settled(100)
            assert daemon.numbers()["readings_pending", ""] == 100
            daemon.process.kill()
        with running(broker.port, tmp_path, waits) as daemon:
            daemon.wait_ready()
            numbers = wait_pending(daemon, lambda pending: pending == 100)
            assert numbers["readings_decoded_total", ""] == 100
            for k in ORDER[100:]:
                peer.publish("plant/oven", payload(k), qos=1)
            wait_pending(daemon, lambda pending: pending == READINGS)
            assert daemon.stop() == 0
    found = state_of(state)
    assert (found["series"], found["readings"], found["problems"]) == (1, 0, [])
    check_state(state, journaled(state)[0])
    copy = tmp_path / "copy"
    shutil.copytree(state, copy)
    for path in copy.glob("*.snap"):
        path.unlink()
    from_journal = state_of(copy)
    for digest in ("sha256", "sha256_with_arrivals"):
        assert from_journal[digest] == found[digest], digest
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        numbers = wait_pending(daemon, lambda pending: pending == 0)
        assert numbers["readings_decoded_total", ""] == READINGS
        assert numbers["readings_unscored_total", "late"] == 0
        daemon.process.kill()
    assert state_of(copy)["sha256"] != state_of(state)["sha256"]
    found = state_of(state)
    assert found["readings_applied"] == {"plant/oven#value": READINGS}
    assert found["problems"] == []
