"""What the plant consists of: machines and rooms as small simulations, and how their sensors report them.

Sixteen devices, 55 series. Each simulation is asked for its values at a time that does not go back, and owns its random
numbers, so that one seed gives one plant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Protocol

import msgspec

DAY_SECONDS = 86_400.0
Values = dict[str, float]
Encode = Callable[[float, Values], bytes]


class Simulation(Protocol):
    """A part of the plant."""

    def values(self, time: float) -> Values:
        """By the name of the field, at epoch seconds; empty: there is nothing to report."""
        ...


@dataclass(frozen=True, slots=True)
class Device:
    """A simulation with a radio: a topic, a cadence, a form of payload."""

    topic: str
    interval_seconds: float
    """of the plant's time"""
    simulation: Simulation
    encode: Encode


class Wander:
    """A number that strays around 0 and is drawn back, an Ornstein-Uhlenbeck process."""

    def __init__(self, random: Random, spread: float, memory_seconds: float) -> None:
        self._random = random
        self._spread = spread
        self._memory_seconds = memory_seconds
        self._time: float | None = None
        self._value = random.gauss(0.0, spread)

    def at(self, time: float) -> float:
        if self._time is not None:
            kept = math.exp(-(time - self._time) / self._memory_seconds)
            self._value = kept * self._value + self._random.gauss(0.0, self._spread * math.sqrt(1.0 - kept * kept))
        self._time = time
        return self._value


class Lag:
    """A number that follows its target with a delay, as heat and speed do."""

    def __init__(self, value: float, seconds: float) -> None:
        self._value = value
        self._seconds = seconds
        self._time: float | None = None

    def towards(self, target: float, time: float) -> float:
        if self._time is not None:
            self._value += (target - self._value) * (1.0 - math.exp(-(time - self._time) / self._seconds))
        self._time = time
        return self._value


class Switch:
    """Two states that take turns; each lasts its own time, give or take a little."""

    def __init__(self, random: Random, on_seconds: float, off_seconds: float, spread: float = 0.03) -> None:
        self._random = random
        self._seconds = (off_seconds, on_seconds)
        self._spread = spread
        self._is_on = False
        self._began = 0.0
        self._lasts: float | None = None

    def phase(self, time: float) -> tuple[bool, float]:
        """Whether it is on, and how much of this state has passed, 0 to 1."""
        if self._lasts is None:
            self._began, self._lasts = time, self._draw()
        while time - self._began >= self._lasts:
            self._began += self._lasts
            self._is_on = not self._is_on
            self._lasts = self._draw()
        return self._is_on, (time - self._began) / self._lasts

    def _draw(self) -> float:
        return self._seconds[self._is_on] * max(0.1, self._random.gauss(1.0, self._spread))


class Pump:
    """A pump under a load that comes and goes slowly, or in a duty cycle; all its figures follow its speed."""

    def __init__(self, random: Random, rated_flow: float, duty: tuple[float, float] | None) -> None:
        """`rated_flow` in m³/h, `duty` in seconds on and off; None: it never stops."""
        self._random = random
        self._rated_flow = rated_flow
        self._duty = Switch(random, *duty) if duty else None
        self._speed = Lag(0.8, 15.0)
        self._heat = Lag(45.0, 900.0)
        self._load = Wander(random, 0.03, 600.0)

    def values(self, time: float) -> Values:
        gauss = self._random.gauss
        wanted = 0.8 + 0.08 * math.sin(2 * math.pi * time / 5400.0) + self._load.at(time)
        if self._duty is not None and not self._duty.phase(time)[0]:
            wanted = 0.0
        speed = self._speed.towards(wanted, time)
        return {
            "flow": max(0.0, self._rated_flow * speed + gauss(0.0, 0.006 * self._rated_flow)),
            "pressure": 1.2 + 4.0 * speed * speed + gauss(0.0, 0.02),
            "vibration": 0.3 + 1.8 * speed * math.exp(gauss(0.0, 0.08)),
            "current": 0.2 + 14.0 * speed**1.5 + gauss(0.0, 0.08),
            "bearing_temperature": self._heat.towards(22.0 + 30.0 * speed, time) + gauss(0.0, 0.1),
        }


class Tank:
    """A level that falls with use and is filled up again: a saw-tooth, and the inflow that draws it."""

    def __init__(self, random: Random, fill_seconds: float, use_seconds: float) -> None:
        self._random = random
        self._filling = Switch(random, fill_seconds, use_seconds)

    def values(self, time: float) -> Values:
        is_filling, phase = self._filling.phase(time)
        level = 25.0 + 50.0 * phase if is_filling else 75.0 - 50.0 * phase
        inflow = 18.0 if is_filling else 0.0
        return {
            "level": level + self._random.gauss(0.0, 0.15),
            "inflow": max(0.0, inflow + self._random.gauss(0.0, 0.12)),
        }


