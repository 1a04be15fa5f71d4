"""kill -9 in every step of journal, snapshot and acknowledgement, and at any moment: nothing lost, nothing doubled."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, Daemon, client, running, with_segments_of
from tests.end_to_end.ledger import KEEPS_ALL, Ledger, new_snapshot
from tests.end_to_end.strace import REMOVE, RENAME, kill_in_delay, killed_in, traced
from tests.servers import Broker
from tests.waiting import wait_until

SEGMENT_BYTES = 20_000  # 16 MiB would take half a million readings each
SMALL_SEGMENTS = with_segments_of(SEGMENT_BYTES)


# --- Where it ends ---


@dataclass(frozen=True)
class Place:
    """A system call at whose entry the process ends; `is_after`: at its exit."""

    name: str
    calls: str
    hit: str
    """what strace must say of the call, a regular expression"""
    nth: tuple[int, int] = (1, 1)
    """which of a thread's calls: one between these"""
    paths: Callable[[Path], list[Path]] = lambda _: []
    """of the files or directories, in the state directory; empty: all calls count"""
    settings: tuple[str, ...] = ()
    is_after: bool = False


def segments(state: Path) -> list[Path]:
    return sorted((state / "journal").glob("*.log"))


def new_segment(state: Path) -> Path:
    """What a start writes first: the last segment anew, under another name."""
    return Path(f"{segments(state)[-1]}.part")


def snapshots(state: Path) -> list[Path]:
    return sorted(state.glob("*.snap"))


SOON, DELETING = ("state.snapshot_seconds=1",), ("state.snapshot_seconds=1", "journal.keep_hours=0")
PLACES = [
    Place("journal: write", "pwrite64", r"\.log>, ", (10, 40)),
    Place("journal: before fdatasync", "fdatasync", r"\.log>", (10, 40)),
    Place("journal: after fdatasync", "fdatasync", r"\.log>\) = 0", (10, 40), is_after=True),
    Place("segment: creation", "openat", r"\.log\.part", paths=lambda state: [new_segment(state)]),
    Place("segment: write", "pwrite64", r"\.log\.part", paths=lambda state: [new_segment(state)]),
    Place("segment: fdatasync", "fdatasync", r"\.log\.part", paths=lambda state: [new_segment(state)]),
    Place("segment: rename", RENAME, r"\.log\.part", (3, 4)),
    Place("segment: before fsync of the directory", "fsync", "/journal>", (2, 4), lambda state: [state / "journal"]),
    Place(
        "segment: after fsync of the directory",
        "fsync", r"/journal>\) = 0", (2, 4), lambda state: [state / "journal"], is_after=True,
    ),
    Place("segment: deletion", REMOVE, r"\.log", paths=lambda state: segments(state)[:1], settings=DELETING),
    Place(
        "segment: deleted, before fsync of the directory",
        REMOVE, r"\.log", paths=lambda state: segments(state)[:1], settings=DELETING, is_after=True,
    ),
    Place("snapshot: write", "write", r"\.snap\.part", (1, 20), lambda state: [new_snapshot(state)], SOON),
    Place("snapshot: fsync", "fsync", r"\.snap\.part", (1, 1), lambda state: [new_snapshot(state)], SOON),
    Place("snapshot: rename", RENAME, r"\.snap\.part", (1, 1), lambda state: [new_snapshot(state)], SOON),
    Place("snapshot: fsync of the directory", "fsync", "/state>", (2, 2), lambda s: [s, new_snapshot(s)], SOON),
    Place("snapshot: removal of the oldest", REMOVE, r"\.snap", (1, 1), lambda state: snapshots(state)[-2:-1], SOON),
    Place("acknowledgement: PUBACK before it is sent", "sendto", r'"@\\2', (6, 30)),
    Place("acknowledgement: PUBACK read by the broker", "sendto", r'"@\\2.* = \d', (6, 30), is_after=True),
    Place("messages: read", "recvfrom", "recvfrom", (6, 30)),
]  # fmt: skip
ANY_MOMENT = "any moment"


