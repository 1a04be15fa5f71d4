"""What goes wrong in the plant: kinds of fault, the list of them, their order in time, and the account of who saw them.

A fault is labelled by the plant alone: the series that it touches, its kind, its start and end in the plant's time. The
detector looks at each series by itself, so only faults that show in one series are here: a spike, a shift, a drift, a
burst of noise, an oscillation, a reading of zero, silence. Not here yet, since no kind of alarm is meant for them: a
frozen value, a wrong relation between series that each look normal, a cycle that does not come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import msgspec

from streamer.demo import devices

GRACE_SECONDS = 300.0  # of the plant's time: the way back to normal, and a look for silence each second of the wall
PAUSE_SECONDS = 300.0  # between two faults in a run of limited time
LONG_PAUSE_SECONDS = (600.0, 3600.0)  # in one without a limit
SILENCE = "silence"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A label: what is wrong, where and when. Times are the plant's, epoch seconds."""

    number: int
    """1 is the first of a run"""
    kind: str
    what: str
    """in words for a person"""
    keys: tuple[str, ...]
    """the series that it touches; of a silent device its joint key too"""
    start: float
    end: float


class Alarm(NamedTuple):
    """What the daemon says of an alarm that it opens."""

    kind: str
    """value | silent"""
    key: str
    opened_at: float
    """event time, epoch seconds"""


class Tally(NamedTuple):
    """The account of a run."""

    injected: int
    caught: int
    missed: int
    false_alarms: int

    def __str__(self) -> str:
        return (
            f"faults injected={self.injected} caught={self.caught} missed={self.missed} "
            f"false_alarms={self.false_alarms}"
        )


def credit(faults: Sequence[Fault], alarm: Alarm) -> Fault | None:
    """The fault that the alarm has seen; None: a false alarm.

    It is on a series of the fault, of the kind that fits, and has opened while the fault lasted or within the grace.
    """
    for fault in reversed(faults):
        is_timely = fault.start <= alarm.opened_at <= fault.end + GRACE_SECONDS
        if is_timely and alarm.key in fault.keys and (alarm.kind == "silent") == (fault.kind == SILENCE):
            return fault
    return None


def tally(faults: Sequence[Fault], alarms: Sequence[Alarm]) -> Tally:
    """Of several alarms on one fault none is false, and the fault counts once."""
    credited = [credit(faults, alarm) for alarm in alarms]
    caught = len({fault.number for fault in credited if fault is not None})
    return Tally(len(faults), caught, len(faults) - caught, credited.count(None))


def missed(faults: Sequence[Fault], alarms: Sequence[Alarm]) -> list[Fault]:
    """The faults that no alarm has seen."""
    seen = {fault.number for alarm in alarms if (fault := credit(faults, alarm)) is not None}
    return [fault for fault in faults if fault.number not in seen]


# --- Kinds ---

Shape = Callable[[float, float, Random], float]
"""True value, 0 to 1 of the fault's time, randomness -> what the sensor says"""


def at(value: float) -> Shape:
    """The sensor says this, whatever is true."""
    return lambda _value, _phase, _random: value


def by(size: float) -> Shape:
    """A shift of the level, in the series' own unit."""
    return lambda value, _phase, _random: value + size


def times(factor: float) -> Shape:
    """A shift of the level, as a share of it."""
    return lambda value, _phase, _random: value * factor


def towards(size: float) -> Shape:
    """A drift: away by `size`, and back in the last third of the time, when it is being mended."""
    return lambda value, phase, _random: value + size * min(1.5 * phase, 3.0 * (1.0 - phase))


def noise(spread: float) -> Shape:
    """Noise of its own on top."""
    return lambda value, _phase, random: value + random.gauss(0.0, spread)


def swing(size: float, turns: float) -> Shape:
    """An oscillation, so many turns in the time of the fault."""
    return lambda value, phase, _random: value + size * math.sin(2 * math.pi * turns * phase)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault that can happen to a device."""

    kind: str
    what: str
    topic: str
    seconds: float
    effects: dict[str, Shape]
    """by field; empty: the device says nothing"""
    keys: tuple[str, ...]


def _values(kind: str, what: str, topic: str, seconds: float, **effects: Shape) -> Scenario:
    return Scenario(kind, what, topic, seconds, effects, tuple(f"{topic}#{field}" for field in effects))


def _silent(what: str, topic: str, seconds: float, *fields: str) -> Scenario:
    """`fields` as the daemon names them; none: the payload is a bare number, and the topic its series."""
    keys = (topic,) if not fields else tuple(f"{topic}#{field}" for field in ("*", *fields))
    return Scenario(SILENCE, what, topic, seconds, {}, keys)


SCENARIOS = (
    _values("spike", "the sensor restarts and says 85 °C once", devices.LABORATORY, 32.0, temperature=at(85.0)),
    _values("shift", "a heater is left on", devices.METER, 600.0, power=by(15.0)),
    _silent("the relay loses power", devices.BOILER, 900.0, "DS18B20.Temperature", "ENERGY.Power", "ENERGY.Voltage"),
    _values("noise", "a bearing is damaged", devices.PUMP_3, 480.0, vibration=noise(3.0)),
    _values("drift", "cooling fails", devices.SERVERS, 900.0, temperature=towards(9.0)),
    _values("oscillation", "the valve hunts", devices.COMPRESSOR, 480.0, pressure=swing(1.2, 16.0)),
    _values("shift", "the strainer clogs", devices.PUMP_1, 600.0, flow=times(0.55), current=times(0.75)),
    _values("zero", "the sensor's cell has failed", devices.WORKSHOP, 480.0, co2=at(0.0)),
    _values("drift", "the door stays open", devices.COLD_STORE_1, 900.0, temperature=towards(11.0)),
    _silent("the battery is flat", devices.OUTDOORS, 900.0),
    _values("shift", "a phase of the grid sags", devices.METER, 300.0, voltage=by(-24.0)),
    _values("drift", "the level sensor silts up", devices.TANK_1, 900.0, level=towards(45.0)),
)


# --- Order in time ---


def plan(random: Random, start: float, end: float | None) -> Iterator[tuple[Scenario, Fault]]:
    """Faults one after the other from `start` on, epoch seconds: all in turn, then all in another order.

    Up to an `end` they follow each other soon, and none is begun that could not be seen to its end. Without one they
    come at random times, for ever.
    """
    number = 0
    moment = start
    turn = list(SCENARIOS)
    while True:
        for scenario in turn:
            if end is None:
                moment += random.uniform(*LONG_PAUSE_SECONDS)
            number += 1
            until = moment + scenario.seconds
            if end is not None and until > end:
                return
            yield (
                scenario,
                Fault(
                    number=number, kind=scenario.kind, what=scenario.what, keys=scenario.keys, start=moment, end=until
                ),
            )
            moment = until if end is None else until + PAUSE_SECONDS
        random.shuffle(turn)