class Room:
    """Warmer in the afternoon, and with people in it: they come and go, breathe and sweat."""

    def __init__(self, random: Random, seats: int, warmth: float) -> None:
        """`warmth` in °C at night."""
        self._random = random
        self._seats = seats
        self._warmth = warmth
        self._people = Wander(random, 0.12, 2400.0)
        self._heat = Lag(warmth + 1.0, 2400.0)
        self._breath = Lag(600.0, 1200.0)
        self._damp = Wander(random, 1.5, 3600.0)

    def values(self, time: float) -> Values:
        gauss = self._random.gauss
        hour = time % DAY_SECONDS / 3600.0
        opening = 1.0 / (1.0 + math.exp(-3.0 * (hour - 7.5))) / (1.0 + math.exp(3.0 * (hour - 18.5)))
        people = self._seats * max(0.0, (0.6 + self._people.at(time)) * opening)
        sun = math.sin(2 * math.pi * (hour - 9.0) / 24.0)
        temperature = self._heat.towards(self._warmth + 1.0 + 0.8 * sun + 0.08 * people, time)
        co2 = self._breath.towards(420.0 + 45.0 * people, time)
        humidity = 46.0 - 1.5 * (temperature - self._warmth) + 0.3 * people + self._damp.at(time)
        return {
            "temperature": temperature + gauss(0.0, 0.04),
            "humidity": humidity + gauss(0.0, 0.2),
            "co2": co2 + gauss(0.0, 4.0),
            "voltage": 3000.0,
            "linkquality": 110.0 + gauss(0.0, 8.0),
        }


class Meter:
    """Power of the whole site, the voltage of the grid, and the counter that people pay by."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._machines = Wander(random, 1.2, 900.0)
        self._grid = Wander(random, 1.0, 300.0)
        self._counter = 184_213.0
        self._time: float | None = None

    def values(self, time: float) -> Values:
        hour = time % DAY_SECONDS / 3600.0
        power = 24.0 + 3.0 * math.sin(2 * math.pi * (hour - 9.0) / 24.0) + self._machines.at(time)
        power += self._random.gauss(0.0, 0.2)
        if self._time is not None:
            self._counter += power * (time - self._time) / 3600.0
        self._time = time
        return {
            "power": power,
            "energy": self._counter,
            "voltage": 230.0 + self._grid.at(time) + self._random.gauss(0.0, 0.2),
        }


class Compressor:
    """Pumps a vessel up to 8 bar, rests until it has fallen to 7."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._running = Switch(random, 90.0, 150.0)
        self._heat = Lag(62.0, 600.0)
        self._spin = Lag(0.0, 8.0)

    def values(self, time: float) -> Values:
        gauss = self._random.gauss
        is_running, phase = self._running.phase(time)
        spin = self._spin.towards(float(is_running), time)
        return {
            "pressure": (7.0 + phase if is_running else 8.0 - phase) + gauss(0.0, 0.015),
            "oil_temperature": self._heat.towards(78.0 if is_running else 55.0, time) + gauss(0.0, 0.15),
            "current": 0.4 + 21.0 * spin + gauss(0.0, 0.12),
        }


class ColdStore:
    """Cold between -20 and -18 °C, and a compressor that keeps it so."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._cooling = Switch(random, 260.0, 340.0)

    def values(self, time: float) -> Values:
        is_cooling, phase = self._cooling.phase(time)
        temperature = -18.0 - 2.0 * phase if is_cooling else -20.0 + 2.0 * phase
        return {
            "temperature": temperature + self._random.gauss(0.0, 0.05),
            "power": max(0.0, (1850.0 if is_cooling else 35.0) + self._random.gauss(0.0, 12.0)),
        }


class Outdoors:
    """The day's course of the temperature, and weather that moves it about."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._weather = Wander(random, 0.6, 5400.0)

    def values(self, time: float) -> Values:
        hour = time % DAY_SECONDS / 3600.0
        course = 9.0 + 4.0 * math.sin(2 * math.pi * (hour - 9.0) / 24.0)
        return {"": course + self._weather.at(time) + self._random.gauss(0.0, 0.1)}


