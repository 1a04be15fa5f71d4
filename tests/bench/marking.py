"""What a person's word costs: series whose regime jumps lawfully are marked normal, against as many that are new.

`python -m tests.bench.marking`: after how many readings they have verdicts again, how many alarms they raise in the
2,000 readings after that, and how many tell a fault at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from streamer.readings import Float64
from tests.streams import START, batch, new_shard

SERIES, BEFORE, IN_ALARM, AFTER, FAULT = 100, 600, 40, 2000, 5
NOISE, SWING = 0.5, 3.0
REGIMES: dict[str, Callable[[Float64], Float64]] = {
    "level": lambda y: y + 40.0,
    "amplitude": lambda y: 20.0 + 30.0 * (y - 20.0),
    "cadence": lambda y: y,
}


def regular(rng: np.random.Generator, n: int, cadence_seconds: float) -> Float64:
    """`(n, SERIES)`: an hour's swing around 20, and noise."""
    hour = 2 * np.pi * cadence_seconds * np.arange(n)[:, None] / 3600.0
    return 20.0 + SWING * np.sin(hour + rng.uniform(0, 6, SERIES)) + NOISE * rng.normal(size=(n, SERIES))


class Site:
    """All series report together."""

    def __init__(self) -> None:
        self.shard = new_shard([f"device{k}#v" for k in range(SERIES)])
        self.shard.listen_from(START)
        self.now = START
        self.warming: list[int] = []
        """series without a verdict, after each reading"""

    def report(self, values: Float64, cadence_seconds: float) -> tuple[int, int]:
        """Gives how many alarms opened, of values and of silence."""
        opened = {"value": 0, "silent": 0}
        for row in values:
            self.now += cadence_seconds
            changes = self.shard.find_silent(self.now - 1e-3)
            outcome = self.shard.process(batch(np.arange(SERIES), self.now, row), self.now)
            for change in changes + outcome.changes:
                opened[change.alarm.kind] += change.what == "opened"
            self.warming.append(int(np.isnan(outcome.scores.score).sum()))
        return opened["value"], opened["silent"]


def try_one(regime: str, cadence_seconds: float, *, is_new: bool) -> list[object]:
    rng, site, change = np.random.default_rng(3), Site(), REGIMES[regime]
    later_seconds = cadence_seconds * (30.0 if regime == "cadence" else 1.0)
    told = (0, 0)
    if not is_new:
        site.report(regular(rng, BEFORE, cadence_seconds), cadence_seconds)
        told = site.report(change(regular(rng, IN_ALARM, later_seconds)), later_seconds)
        site.shard.mark_normal(np.arange(SERIES), site.now)
    site.warming.clear()
    alarms = site.report(change(regular(rng, AFTER, later_seconds)), later_seconds)
    readings = next(n for n, count in enumerate(site.warming, 1) if not count)
    values = change(regular(rng, FAULT, later_seconds))
    faults = site.report(values + 40.0 * values.std(), later_seconds)
    minutes = readings * later_seconds / 60.0
    return [regime, cadence_seconds, "new" if is_new else "marked", told, readings, round(minutes, 1), alarms, faults]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("regime, cadence s, series, alarms before (value, silent), readings to the verdict, minutes, alarms, faults")
    for regime in REGIMES:
        for cadence_seconds in (1.0, 10.0):
            for is_new in (False, True):
                print(*try_one(regime, cadence_seconds, is_new=is_new), sep=", ", flush=True)


if __name__ == "__main__":
    main()
