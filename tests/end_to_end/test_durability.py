"""What was acknowledged outlives the real daemon, whatever its disk does; and what the disk refused heals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, STREAMER, client, message, running, send, with_segments_of
from tests.end_to_end.ledger import KEEPS_ALL, journaled, new_snapshot
from tests.end_to_end.scene import Scene, scene
from tests.end_to_end.strace import FIVE_MINUTES, REMOVE, RENAME, failing, hanging, kill_in_delay, traced
from tests.end_to_end.test_failures import learned
from tests.servers import program
from tests.waiting import wait_until


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
    broker = mosquitto(lines=KEEPS_ALL)
    with client(broker) as peer, running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        send(peer, "plant/oven", message(0, 20.0))
        daemon.wait_settled(1)
        with hanging(daemon.process, "fdatasync"):
            for k in range(1, 300):
                send(peer, "plant/oven", message(k, 20.0))
            daemon.wait_settled(300)
            wait_until(lambda: daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
            assert "the disk has not answered for" in daemon.get("/-/ready")[1]
            assert daemon.get("/-/healthy")[0] == 200
            numbers = daemon.numbers()
            assert (numbers["journal_failing", ""], numbers["readings_scored_total", ""]) == (1, 280)
            assert numbers["journal_pending_bytes", ""] > 0
        daemon.wait_ready()
        daemon.wait_durable()
        daemon.process.kill()
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        assert daemon.numbers()["messages_received_total", ""] == 0
        assert daemon.stop() == 0
    assert learned(tmp_path / "state") == 300


@pytest.mark.server("strace")
def test_a_disk_that_hangs_at_the_start_does_not_hold_it_up(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The daemon serves, scores and says why it is not ready; nothing is acknowledged."""
    broker, trace = mosquitto(lines=KEEPS_ALL), tmp_path / "trace"
    with client(broker) as peer:
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            send(peer, "plant/oven", message(0, 20.0))
            daemon.wait_settled(1)
            assert daemon.stop() == 0
        slow = traced(trace, "fdatasync", f"delay_enter={FIVE_MINUTES}", launch=STREAMER)
        with running(broker.port, tmp_path, program=slow) as daemon:
            wait_until(lambda: "has not answered" in daemon.get("/-/ready")[1], SECONDS, "the reason")
            send(peer, "plant/oven", message(1, 20.0))
            daemon.wait_settled(1)
            assert daemon.numbers()["journal_pending_bytes", ""] > 0
            kill_in_delay(daemon.process)
            daemon.process.wait(SECONDS)
        with running(broker.port, tmp_path) as daemon:
            wait_until(lambda: len(journaled(tmp_path / "state")) == 2, SECONDS, "what the broker has kept")
            assert daemon.stop() == 0
    assert learned(tmp_path / "state") == 2


@pytest.mark.server("strace")
def test_sigterm_is_obeyed_while_the_disk_hangs(mosquitto: StartBroker, tmp_path: Path) -> None:
    """In time, and the loss of the snapshot is said; what the disk had not taken comes again."""
    broker = mosquitto(lines=KEEPS_ALL)
    with client(broker) as peer:
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            with hanging(daemon.process, "fdatasync"):
                for k in range(30):
                    send(peer, "plant/oven", message(k, 20.0))
                daemon.wait_settled(30)
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_log("state_saved=false", seconds=5)
            # The kernel lets no process go that the disk, here strace, still has in its hands.
            assert daemon.process.wait(SECONDS) == 1
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            wait_until(lambda: len(journaled(tmp_path / "state")) == 30, SECONDS, "all of them in the journal")
            assert daemon.stop() == 0
    assert learned(tmp_path / "state") == 30


# --- The disk refuses ---

KEEPS_CALM = "state.snapshot_seconds=3600"
EACH_COMMIT_A_SEGMENT = with_segments_of(1)


@dataclass(frozen=True)
class Fault:
    """System calls that fail, on files of the state directory."""

    calls: str
    error: str = "EIO"
    paths: Callable[[Path], list[Path]] = lambda _: []
    """empty: all calls fail"""
    program: tuple[str, ...] = STREAMER


