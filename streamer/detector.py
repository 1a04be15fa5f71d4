"""All per-series model state, and the two operations on it: `score` a wave of readings, then `learn` from it.

Between the two the alarms decide which readings count as normal: while an alarm is open the old normal, location, scale
and distance, learns nothing; the ranks do, and forget it when the alarm is over.
The forecast of a reading is made at its arrival, when its time is known and its value has not been looked at; so the
elapsed time is exact, and a gap cannot make yesterday's forecast speak for today.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from models import calibration, features, mixture, scorer
from models.features import Narrow, Wide
from models.step import NumpyStepper, Stepper, TorchStepper
from models.weights import Weights
from streamer.readings import Batch, Bool, Flag, Float32, Float64, Scores, Unscored, Wave

Slots = NDArray[np.intp]

WAVE_ROWS = 4096  # no dearer a row than a longer one (measured)
WARM_READINGS = 20  # a series' first score is that of its 21st reading; the promise is the 30th
GAP_INTERVALS = 30.0  # an interval so many times the usual one is a gap: the reading after it has no verdict
GAP_LEAST_SECONDS = 30.0
SLEWED_SECONDS = 10.0  # NTP sets a clock that is further off
DIFFERENT_SECONDS = 1e-6  # event times closer than this are the same: about the resolution of a float64 epoch


def waves(slot: NDArray[np.int32]) -> Iterator[NDArray[np.intp]]:
    """Row numbers of a batch, cut into waves in which no slot occurs twice; a series' rows stay in order.

    None is longer than WAVE_ROWS: a wave takes a kilobyte or two a row.
    """
    order = np.argsort(slot, kind="stable")
    ranked = slot[order]
    start = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(slot) else np.empty(0, np.intp)
    lengths = np.diff(np.r_[start, len(slot)])
    occurrence = np.empty(len(slot), np.intp)
    occurrence[order] = np.arange(len(slot)) - np.repeat(start, lengths)
    for k in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(occurrence == k)
        yield from (rows[first : first + WAVE_ROWS] for first in range(0, len(rows), WAVE_ROWS))


class Detector:
    """State arrays of `capacity` slots. Owned by one thread."""

    def __init__(
        self,
        weights: Weights,
        capacity: int,
        *,
        budget_per_series_month: float,
        device: str = "cpu",
        offline: bool = False,
    ) -> None:
        self.budget_per_series_month = budget_per_series_month
        self.statistics = features.Statistics.allocate(capacity)
        self.calibration = calibration.Calibration.allocate(capacity)
        self.stepper: Stepper = (
            NumpyStepper(weights, capacity, offline=offline)
            if device == "cpu"
            else TorchStepper(weights, capacity, device)
        )
        self.scorer = NumpyStepper(scorer.shipped(), capacity)
        self.latest = np.full((capacity, len(LATEST)), np.nan)
        """the last reading's score, value, expected, lower, upper: what metrics and pages show"""

    def score(self, batch: Batch) -> tuple[Scores, Wave]:
        """Verdicts on a wave (no slot twice). Moves (h, c) on; statistics and calibration stay as they are."""
        slots = batch.slot.astype(np.intp)
        last = self.statistics.wide[slots, Wide.TIME]
        count = self.statistics.narrow[slots, Narrow.COUNT]
        arrival_time = (batch.flags & Flag.ARRIVAL_TIME) != 0
        seen = count > 0
        # Without times in the payloads no reading is late. A wall clock that is slewed counts as standing still; one
        # that is set back begins anew, lest a moment in the future decides until real time has come there.
        slewed = seen & arrival_time & (batch.time < last) & (last - batch.time <= SLEWED_SECONDS)
        time = np.where(slewed, last, batch.time)
        duplicate = seen & ~arrival_time & (np.abs(time - last) < DIFFERENT_SECONDS)
        late = seen & ~arrival_time & ~duplicate & (time < last)

        scores = no_scores(len(batch))
        scores.unscored[duplicate] = Unscored.DUPLICATE
        scores.unscored[late] = Unscored.LATE
        rows = np.flatnonzero(~(duplicate | late))
        wave = self._step(slots[rows], rows, time[rows], batch.value[rows], count[rows], scores)
        return scores, wave

    def _step(
        self, slots: Slots, rows: NDArray[np.intp], time: Float64, value: Float64, count: Float32, scores: Scores
    ) -> Wave:
        look = features.look(self.statistics, slots, time)
        forecast = mixture.unpack(self.stepper.step(slots, look.inputs), look.previous, look.step)
        y = features.to_y(value, look.location, look.scale)
        band = features.from_y(mixture.quantiles(forecast), look.location[:, None], look.scale[:, None])
        lower, expected, upper = band[:, 0], band[:, 1], band[:, 2]

        raw = np.empty((len(rows), len(calibration.VIEWS)), np.float32)
        raw[:, calibration.ERROR] = np.minimum(np.arcsinh(np.abs(value - expected) / look.scale), features.Y_LIMIT)
        usual = look.inputs[:, DAY_VALUE] * look.inputs[:, DAY_KNOWN]
        away = np.abs(y - usual)
        raw[:, calibration.LEVEL] = away
        raw[:, calibration.DRIFT] = np.minimum(away, calibration.MOST_DRIFT)
        views = self.calibration.smooth(slots, raw)
        interval = np.exp(self.statistics.narrow[slots, Narrow.LOG_ELAPSED].astype(np.float64))
        strict = calibration.strictness(self.budget_per_series_month, interval)

        rarity = self.calibration.rarity(slots, views, strict) / strict[:, None]
        distance = self.calibration.distance(slots, views) / strict[:, None]
        levels = np.maximum(rarity, np.minimum(distance, calibration.DISTANT_SHARE))

        warming = count < WARM_READINGS
        is_long = look.elapsed > np.maximum(GAP_INTERVALS * interval, GAP_LEAST_SECONDS)
        gap = ~warming & (is_long | (look.elapsed < 0))
        scores.unscored[rows] = np.select([warming, gap], [Unscored.WARMING, Unscored.GAP], Unscored.SCORED)
        usual_value = features.from_y(usual, look.location, look.scale)
        previous = self.statistics.wide[slots, Wide.VALUE]
        step = self.statistics.narrow[slots, Narrow.STEP]
        seen = scorer.inputs(
            value, previous, band, usual_value, look.location, look.scale, step, count, views, levels, strict
        )
        evidence = self.scorer.step(slots, seen)[:, 0]
        known, calibrated = count > 0, levels.max(axis=1)
        score = scorer.score(calibrated, evidence)
        scores.score[rows] = np.where(warming | gap, np.nan, score)
        is_pattern = (score >= 1) & (calibrated < 1)
        scores.view[rows] = np.where(is_pattern, calibration.PATTERN, levels.argmax(axis=1))
        for column, values in ((scores.expected, expected), (scores.lower, lower), (scores.upper, upper)):
            column[rows] = np.where(known, values, np.nan)
        return Wave(rows, slots, time, value, look.elapsed, views, levels, distance, strict, usual_value, interval)

    def learn(self, scores: Scores, wave: Wave, normal: Bool) -> None:
        """Takes a scored wave in. `normal` `(len(wave.slots),)`: False where the reading belongs to an open alarm."""
        features.learn(self.statistics, wave.slots, wave.time, wave.value, normal)
        teaches = self.statistics.narrow[wave.slots, Narrow.COUNT] > CALIBRATED_FROM
        teaches &= scores.unscored[wave.rows] != Unscored.GAP
        self.calibration.learn(wave.slots[teaches], wave.views[teaches], normal[teaches])
        self.latest[wave.slots] = np.column_stack(
            (
                scores.score[wave.rows],
                wave.value,
                scores.expected[wave.rows],
                scores.lower[wave.rows],
                scores.upper[wave.rows],
            )
        )

    def is_warming(self, count: int) -> Bool:
        """Which of the first `count` slots have no verdict yet."""
        return self.statistics.narrow[:count, Narrow.COUNT] <= WARM_READINGS

    def evict(self, slots: Slots) -> None:
        """Forgets these series: their slots are as new."""
        self.statistics.reset(slots)
        self.calibration.reset(slots)
        self.stepper.reset(slots)
        self.scorer.reset(slots)
        self.latest[slots] = np.nan

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Every state array but the recurrent ones, by name."""
        statistics = {f"statistics.{f.name}": getattr(self.statistics, f.name) for f in fields(self.statistics)}
        calibrated = {"calibration": self.calibration.rows, "histogram": self.calibration.histogram}
        return statistics | calibrated | {"latest": self.latest}

    def export(self, count: int) -> dict[str, NDArray[np.generic]]:
        """Copies of the first `count` rows of every state array, by name."""
        first = slice(count)
        arrays: dict[str, NDArray[np.generic]] = {
            "recurrent": self.stepper.export(first),
            "scorer": self.scorer.export(first),
        }
        return arrays | {name: array[:count].copy() for name, array in self.arrays().items()}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Puts back what `export` gave; an array that is left out stays as it is."""
        for name, array in self.arrays().items():
            if name in arrays:
                array[: len(arrays[name])] = arrays[name]
        for name, stepper in (("recurrent", self.stepper), ("scorer", self.scorer)):
            if name in arrays:
                stepper.restore(arrays[name].astype(np.float32, copy=False))


LATEST = ("score", "value", "expected", "lower", "upper")
DAY_VALUE, DAY_KNOWN = features.INPUTS.index("day_value"), features.INPUTS.index("day_known")
CALIBRATED_FROM = 8  # readings: before that neither location nor forecast means anything


def no_scores(n: int) -> Scores:
    """The verdicts on `n` readings before they are looked at: none."""
    return Scores(
        score=np.full(n, np.nan),
        unscored=np.zeros(n, np.uint8),
        expected=np.full(n, np.nan),
        lower=np.full(n, np.nan),
        upper=np.full(n, np.nan),
        view=np.zeros(n, np.uint8),
    )
