"""Puts anomalies of many kinds into clean synthetic series, and says where. Seeded; for measuring, and for learning.

Sizes run from barely visible to gross, in units of the series' recent spread or of its recent differences, by chance:
what is wild for a smooth series is nothing in a noisy one. An anomaly that would not show is not put in. A series that
is quantised stays so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

RECENT = 300  # readings that say what the series is like
QUIET_SHARE = 0.15  # of the series have no anomaly at all
FIRST = 60  # readings without one
SMALLEST, LARGEST = 0.7, 20.0  # units
AFTERMATH = 10  # readings, and as many as the anomaly had, 100 at most: there the series comes back
GRID_SHARE = 0.3  # a series with fewer different values than this share of its readings is quantised


class Place(NamedTuple):
    """Where an anomaly goes, and what is known of the series there."""

    rng: np.random.Generator
    clean: Float64
    """(steps,): the series without any anomaly"""
    other: Float64
    """(steps,): another series"""
    recent: Float64
    """the readings before, RECENT at most"""
    start: int
    spread: float
    """> 0: of the recent readings"""
    size: float
    """> 0 or < 0, in the series' own unit"""

    @property
    def last(self) -> float:
        """The reading before."""
        return float(self.recent[-1])


Kind = Callable[[Place, Float64], Float64]
"""What becomes of the readings to come."""


def _span(x: Float64) -> Float64:
    """0 to 1 over the anomaly, neither of them reached."""
    return np.linspace(0.0, 1.0, len(x) + 2)[1:-1]


def _smooth(x: Float64, reach: int) -> Float64:
    mean: Float64 = np.convolve(np.pad(x, reach, mode="edge"), np.full(2 * reach + 1, 1.0 / (2 * reach + 1)), "valid")
    return mean


def _elsewhere(at: Place, rows: Float64) -> Float64:
    """The clean series at other times, continued from the reading before."""
    steps = np.arange(len(at.clean))
    there: Float64 = np.interp(np.minimum(rows, steps[-1]), steps, at.clean)
    return there + (at.last - float(at.clean[at.start - 1]))


def _spike(at: Place, x: Float64) -> Float64:
    return x + 1.5 * at.size * at.rng.uniform(0.6, 1.0, len(x))


def _burst(at: Place, x: Float64) -> Float64:
    return x + at.size * at.rng.normal(size=len(x))


def _bump(at: Place, x: Float64) -> Float64:
    return x + at.size * np.sin(np.pi * _span(x))


def _decay(at: Place, x: Float64) -> Float64:
    return x + at.size * np.exp(-3.0 * _span(x))


def _shift(at: Place, x: Float64) -> Float64:
    return x + at.size


def _ramp(at: Place, x: Float64) -> Float64:
    return x + at.size * _span(x)


def _freeze(at: Place, x: Float64) -> Float64:
    return np.full(len(x), at.last)


def _noisier(at: Place, x: Float64) -> Float64:
    return x + 0.7 * at.size * at.rng.normal(size=len(x))


def _quieter(at: Place, x: Float64) -> Float64:
    return _smooth(x, int(at.rng.integers(1, 8)))


def _amplitude(at: Place, x: Float64) -> Float64:
    middle = _smooth(x, min(len(x), 100)) if at.rng.random() < 0.5 else np.full(len(x), at.recent.mean())
    factor = at.rng.uniform(0.0, 0.6) if at.rng.random() < 0.5 else at.rng.uniform(1.5, 4.0)
    return middle + factor * (x - middle)


def _pace(at: Place, x: Float64) -> Float64:
    pace = at.rng.uniform(0.3, 0.75) if at.rng.random() < 0.5 else at.rng.uniform(1.35, 3.0)
    return _elsewhere(at, at.start + float(pace) * np.arange(len(x), dtype=np.float64))


def _phase(at: Place, x: Float64) -> Float64:
    return _elsewhere(at, at.start + at.rng.integers(3, 200) + np.arange(len(x), dtype=np.float64))


def _context(at: Place, x: Float64) -> Float64:
    earlier = at.rng.integers(0, max(at.start - len(x), 1))
    return _elsewhere(at, earlier + np.arange(len(x), dtype=np.float64))


def _stuck(at: Place, x: Float64) -> Float64:
    low, high = at.recent.min(), at.recent.max()
    beyond = at.spread * at.rng.uniform(0.0, 3.0)
    value = at.rng.choice([0.0, low, low - beyond, high, high + beyond])
    now_and_then = at.rng.random(len(x)) < (0.5 if at.rng.random() < 0.3 else 1.0)
    return np.where(now_and_then, value, x)


