"""The daemon as users run it, a process of its own, and a client beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests import schemas, scrapes
from tests.scrapes import Numbers
from tests.servers import Broker, free_port
from tests.waiting import wait_until

START = 1_790_000_000.0
SECONDS = 20.0
STREAMER = (sys.executable, "-m", "streamer")


def with_segments_of(size_bytes: int) -> tuple[str, ...]:
    """A `streamer` whose journal begins a new segment so soon, which is no setting."""
    code = (
        "import streamer.__main__, streamer.journal; "
        f"streamer.journal.Journal.__init__.__kwdefaults__['segment_bytes'] = {size_bytes}; "
        "raise SystemExit(streamer.__main__.main())"
    )
    return (sys.executable, "-c", code)


class Daemon:
    """`streamer run`; what it says goes to `folder/log`, its state to `folder/state`."""

    def __init__(
        self,
        broker_port: int,
        folder: Path,
        *settings: str,
        config: Path | None = None,
        program: Sequence[str] = STREAMER,
    ) -> None:
        self.http_port = free_port()
        self.log_path = folder / "log"
        options = [f"mqtt.port={broker_port}", f"http.port={self.http_port}", f"state.directory={folder / 'state'}"]
        arguments = ["--config", str(config)] if config else []
        arguments += [part for option in (*options, *settings) for part in ("--set", option)]
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen([*program, "run", *arguments], stderr=log)

    def log(self) -> str:
        """Everything that it and its predecessors in this folder have said."""
        return self.log_path.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error, contextlib.suppress(OSError, http.client.HTTPException):
                return error.code, error.read().decode()
        except (OSError, http.client.HTTPException):
            pass
        return 0, ""  # also where it is killed in the middle of its answer

    def numbers(self) -> Numbers:
        """A scrape, after both identities have been checked."""
        return scrapes.parse(self.get("/metrics")[1])

    def settled(self, messages: int) -> Numbers:
        """The numbers once so many messages have come and been settled; nothing before."""
        numbers = self.numbers()
        is_done = numbers["messages_received_total", ""] >= messages and not numbers["messages_queued", ""]
        return numbers if is_done else {}

    def wait_settled(self, messages: int, seconds: float = SECONDS) -> Numbers:
        return wait_until(lambda: self.settled(messages), seconds, f"{messages} messages to be settled")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return self.get("/-/ready")[0] == 200

    def wait_ready(self) -> None:
        wait_until(self.is_ready, SECONDS, "ready")

    def is_durable(self) -> bool:
        """Whether the disk has all that was read, and answers."""
        numbers = self.numbers()
        return not numbers["journal_failing", ""] and not numbers["journal_pending_bytes", ""]

    def wait_durable(self) -> None:
        """Ready can come a write earlier: what was read while one write was made goes with the next."""
        wait_until(self.is_durable, SECONDS, "all readings on the disk")

    def wait_log(self, words: str, seconds: float = SECONDS) -> None:
        wait_until(lambda: words in self.log(), seconds, f"{words!r} in the log")

    def memory_bytes(self) -> int:
        """The most that it has ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def cpu_seconds(self) -> float:
        """What it has used so far, of all its threads."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """SIGTERM; the exit status, which must come within five seconds."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(5)


@contextmanager
def running(
    broker_port: int,
    folder: Path,
    *settings: str,
    config: Path | None = None,
    program: Sequence[str] = STREAMER,
) -> Iterator[Daemon]:
    """A daemon that does not outlive the test."""
    daemon = Daemon(broker_port, folder, *settings, config=config, program=program)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.wait()


class StrictClient(Client):
    """It holds all that it hears of a daemon to the published schemas."""

    def __init__(self, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, protocol=protocol)
        self.complaints: list[str] = []
        self.documents: Counter[str] = Counter()
        """how many it has looked at, by the level of the topic that says what they are"""

    def _handle_on_message(self, message: MQTTMessage) -> None:
        try:
            self.complaints += schemas.complaints(message.topic, message.payload)
            self.documents["".join(message.topic.split("/")[2:3])] += 1
        except ValueError as error:
            self.complaints.append(f"{message.topic}: {error!r}")
        super()._handle_on_message(message)


@contextmanager
def client(broker: Broker, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311) -> Iterator[Client]:
    """Somebody who publishes and subscribes; whatever he hears of a daemon is by its schemas."""
    connected = StrictClient(protocol)
    connected.max_queued_messages_set(0)  # no limit
    connected.connect(broker.host, broker.port)
    connected.loop_start()
    try:
        yield connected
    finally:  # its thread would keep a failed test's process alive
        connected.disconnect()
        connected.loop_stop()
    assert not connected.complaints, connected.complaints


def state_of(directory: Path, *options: str) -> dict[str, Any]:
    """What `streamer state --json` says; torch is not imported for it."""
    command = [sys.executable, "-X", "importtime", "-m", "streamer", "state", str(directory), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "| torch" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def send(to: Client, topic: str, payload: str | bytes, *, retain: bool = False) -> None:
    """Returns when the broker has it."""
    to.publish(topic, payload, qos=1, retain=retain).wait_for_publish(SECONDS)


def message(k: int, value: float) -> str:
    """The k-th minute's reading."""
    return json.dumps({"time": START + 60 * k, "temperature": value})
