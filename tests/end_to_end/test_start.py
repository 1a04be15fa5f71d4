"""The real daemon on state that is damaged: it starts, says what is lost, and acknowledges nothing too early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.weights import ForecasterConfig
from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, Daemon, client, running, send, state_of
from tests.scrapes import total
from tests.servers import free_port
from tests.states import KEYS, flip, flip_group, make_state, snapshots
from tests.streams import START, random_weights
from tests.waiting import wait_until

ALL = dict.fromkeys(KEYS, 40)
KEEPS_ALL = ["max_queued_messages 0", "max_inflight_messages 0"]


def newest_segment(state: Path) -> Path:
    return max((state / "journal").glob("*.log"))


def torn_tail(state: Path) -> None:
    with newest_segment(state).open("ab") as file:
        file.write(b"half a record")


def damaged_newest_snapshot(state: Path) -> None:
    flip(snapshots(state)[-1], -50)


def both_snapshots_damaged(state: Path) -> None:
    for path in snapshots(state):
        flip(path, -50)


def nothing_sound(state: Path) -> None:
    both_snapshots_damaged(state)
    min((state / "journal").glob("*.log")).unlink()


def damage_in_the_journal(state: Path) -> None:
    flip_group(state, 30)


def lost_series(state: Path) -> None:
    segment = next(path for path in (state / "journal").glob("*.log") if b"plant/new" in path.read_bytes())
    flip(segment, segment.read_bytes().find(b"plant/new"))


def another_format(state: Path) -> None:
    flip(snapshots(state)[-1], 8)


def leftovers(state: Path) -> None:
    for name in ("snapshot-000000000003.snap.part", "journal/00000000000000000099.log.part", "filters.json.part"):
        (state / name).write_bytes(b"half")


@pytest.mark.parametrize("segment_bytes", [1_500, 100_000])
@pytest.mark.parametrize(
    ("damage", "said", "restored", "applied"),
    [
        (torn_tail, "journal cut: never acknowledged", 1, 40),
        (damaged_newest_snapshot, "snapshot set aside", 1, 40),
        (both_snapshots_damaged, "snapshot set aside", 1, 40),
        (nothing_sound, "no state to restore: every series begins anew", 0, 0),
        (damage_in_the_journal, "5 readings are missing", 1, 39),
        (lost_series, "journal not used to its end", 1, 30),
        (another_format, "is of format version 0, this program reads 1", 1, 40),
        (leftovers, "state restored", 1, 40),
    ],
)
def test_damage_is_said_once_and_is_no_obstacle(
    tmp_path: Path, damage: Callable[[Path], None], said: str, restored: int, applied: int, segment_bytes: int
) -> None:
    """Restored as far as it is sound; whatever there was is behind a snapshot then, and the next start is quiet."""
    state = tmp_path / "state"
    make_state(state, admit_at={30: "plant/new"}, segment_bytes=segment_bytes)
    damage(state)
    with running(free_port(), tmp_path) as daemon:
        wait_until(lambda: daemon.get("/-/healthy")[0] == 200, SECONDS, "healthy")
        assert said in daemon.log()
        assert "Traceback" not in daemon.log()
        numbers = daemon.numbers()
        assert numbers["state_restored", ""] == restored
        assert total(numbers, "alarms_open") == 0
        assert daemon.stop() == 0
    found = state_of(state)  # exit status 0: nothing is left to complain of
    assert [found["readings_applied"].get(key, 0) for key in KEYS] == [applied] * 4
    assert not list(state.rglob("*.part"))
    before = len(daemon.log())
    with running(free_port(), tmp_path) as daemon:
        wait_until(lambda: daemon.get("/-/healthy")[0] == 200, SECONDS, "healthy")
        assert " ERROR " not in daemon.log()[before:]
        assert daemon.stop() == 0
    assert state_of(state)["sha256"] == found["sha256"]


def test_after_a_cold_start_nothing_alarms_before_it_is_warm(mosquitto: StartBroker, tmp_path: Path) -> None:
    """A value that would have been an alarm is none while the series has no verdict."""
    broker, state = mosquitto(), tmp_path / "state"
    make_state(state)
    nothing_sound(state)
    with client(broker) as peer, running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        for k in range(15):
            payload = {"time": START + 3600 + 60 * k, "temperature": 900.0 if k == 9 else 20.0}
            send(peer, "plant/0", json.dumps(payload))
        numbers = daemon.wait_settled(15)
        assert numbers["state_restored", ""] == 0
        assert total(numbers, "alarms_opened_total") == 0
        assert numbers["readings_unscored_total", "warming"] == 15
        assert daemon.stop() == 0


def test_the_state_of_other_weights_leaves_what_they_have_made_behind(tmp_path: Path) -> None:
    """The statistics stay, and it is said."""
    state = tmp_path / "state"
    make_state(state, 41, snapshots=(40,), weights=random_weights(ForecasterConfig(input_size=18, hidden_size=8)))
    with running(free_port(), tmp_path) as daemon:
        daemon.wait_log("started")
        assert "other weights had made them" in daemon.log()
        assert daemon.stop() == 0
    assert state_of(state)["readings"] == 41 * 4


def test_a_journal_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """Exit status 2, by its name, and nothing is lost."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal").write_text("")
    with running(free_port(), tmp_path) as daemon:
        assert daemon.process.wait(SECONDS) == 2
        assert f"{tmp_path / 'state' / 'journal'} cannot be used" in daemon.log()
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("damage", [damage_in_the_journal, lost_series])
def test_nothing_is_acknowledged_before_a_snapshot_makes_up_for_the_damage(
    mosquitto: StartBroker, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """While it cannot be written the daemon scores, is not ready, and a kill then loses nothing; it heals by itself."""
    broker, state = mosquitto(lines=KEEPS_ALL), tmp_path / "state"
    make_state(state, admit_at={30: "plant/new"})
    damage(state)
    obstacle = state / f"snapshot-{'9' * 237}.snap.bad"  # the next name would be too long
    obstacle.touch()
    with client(broker) as peer:
        for start in (1, 2):
            with running(broker.port, tmp_path) as daemon:
                wait_reason(daemon, "the journal is damaged, and no snapshot is written yet that makes up for it")
                for k in range(10):
                    payload = {"time": START + 3600 * start + 60 * k, "temperature": 20.0}
                    send(peer, "plant/0", json.dumps(payload))
                numbers = daemon.wait_settled(10 * start)
                assert numbers["readings_scored_total", ""] >= 9  # not the first one, after a gap
                wait_until(lambda: daemon.numbers()["snapshot_total", "failed"] >= 1, SECONDS, "a try")
                daemon.process.kill()
        obstacle.unlink()
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            daemon.wait_settled(20)
            assert daemon.stop() == 0
    applied = 30 if damage is lost_series else 39
    assert state_of(state)["readings_applied"]["plant/0#temperature"] == applied + 20


def wait_reason(daemon: Daemon, reason: str) -> None:
    wait_until(
        lambda: daemon.get("/metrics")[0] == 200 and daemon.numbers()["mqtt_subscribed", ""], SECONDS, "a broker"
    )
    wait_until(lambda: daemon.get("/-/ready")[0] == 503 and reason in daemon.get("/-/ready")[1], SECONDS, reason)


def test_a_close_that_is_told_twice_is_the_same_event(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Killed at once after it was told, before that is remembered: the next run tells it again, byte for byte."""
    broker, told = mosquitto(), list[bytes]()
    make_state(tmp_path / "state")
    with client(broker) as peer:
        peer.on_message = lambda _client, _data, got: told.append(bytes(got.payload))
        peer.subscribe([("streamer/default/alarm/#", 1), ("the/end", 1)])
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            for k in range(200):
                value = 20.0 + k % 3 + (500.0 if k == 150 else 0.0)
                send(peer, "plant/0", json.dumps({"time": START + 2400 + 60 * k, "temperature": value}))
                if b'"event":"closed"' in b"".join(told):
                    break
            wait_until(lambda: b'"event":"closed"' in b"".join(told), SECONDS, "the alarm to be closed")
            daemon.process.kill()
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            send(peer, "plant/1", json.dumps({"time": START + 2400, "temperature": 20.0}))
            daemon.wait_settled(1)
            assert daemon.stop() == 0
        send(peer, "the/end", "the end")
        wait_until(lambda: told[-1] == b"the end", SECONDS, "all events")
    events = [each for each in told if b'"event":"closed"' in each]
    assert 1 <= len(events) <= 2
    assert len(set(events)) == 1


def test_without_a_journal_nothing_is_pending_in_an_old_one(tmp_path: Path) -> None:
    """With `durability=snapshot` it is read once and written to no more; its readings are in the next snapshot."""
    make_state(tmp_path / "state")
    with running(free_port(), tmp_path, "state.durability=snapshot") as daemon:
        daemon.wait_log("started")
        wait_until(lambda: daemon.get("/-/healthy")[0] == 200, SECONDS, "healthy")
        assert daemon.numbers()["journal_pending_bytes", ""] == 0
        assert daemon.stop() == 0
    assert state_of(tmp_path / "state")["journal_replayed"] == 0
    assert state_of(tmp_path / "state")["readings_applied"] == ALL