def _clipped(at: Place, x: Float64) -> Float64:
    share = at.rng.uniform(0.4, 0.8)
    if at.size > 0:
        return np.minimum(x, np.quantile(at.recent, share))
    return np.maximum(x, np.quantile(at.recent, 1.0 - share))


def _reversed(_at: Place, x: Float64) -> Float64:
    return x[::-1].copy()


def _dynamics(at: Place, x: Float64) -> Float64:
    other = at.other[at.start : at.start + len(x)]
    standard: Float64 = (other - other.mean()) / (other.std() + 1e-9)
    return float(at.recent.mean()) + float(at.rng.uniform(0.5, 1.5)) * at.spread * standard


KINDS: dict[str, tuple[Kind, int, int]] = {
    "spike": (_spike, 1, 3),
    "burst": (_burst, 3, 60),
    "bump": (_bump, 3, 60),
    "decay": (_decay, 3, 60),
    "shift": (_shift, 5, 300),
    "new level": (_shift, 5, 300),  # it stays; the readings after these are the new normal
    "ramp": (_ramp, 5, 60),
    "slow ramp": (_ramp, 60, 300),
    "freeze": (_freeze, 5, 300),
    "noisier": (_noisier, 5, 300),
    "quieter": (_quieter, 5, 300),
    "amplitude": (_amplitude, 5, 300),
    "pace": (_pace, 5, 300),
    "phase": (_phase, 5, 300),
    "context": (_context, 5, 300),
    "stuck": (_stuck, 5, 300),
    "clipped": (_clipped, 5, 300),
    "reversed": (_reversed, 5, 300),
    "dynamics": (_dynamics, 5, 300),
}
"""By name: what it does, and how many readings it takes, at least and at most."""
NAMES = tuple(KINDS)


class Injected(NamedTuple):
    """Series with anomalies; all arrays are `(count, steps)`."""

    value: Float64
    event: NDArray[np.int32]
    """number of the anomaly from its first reading that shows to its last; 0: none"""
    kind: NDArray[np.int8]
    """its kind, an index into `NAMES`; -1: none"""
    is_aftermath: NDArray[np.bool_]
    """neither normal nor an anomaly: it does not show yet, or has just ended"""


def inject(rng: np.random.Generator, clean: Float64, *, every: tuple[float, float] = (500.0, 1500.0)) -> Injected:
    """Anomalies in `clean` `(count, steps)`, one in so many readings; how many, each series has its own number."""
    value = clean.copy()
    event = np.zeros(clean.shape, np.int32)
    kind = np.full(clean.shape, -1, np.int8)
    aftermath = np.zeros(clean.shape, np.bool_)
    steps, number = clean.shape[1], 0
    for row, x in enumerate(value):
        gap = rng.uniform(*every)
        grid = _grid(clean[row])
        start = FIRST + int(rng.uniform(0, gap)) if rng.random() > QUIET_SHARE else steps
        while start < steps - 4:
            name = str(rng.choice(NAMES))
            make, shortest, longest = KINDS[name]
            length = min(int(np.exp(rng.uniform(np.log(shortest), np.log(longest + 1)))), steps - start)
            at, floor = _place(rng, clean, row, start, float(x[start - 1] - clean[row, start - 1]))
            part = _quantised(make(at, x[start : start + length].copy()), float(x[start]), grid)
            shows = np.abs(part - x[start : start + length]) > floor
            if shows.mean() < 0.2 or (shows.sum() < 3 and name != "spike"):
                start += 50
                continue
            if name == "new level":
                x[start + length :] += part[0] - x[start]
            x[start : start + length] = part
            number += 1
            first, end = start + int(shows.argmax()), start + length
            event[row, first:end], kind[row, first:end] = number, NAMES.index(name)
            behind = min(length, 100) + AFTERMATH
            aftermath[row, start:first] = aftermath[row, end : end + behind] = True
            start = end + behind + 20 + int(rng.exponential(gap))
    return Injected(value, event, kind, aftermath)


def _place(rng: np.random.Generator, clean: Float64, row: int, start: int, offset: float) -> tuple[Place, float]:
    """The place, and the change of a reading from which on it shows; `offset` is that of new levels so far."""
    x = clean[row]
    recent = x[max(0, start - RECENT) : start] + offset
    whole = float(x[: max(start, RECENT)].std())
    spread = max(float(recent.std()), 0.1 * whole)
    if spread == 0:  # it has held one value so far
        spread = 0.1 * abs(float(recent.mean())) + 1e-6 if rng.random() < 0.5 else 1.0
    difference = float(np.abs(np.diff(recent)).mean())
    unit = spread if rng.random() < 0.5 else max(difference, 0.02 * spread) * rng.uniform(1.0, 3.0)
    size = unit * np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))) * rng.choice([-1.0, 1.0])
    other = clean[(row + 1 + int(rng.integers(max(len(clean) - 1, 1)))) % len(clean)]
    return Place(rng, x, other, recent, start, spread, float(size)), max(0.5 * difference, 0.03 * spread)