JOURNAL_FAULTS = {
    "write": Fault("pwrite64"),
    "fdatasync": Fault("fdatasync"),
    "write of a new segment": Fault("pwrite64", program=EACH_COMMIT_A_SEGMENT),
    "fdatasync of a new segment": Fault("fdatasync", program=EACH_COMMIT_A_SEGMENT),
    "rename of a new segment": Fault(RENAME, program=EACH_COMMIT_A_SEGMENT),
    "fsync of the directory": Fault("fsync", paths=lambda s: [s / "journal"], program=EACH_COMMIT_A_SEGMENT),
    "read-only": Fault(f"pwrite64,fdatasync,fsync,{RENAME},{REMOVE}", "EROFS"),
}
WORDS = {"EIO": "Input/output error", "EROFS": "Read-only file system"}


def is_failing(on: Scene, reason: str) -> bool:
    """Not ready, and it says why; messages keep coming."""
    on.ledger.publish(20)[-1].wait_for_publish(SECONDS)
    status, said = on.daemon.get("/-/ready")
    return status == 503 and f"the journal cannot be written: {reason}" in said


def wait_healed(on: Scene) -> None:
    """Ready, and the broker has got what it was owed."""
    on.daemon.wait_ready()
    on.ledger.wait_published()
    wait_until(lambda: on.acknowledged() == on.ledger.sent, SECONDS, "all acknowledgements")


@pytest.mark.server("strace")
@pytest.mark.parametrize("fault", JOURNAL_FAULTS.values(), ids=JOURNAL_FAULTS)
def test_a_disk_that_fails_under_the_journal(mosquitto: StartBroker, tmp_path: Path, fault: Fault) -> None:
    """No acknowledgement while it does, scoring goes on, it heals by itself, and nothing is lost or doubled."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, KEEPS_CALM, program=fault.program) as on:
        on.ledger.publish(100)
        wait_healed(on)
        with failing(on.daemon.process, fault.calls, f"error={fault.error}", fault.paths(tmp_path / "state")):
            wait_until(lambda: is_failing(on, WORDS[fault.error]), SECONDS, "not ready")
            on.ledger.publish(200)
            on.wait_taken(time.monotonic())
            assert on.daemon.get("/-/healthy")[0] == 200
            assert on.acknowledged() == 100
        wait_healed(on)
        on.end()


@pytest.mark.server("strace")
@pytest.mark.parametrize("nth", [2, pytest.param(1, marks=pytest.mark.long), pytest.param(7, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["write", "fdatasync", "rename of a new segment", "fsync of the directory"])
def test_the_nth_call_fails_under_the_journal(mosquitto: StartBroker, tmp_path: Path, name: str, nth: int) -> None:
    """One error is healed by the next attempt, though what the disk still has of the first is not trusted."""
    fault = JOURNAL_FAULTS[name]
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, KEEPS_CALM, program=fault.program) as on:
        with failing(on.daemon.process, fault.calls, f"error=EIO:when={nth}", fault.paths(tmp_path / "state")):
            wait_until(lambda: is_failing(on, WORDS["EIO"]), SECONDS, "not ready")
            wait_healed(on)
        on.end()


SNAPSHOT_FAULTS = {
    "write": Fault("write", paths=lambda state: [new_snapshot(state)]),
    "fsync": Fault("fsync", paths=lambda state: [new_snapshot(state)]),
    "rename": Fault(RENAME, paths=lambda state: [new_snapshot(state)]),
    "fsync of the directory": Fault("fsync", paths=lambda state: [state]),
}


def check_snapshots_heal(on: Scene, state: Path) -> None:
    """The next one succeeds, and nothing half-written stays."""
    written = on.daemon.numbers()["snapshot_total", "ok"]
    wait_until(lambda: on.daemon.numbers()["snapshot_total", "ok"] > written, SECONDS, "a snapshot")
    on.end()
    assert not list(state.glob("*.part"))


@pytest.mark.server("strace")
@pytest.mark.parametrize("fault", SNAPSHOT_FAULTS.values(), ids=SNAPSHOT_FAULTS)
def test_a_disk_that_fails_under_a_snapshot(mosquitto: StartBroker, tmp_path: Path, fault: Fault) -> None:
    """It is counted; the journal is enough to acknowledge, and the next snapshot is as good as any."""
    state = tmp_path / "state"
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, "state.snapshot_seconds=1") as on:
        with failing(on.daemon.process, fault.calls, "error=EIO", fault.paths(state)):
            wait_until(lambda: on.daemon.numbers()["snapshot_total", "failed"] > 0, SECONDS, "a failed snapshot")
            on.ledger.publish(200)
            wait_healed(on)
        assert 'snapshot failed reason="[Errno 5]' in on.daemon.log()
        check_snapshots_heal(on, state)


def mounted(place: Path, *arguments: str | Path) -> Iterator[Path]:
    """A file system of its own for the state directory."""
    place.mkdir()
    done = subprocess.run(["mount", *arguments, place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state directory, of 4 MiB and 40 files."""
    yield from mounted(tmp_path / "state", "-t", "tmpfs", "-o", "size=4m,nr_inodes=40", "tmpfs")


