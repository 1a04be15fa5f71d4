"""The simulated plant, a process of its own: `python -m streamer.demo.plant`. It publishes readings as real MQTT.

To whoever started it, it tells the time and its labels, a line of JSON each on standard output; nobody else hears of
the labels. It ends when its standard input is closed, so that it does not outlive that process.
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import threading
import time
from collections.abc import Iterator
from random import Random

import msgspec
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from streamer.demo import devices, faults
from streamer.demo.clock import SPEED, STEP_SECONDS
from streamer.demo.devices import Device, Values
from streamer.demo.faults import Fault, Scenario

HOST = "127.0.0.1"
CADENCE_SPREAD = 0.01  # no timer is exact
ACKNOWLEDGE_SECONDS = 10.0  # a broker that takes longer has hung
FAULTLESS_SHARE = 0.45  # of a run of limited time
FAULTLESS_SECONDS = 30.0 * SPEED  # of the plant's time, at most: by then every series has seen hundreds of readings


class Moment(msgspec.Struct, tag=True):
    """The plant's time, epoch seconds: everything up to it has been published."""

    time: float


class Began(msgspec.Struct, tag=True):
    """A fault begins; none of its readings has been published yet."""

    fault: Fault


class Ended(msgspec.Struct, tag=True):
    """A fault is over."""

    fault: Fault


Word = Moment | Began | Ended


class Report(msgspec.Struct, frozen=True):
    """One message to publish."""

    time: float
    topic: str
    payload: bytes


class Plant:
    """All devices and the faults on them, by their own time; no clock and no network."""

    def __init__(self, seed: int, start: float, faults_from: float, end: float | None) -> None:
        """All times in epoch seconds; an `end` of None: for ever."""
        self._random = Random(f"{seed} cadence")
        self._disturbance = Random(f"{seed} disturbance")
        self._plan = faults.plan(Random(f"{seed} plan"), faults_from, end)
        self._next = next(self._plan, None)
        self._active: tuple[Scenario, Fault] | None = None
        self._due: list[tuple[float, int, Device]] = []
        for number, device in enumerate(devices.build(seed)):
            first = start + self._random.uniform(0.0, device.interval_seconds)
            heapq.heappush(self._due, (first, number, device))

    def until(self, moment: float) -> Iterator[Report | Began | Ended]:
        """Everything that happens up to `moment`, in the order of time."""
        while self._due[0][0] <= moment:
            at, number, device = self._due[0]
            yield from self._turn_of_faults(at)
            interval = device.interval_seconds * max(0.5, self._random.gauss(1.0, CADENCE_SPREAD))
            heapq.heapreplace(self._due, (at + interval, number, device))
            values = device.simulation.values(at)
            if values and not self._disturb(device, at, values):
                yield Report(at, device.topic, device.encode(at, values))

    def _turn_of_faults(self, at: float) -> Iterator[Began | Ended]:
        if self._active is not None and at > self._active[1].end:
            yield Ended(self._active[1])
            self._active = None
        if self._next is not None and at >= self._next[1].start:
            self._active, self._next = self._next, next(self._plan, None)
            yield Began(self._active[1])

    def _disturb(self, device: Device, at: float, values: Values) -> bool:
        """Does to the values what the present fault does; True: the device is silent."""
        if self._active is None or self._active[0].topic != device.topic:
            return False
        scenario, fault = self._active
        phase = (at - fault.start) / (fault.end - fault.start)
        for field, shape in scenario.effects.items():
            values[field] = shape(values[field], phase, self._disturbance)
        return not scenario.effects


def publish(client: Client, plant: Plant, start: float) -> None:
    """Lets the plant's time run and tells of it; does not return.

    Steps that take too long make the plant late: it makes up for one of them, not for more. The time is told when the
    broker has acknowledged all that came before it.
    """
    moment = start
    due = time.monotonic()
    while True:
        now = time.monotonic()
        due = max(due + STEP_SECONDS, now - STEP_SECONDS)
        time.sleep(max(0.0, due - now))  # the plant is a process in time: one step each STEP_SECONDS
        moment += STEP_SECONDS * SPEED
        last: MQTTMessageInfo | None = None
        for event in plant.until(moment):
            if isinstance(event, Report):
                last = client.publish(event.topic, event.payload, qos=1)
            else:
                tell(event)
        if last is not None:
            last.wait_for_publish(ACKNOWLEDGE_SECONDS)
            if not last.is_published():
                raise TimeoutError(f"the broker has not acknowledged a message for {ACKNOWLEDGE_SECONDS:g} s")
        tell(Moment(moment))


def tell(word: Word) -> None:
    """A line on standard output, at once."""
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


def faultless_seconds(seconds: float | None) -> float:
    """How much of the plant's time has no fault, in a run that lasts so many seconds of the wall."""
    return FAULTLESS_SECONDS if seconds is None else min(FAULTLESS_SECONDS, FAULTLESS_SHARE * seconds * SPEED)


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m streamer.demo.plant", description="The plant of `streamer demo`.")
    parser.add_argument("--port", type=int, required=True, help="of the broker on loopback")
    parser.add_argument("--start", type=float, required=True, help="the plant's first moment, epoch seconds")
    parser.add_argument("--seconds", type=float, help="of the wall that the run will last; without it, for ever")
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    threading.Thread(target=_leave_with_parent, daemon=True).start()

    faults_from = given.start + faultless_seconds(given.seconds)
    end = None if given.seconds is None else given.start + given.seconds * SPEED - faults.GRACE_SECONDS
    client = Client(CallbackAPIVersion.VERSION2, "plant", protocol=MQTTProtocolVersion.MQTTv5)
    client.connect(HOST, given.port)
    client.loop_start()
    publish(client, Plant(given.seed, given.start, faults_from, end), given.start)


if __name__ == "__main__":
    main()
