"""Alarms against the budget on what is normal, by the age of the series.

`python -m tests.budget` runs clean synthetic series at several cadences, `python -m tests.budget --data DIR` the
recordings of `streamer bench quality` outside their labelled windows; all series of a kind side by side through the
engine. A budget of one alarm a series and month needs years of readings to be measured at fast cadences: there a larger
one is set. The arithmetic is the same, p* = budget * interval / month / views; the rarity that is asked for is not as
extreme. Seeded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.calibration import MONTH_SECONDS
from models.features import DAY_SECONDS
from streamer.bench.quality.recordings import Recording, load, select
from streamer.readings import Batch, Bool, Float64
from streamer.shard import Shard
from tests.devices import steady
from tests.streams import START, new_shard, shipped_weights

YOUNG_READINGS = 1000
MARGIN_ROWS = 100  # around a labelled window; behind it as many as it has, if those are more


class Cadence(NamedTuple):
    """A run on synthetic series."""

    interval: float
    """seconds"""
    budget: float
    """alarms a series and month"""
    series: int
    readings: int


CADENCES = (
    Cadence(1.0, 1000.0, 40, 100_000),
    Cadence(10.0, 100.0, 100, 20_000),
    Cadence(60.0, 10.0, 100, 4000),
    Cadence(600.0, 1.0, 100, 3000),
    Cadence(3600.0, 1.0, 100, 3000),
)
BUDGETS = {"NAB": 1.0, "SKAB": 1000.0, "SMAP": 20.0, "MSL": 20.0, "ASD": 1.0, "WSN": 1000.0, "3W": 100.0}
"""by data set, so that twenty alarms or more are due; 10 for any other"""


@dataclass(slots=True)
class Tally:
    """Alarms and what was due, by age."""

    alarms: dict[str, int] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    by_series: list[int] = field(default_factory=list)

    def add(self, age: str, alarms: float, due: float) -> None:
        self.alarms[age] = self.alarms.get(age, 0) + int(alarms)
        self.due[age] = self.due.get(age, 0.0) + float(due)

    def ratio(self, age: str) -> float:
        """Alarms a due one; NaN where none was due."""
        return self.alarms[age] / self.due[age] if self.due.get(age) else float("nan")

    def worst_share(self) -> float:
        """The share of the alarms that the worst twentieth of the series has."""
        worst = sorted(self.by_series, reverse=True)[: max(len(self.by_series) // 20, 1)]
        return sum(worst) / max(sum(self.by_series), 1)


AGES = ("first day", "from day 2", "first 1,000", "from 1,001", "all")


class Plain(NamedTuple):
    """One series of a run."""

    time: Float64
    value: Float64
    counts: Bool
    """False: a fault is labelled there or nearby"""


def measure(series: Sequence[Plain], budget: float) -> Tally:
    """Runs the series side by side, one batch for the k-th readings of all, and counts alarms as they open."""
    shard: Shard = new_shard([f"s{k}#v" for k in range(len(series))], weights=shipped_weights(), budget=budget)
    tally = Tally()
    slot_of = {f"s{k}#v": k for k in range(len(series))}
    order = sorted(range(len(series)), key=lambda k: -len(series[k].time))
    opened = [np.zeros(len(each.time), np.bool_) for each in series]
    for row in range(max(len(each.time) for each in series)):
        while len(series[order[-1]].time) <= row:
            order.pop()
        slots = np.array(order, np.int32)
        moment = np.array([series[k].time[row] for k in order])
        value = np.array([series[k].value[row] for k in order])
        outcome = shard.process(Batch(slots, moment, value, np.zeros(len(slots), np.uint8)), moment)
        for change in outcome.changes:
            if change.what == "opened":
                opened[slot_of[change.alarm.key]][row] = True
    for each, at in zip(series, opened, strict=True):
        _count(tally, each, at, budget)
    return tally


def _count(tally: Tally, each: Plain, opened: Bool, budget: float) -> None:
    is_first_day = each.time < each.time[0] + DAY_SECONDS
    is_young = np.arange(len(each.time)) < YOUNG_READINGS
    # A reading is due its usual interval's share of the budget, also after a gap.
    due = budget * float(np.median(np.diff(each.time))) / MONTH_SECONDS
    everything = np.ones(len(each.time), np.bool_)
    for age, mine in zip(AGES, (is_first_day, ~is_first_day, is_young, ~is_young, everything), strict=True):
        rows = mine & each.counts
        tally.add(age, opened[rows].sum(), rows.sum() * due)
    tally.by_series.append(int(opened[each.counts].sum()))


def synthetic(cadence: Cadence, seed: int = 1) -> Tally:
    """The tally of clean synthetic series."""
    rng = np.random.default_rng([seed, int(cadence.interval)])
    values = steady(rng, cadence.series, cadence.readings, cadence.interval)
    moment = START + cadence.interval * np.arange(cadence.readings, dtype=np.float64)
    counts = np.ones(cadence.readings, np.bool_)
    return measure([Plain(moment, value, counts) for value in values], cadence.budget)


def normal(recording: Recording) -> Iterable[Plain]:
    """Each channel but constants and switches, which cannot be odd; rows that are far from every label count."""
    counts = np.ones(len(recording.time), np.bool_)
    for first, last in recording.windows.tolist():
        after = max(MARGIN_ROWS, last - first + 1)
        counts[max(first - MARGIN_ROWS, 0) : last + after + 1] = False
    for channel in recording.values.T.astype(np.float64):
        known = np.isfinite(channel)
        if len(np.unique(channel[known])) > 2:
            yield Plain(recording.time[known], channel[known], counts[known])


def line(name: str, series: int, budget: float, tally: Tally) -> str:
    """A row of the table: of each age `alarms/due = ratio`."""
    cells = [
        f"{tally.alarms[age]:>5}/{tally.due[age]:<7.1f}{tally.ratio(age):>5.2f}"
        if tally.due[age] >= 0.5 or tally.alarms[age]
        else " " * 18
        for age in AGES
    ]
    return f"{name:>8} {series:>6} {budget:>6.0f}  " + "  ".join(cells) + f"  {tally.worst_share():>9.0%}"


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, a line when it is known."""
    parser = argparse.ArgumentParser(prog="python -m tests.budget", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--series", type=int, help="series of each cadence; by default as many as the table of docs/quality.md has"
    )
    parser.add_argument("--readings", type=int, help="readings of each series, the same")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=float, action="append", help="only this cadence, seconds; several times")
    parser.add_argument("--data", type=Path, help="recordings instead, in the folder of `streamer bench quality`")
    parser.add_argument("--on", default="lite", help="of the recordings: a list, a data set; several by comma")
    parser.add_argument("--budget", type=float, help="alarms a series and month, instead of the table's")
    options = parser.parse_args(arguments)
    sys.stdout.write("    kind series budget  " + "  ".join(f"{age:>18}" for age in AGES) + "  worst 5 %\n")

    def tell(name: str, series: int, budget: float, tally: Tally) -> None:
        sys.stdout.write(line(name, series, budget, tally) + "\n")
        sys.stdout.flush()
        sys.stderr.write(f"{time.process_time():.0f} s of CPU\n")

    if options.data:
        by_set: dict[str, list[Plain]] = {}
        for recording in load(options.data, select(options.data, options.on.split(","))):
            by_set.setdefault(recording.dataset, []).extend(normal(recording))
        for name, series in by_set.items():
            budget = options.budget or BUDGETS.get(name, 10.0)
            tell(name, len(series), budget, measure(series, budget))
        return 0
    chosen = [each for each in CADENCES if options.interval is None or each.interval in options.interval]
    for each in chosen:
        cadence = each._replace(
            series=options.series or each.series,
            readings=options.readings or each.readings,
            budget=options.budget or each.budget,
        )
        tell(f"{cadence.interval:.0f} s", cadence.series, cadence.budget, synthetic(cadence, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