def fill(disk: Path) -> Path:
    """A file that takes all the space there is."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # that there is no space left
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_disk_that_is_full_for_a_snapshot_and_not_for_the_journal(
    mosquitto: StartBroker, tmp_path: Path, small_disk: Path
) -> None:
    """It stays ready and acknowledges; the snapshot that found no room leaves nothing behind, and heals."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, "state.snapshot_seconds=1") as on:
        on.ledger.publish(1000)
        wait_healed(on)
        ballast = fill(small_disk)
        os.truncate(ballast, ballast.stat().st_size - 32_768)
        wait_until(lambda: on.daemon.numbers()["snapshot_total", "failed"] > 1, SECONDS, "failed snapshots")
        on.ledger.publish(100)
        wait_healed(on)
        assert 'snapshot failed reason="[Errno 28]' in on.daemon.log()
        ballast.unlink()
        check_snapshots_heal(on, small_disk)


@pytest.fixture
def breakable_disk(tmp_path: Path) -> Iterator[Path]:
    """The state directory on an ext4 that turns read-only at an error."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run([program("mkfs.ext4"), "-q", image], capture_output=True, check=True)
    yield from mounted(tmp_path / "state", "-o", "loop,errors=remount-ro", image)


@pytest.mark.server("mkfs.ext4", "e2fsck", "findmnt")
def test_a_disk_that_turns_read_only(mosquitto: StartBroker, tmp_path: Path, breakable_disk: Path) -> None:
    """As kernels do when a disk is ill: no acknowledgement, and when it is mended all comes again, once."""
    broker = mosquitto(lines=KEEPS_ALL)
    with scene(broker, tmp_path) as on:
        on.ledger.publish(100)
        wait_healed(on)
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", breakable_disk], capture_output=True, text=True, check=True
        ).stdout.strip()
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("as a bad sector would")
        wait_until(lambda: is_failing(on, WORDS["EROFS"]), SECONDS, "not ready")
        on.ledger.publish(200)
        on.wait_taken(time.monotonic())
        assert on.acknowledged() == 100
        on.daemon.process.kill()
        on.daemon.process.wait()
        subprocess.run(["umount", breakable_disk], check=True)
        mended = subprocess.run([program("e2fsck"), "-y", tmp_path / "image"], capture_output=True, check=False)
        assert mended.returncode in {0, 1}, mended.stdout  # 1: errors were corrected
        subprocess.run(["mount", "-o", "loop", tmp_path / "image", breakable_disk], check=True)
        with running(on.proxy.port, tmp_path) as daemon:
            again = replace(on, daemon=daemon)
            daemon.wait_ready()
            wait_until(lambda: again.is_taken(on.ledger.sent - 100), SECONDS, "what was not acknowledged")
            again.end()


def test_a_full_disk_stops_acknowledgements_not_scoring_and_heals(
    mosquitto: StartBroker, tmp_path: Path, small_disk: Path
) -> None:
    """Not ready, and it says why; when space returns the broker gets what it is owed, and nothing was lost."""
    broker = mosquitto(lines=KEEPS_ALL)
    with client(broker) as peer, running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        ballast = fill(small_disk)
        for k in range(300):
            send(peer, "plant/oven", message(k, 20.0))
        daemon.wait_settled(300)
        wait_until(lambda: daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        assert "No space left on device" in daemon.get("/-/ready")[1]
        assert daemon.numbers()["journal_failing", ""] == 1
        ballast.unlink()
        daemon.wait_ready()
        daemon.wait_durable()
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
        wait_until(lambda: len(journaled(small_disk)) == 30, SECONDS, "all of them in the journal")
        good = daemon.numbers()["snapshot_total", "ok"]
        shutil.rmtree(small_disk / "ballast")
        wait_until(lambda: daemon.numbers()["snapshot_total", "ok"] > good, SECONDS, "a snapshot again")
        assert daemon.stop() == 0
    assert learned(small_disk) == 30
