"""What was acknowledged outlives the real daemon, killed at any moment; and a disk that is full heals."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.disk import DiskFiles
from streamer.journal import read
from streamer.records import Group
from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, START, client, message, running, send
from tests.end_to_end.test_failures import learned
from tests.servers import program
from tests.waiting import wait_until

KEEPS_ALL = ["max_queued_messages 0", "max_inflight_messages 0"]


def values(state: Path) -> list[int]:
    """What the journal holds, in its order."""
    groups = [record for _, record in read(DiskFiles(state / "journal"), 0) if isinstance(record, Group)]
    return [int(value) for group in groups for value in group.batch.value]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [40, pytest.param(500, marks=pytest.mark.long)])
def test_sigkill_at_any_moment_loses_nothing_and_doubles_nothing(
    mosquitto: StartBroker, tmp_path: Path, kills: int
) -> None:
    """While messages come and snapshots are written every second: each is in the journal, and in the state, once."""
    broker, rng, sent = mosquitto(lines=KEEPS_ALL), random.Random(kills), 0
    settings = ["state.snapshot_seconds=1"]
    with client(broker) as peer:
        for _ in range(kills):
            with running(broker.port, tmp_path, *settings) as daemon:
                daemon.wait_ready()
                waiting = []
                for number in range(sent, sent + rng.randrange(1, 3_000)):
                    payload = json.dumps({"time": START + number, "value": number})
                    waiting.append(peer.publish(f"plant/{number % 20}", payload, qos=1))
                sent += len(waiting)
                waiting[rng.randrange(len(waiting))].wait_for_publish(SECONDS)
                daemon.process.kill()
                for each in waiting:
                    each.wait_for_publish(SECONDS)
        with running(broker.port, tmp_path, *settings) as daemon:
            daemon.wait_ready()
            wait_until(lambda: daemon.numbers()["messages_queued", ""] == 0, SECONDS, "an empty inbox")
            wait_until(lambda: len(values(tmp_path / "state")) >= sent, SECONDS, "all of them")
            assert daemon.stop() == 0
    assert sorted(values(tmp_path / "state")) == list(range(sent))
    assert learned(tmp_path / "state") == sent


def test_what_both_snapshots_have_lost_the_journal_still_has(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The start reads the journal from its beginning."""
    broker = mosquitto()
    with client(broker) as peer:
        for start in range(2):
            with running(broker.port, tmp_path) as daemon:
                daemon.wait_ready()
                for k in range(30):
                    send(peer, "plant/oven", message(30 * start + k, 20.0))
                daemon.wait_settled(30)
                assert daemon.stop() == 0
        for path in (tmp_path / "state").glob("*.snap"):
            path.write_bytes(path.read_bytes()[:-1])
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            assert daemon.numbers()["state_restored", ""] == 1
            assert daemon.stop() == 0
    assert learned(tmp_path / "state") == 60


