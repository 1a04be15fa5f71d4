"""Makes sensor-like series of many kinds, for pre-training and for tests. Seeded; no recording of anybody's is in it.

A series is a sum of parts (seasons, periods, random processes, levels) with noise, passed through what sensors do to a
signal (exponentiate, count, quantise, clip, hold, switch), with an unknown unit, cadence, jitter and gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Generator = np.random.Generator

CADENCES_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)


class Series(NamedTuple):
    """Synthetic readings, one row a series."""

    time: Float64
    """(count, steps) epoch seconds, increasing"""
    value: Float64
    """(count, steps)"""


def generate(rng: Generator, count: int, steps: int, *, incidents: bool = True) -> Series:
    """`count` series of `steps` readings each.

    `incidents`: one in five changes its dynamics somewhere, and one in seven has wild readings. An operator would want
    an alarm of both, so what alarms cost on normal data is measured without them.
    """
    time = clock(rng, count, steps)
    value = signal(rng, time)
    changed = (rng.random(count) < 0.2) & incidents
    if changed.any():  # a change of dynamics: another signal from somewhere on
        other = signal(rng, time[changed])
        start = rng.integers(steps // 8, steps, changed.sum())[:, None]
        value[changed] = np.where(np.arange(steps) < start, value[changed], other)
    value = distort(rng, value, wild_readings=incidents)
    scale = 10.0 ** rng.uniform(-3, 5, (count, 1))
    offset = (
        scale * rng.choice([0.0, 1.0, 10.0, 300.0], (count, 1), p=[0.3, 0.3, 0.3, 0.1]) * rng.normal(size=(count, 1))
    )
    return Series(time, value * scale + offset)


def clock(rng: Generator, count: int, steps: int) -> Float64:
    """Event times `(count, steps)`: a cadence each, with jitter, random arrivals or lost readings, and some gaps."""
    cadence = rng.choice(CADENCES_SECONDS, (count, 1))
    kind = rng.choice(4, (count, 1), p=[0.5, 0.25, 0.1, 0.15])
    ones = np.ones((count, steps))
    jittered = np.abs(1 + 0.1 * rng.random((count, 1)) * rng.normal(size=(count, steps)))
    poisson = rng.exponential(size=(count, steps)) + 1e-3
    thinned = rng.geometric(rng.uniform(0.3, 0.95, (count, 1)), (count, steps)).astype(float)
    interval = cadence * np.choose(kind, [ones, jittered, poisson, thinned])
    gaps = rng.random((count, steps)) < rng.choice([0.0, 1e-3], (count, 1), p=[0.7, 0.3])
    interval *= np.where(gaps, 10 ** rng.uniform(0.5, 2.5, (count, steps)), 1.0)
    start: Float64 = rng.uniform(1.5e9, 1.8e9, (count, 1))
    time: Float64 = start + np.cumsum(interval, axis=1)
    return time


def signal(rng: Generator, time: Float64) -> Float64:
    """A weighted sum of parts, `(count, steps)`, of about unit scale."""
    count, steps = time.shape
    total = np.zeros(time.shape)
    for part, chance in (
        (day_shape, 0.45), (free_period, 0.35), (autoregressive, 0.6), (oscillation, 0.15), (random_walk, 0.2),
        (trend, 0.12), (levels, 0.2), (bursts, 0.12),
    ):  # fmt: skip
        chosen = np.flatnonzero(rng.random(count) < chance)
        if len(chosen):
            weight = np.exp(rng.normal(0, 1, (len(chosen), 1)))
            total[chosen] += weight * part(rng, time[chosen])
    return total + noise(rng, count, steps)


def day_shape(rng: Generator, time: Float64) -> Float64:
    """A shape of the day that repeats, smooth or a working-hours pulse, some with another weekend."""
    count = len(time)
    phase = 2 * np.pi * time / 86_400.0
    smooth = np.zeros(time.shape)
    for harmonic in range(1, 5):
        size = rng.normal(size=(count, 1)) / harmonic
        smooth += size * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi, (count, 1)))
    start, length = rng.uniform(0, 24, (count, 1)), rng.uniform(1, 14, (count, 1))
    working = ((time / 3600.0 - start) % 24 < length) * rng.choice([-2.0, 2.0], (count, 1))
    shape = np.where(rng.random((count, 1)) < 0.7, smooth, working)
    weekend = (time / 86_400.0 + 3) % 7 >= 5  # the epoch was a Thursday
    factor = np.where(rng.random((count, 1)) < 0.5, rng.uniform(0, 1, (count, 1)), 1.0)
    return np.where(weekend, factor * shape, shape)


def free_period(rng: Generator, time: Float64) -> Float64:
    """A machine's own cycle of 3 to 400 readings: harmonics, saw, duty cycle or pulse, with a wandering phase."""
    count, steps = time.shape
    period = 3 * np.exp(rng.uniform(0, np.log(133), (count, 1)))
    wander = np.cumsum(rng.normal(size=(count, steps)), axis=1) * rng.choice([0.0, 0.01, 0.05], (count, 1))
    turn = np.arange(steps) / period + rng.random((count, 1)) + wander / np.sqrt(period)
    phase, fraction = 2 * np.pi * turn, turn % 1.0
    harmonics = sum(
        rng.normal(size=(count, 1)) / k * np.sin(k * phase + rng.uniform(0, 6.3, (count, 1))) for k in (1, 2, 3)
    )
    duty = rng.uniform(0.05, 0.95, (count, 1))
    heartbeat = np.exp(-0.5 * ((fraction - 0.5) / rng.uniform(0.01, 0.1, (count, 1))) ** 2)
    kind = rng.choice(4, (count, 1), p=[0.45, 0.15, 0.25, 0.15])
    return np.choose(kind, [harmonics, 2 * fraction - 1, 2.0 * (fraction < duty), 3 * heartbeat])