# --- The kills ---


def kill_there(place: Place, nth: int, broker: Broker, folder: Path, ledger: Ledger) -> bool:
    """Runs a daemon into the place, while messages come; whether it has ended there, and not in a like call before."""
    log, state = folder / "trace", folder / "state"
    log.write_text("")
    what = "delay_exit=60000000" if place.is_after else "signal=KILL"
    under = traced(log, place.calls, f"{what}:when={nth}", place.paths(state), SMALL_SEGMENTS)

    def is_over(daemon: Daemon) -> bool:
        return daemon.process.poll() is not None or (place.is_after and "(DELAYED)" in log.read_text(errors="replace"))

    def come_to_it(daemon: Daemon) -> bool:
        ledger.publish(20)[-1].wait_for_publish(SECONDS)
        return is_over(daemon)

    with running(broker.port, folder, "state.snapshot_seconds=3600", *place.settings, program=under) as daemon:
        wait_until(lambda: is_over(daemon) or daemon.get("/-/ready")[0] == 200, SECONDS, "ready")
        wait_until(lambda: come_to_it(daemon), SECONDS, place.name)
        if place.is_after:
            for _ in range(2):  # two turns of the broker: it has read what was sent
                ledger.publish(1)[0].wait_for_publish(SECONDS)
            kill_in_delay(daemon.process)
        daemon.process.wait(SECONDS)
    lines = log.read_text(errors="replace").splitlines()
    line = next((each for each in lines if "(DELAYED)" in each), "") if place.is_after else killed_in(log)
    return re.search(place.hit, line) is not None


def kill_at_any_moment(rng: random.Random, broker: Broker, folder: Path, ledger: Ledger) -> None:
    """While messages come and snapshots are written every second."""
    with running(broker.port, folder, *SOON, program=SMALL_SEGMENTS) as daemon:
        daemon.wait_ready()
        new = ledger.publish(rng.randrange(1, 3_000))
        new[rng.randrange(len(new))].wait_for_publish(SECONDS)
        daemon.process.kill()


@pytest.mark.timeout(3600)
@pytest.mark.server("strace")
@pytest.mark.parametrize("kills", [pytest.param(40, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.long)])
def test_kills_lose_nothing_and_double_nothing(mosquitto: StartBroker, tmp_path: Path, kills: int) -> None:
    """Half of them at the named places in turn: each message is in the journal once, and the state is a twin's.

    `-s` shows how often each place was hit.
    """
    broker, rng, report = mosquitto(lines=KEEPS_ALL), random.Random(kills), Counter[str]()
    with client(broker) as peer:
        ledger = Ledger(peer, tmp_path / "state")
        for number in range(kills):
            place = PLACES[number // 2 % len(PLACES)] if number % 2 else None
            if place is None:
                kill_at_any_moment(rng, broker, tmp_path, ledger)
            elif not any(kill_there(place, rng.randint(*place.nth), broker, tmp_path, ledger) for _ in range(5)):
                pytest.fail(f"not hit: {place.name}")
            report[place.name if place else ANY_MOMENT] += 1
            ledger.wait_published()
            ledger.read_on()
        with running(broker.port, tmp_path) as daemon:
            daemon.wait_ready()
            wait_until(lambda: daemon.numbers()["messages_queued", ""] == 0, SECONDS, "an empty inbox")
            assert daemon.stop() == 0
        ledger.check()
    assert report.keys() == {ANY_MOMENT, *(place.name for place in PLACES)}
    lines = [f"{count:4d}  {name}" for name, count in report.items()]
    figures = f"{kills:4d}  kills; {ledger.sent} messages, 0 lost, 0 applied twice, state as a twin's"
    print("", *lines, figures, sep="\n")  # noqa: T201  the figures of docs/reliability.md