def _quantised(part: Float64, base: float, grid: float) -> Float64:
    """Whole steps away from `base`; as it is if `grid` is 0."""
    return base + np.round((part - base) / grid) * grid if grid else part


def _grid(x: Float64) -> float:
    """The step of a quantised series; 0 for any other."""
    values = np.unique(x)
    if not 1 < len(values) < GRID_SHARE * len(x):
        return 0.0
    apart = np.diff(values)
    step = float(apart[apart > 1e-9 * np.abs(values).max()].min(initial=np.inf))
    return step if np.isfinite(step) else 0.0


RECURRING_SHARE, CHANGING_SHARE = 0.1, 0.1  # of the series
FAMILIAR = 3  # times that an oddity has been seen, and then belongs to the series
RECURRING = (
    "spike", "burst", "bump", "decay", "shift", "ramp", "freeze", "noisier", "quieter", "amplitude", "context",
    "stuck", "clipped", "dynamics",
)  # fmt: skip


def _later(at: Place, x: Float64) -> Float64:
    return _elsewhere(at, at.start - at.rng.integers(3, 200) + np.arange(len(x), dtype=np.float64))


def _slower(at: Place, x: Float64) -> Float64:
    return _elsewhere(at, at.start + float(at.rng.uniform(0.4, 0.9)) * np.arange(len(x), dtype=np.float64))


CHANGES = (_shift, _dynamics, _amplitude, _later, _slower)


class Lawful(NamedTuple):
    """Series with oddities that belong to them; arrays are `(count, steps)`."""

    value: Float64
    is_unclear: NDArray[np.bool_]
    """nobody can know yet that it belongs to the series"""


def lawful(rng: np.random.Generator, clean: Float64) -> Lawful:
    """What looks like an anomaly and is none: in some series it recurs, in some it comes to stay.

    What recurs does so with one size and one length, in time or by chance. Its first few times are unclear, and so is
    a change for a while: an operator may want an alarm of them or not.
    """
    value, unclear = clean.copy(), np.zeros(clean.shape, np.bool_)
    for row in np.flatnonzero(rng.random(len(clean)) < RECURRING_SHARE):
        _recur(rng, clean, int(row), value[row], unclear[row])
    for row in np.flatnonzero(rng.random(len(clean)) < CHANGING_SHARE):
        _change(rng, clean, int(row), value[row], unclear[row])
    return Lawful(value, unclear)


def _recur(rng: np.random.Generator, clean: Float64, row: int, x: Float64, unclear: NDArray[np.bool_]) -> None:
    steps = len(x)
    name = str(rng.choice(RECURRING))
    make, shortest, longest = KINDS[name]
    length = int(np.exp(rng.uniform(np.log(shortest), np.log(min(longest, 100) + 1))))
    gap = length + np.exp(rng.uniform(np.log(15), np.log(600)))
    is_regular = rng.random() < 0.5
    first, _ = _place(rng, clean, row, RECENT, 0.0)
    grid, start, times = _grid(clean[row]), FIRST // 2 + int(rng.uniform(0, gap)), 0
    while start < steps - length:
        at, _ = _place(rng, clean, row, start, 0.0)
        at = at._replace(spread=first.spread, size=first.size * rng.uniform(0.8, 1.2))
        part = make(at, clean[row, start : start + length].copy())
        x[start : start + length] = _quantised(part, float(clean[row, start]), grid)
        times += 1
        unclear[start : start + length + AFTERMATH] |= times <= FAMILIAR
        start += int(gap) if is_regular else length + 1 + int(rng.exponential(gap - length))


def _change(rng: np.random.Generator, clean: Float64, row: int, x: Float64, unclear: NDArray[np.bool_]) -> None:
    start = int(rng.integers(RECENT, len(x)))
    at, _ = _place(rng, clean, row, start, float(x[start - 1] - clean[row, start - 1]))
    part, grid = CHANGES[rng.integers(len(CHANGES))](at, x[start:].copy()), _grid(clean[row])
    x[start:] = _quantised(part, float(x[start]), grid)
    unclear[start : start + int(np.exp(rng.uniform(np.log(30), np.log(300))))] = True