def _recursion(first: Float64, second: Float64, shocks: Float64) -> Float64:
    """x_t = first x_{t-1} + second x_{t-2} + shock_t, all series at once."""
    out = np.empty_like(shocks)
    one, two = np.zeros(len(shocks)), np.zeros(len(shocks))
    for t in range(shocks.shape[1]):
        one, two = first * one + second * two + shocks[:, t], one
        out[:, t] = one
    return out


def autoregressive(rng: Generator, time: Float64) -> Float64:
    """An Ornstein-Uhlenbeck-like process with a memory of 1 to 1,000 readings."""
    memory = np.exp(rng.uniform(0, np.log(1000), len(time)))
    decay = np.exp(-1 / memory)
    return _recursion(decay, np.zeros(len(time)), rng.normal(size=time.shape) * np.sqrt(1 - decay**2)[:, None])


def oscillation(rng: Generator, time: Float64) -> Float64:
    """A resonance, AR(2) with complex roots."""
    radius, angle = (
        rng.uniform(0.9, 0.999, len(time)),
        2 * np.pi / np.exp(rng.uniform(np.log(4), np.log(200), len(time))),
    )
    out = _recursion(2 * radius * np.cos(angle), -(radius**2), rng.normal(size=time.shape))
    scaled: Float64 = out / (out.std(axis=1, keepdims=True) + 1e-9)
    return scaled


def random_walk(rng: Generator, time: Float64) -> Float64:
    """Steps that add up; some mostly rise, as counters do."""
    steps = rng.normal(size=time.shape)
    counter = rng.random((len(time), 1)) < 0.3
    steps = np.where(counter, np.abs(steps) * (rng.random(time.shape) < rng.uniform(0.1, 1, (len(time), 1))), steps)
    walk: Float64 = np.cumsum(steps, axis=1) * rng.choice([0.02, 0.1, 0.5], (len(time), 1))
    return walk


def trend(rng: Generator, time: Float64) -> Float64:
    """A slope that may bend once."""
    steps = time.shape[1]
    bend = rng.integers(0, steps, (len(time), 1))
    position = np.arange(steps)
    slope, bent = rng.normal(size=(len(time), 1)), rng.normal(size=(len(time), 1))
    risen: Float64 = 4 * (slope * position + bent * np.maximum(position - bend, 0)) / steps
    return risen


def levels(rng: Generator, time: Float64) -> Float64:
    """A process that jumps between levels: set-points, occupancy, machines on and off."""
    count, steps = time.shape
    jump = rng.random((count, steps)) < 1 / np.exp(rng.uniform(np.log(5), np.log(1000), (count, 1)))
    which = np.cumsum(jump, axis=1, dtype=np.intp)
    two = 2.0 * ((which + rng.integers(0, 2, (count, 1))) % 2)
    table = rng.normal(size=(count, steps + 1)) * 1.5
    many = np.take_along_axis(table, which, axis=1)
    return np.where(rng.random((count, 1)) < 0.5, two, many)


