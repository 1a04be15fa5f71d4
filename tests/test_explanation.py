"""Faults in one of six channels of a device that move together: the alarm's first channel is the faulty one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models import synthetic
from streamer.readings import Alarm, Float64
from tests.streams import START, batch, new_shard

KINDS = ("spike", "step", "noise", "drift")
DEVICES_PER_KIND, CHANNELS, READINGS = 40, 6, 700
FAULT_AT, FAULT_READINGS, LATE_READINGS = 600, 50, 30
NAMED_RIGHT = 0.95


class Fault(NamedTuple):
    """In one channel of a device, from FAULT_AT on."""

    kind: str
    channel: int


def correlated(rng: np.random.Generator, time: Float64) -> Float64:
    """Six channels `(6, steps)` that are mixtures of three signals, each with something of its own."""

    def unit(signals: Float64) -> Float64:
        scaled: Float64 = (signals - signals.mean(1, keepdims=True)) / (signals.std(1, keepdims=True) + 1e-9)
        return scaled

    common = unit(synthetic.signal(rng, np.tile(time, (3, 1))))
    own = unit(synthetic.signal(rng, np.tile(time, (CHANNELS, 1))))
    return unit(rng.normal(size=(CHANNELS, 3)) @ common + 0.3 * own)


def inject(rng: np.random.Generator, fault: Fault, values: Float64) -> None:
    """`values` `(6, steps)` of unit spread; in place."""
    rows = np.arange(FAULT_AT, FAULT_AT + FAULT_READINGS)
    sign, size = rng.choice([-1.0, 1.0]), 10 ** rng.uniform(1, 2)
    change = {
        "spike": size * (rows == FAULT_AT),
        "step": np.full(len(rows), size),
        "noise": size / 2 * rng.normal(size=len(rows)),
        "drift": size * np.linspace(0, 1, len(rows)),
    }
    values[fault.channel, rows] += sign * change[fault.kind]


def first_channels(seed: int = 3, budget: float = 1.0) -> list[tuple[Fault, Alarm, Alarm]]:
    """Each fault with the first alarm of its device that opened while it lasted, then and as last told."""
    time = START + 60.0 * np.arange(READINGS, dtype=np.float64)
    faults, streams = [], []
    for number, kind in enumerate(np.repeat(KINDS, DEVICES_PER_KIND).tolist()):
        rng = np.random.default_rng([seed, number])
        fault, values = Fault(kind, int(rng.integers(CHANNELS))), correlated(rng, time)
        inject(rng, fault, values)
        faults.append(fault)
        streams.append(values)
    values = np.concatenate(streams)
    keys = [f"{device}#{channel}" for device in range(len(faults)) for channel in range(CHANNELS)]
    shard = new_shard(keys, budget=budget)
    opened: dict[str, Alarm] = {}
    latest: dict[str, Alarm] = {}
    last = time[FAULT_AT + FAULT_READINGS + LATE_READINGS]
    for at, row in zip(time, values.T, strict=True):
        for what, alarm, *_ in shard.process(batch(np.arange(len(values)), at, row), at).changes:
            if what == "opened" and time[FAULT_AT] <= at <= last:
                opened.setdefault(alarm.key.partition("#")[0], alarm)
            latest[alarm.id] = alarm
    return [(faults[int(device)], alarm, latest[alarm.id]) for device, alarm in opened.items()]


def test_the_first_channel_of_an_alarm_is_the_faulty_one() -> None:
    """In 95 of 100 faults that raise an alarm, when it opens and when it has been told last."""
    seen = first_channels()
    assert len(seen) >= 60
    assert {fault.kind for fault, _, _ in seen} == set(KINDS)
    for alarms in ([opened for _, opened, _ in seen], [latest for _, _, latest in seen]):
        named = [int(alarm.channels[0].key.partition("#")[2]) for alarm in alarms]
        assert np.mean(np.array(named) == [fault.channel for fault, _, _ in seen]) >= NAMED_RIGHT
