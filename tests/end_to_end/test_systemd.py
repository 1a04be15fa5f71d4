"""The real daemon and a service manager: what it is told, and a systemd that starts, watches and stops it.

The second part boots a machine (see tests/machine.py) and takes minutes; as root:

    python -m pytest -m long tests/end_to_end/test_systemd.py
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import scrapes
from tests.conftest import StartBroker, require
from tests.end_to_end.daemon import SECONDS, running
from tests.end_to_end.strace import FIVE_MINUTES
from tests.machine import Machine, make_tree
from tests.scrapes import Numbers
from tests.servers import program
from tests.test_systemd import Listening, words
from tests.waiting import wait_until


def test_the_daemon_tells_its_life(mosquitto: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready without a broker, ready with it, fed, reloaded, stopped."""
    broker = mosquitto()
    broker.stop()
    lines: list[str] = []
    with contextlib.closing(Listening(str(tmp_path / "notify"))) as listening:

        def wait_for(pattern: str) -> None:
            """A line that has not been waited for before."""

            def is_told() -> bool:
                lines.extend(listening.heard())
                return any(re.fullmatch(pattern, line) for line in lines)

            wait_until(is_told, SECONDS, pattern)

        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with running(broker.port, tmp_path, "mqtt.reconnect_max_seconds=1") as daemon:
            monkeypatch.delenv("NOTIFY_SOCKET")  # else mosquitto, too, says that it is ready
            wait_for("STATUS=.*waiting for the broker.*")
            assert lines[:2] == ["EXTEND_TIMEOUT_USEC=120000000", "STATUS=restoring the state"]
            assert "READY" not in words(lines)
            broker.start()
            wait_for("READY=1")
            assert daemon.is_ready()
            lines.clear()
            wait_for("WATCHDOG=1")
            daemon.process.send_signal(signal.SIGHUP)
            wait_for("RELOADING=1")
            wait_for("READY=1")
            lines.clear()
            assert daemon.stop() == 0
            wait_for("STOPPING=1")


# --- In a booted systemd ---

UNIT = "streamer"
PASSWORD = "between 3 & 4 o'clock"  # noqa: S105  of a broker that only the test can reach
BROKER = """listener 1883 127.0.0.1
allow_anonymous false
password_file /etc/mosquitto/passwords
max_queued_messages 0
"""
SETTINGS = """[mqtt]
username = "streamer"
reconnect_max_seconds = 1

[state]
directory = "/var/lib/streamer"

[retrain]
min_readings = 500
"""
DROP_IN = "/etc/systemd/system/streamer.service.d/test.conf"
SHORT = "[Service]\nWatchdogSec=5\nRestartSec=1\n"


@pytest.fixture(scope="module")
def tree_and_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One for all tests, with the program in it and nothing else."""
    require("systemd-nspawn", "mmdebstrap", "nsenter", "strace")
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: a machine cannot be booted")
    machine = Machine(tmp_path_factory.mktemp("machine") / "tree")
    make_tree(machine.tree)
    machine.start()
    machine.run("mosquitto_passwd", "-c", "-b", "/etc/mosquitto/passwords", "streamer", PASSWORD)
    machine.run("chown", "mosquitto", "/etc/mosquitto/passwords")
    machine.write("/etc/mosquitto/conf.d/test.conf", BROKER)
    machine.run("sh", "/opt/deploy/systemd/install.sh")
    machine.write("/etc/credstore/streamer.mqtt.password", PASSWORD, 0o600)
    yield machine
    machine.stop()


@pytest.fixture
def machine(tree_and_machine: Machine) -> Machine:
    """With settings as above, a broker that runs, and a daemon that has never run."""
    machine = tree_and_machine
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "reset-failed", status=None)
    machine.run("rm", "-rf", "/var/lib/private/streamer", "/var/lib/streamer")
    machine.write("/etc/streamer/streamer.toml", SETTINGS)
    machine.write(DROP_IN, SHORT)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "mosquitto")
    return machine


def shown(machine: Machine, name: str) -> str:
    """A property of the unit."""
    return machine.run("systemctl", "show", UNIT, f"--property={name}", "--value").strip()


def said(machine: Machine, since: float = 0.0) -> str:
    """The unit's log from a moment on."""
    return machine.run("journalctl", f"--unit={UNIT}", f"--since=@{since:.3f}", "--output=cat", "--no-pager")


def numbers(machine: Machine) -> Numbers:
    code = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9479/metrics').read().decode())"
    return scrapes.parse(machine.run("/opt/streamer/bin/python", "-c", code))