def bursts(rng: Generator, time: Float64) -> Float64:
    """Rare sudden rises that fade: doors, showers, queues. They belong to the series."""
    start = rng.random(time.shape) < 1 / np.exp(rng.uniform(np.log(20), np.log(600), (len(time), 1)))
    height = start * rng.gamma(2.0, 1.0, time.shape)
    decay = rng.uniform(0.3, 0.97, len(time))
    sign: Float64 = rng.choice([-1.0, 1.0], (len(time), 1), p=[0.2, 0.8])
    return sign * _recursion(decay, np.zeros(len(time)), height)


def noise(rng: Generator, count: int, steps: int) -> Float64:
    """Measurement noise: Gaussian, Laplace or heavy-tailed, of steady or wandering strength; for some almost none."""
    kind = rng.choice(3, (count, 1), p=[0.5, 0.2, 0.3])
    normal, uniform = rng.normal(size=(count, steps)), rng.random((count, steps))
    laplace = np.sign(uniform - 0.5) * -np.log1p(-2 * np.abs(uniform - 0.5) + 1e-12)
    student = rng.standard_t(rng.choice([2.5, 3.0, 5.0], (count, 1)), (count, steps))
    strength = 10 ** rng.uniform(-3, 0.3, (count, 1))
    wandering = np.flatnonzero(rng.random(count) < 0.2)
    volatility = np.ones((count, steps))
    if len(wandering):
        volatility[wandering] = np.exp(0.7 * autoregressive(rng, np.empty((len(wandering), steps))))
    drawn: Float64 = np.choose(kind, [normal, laplace, student])
    return strength * volatility * drawn


def distort(rng: Generator, value: Float64, *, wild_readings: bool = True) -> Float64:
    """What sensors do to a signal."""
    count, steps = value.shape
    value = value.copy()
    centre, spread = value.mean(axis=1, keepdims=True), value.std(axis=1, keepdims=True) + 1e-9

    def some(chance: float) -> NDArray[np.intp]:
        return np.flatnonzero(rng.random(count) < chance)

    rows = some(0.12)  # exponentiated: positive, skewed
    value[rows] = np.exp(np.clip((value[rows] - centre[rows]) / spread[rows], -6, 4))
    rows = some(0.07)  # counts of events
    rate = np.exp(np.clip((value[rows] - centre[rows]) / spread[rows], -6, 3)) * 10 ** rng.uniform(
        -1, 2, (len(rows), 1)
    )
    value[rows] = rng.poisson(rate)
    rows = some(0.08)  # rectified or saturated
    threshold = centre[rows] + spread[rows] * rng.uniform(-1, 1, (len(rows), 1))
    value[rows] = np.where(
        rng.random((len(rows), 1)) < 0.7, np.maximum(value[rows], threshold), np.minimum(value[rows], threshold)
    )
    rows = some(0.07)  # a switch
    value[rows] = value[rows] > centre[rows] + spread[rows] * rng.uniform(-1, 1, (len(rows), 1))
    rows = some(0.35)  # quantised, from fine to a few steps
    quantum = value[rows].std(axis=1, keepdims=True) * 10 ** rng.uniform(-2, 0.3, (len(rows), 1)) + 1e-9
    value[rows] = np.round(value[rows] / quantum) * quantum
    rows = some(0.1)  # held: reported anew only now and then
    if len(rows):
        fresh = rng.random((len(rows), steps)) < rng.uniform(0.05, 0.7, (len(rows), 1))
        fresh[:, 0] = True
        held = np.maximum.accumulate(np.where(fresh, np.arange(steps), 0), axis=1)
        value[rows] = np.take_along_axis(value[rows], held, axis=1)
    rows = some(0.15)  # wild readings, so that the network learns to recover from them
    wild = (rng.random((len(rows), steps)) < 2e-3) & wild_readings
    value[rows] += wild * spread[rows] * rng.normal(size=(len(rows), steps)) * 8
    rows = some(0.02)  # constant
    value[rows] = value[rows, :1]
    return value
