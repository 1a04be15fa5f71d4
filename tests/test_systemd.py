"""What the service manager is told, read from a real socket; and the unit file, judged by systemd's own tool."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.systemd import EXTENSION_SECONDS, PATIENCE_SECONDS, SIGN_SECONDS, STATUS_SECONDS, ServiceManager
from tests.servers import program

DEPLOYED = Path(__file__).parent.parent / "deploy" / "systemd"
EXTENSION = f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1e6:.0f}"


class Hand:
    """A steady clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Listening:
    """The service manager's end, and the daemon's end of the connection."""

    def __init__(self, address: str) -> None:
        self.clock = Hand()
        self.manager = ServiceManager(address, self.clock)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """The lines of all messages since it was last asked."""
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines += self._socket.recv(4096).decode().split("\n")
        return lines

    def close(self) -> None:
        self.manager.close()
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    """Both kinds of address that systemd gives."""
    end = Listening(str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}/notify")
    yield end
    end.close()


def words(lines: list[str]) -> list[str]:
    """The names, in their order."""
    return [line.partition("=")[0] for line in lines]


def test_ready_comes_with_the_subscription(listening: Listening) -> None:
    """Not before, and once."""
    clock, manager = listening.clock, listening.manager
    manager.starting("restoring the state")
    assert listening.heard() == [EXTENSION, "STATUS=restoring the state"]
    manager.tick(1.0, False, lambda: "waiting for the broker")
    assert listening.heard() == [EXTENSION, "WATCHDOG=1", "STATUS=waiting for the broker"]
    clock.now += PATIENCE_SECONDS - 1.0
    manager.tick(2.0, False, lambda: "still waiting")
    assert listening.heard() == ["WATCHDOG=1", "STATUS=still waiting"]
    manager.tick(3.0, True, lambda: "5 series")
    assert listening.heard() == ["READY=1", "WATCHDOG=1", "STATUS=5 series"]
    manager.tick(4.0, True, lambda: "5 series")
    assert listening.heard() == ["WATCHDOG=1"]


def test_a_boot_does_not_wait_for_ever_for_a_broker(listening: Listening) -> None:
    """After a minute it is ready all the same, within the time it has asked for, and says what it waits for."""
    clock, manager = listening.clock, listening.manager
    manager.tick(1.0, False, lambda: "waiting")
    clock.now += PATIENCE_SECONDS
    listening.heard()
    manager.tick(2.0, False, lambda: "waiting")
    assert listening.heard() == ["READY=1", "WATCHDOG=1", "STATUS=waiting"]
    assert EXTENSION_SECONDS > PATIENCE_SECONDS
    manager.tick(3.0, True, lambda: "5 series")  # the news is not ten seconds old when it is told
    assert listening.heard() == ["WATCHDOG=1", "STATUS=5 series"]


def test_the_watchdog_is_fed_by_progress_alone(listening: Listening) -> None:
    """Time that passes feeds nothing, ready or not."""
    clock, manager = listening.clock, listening.manager
    for is_subscribed in (False, True):
        manager.tick(clock.now, is_subscribed, lambda: "")
        assert "WATCHDOG=1" in listening.heard()
        stands_at = clock.now
        for _ in range(100):
            clock.now += 1.0
            manager.tick(stands_at, is_subscribed, lambda: "")
        told = words(listening.heard())
        assert "WATCHDOG" not in told
        assert told.count("STATUS") >= 100 // STATUS_SECONDS  # it goes on telling people


def test_a_start_that_goes_on_asks_for_time_now_and_then(listening: Listening) -> None:
    """However often it is called; and not of itself."""
    clock, manager = listening.clock, listening.manager
    for position in range(1000):
        manager.starting(f"at {position}")
        clock.now += 0.01
    assert words(listening.heard()) == ["EXTEND_TIMEOUT_USEC", "STATUS"] * 2
    assert SIGN_SECONDS == 5.0


