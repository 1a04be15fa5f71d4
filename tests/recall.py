"""What share of injected anomalies the scores see, kind by kind, at so many false alarms a reading.

`python -m tests.recall` puts anomalies of many kinds into clean synthetic series of the pre-training generator and runs
them through the engine side by side, with default settings. One threshold for all series; readings just after an
anomaly do not count. The last rows have a threshold for each kind of cadence: the budget allows slow series more false
alarms a reading than fast ones. Seeded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import injection, synthetic
from models.injection import Injected
from streamer.readings import Batch, Bool, Float64
from tests.streams import new_shard

RATES = (1e-2, 1e-3, 1e-4)
CADENCES = {
    "a reading in 4 minutes or less": (0.0, 240.0),
    "a reading in 4 to 30 minutes": (240.0, 1800.0),
    "rarer readings": (1800.0, np.inf),
}
"""Bounds of the usual interval, seconds"""


class Recall(NamedTuple):
    """At one rate of false alarms."""

    threshold: float
    share: float
    """of all events"""
    by_kind: dict[str, float]
    """NaN where there is no event"""


def score(series: synthetic.Series, injected: Injected) -> Float64:
    """(count, steps): the engine's scores, NaN where there is none."""
    count, steps = injected.value.shape
    shard = new_shard([f"series/{row}" for row in range(count)])
    slots, flags = np.arange(count, dtype=np.int32), np.zeros(count, np.uint8)
    scores = np.full(injected.value.shape, np.nan)
    for step in range(steps):
        batch = Batch(slots, series.time[:, step], np.clip(injected.value[:, step], -1e29, 1e29), flags)
        scores[:, step] = shard.process(batch, series.time[:, step]).scores.score
    return scores


def recall(scores: Float64, injected: Injected, rate: float) -> Recall:
    """The threshold is the lowest that so few normal readings exceed; an event is seen by its highest score."""
    is_scored = ~np.isnan(scores)
    normal: Bool = is_scored & (injected.event == 0) & ~injected.is_aftermath
    allowed = int(rate * normal.sum())
    threshold = float(np.sort(scores[normal])[::-1][allowed])
    inside = is_scored & (injected.event > 0)
    highest = np.full(int(injected.event.max()) + 1, -np.inf)
    np.maximum.at(highest, injected.event[inside], scores[inside])
    kinds: NDArray[np.int8] = np.full(len(highest), -1, np.int8)
    kinds[injected.event[inside]] = injected.kind[inside]
    is_seen = highest > threshold
    by_kind = {
        name: float(is_seen[kinds == number].mean()) if (kinds == number).any() else np.nan
        for number, name in enumerate(injection.NAMES)
    }
    return Recall(threshold, float(is_seen[kinds >= 0].mean()), by_kind)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=600)
    parser.add_argument("--readings", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    rng = np.random.default_rng(options.seed)
    series = synthetic.generate(rng, options.series, options.readings, incidents=False)
    injected = injection.inject(rng, series.value)
    scores = score(series, injected)
    found = [recall(scores, injected, rate) for rate in RATES]
    sys.stdout.write(f"{int(injected.event.max())} events in {options.series} series of {options.readings} readings\n")
    lines = ["| kind |" + "".join(f" {rate:g} |" for rate in RATES), "|---|" + "---|" * len(RATES)]
    lines.append("| all |" + "".join(f" {each.share:.3f} |" for each in found))
    lines += [f"| {name} |" + "".join(f" {each.by_kind[name]:.2f} |" for each in found) for name in injection.NAMES]
    lines.append("| threshold |" + "".join(f" {each.threshold:.2f} |" for each in found))
    interval = np.median(np.diff(series.time, axis=1), axis=1)
    for name, (least, most) in CADENCES.items():
        rows = (interval >= least) & (interval < most)
        part = Injected(injected.value[rows], injected.event[rows], injected.kind[rows], injected.is_aftermath[rows])
        shares = [recall(scores[rows], part, rate).share for rate in RATES]
        lines.append(f"| {name}, {rows.sum()} series |" + "".join(f" {share:.3f} |" for share in shares))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
