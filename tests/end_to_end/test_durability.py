"""What was acknowledged outlives the real daemon, whatever its disk does; and what the disk refused heals."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, client, message, running, send
from tests.end_to_end.test_failures import learned
from tests.waiting import wait_until

KEEPS_ALL = ["max_queued_messages 0", "max_inflight_messages 0"]


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state directory on a file system of its own."""
    place = tmp_path / "state"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False)
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