def test_a_reload_is_bracketed(listening: Listening) -> None:
    """RELOADING with the steady time of systemd's clock, then READY; before READY neither, since none was said yet."""
    manager = listening.manager
    manager.reloading()
    manager.tick(1.0, False, lambda: "")
    assert not {"RELOADING", "READY"} & set(words(listening.heard()))
    manager.tick(1.0, True, lambda: "")
    listening.heard()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    reloading, usec = listening.heard()
    assert reloading == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.tick(1.0, False, lambda: "no broker now")
    assert listening.heard() == ["READY=1", "STATUS=no broker now"]


def test_a_manager_that_does_not_read_is_not_waited_for(listening: Listening) -> None:
    """Its queue is full: nothing blocks, and READY and WATCHDOG come when there is room again."""
    manager = listening.manager
    began = time.monotonic()
    for _ in range(10_000):  # the kernel's queue has room for some hundreds
        manager.stopping("full")
    manager.tick(1.0, True, lambda: "lost")
    assert time.monotonic() - began < 5.0
    told = listening.heard()
    assert "READY=1" not in told
    assert "WATCHDOG=1" not in told
    manager.tick(1.0, True, lambda: "")
    assert words(listening.heard())[-3:] == ["READY", "WATCHDOG", "STATUS"]


def test_a_status_is_one_short_line(listening: Listening) -> None:
    """What a broker has said cannot say READY or anything else, and a message is never longer than systemd reads."""
    manager = listening.manager
    manager.stopping("refused\nREADY=1\r\x1b[2J\u202e\udcff" + "\U0001f321" * 5000)
    stopping, status = listening.heard()
    assert stopping == "STOPPING=1"
    assert status.startswith("STATUS=refused READY=1  [2J")
    assert len(status.encode()) < 4096 - 200


@pytest.mark.parametrize(
    "notify_socket", ["", "vsock:2:1234", "relative", "/no/such/socket", "@nobody", "/" + "a" * 300]
)
def test_without_a_manager_nothing_happens(notify_socket: str) -> None:
    """Nothing is said and nothing raised."""
    with contextlib.closing(ServiceManager(notify_socket, Hand())) as manager:
        manager.starting("")
        manager.tick(1.0, True, lambda: "")
        manager.reloading()
        manager.stopping("")


# --- The unit file ---


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """As it ships, but for the program, which has to be there."""
    text = (DEPLOYED / "streamer.service").read_text()
    assert text.count("/opt/streamer/bin/streamer") == 1
    path = tmp_path / "streamer.service"
    path.write_text(text.replace("/opt/streamer/bin/streamer", sys.executable))
    return path


def analyze(*arguments: str | Path) -> str:
    """Standard output and error of systemd-analyze, which must be content."""
    command = [program("systemd-analyze"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.server("systemd-analyze")
def test_the_unit_file_is_in_order(unit: Path) -> None:
    """`systemd-analyze verify` has nothing to say of it."""
    said = [line for line in analyze("verify", "--man=no", unit).splitlines() if "streamer" in line]
    assert not said


@pytest.mark.server("systemd-analyze")
def test_the_daemon_is_little_exposed(unit: Path) -> None:
    """`systemd-analyze security`: at most 1.5 of 10, from the file alone."""
    said = analyze("security", "--offline=true", "--threshold=15", "--no-pager", unit)
    (exposure,) = re.findall(r"Overall exposure level for \S+: (\S+)", said)
    assert 0.0 < float(exposure) <= 1.5


def test_the_unit_watches_what_the_daemon_tells() -> None:
    """The times of the two fit: patience and signs end before systemd's own do."""
    settings = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOYED / "streamer.service").read_text(), re.MULTILINE))
    assert settings["Type"] == "notify"
    assert int(settings["TimeoutStartSec"]) >= EXTENSION_SECONDS
    assert int(settings["WatchdogSec"]) > STATUS_SECONDS
    assert settings["RestartPreventExitStatus"] == "2"
