"""Forecast errors of the LSTM, of the baseline and of whichever is in charge, on recordings; no label is looked at.

`python -m tests.in_charge --data DIR` runs the first readings of recordings of `streamer bench quality` through the
engine, those of a data set side by side, with default settings. An error is that of the median in the model's
coordinate y; readings without a score do not count. The mean is over the readings of a series, then over the series.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features import Look, Narrow
from streamer.baseline import Column, Forecasters, Standing
from streamer.bench.quality.recordings import Recording, load, select
from streamer.detector import WARM_READINGS
from streamer.readings import Batch, Float32
from tests.streams import new_shard

SHOWN = ("lstm", "baseline", "in charge", "lstm in charge", "lstm is better", "in its band")


class Row(NamedTuple):
    """One data set."""

    name: str
    series: int
    figures: list[float]
    """in the order of SHOWN"""


def batches(recordings: Sequence[Recording], most_rows: int) -> Iterator[Batch]:
    """Row by row, all recordings side by side; slots in the order of their channels."""
    first = np.cumsum([0, *(each.values.shape[1] for each in recordings)])
    for row in range(min(most_rows, max(len(each.time) for each in recordings))):
        here = [(begin, each) for begin, each in zip(first, recordings, strict=False) if row < len(each.time)]
        slot = np.concatenate([begin + np.arange(each.values.shape[1]) for begin, each in here])
        time = np.concatenate([np.full(each.values.shape[1], each.time[row]) for _, each in here])
        value = np.concatenate([each.values[row] for _, each in here]).astype(np.float64)
        fits = np.abs(value) < 1e30  # not what is NaN
        yield Batch(slot[fits].astype(np.int32), time[fits], value[fits], np.zeros(int(fits.sum()), np.uint8))


def measure(name: str, recordings: Sequence[Recording], most_rows: int) -> Row:
    keys = [f"{each.name}#{channel}" for each in recordings for channel in range(each.values.shape[1])]
    shard = new_shard(keys)
    readings, sums = np.zeros(len(keys)), np.zeros((len(keys), 5))
    forecast, missed = Forecasters.forecast, Standing.missed
    wave: list[NDArray[np.intp]] = []

    def watched_forecast(self: Forecasters, slots: NDArray[np.intp], look: Look, lstm: Float32) -> Standing:
        wave[:] = [slots]
        return forecast(self, slots, look, lstm)

    def watched_missed(self: Standing, y: Float32) -> Float32:
        slots = wave[0]
        lstm, baseline = (np.abs(y - self.said[:, column]) for column in (Column.LSTM, Column.BASELINE))
        leads = shard.detector.forecasters.lstm_leads(slots)
        holds = (self.band[:, 0] <= y) & (y <= self.band[:, 2])
        judged = shard.detector.statistics.narrow[slots, Narrow.COUNT] >= WARM_READINGS
        seen = np.column_stack((lstm, baseline, np.where(leads, lstm, baseline), leads, holds))
        readings[slots[judged]] += 1
        sums[slots[judged]] += seen[judged]
        return missed(self, y)

    setattr(Forecasters, "forecast", watched_forecast)  # noqa: B010 # no place that mypy lets anyone assign to
    setattr(Standing, "missed", watched_missed)  # noqa: B010
    try:
        for batch in batches(recordings, most_rows):
            shard.process(batch, batch.time)
    finally:
        setattr(Forecasters, "forecast", forecast)  # noqa: B010
        setattr(Standing, "missed", missed)  # noqa: B010
    means = sums[readings > 0] / readings[readings > 0, None]
    lstm, baseline, in_charge, leads, holds = means.mean(axis=0).tolist()
    is_better = float((means[:, 0] < means[:, 1]).mean())
    return Row(name, len(means), [lstm, baseline, in_charge, leads, is_better, holds])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--on", default="open", help="lists, data sets or recordings, several by comma")
    parser.add_argument("--rows", type=int, default=4000, help="of each recording, at most")
    options = parser.parse_args(argv)
    recordings = list(load(options.data, select(options.data, options.on.split(","))))
    sys.stdout.write(f"| | series | {' | '.join(SHOWN)} |\n|---|{'---|' * (len(SHOWN) + 1)}\n")
    rows = []
    for name in dict.fromkeys(each.dataset for each in recordings):
        row = measure(name, [each for each in recordings if each.dataset == name], options.rows)
        rows.append(row.figures)
        sys.stdout.write(f"| {name} | {row.series} | {' | '.join(f'{x:.3f}' for x in row.figures)} |\n")
        sys.stdout.flush()
    mean = np.mean(rows, axis=0).tolist()
    sys.stdout.write(f"| mean | | {' | '.join(f'{x:.3f}' for x in mean)} |\n")


if __name__ == "__main__":
    main()