@pytest.mark.server("strace")
def test_a_disk_that_hangs_stops_acknowledgements_not_scoring_and_heals(mosquitto: StartBroker, tmp_path: Path) -> None:
    """fdatasync takes minutes: not ready, and it says why; the broker has all of it until the disk answers."""
    broker, tracer = mosquitto(lines=KEEPS_ALL), program("strace")
    with client(broker) as peer, running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        send(peer, "plant/oven", message(0, 20.0))
        daemon.wait_settled(1)
        slow = [tracer, "-qq", "-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=300000000"]
        with subprocess.Popen([*slow, "-p", str(daemon.process.pid)], stderr=subprocess.DEVNULL) as tracing:
            wait_until(lambda: is_traced(daemon.process.pid), SECONDS, "strace")
            for k in range(1, 300):
                send(peer, "plant/oven", message(k, 20.0))
            daemon.wait_settled(300)
            wait_until(lambda: daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
            assert "the disk has not answered for" in daemon.get("/-/ready")[1]
            assert daemon.get("/-/healthy")[0] == 200
            numbers = daemon.numbers()
            assert (numbers["journal_failing", ""], numbers["readings_scored_total", ""]) == (1, 280)
            assert numbers["journal_pending_bytes", ""] > 0
            tracing.kill()
        daemon.wait_ready()
        numbers = daemon.numbers()
        assert (numbers["journal_failing", ""], numbers["journal_pending_bytes", ""]) == (0, 0)
        daemon.process.kill()
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        assert daemon.numbers()["messages_received_total", ""] == 0
        assert daemon.stop() == 0
    assert learned(tmp_path / "state") == 300


@pytest.mark.server("strace")
def test_sigterm_is_obeyed_while_the_disk_hangs(mosquitto: StartBroker, tmp_path: Path) -> None:
    """In time, and the loss of the snapshot is said; what the disk had not taken comes again."""
    broker, tracer = mosquitto(lines=KEEPS_ALL), program("strace")
    with client(broker) as peer:
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            slow = [tracer, "-qq", "-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=300000000"]
            with subprocess.Popen([*slow, "-p", str(daemon.process.pid)], stderr=subprocess.DEVNULL) as tracing:
                wait_until(lambda: is_traced(daemon.process.pid), SECONDS, "strace")
                for k in range(30):
                    send(peer, "plant/oven", message(k, 20.0))
                daemon.wait_settled(30)
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_log("state_saved=false", seconds=5)
                tracing.kill()  # the kernel lets no process go that the disk, here strace, still has in its hands
                assert daemon.process.wait(SECONDS) == 1
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            wait_until(lambda: len(values(tmp_path / "state")) == 30, SECONDS, "all of them in the journal")
            assert daemon.stop() == 0
    assert learned(tmp_path / "state") == 30


def is_traced(process: int) -> bool:
    """All of its threads are in a tracer's hands."""
    statuses = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/status")]
    return all("TracerPid:\t0" not in status for status in statuses)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state directory on a file system of its own."""
    place = tmp_path / "state"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=40", "tmpfs", place], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_stops_acknowledgements_not_scoring_and_heals(
    mosquitto: StartBroker, tmp_path: Path, small_disk: Path
) -> None:
    """Not ready, and it says why; when space returns the broker gets what it is owed, and nothing was lost."""
    broker = mosquitto(lines=KEEPS_ALL)
    with client(broker) as peer, running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # that there is no space left
            while True:
                file.write(bytes(4096))
        for k in range(300):
            send(peer, "plant/oven", message(k, 20.0))
        daemon.wait_settled(300)
        wait_until(lambda: daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        assert "No space left on device" in daemon.get("/-/ready")[1]
        assert daemon.numbers()["journal_failing", ""] == 1
        ballast.unlink()
        daemon.wait_ready()
        numbers = daemon.numbers()
        assert (numbers["journal_failing", ""], numbers["journal_pending_bytes", ""]) == (0, 0)
        daemon.process.kill()
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        assert daemon.stop() == 0
    assert learned(small_disk) == 300


def test_a_snapshot_that_finds_no_inode_is_told_and_heals(
    mosquitto: StartBroker, tmp_path: Path, small_disk: Path
) -> None:
    """The journal has its file and goes on: all is acknowledged meanwhile, the daemon stays ready."""
    broker = mosquitto()
    with client(broker) as peer, running(broker.port, tmp_path, "state.snapshot_seconds=1") as daemon:
        daemon.wait_ready()
        send(peer, "plant/oven", message(0, 20.0))
        wait_until(lambda: daemon.numbers()["snapshot_total", "ok"] >= 2, SECONDS, "two snapshots")
        (small_disk / "ballast").mkdir()
        with contextlib.suppress(OSError):  # that there is none left
            for number in range(100):
                (small_disk / "ballast" / str(number)).touch()
        wait_until(lambda: daemon.numbers()["snapshot_total", "failed"] >= 1, SECONDS, "a snapshot that fails")
        daemon.wait_log("snapshot failed reason=")
        for k in range(1, 30):
            send(peer, "plant/oven", message(k, 20.0))
        daemon.wait_settled(30)
        assert daemon.get("/-/ready")[0] == 200
        wait_until(lambda: len(values(small_disk)) == 30, SECONDS, "all of them in the journal")
        good = daemon.numbers()["snapshot_total", "ok"]
        shutil.rmtree(small_disk / "ballast")
        wait_until(lambda: daemon.numbers()["snapshot_total", "ok"] > good, SECONDS, "a snapshot again")
        assert daemon.stop() == 0
    assert learned(small_disk) == 30