def state(machine: Machine) -> dict[str, Any]:
    """`streamer state`, as root asks."""
    found: dict[str, Any] = json.loads(machine.run("streamer", "state", "/var/lib/streamer", "--json"))
    return found


def publish(machine: Machine, count: int, start: int = 0) -> None:
    """A calm sensor's minutes; returns when the broker has them."""
    rng, began = random.Random(start), time.time() - 60 * 10_000
    rows = [{"time": round(began + 60 * k), "temperature": 20 + rng.gauss(0, 0.1)} for k in range(start, start + count)]
    payloads = "".join(json.dumps(row) + "\n" for row in rows)
    access = ["-h", "127.0.0.1", "-u", "streamer", "-P", PASSWORD]
    machine.run("mosquitto_pub", *access, "-t", "plant/oven", "-q", "1", "-l", text=payloads)


def wait_scored(machine: Machine, count: int) -> None:
    wait_until(lambda: numbers(machine)["readings_scored_total", ""] == count, SECONDS, f"{count} scores")


def main_pid(machine: Machine) -> int:
    """On this machine."""
    return machine.pid_here(int(shown(machine, "MainPID")))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_started_scored_looked_at_and_stopped(machine: Machine) -> None:
    """By the documented commands: the password is a credential, the user nobody's, root can look and command."""
    machine.run("systemctl", "start", UNIT)
    assert numbers(machine)["mqtt_subscribed", ""] == 1  # `start` has waited for it
    publish(machine, 100)
    wait_scored(machine, 80)
    assert "uid=0" not in machine.run("ps", "-o", "uid=uid", "-p", shown(machine, "MainPID"))
    status = Path(f"/proc/{main_pid(machine)}/status").read_text()
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    assert machine.run("stat", "-Lc", "%a", "/var/lib/streamer").strip() == "700"
    wait_until(lambda: shown(machine, "StatusText").startswith("1 series; "), SECONDS, "a status of now")
    assert shown(machine, "StatusText").endswith("; 0 open alarms; broker 127.0.0.1:1883")
    config = ("--config", "/etc/streamer/streamer.toml")
    assert machine.run("streamer", "health", *config).strip() == "ok"
    assert "1 series paused" in machine.run("streamer", "pause", "plant/oven", *config)
    began = time.monotonic()
    machine.run("systemctl", "stop", UNIT)
    assert time.monotonic() - began < 5.0
    assert shown(machine, "Result") == "success"
    assert "state_saved=true" in said(machine)
    assert state(machine)["readings"] == 100


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_start_waits_for_the_broker(machine: Machine) -> None:
    """Activating, for longer than the unit alone would allow, and the status says why; active once it is subscribed."""
    machine.run("systemctl", "stop", "mosquitto")
    machine.write(DROP_IN, SHORT + "TimeoutStartSec=15\n")
    machine.run("systemctl", "daemon-reload")
    began = time.monotonic()
    machine.run("systemctl", "start", "--no-block", UNIT)
    wait_until(lambda: "waiting for the broker" in shown(machine, "StatusText"), SECONDS, "a status")
    wait_until(lambda: time.monotonic() - began > 20, 30, "more time than the start has without a sign")
    assert shown(machine, "ActiveState") == "activating"
    assert shown(machine, "NRestarts") == "0"
    machine.run("systemctl", "start", "mosquitto")
    wait_until(lambda: shown(machine, "ActiveState") == "active", SECONDS, "active")
    assert numbers(machine)["mqtt_subscribed", ""] == 1


@contextlib.contextmanager
def stopped(machine: Machine) -> Iterator[None]:
    """The whole process."""
    os.kill(main_pid(machine), signal.SIGSTOP)
    yield


