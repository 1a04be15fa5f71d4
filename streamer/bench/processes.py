"""The processes of a measurement: broker, daemon, load generator; all on loopback, all ended by their own id."""

from __future__ import annotations

import http.client
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from streamer.bench.generator import HOST, Account, Plan
from streamer.errors import ServiceError

T = TypeVar("T")

READY_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
SAMPLE = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)

# Nothing is dropped on the way: the default queues 1,000 messages a client and drops the others without a word. And no
# subscriber has to wait for its own acknowledgements after each 20 messages.
BROKER = """\
listener {port} {host}
allow_anonymous true
persistence false
max_queued_messages 0
max_queued_bytes 0
max_inflight_messages 1000
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
"""


class BenchError(Exception):
    """A measurement that has failed; the text says what stood in its way."""


def wait_for(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first answer that is not None. Raises BenchError, which says `what` was waited for."""
    deadline = time.monotonic() + seconds
    while (answer := condition()) is None:
        if time.monotonic() > deadline:
            raise BenchError(f"waited {seconds:g} seconds in vain for {what}")
        time.sleep(POLL_SECONDS)  # between two looks at another process
    return answer


def cpu_per_second(child: Child, seconds: float) -> float:
    """What a process uses of a core while nothing is asked of it for so long."""
    before = cpu_seconds(child.pid)
    time.sleep(seconds)  # the measurement itself: how much is used in so long a time
    child.check()
    return (cpu_seconds(child.pid) - before) / seconds


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, 0 when it is gone."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def memory_bytes(pid: int, name: str) -> int:
    """`VmRSS`, or `VmHWM`, the most that it ever was; 0 when the process is gone."""
    with suppress(OSError):
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


class Child:
    """A process, and the file that it writes its output to."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER")}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raises BenchError with the end of its output if it is no longer there."""
        status = self._process.poll()
        if status is not None:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{self._log.stem} ended with status {status}; the end of its output:\n{tail}")

    def stop(self, meanwhile: Callable[[], None] = lambda: None) -> float:
        """SIGTERM, then SIGKILL; how many seconds it took. `meanwhile` is called until it is over."""
        began = time.monotonic()
        self._process.terminate()
        while self._process.poll() is None and time.monotonic() - began < STOP_SECONDS:
            meanwhile()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.005)
        self._process.kill()
        self._process.wait()
        return time.monotonic() - began

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()


def mosquitto() -> str:
    """The program, also where Debian puts it but a PATH may not look. Raises ServiceError where it is absent."""
    path = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if path is None:
        raise ServiceError("mosquitto is not installed here; expected a real broker: apt-get install mosquitto")
    return path


@contextmanager
def broker(directory: Path) -> Iterator[tuple[Child, int]]:
    """A mosquitto on a port of its own while the block lasts."""
    port = free_port()
    configuration = directory / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""  # else it drops to a user who may not read the directory
    configuration.write_text(BROKER.format(host=HOST, port=port) + user)
    child = Child([mosquitto(), "-c", str(configuration)], directory / "mosquitto.log")

    def answers() -> bool | None:
        child.check()
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return True
        return None

    try:
        wait_for(answers, READY_SECONDS, "mosquitto")
        yield child, port
    finally:
        child.stop()


Scrape = dict[str, float]


class Daemon(Child):
    """`streamer run` as an operator starts it, with the settings given."""

    def __init__(self, directory: Path, broker_port: int, settings: Sequence[str]) -> None:
        self.http_port = free_port()
        given = (f"mqtt.port={broker_port}", f"http.port={self.http_port}", f"state.directory={directory / 'state'}")
        overrides = [word for setting in (*given, *settings) for word in ("--set", setting)]
        self.began = time.monotonic()
        super().__init__([sys.executable, "-m", "streamer", "run", *overrides], directory / "streamer.log")

    def scrape(self) -> Scrape | None:
        """Every sample of /metrics by its name and labels; None while nobody answers."""
        self.check()
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return {name: float(value) for name, value in SAMPLE.findall(text)}


class Generator:
    """A load generator at work; the daemon's progress is its credit."""

    def __init__(self, plan: Plan, directory: Path, credit: int) -> None:
        command = [sys.executable, "-m", "streamer.bench.generator", msgspec.json.encode(plan).decode()]
        self._log = directory / "generator.log"
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        self._stdin, self._stdout = _pipe(self._process.stdin), _pipe(self._process.stdout)
        self.allow(credit)

    def allow(self, messages: int) -> None:
        """So many in all."""
        with suppress(BrokenPipeError):
            self._stdin.write(b"%d\n" % messages)
            self._stdin.flush()

    def account(self) -> Account | None:
        """What it has published, once it is done. Raises BenchError if it failed."""
        if not select.select([self._stdout], [], [], 0)[0]:
            return None
        line = self._stdout.readline()
        self._process.wait()
        if not line:
            raise BenchError(f"the load generator failed:\n{self._log.read_text(errors='replace')[-2000:]}")
        return msgspec.json.decode(line, type=Account)

    def end(self) -> None:
        """Let it come to an end; `account` tells when it has."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def kill(self) -> None:
        """At once; nothing when it is done."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with suppress(BrokenPipeError):
                pipe.close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("it was asked for")
    return stream
