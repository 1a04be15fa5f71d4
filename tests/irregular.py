"""The same devices told regularly and otherwise: `python -m tests.irregular` prints what becomes of their alarms.

Three channels at 10 s, 1 min or 10 min, with faults put in, go through the engine of `streamer replay` as they are, and
again with rows lost, times that tremble, outages, rows that come late, cells that are empty. Of the alarms of the
regular run those count that can be expected of the other one: whose reading, or a later one of the same fault within
`WITHIN_ROWS`, has a verdict there. A *clear* alarm opened at a score of `CLEAR_SCORE` or more.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from streamer.registry import Registry
from streamer.replay import InOrder, Writer, replay_rows
from streamer.rows import Row
from streamer.shard import Shard
from tests.devices import Device, Heard, make, tell
from tests.streams import shipped_weights

INTERVALS = (10.0, 60.0, 600.0)
CHANNELS, ROWS = 3, 2000
WITHIN_ROWS = 20
CLEAR_SCORE = 1.1
DEAD_ROWS = range(800, 1600)

Told = Callable[[np.random.Generator, Device], Iterator[Row]]


def as_they_are(rng: np.random.Generator, device: Device) -> Iterator[Row]:
    return tell(device, device.time, device.values, range(len(device.values)))


def thinned(share: float) -> Told:
    """Only this share of the rows, at random."""

    def told(rng: np.random.Generator, device: Device) -> Iterator[Row]:
        kept = np.flatnonzero(rng.random(len(device.values)) < share)
        return tell(device, device.time, device.values, kept.tolist())

    return told


def jittered(rng: np.random.Generator, device: Device) -> Iterator[Row]:
    """Times up to 40 % of the interval early or late."""
    time = device.time + device.interval * rng.uniform(-0.4, 0.4, len(device.values))
    return tell(device, time, device.values, range(len(time)))


def with_gaps(rng: np.random.Generator, device: Device) -> Iterator[Row]:
    """Outages of 5 to 500 rows, 100 to 400 rows apart."""
    kept = np.ones(len(device.values), np.bool_)
    at = int(rng.integers(100, 400))
    while at < len(kept):
        length = int(np.exp(rng.uniform(np.log(5), np.log(500))))
        kept[at : at + length] = False
        at += length + int(rng.integers(100, 400))
    return tell(device, device.time, device.values, np.flatnonzero(kept).tolist())


def shuffled(share: float, most: int) -> Told:
    """This share of the rows comes after 1 to `most` others that are younger."""

    def told(rng: np.random.Generator, device: Device) -> Iterator[Row]:
        n = len(device.values)
        place = np.arange(n) + (rng.random(n) < share) * (rng.integers(1, most + 1, n) + 0.5)
        return tell(device, device.time, device.values, np.argsort(place, kind="stable").tolist())

    return told


def with_empty_cells(rng: np.random.Generator, device: Device) -> Iterator[Row]:
    """Three cells in ten are empty, at random."""
    values = np.where(rng.random(device.values.shape) < 0.3, np.nan, device.values)
    return tell(device, device.time, values, range(len(values)))


def without_a_channel(rng: np.random.Generator, device: Device) -> Iterator[Row]:
    """The last channel is away for 800 rows."""
    values = device.values.copy()
    values[DEAD_ROWS.start : DEAD_ROWS.stop, -1] = np.nan
    return tell(device, device.time, values, range(len(values)))


VARIANTS: dict[str, Told] = {
    "as they are": as_they_are,
    "90 % of the rows": thinned(0.9),
    "70 % of the rows": thinned(0.7),
    "50 % of the rows": thinned(0.5),
    "times +-40 %": jittered,
    "outages": with_gaps,
    "10 % late by 1-5": shuffled(0.1, 5),
    "30 % late by 1-20": shuffled(0.3, 20),
    "30 % empty cells": with_empty_cells,
    "a channel away": without_a_channel,
    "10 % late by 1-5, put in order": shuffled(0.1, 5),
    "30 % late by 1-20, put in order": shuffled(0.3, 20),
}
REGULAR = "as they are"
ALLOWED_ROWS = {"10 % late by 1-5, put in order": 5.5, "30 % late by 1-20, put in order": 20.5}
"""`input.lateness_seconds` of a variant, in intervals"""

Runs = dict[str, list[Heard]]
"""variant -> what was heard of each device"""


def run(
    seed: int, count: int, *, names: Iterable[str] = tuple(VARIANTS), intervals: Iterable[float] = INTERVALS
) -> tuple[list[Device], Runs]:
    """`count` devices of each interval, told in each of these ways, side by side."""
    devices = [
        device
        for interval in intervals
        for device in make(seed * 1000 + int(interval), count=count, rows=ROWS, channels=CHANNELS, interval=interval)
    ]
    runs: Runs = {name: [Heard(device) for device in devices] for name in names}
    sources: list[Iterator[Row]] = []
    writers: list[Writer] = []
    for name, heard in runs.items():
        for at, device in enumerate(devices):
            rows = VARIANTS[name](np.random.default_rng([seed, at, list(VARIANTS).index(name)]), device)
            ordered = InOrder(rows, heard[at], ALLOWED_ROWS.get(name, 0.0) * device.interval)
            sources.append(ordered.rows() if name in ALLOWED_ROWS else rows)
            writers.append(ordered if name in ALLOWED_ROWS else heard[at])
    series = CHANNELS * len(sources)
    shard = Shard(Registry(series, math.inf, math.inf), shipped_weights(), series, budget_per_series_month=1.0)
    replay_rows(sources, shard, writers, device_score=True)
    return devices, runs


def compare(devices: list[Device], regular: list[Heard], other: list[Heard]) -> Counter[str]:
    """What became of the alarms: `alarms expected kept clear clear_kept extra readings unscored`."""
    tally: Counter[str] = Counter()
    for device, before, after in zip(devices, regular, other, strict=True):
        tally["readings"] += int(after.told.sum())
        tally["unscored"] += int((after.told & np.isnan(after.scores)).sum())
        tally["alarms"] += len(after.opened)
        for row, channel in before.opened.values():
            stop = max(
                (fault.stop for fault in device.faults if fault.channel == channel and fault.start <= row), default=0
            )
            evidence = after.scores[row : max(row + 1, min(stop, row + WITHIN_ROWS)), channel]
            if np.isnan(evidence).all():
                continue
            is_clear = before.scores[row, channel] >= CLEAR_SCORE
            is_kept = bool(after.alarmed[row : row + WITHIN_ROWS + 1, channel].any())
            tally.update(expected=1, kept=int(is_kept), clear=int(is_clear), clear_kept=int(is_clear and is_kept))
        for row, channel in after.opened.values():
            near = before.alarmed[max(row - WITHIN_ROWS, 0) : row + WITHIN_ROWS + 1, channel]
            tally["extra"] += int(not near.any())
    return tally


def main(arguments: list[str] | None = None) -> int:
    """Prints the table over all seeds; in brackets the worst seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.irregular", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=2, help="of each interval")
    options = parser.parse_args(arguments)
    tallies: dict[str, list[Counter[str]]] = {name: [] for name in VARIANTS}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        devices, runs = run(seed, options.devices)
        for name, heard in runs.items():
            tallies[name].append(compare(devices, runs[REGULAR], heard))
        sys.stderr.write(f"seed {seed}: {json.dumps({name: parts[-1] for name, parts in tallies.items()})}\n")
    sys.stdout.write(
        "| told | readings | without verdict | alarms | kept | clear ones kept | extra per 10,000 |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for name, parts in tallies.items():
        whole = sum(parts, Counter())
        sys.stdout.write(
            f"| {name} | {whole['readings']} | {whole['unscored'] / whole['readings']:.1%} | {whole['alarms']}"
            f" | {_share(whole, 'kept', 'expected')} ({min(_share(part, 'kept', 'expected') for part in parts)})"
            f" | {_share(whole, 'clear_kept', 'clear')} ({min(_share(part, 'clear_kept', 'clear') for part in parts)})"
            f" | {extra(whole):.2f} ({max(extra(part) for part in parts):.2f}) |\n"
        )
    return 0


def _share(tally: Counter[str], part: str, whole: str) -> str:
    return f"{tally[part] / max(tally[whole], 1):.2f}"


def extra(tally: Counter[str]) -> float:
    """Alarms that the regular run did not have, per 10,000 readings."""
    return 1e4 * tally["extra"] / max(tally["readings"], 1)


if __name__ == "__main__":
    sys.exit(main())