@contextlib.contextmanager
def engine_hangs(machine: Machine) -> Iterator[None]:
    """One thread waits in a system call, by strace: the one that has worked when readings came."""
    pid = main_pid(machine)

    def worked() -> dict[int, int]:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        times = {int(task.name): (task / "stat").read_text().rpartition(")")[2].split()[11:13] for task in tasks}
        return {thread: int(user) + int(system) for thread, (user, system) in times.items()}

    before = worked()
    publish(machine, 1500, start=200)
    wait_until(lambda: state(machine)["readings"] == 1700, SECONDS, "all readings")
    engine = max(worked().items(), key=lambda item: item[1] - before.get(item[0], 0))[0]
    inject = ["-e", "trace=futex", "-e", f"inject=futex:delay_enter={FIVE_MINUTES}"]
    with subprocess.Popen([program("strace"), "-qq", "-o", "/dev/null", *inject, "-p", str(engine)]) as tracing:
        try:
            status = Path(f"/proc/{engine}/status")
            wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), SECONDS, "strace")
            assert machine.run("streamer", "health", "--config", "/etc/streamer/streamer.toml")  # the others are well
            yield
        finally:
            tracing.kill()  # a process that is dead is not gone before its tracer lets it go


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hang", [stopped, engine_hangs])
def test_one_that_hangs_is_killed_and_goes_on(
    machine: Machine, hang: Callable[[Machine], contextlib.AbstractContextManager[None]]
) -> None:
    """The watchdog ends it, Python says where it was, and the next run has the state and what came meanwhile."""
    machine.run("systemctl", "start", UNIT)
    publish(machine, 200)
    wait_scored(machine, 180)
    began = time.time()
    with hang(machine):
        before = state(machine)
        publish(machine, 10, start=5000)
        wait_until(lambda: "Watchdog timeout (limit 5s)!" in said(machine, began), SECONDS, "the watchdog")
    wait_until(lambda: shown(machine, "NRestarts") == "1", SECONDS, "another start")
    wait_until(lambda: shown(machine, "ActiveState") == "active", SECONDS, "active")
    told = said(machine, began)
    assert "Fatal Python error: Aborted" in told
    assert "streamer/engine.py" in told
    assert "journal replayed" in told
    wait_scored(machine, 9)  # all but the first, which comes after a gap
    assert state(machine)["readings"] == before["readings"] + 10
    assert state(machine)["series"] == before["series"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_settings_are_read_again(machine: Machine) -> None:
    """`systemctl reload`; refused ones are told in the status, and the daemon stays."""
    machine.run("systemctl", "start", UNIT)
    pid = shown(machine, "MainPID")

    def reload(text: str, logged: str, status: str) -> None:
        began = time.time()
        machine.write("/etc/streamer/streamer.toml", text)
        machine.run("systemctl", "reload", UNIT)
        wait_until(lambda: logged in said(machine, began), SECONDS, logged)
        wait_until(lambda: shown(machine, "SubState") == "running", SECONDS, "the end of the reload")
        assert ("the new settings were refused" in shown(machine, "StatusText")) == (status == "refused")

    reload(SETTINGS + "[alarms]\nbudget_per_series_month = 7.0\n", "applied=alarms.budget_per_series_month", "taken")
    reload(SETTINGS + "[alarms]\nbudgte = 7.0\n", "settings refused, the old ones stay", "refused")
    reload(SETTINGS, "applied=alarms.budget_per_series_month", "taken")
    assert shown(machine, "MainPID") == pid


@pytest.mark.long
@pytest.mark.timeout(600)
def test_settings_that_cannot_be_are_not_tried_again(machine: Machine) -> None:
    """Exit status 2 is the end; a kill is not."""
    machine.run("systemctl", "start", UNIT)
    os.kill(main_pid(machine), signal.SIGKILL)
    wait_until(lambda: shown(machine, "NRestarts") == "1", SECONDS, "another start")
    wait_until(lambda: shown(machine, "ActiveState") == "active", SECONDS, "active")
    machine.run("systemctl", "stop", UNIT)
    machine.write("/etc/streamer/streamer.toml", SETTINGS + "nonsense = 1\n")
    machine.run("systemctl", "start", UNIT, status=1)
    assert (shown(machine, "ActiveState"), shown(machine, "ExecMainStatus")) == ("failed", "2")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_trainer_is_the_units_own(machine: Machine) -> None:
    """It can train behind the unit's walls; it lives in its cgroup, and dies with a daemon that is killed."""
    machine.run("systemctl", "start", UNIT)
    publish(machine, 2000)
    wait_scored(machine, 1980)
    train = ("streamer", "train", "--config", "/etc/streamer/streamer.toml")
    machine.run(*train)
    wait_until(lambda: "retraining ended" in said(machine), 200, "a verdict")
    assert re.search("retraining ended .*result=(promoted|rejected)", said(machine))

    machine.run(*train)
    trainer = int(
        wait_until(lambda: machine.run("pgrep", "-f", "retraining.trainer", status=None), SECONDS, "a trainer")
    )
    trainer, daemon = machine.pid_here(trainer), main_pid(machine)
    assert Path(f"/proc/{trainer}/cgroup").read_text() == Path(f"/proc/{daemon}/cgroup").read_text()
    assert "streamer.service" in Path(f"/proc/{trainer}/cgroup").read_text()
    os.kill(trainer, signal.SIGSTOP)  # it could not end by itself
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{trainer}").exists(), SECONDS, "the trainer's end")
