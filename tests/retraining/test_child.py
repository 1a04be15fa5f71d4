"""The retraining as a process of its own: it works, it gives way, and whatever happens to it is a verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models import weights
from streamer.retraining import contract
from streamer.retraining.child import Child
from streamer.retraining.contract import CANDIDATE, Request, Verdict
from tests.end_to_end.test_durability import fill, mounted
from tests.retraining.sites import noise, pattern, request, write_site
from tests.waiting import wait_until

SECONDS = 110.0  # it has the lowest priority, and the machine may be busy


def site(directory: Path) -> Request:
    return write_site(directory, pattern(np.random.default_rng(0), 4, 360))


def endless(directory: Path) -> Request:
    """A retraining that does not come to its end by itself."""
    return msgspec.structs.replace(
        write_site(directory, noise(np.random.default_rng(0), 20, 400)), epochs=1_000_000, learning_rate=1e-12
    )


def started(given: Request, time_limit_seconds: float = 1000.0) -> Child:
    child = Child(given, time_limit_seconds)
    child.start()
    assert child.poll() is None
    return child


def verdict_of(child: Child) -> Verdict:
    found = wait_until(child.poll, SECONDS, "a verdict")
    assert found is not None
    assert child.pid is None
    assert child.poll() is None  # it is told once
    return found


def is_gone(pid: int) -> bool:
    """No process, or one that only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_a_retraining_from_beginning_to_end(tmp_path: Path) -> None:
    """A journal, a process of the lowest priority, a verdict, and a candidate that can be served."""
    given = site(tmp_path)
    child = started(given)
    pid = child.pid or 0
    assert pid != os.getpid()
    wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 19, SECONDS, "the lowest priority")
    assert os.getsid(pid) == pid
    verdict = verdict_of(child)
    assert verdict.result == "promoted", verdict
    candidate = weights.load(tmp_path / "out" / CANDIDATE)
    assert candidate.sha256 == verdict.candidate_sha256
    assert verdict.figures["device"] == "cpu"
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.parametrize("moment", ["at once", pytest.param("with torch", marks=pytest.mark.slow)])
def test_one_that_is_killed_is_a_failure_and_the_next_one_runs(tmp_path: Path, moment: str) -> None:
    """SIGKILL, as by the kernel when memory runs out: no verdict, no candidate, not even those of an earlier one."""
    given = endless(tmp_path)
    for name in (contract.VERDICT, contract.CANDIDATE, "candidate.json", "candidate.safetensors.part"):
        (tmp_path / "out" / name).write_text("of an earlier one")
    child = started(given)
    pid = child.pid or 0
    if moment == "with torch":
        wait_until(lambda: maps_torch(pid), SECONDS, "torch")
    os.kill(pid, signal.SIGKILL)
    verdict = verdict_of(child)
    assert (verdict.result, verdict.reason) == ("failed", "it was ended by signal 9")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {contract.REQUEST}
    if moment == "at once":
        return
    again = started(msgspec.structs.replace(child.request, epochs=1))
    assert verdict_of(again).result == "rejected"


def test_one_that_is_stopped_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    """SIGSTOP; the clock is moved by hand."""
    now = [0.0]
    child = Child(endless(tmp_path), 60.0, lambda: now[0])
    child.start()
    pid = child.pid or 0
    os.kill(pid, signal.SIGSTOP)
    now[0] = 59.0
    assert child.poll() is None
    assert not is_gone(pid)
    now[0] = 61.0
    verdict = child.poll()
    assert verdict is not None
    assert (verdict.result, verdict.reason) == ("failed", "it had not come to an end after 60 s and was killed")
    assert is_gone(pid)
    assert child.poll() is None


def test_sigterm_ends_it(tmp_path: Path) -> None:
    """A service manager's word is enough."""
    child = started(endless(tmp_path))
    os.kill(child.pid or 0, signal.SIGTERM)
    assert verdict_of(child).reason == "it was ended by signal 15"


def test_kill_ends_it_without_a_verdict(tmp_path: Path) -> None:
    """What a daemon does that stops; twice does no harm."""
    child = started(endless(tmp_path))
    pid = child.pid or 0
    child.kill()
    child.kill()
    assert is_gone(pid)
    assert child.poll() is None


PARENT = """
import sys, threading
from pathlib import Path
from streamer.retraining import contract
from streamer.retraining.child import Child
child = Child(contract.read_request(Path(sys.argv[1])), 1000.0)
child.start()
assert "torch" not in sys.modules
print(child.pid, flush=True)
threading.Event().wait()
"""


def test_it_ends_when_its_parent_dies(tmp_path: Path) -> None:
    """By SIGKILL, so that nobody could tell it."""
    contract.write(tmp_path, "wanted.json", endless(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "wanted.json")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not is_gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: is_gone(pid), SECONDS, "the child's end")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The retraining's directory, of 64 KiB: a candidate has 90."""
    yield from mounted(tmp_path / "out", "-t", "tmpfs", "-o", "size=64k", "tmpfs")


@pytest.mark.parametrize("room", ["for the verdict", pytest.param("for nothing", marks=pytest.mark.slow)])
def test_a_full_disk_is_a_failure(tmp_path: Path, small_disk: Path, room: str) -> None:
    """Never half a candidate; where not even the verdict finds room, the exit status says so."""
    child = started(site(tmp_path))
    if room == "for nothing":
        fill(small_disk)
    verdict = verdict_of(child)
    assert verdict.result == "failed"
    assert "No space left on device" in verdict.reason
    assert ("ended with status 3" in verdict.reason) == (room == "for nothing")
    assert {path.name for path in small_disk.iterdir()} - {"ballast"} == {
        contract.REQUEST, *([contract.VERDICT] if room == "for the verdict" else []),
    }  # fmt: skip


def test_a_refused_request_is_a_failure(tmp_path: Path) -> None:
    """What the process says last is the reason."""
    child = started(request(tmp_path, 5, epochs="many"))
    verdict = verdict_of(child)
    assert verdict.reason.startswith("it ended with status 2: found no usable request: ")


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"result": "promoted", "x": ' + b"[" * 100_000])
def test_a_verdict_that_is_none_is_a_failure(tmp_path: Path, content: bytes) -> None:
    """What lies in the directory is read in the daemon's main thread, which must not end by it."""
    (tmp_path / contract.VERDICT).write_bytes(content)
    assert Child(request(tmp_path, 1, out=str(tmp_path)), 1.0)._verdict(0).result == "failed"
