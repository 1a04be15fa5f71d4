"""The real daemon while somebody sets the clock of its machine, by a day in either direction."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import pytest
from paho.mqtt.client import Client

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS, STREAMER, Daemon, client, running, send
from tests.end_to_end.test_daemon import course
from tests.scrapes import total
from tests.waiting import wait_until

DAY = 86_400
SETTINGS = (
    "state.snapshot_seconds=1",
    "mqtt.linger_ms=0",  # libfaketime 0.9.10 makes Python's time.sleep fail, whatever it is told of the steady clock
)
BY_ARRIVAL, BY_PAYLOAD = 5, 5  # series


class Machine:
    """A daemon whose wall clock is set by hand, and whose steady clock goes on; and the sensors around it."""

    def __init__(self, folder: Path, peer: Client) -> None:
        self.clock = folder / "clock"
        self.set(0)
        self.rounds = 0
        self._peer = peer
        self._values = iter(zip(*(course(2000, seed) for seed in range(BY_ARRIVAL + BY_PAYLOAD)), strict=True))

    def program(self) -> tuple[str, ...]:
        """Under libfaketime, which looks into the file at each reading of the clock."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        fake = [f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={self.clock}", "FAKETIME_NO_CACHE=1"]
        return ("env", *fake, "FAKETIME_DONT_FAKE_MONOTONIC=1", *STREAMER)

    def set(self, days: int) -> None:
        new = self.clock.with_suffix(".new")
        new.write_text(f"{days:+d}d\n")
        new.replace(self.clock)

    def report(self, daemon: Daemon, rounds: int) -> None:
        """Every sensor says so many values, one after the other; half of them with the true time."""
        for _ in range(rounds):
            for number, value in enumerate(next(self._values)):
                payload = str(value) if number < BY_ARRIVAL else json.dumps({"time": time.time(), "value": value})
                send(self._peer, f"plant/{number}", payload)
            self.rounds += 1
        daemon.wait_settled(self.rounds * (BY_ARRIVAL + BY_PAYLOAD))


def has_noticed(daemon: Daemon, jumps: int) -> bool:
    return daemon.log().count("the clock of this machine was set") == jumps


def snapshots(daemon: Daemon, least: float) -> bool:
    return daemon.numbers()["snapshot_total", "ok"] >= least


@pytest.mark.server("faketime")
def test_a_clock_that_is_set_by_a_day_raises_no_alarm(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Each time the loss is a gap of a reading; timers go on; what seems to be of the future is rejected, counted."""
    rounds = 20
    broker = mosquitto()
    with client(broker) as peer:
        machine = Machine(tmp_path, peer)
        with running(broker.port, tmp_path, *SETTINGS, program=machine.program()) as daemon:
            daemon.wait_ready()
            machine.report(daemon, 40)
            for jumps, days in enumerate((1, 0, -1, 0), start=1):
                before = daemon.numbers()
                machine.set(days)
                wait_until(partial(has_noticed, daemon, jumps), SECONDS, "the log to say so")
                machine.report(daemon, rounds)
                numbers = daemon.numbers()
                future, scored = (
                    numbers[name] - before[name]
                    for name in (("readings_rejected_total", "future"), ("readings_scored_total", ""))
                )
                assert future == (BY_PAYLOAD * rounds if days < 0 else 0)
                assert 0 <= (BY_ARRIVAL + BY_PAYLOAD) * rounds - future - scored <= BY_ARRIVAL + BY_PAYLOAD
                assert total(numbers, "alarms_opened_total") == 0
                two_more = before["snapshot_total", "ok"] + 2
                wait_until(partial(snapshots, daemon, two_more), SECONDS, "snapshots")
            assert daemon.get("/-/ready")[0] == 200
            assert daemon.stop() == 0