class Boiler:
    """Hot water between 61 and 66 °C behind a relay with a meter of its own."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._heating = Switch(random, 200.0, 400.0)

    def values(self, time: float) -> Values:
        is_heating, phase = self._heating.phase(time)
        temperature = 61.0 + 5.0 * phase if is_heating else 66.0 - 5.0 * phase
        return {
            "Temperature": temperature + self._random.gauss(0.0, 0.1),
            "Power": 2010.0 + self._random.gauss(0.0, 8.0) if is_heating else 0.0,
            "Voltage": 230.0 + self._random.gauss(0.0, 0.6),
        }


class Door:
    """A contact that speaks only when somebody comes or goes."""

    def __init__(self, random: Random) -> None:
        self._moving = Switch(random, 25.0, 600.0, spread=0.8)
        self._was_open: bool | None = None

    def values(self, time: float) -> Values:
        is_open, _ = self._moving.phase(time)
        if is_open == self._was_open:
            return {}
        self._was_open = is_open
        return {"contact": float(not is_open), "voltage": 2900.0}


# --- Payloads ---


def plain_json(time: float, values: Values) -> bytes:
    """A controller's own JSON, with milliseconds."""
    return msgspec.json.encode({"ts": round(time * 1000)} | {name: round(value, 3) for name, value in values.items()})


def zigbee2mqtt(time: float, values: Values) -> bytes:
    """As zigbee2mqtt writes it with `last_seen: ISO_8601`."""
    document: dict[str, object] = {name: round(value, 2) for name, value in values.items()}
    document |= {name: round(values[name]) for name in ("co2", "linkquality", "voltage") if name in values}
    if "contact" in values:
        document["contact"] = values["contact"] > 0.5
    return msgspec.json.encode(document | {"last_seen": _iso(time, "milliseconds") + "Z"})


def tasmota(time: float, values: Values) -> bytes:
    """As Tasmota writes `SENSOR`, its clock set to UTC."""
    return msgspec.json.encode(
        {
            "Time": _iso(time, "seconds"),
            "DS18B20": {"Id": "01144A0CB2AA", "Temperature": round(values["Temperature"], 1)},
            "ENERGY": {"Power": round(values["Power"]), "Voltage": round(values["Voltage"])},
            "TempUnit": "C",
        }
    )


def bare_number(_time: float, values: Values) -> bytes:
    """The number, and no time: it is that of the arrival."""
    return f"{values['']:.2f}".encode()


def _iso(time: float, precision: str) -> str:
    return datetime.fromtimestamp(time, UTC).replace(tzinfo=None).isoformat(timespec=precision)


# --- The plant ---

PUMP_1, PUMP_2, PUMP_3 = "plant/pump/1", "plant/pump/2", "plant/pump/3"
TANK_1, TANK_2 = "plant/tank/1", "plant/tank/2"
METER, COMPRESSOR = "plant/energy/main", "plant/compressor/1"
COLD_STORE_1, COLD_STORE_2 = "plant/coldstore/1", "plant/coldstore/2"
OFFICE, WORKSHOP, LABORATORY, SERVERS = (
    f"zigbee2mqtt/{name}" for name in ("office", "workshop", "laboratory", "server_room")
)
DOOR, BOILER, OUTDOORS = "zigbee2mqtt/gate", "tele/boiler/SENSOR", "weather/outdoor/temperature"


def build(seed: int) -> list[Device]:
    """All devices of the plant."""

    def own(topic: str) -> Random:
        return Random(f"{seed} {topic}")

    def controller(topic: str, interval_seconds: float, simulation: Simulation) -> Device:
        return Device(topic, interval_seconds, simulation, plain_json)

    def room(topic: str, seats: int, warmth: float) -> Device:
        return Device(topic, 30.0, Room(own(topic), seats, warmth), zigbee2mqtt)

    return [
        controller(PUMP_1, 10.0, Pump(own(PUMP_1), 42.0, None)),
        controller(PUMP_2, 10.0, Pump(own(PUMP_2), 28.0, (360.0, 240.0))),
        controller(PUMP_3, 10.0, Pump(own(PUMP_3), 12.0, None)),
        controller(TANK_1, 30.0, Tank(own(TANK_1), 240.0, 480.0)),
        controller(TANK_2, 30.0, Tank(own(TANK_2), 180.0, 420.0)),
        controller(METER, 10.0, Meter(own(METER))),
        controller(COMPRESSOR, 10.0, Compressor(own(COMPRESSOR))),
        controller(COLD_STORE_1, 30.0, ColdStore(own(COLD_STORE_1))),
        controller(COLD_STORE_2, 30.0, ColdStore(own(COLD_STORE_2))),
        room(OFFICE, 8, 20.5),
        room(WORKSHOP, 5, 18.0),
        room(LABORATORY, 4, 21.0),
        room(SERVERS, 0, 22.0),
        Device(DOOR, 5.0, Door(own(DOOR)), zigbee2mqtt),
        Device(BOILER, 30.0, Boiler(own(BOILER)), tasmota),
        Device(OUTDOORS, 30.0, Outdoors(own(OUTDOORS)), bare_number),
    ]
