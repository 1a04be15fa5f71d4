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
from models.step import NumpyStepper, Stepper, on_cuda
from models.weights import Weights
from streamer.baseline import Forecasters
from streamer.readings import Batch, Bool, Flag, Float32, Float64, Scores, Unscored, Wave
from streamer.recent import READINGS, Recent
from streamer.shadow import Shadow

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
    is_first = np.ones(len(slot), np.bool_)
    is_first[1:] = ranked[1:] != ranked[:-1]
    start = np.flatnonzero(is_first)
    occurrence = np.empty(len(slot), np.intp)
    occurrence[order] = np.arange(len(slot)) - start[np.cumsum(is_first) - 1]
    for k in range(int(occurrence.max(initial=-1)) + 1):
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
        self._capacity = capacity
        self._device = device
        self._offline = offline
        self.statistics = features.Statistics.allocate(capacity)
        self.calibration = calibration.Calibration.allocate(capacity)
        self.forecasters = Forecasters.allocate(capacity)
        self.recent = Recent(capacity)
        self.stepper = self._new_stepper(weights, offline=offline)
        self.scorer = NumpyStepper(scorer.shipped(), capacity)
        self._incoming: Stepper | None = None
        self._rebuilt = 0
        """slots below it are stepped by `_incoming`, while there is one"""
        self.shadow: Shadow | None = None
        self.latest = np.full((capacity, len(LATEST)), np.nan)
        """the last reading's score, value, expected, lower, upper: what metrics and pages show"""

    def _new_stepper(self, weights: Weights, *, offline: bool = False) -> Stepper:
        if self._device == "cpu":
            return NumpyStepper(weights, self._capacity, offline=offline)
        return on_cuda(weights, self._capacity, self._device)

    def score(self, batch: Batch, returning: Bool | None = None) -> tuple[Scores, Wave]:
        """Verdicts on a wave (no slot twice). Moves (h, c) on; statistics and calibration stay as they are.

        `returning` `(n,)`: where True the reading is the first after a pause, and has no verdict.
        """
        slots = batch.slot.astype(np.intp)
        last = self.statistics.wide[slots, Wide.TIME]
        count = self.statistics.narrow[slots, Narrow.COUNT]
        arrival_time = (batch.flags & Flag.ARRIVAL_TIME) != 0
        seen = count > 0
        time, duplicate, late = placed(batch.time, arrival_time, last, seen)
        scores = no_scores(len(batch))
        scores.unscored[duplicate] = Unscored.DUPLICATE
        scores.unscored[late] = Unscored.LATE
        rows = np.flatnonzero(~(duplicate | late))
        after_pause = np.zeros(len(rows), np.bool_) if returning is None else returning[rows]
        wave = self._step(slots[rows], rows, time[rows], batch.value[rows], count[rows], after_pause, scores)
        return scores, wave

    def _step(
        self,
        slots: Slots,
        rows: NDArray[np.intp],
        time: Float64,
        value: Float64,
        count: Float32,
        after_pause: Bool,
        scores: Scores,
    ) -> Wave:
        look = features.look(self.statistics, slots, time)
        forecast = mixture.unpack(self._advance(slots, look.inputs), look.previous, look.step)
        y = features.to_y(value, look.location, look.scale)
        if self.shadow is not None:
            is_served = np.full(len(slots), True) if self._incoming is None else slots < self._rebuilt
            self.shadow.step(slots, look, forecast, y, is_served & (count >= WARM_READINGS))
        quantiles = mixture.quantiles(forecast)
        standing = self.forecasters.forecast(slots, look, quantiles)
        # Who is in charge gives what people see. The score goes by the LSTM: who leads changes, a rank must not.
        # Labelling history, the network reads a series from both ends: the baseline is no match for it.
        shown = quantiles if self._offline else standing.band
        told, band = (features.from_y(each, look.location[:, None], look.scale[:, None]) for each in (shown, quantiles))
        lower, expected, upper = told[:, 0], told[:, 1], told[:, 2]

        raw = np.empty((len(rows), len(calibration.VIEWS)), np.float32, order="F")
        raw[:, calibration.ERROR] = np.minimum(np.arcsinh(np.abs(value - band[:, 1]) / look.scale), features.Y_LIMIT)
        usual = look.inputs[:, DAY_VALUE] * look.inputs[:, DAY_KNOWN]
        away = np.abs(y - usual)
        raw[:, calibration.LEVEL] = away
        raw[:, calibration.DRIFT] = np.minimum(away, calibration.MOST_DRIFT)
        interval = np.exp(self.statistics.narrow[slots, Narrow.LOG_ELAPSED].astype(np.float64))
        strict = calibration.strictness(self.budget_per_series_month, interval)

        views, rarity, far, granted = self.calibration.judge(slots, raw, strict)
        distance = far / strict[:, None]
        near: Float64 = np.minimum(distance, calibration.DISTANT_SHARE)
        by_itself: Float64 = np.maximum(rarity / strict[:, None], near)
        levels: Float64 = np.maximum((rarity + granted[:, None]) / strict[:, None], near)

        warming = count < WARM_READINGS
        is_long = look.elapsed > np.maximum(GAP_INTERVALS * interval, GAP_LEAST_SECONDS)
        gap = ~warming & (is_long | (look.elapsed < 0) | after_pause)
        scores.unscored[rows] = np.where(warming, Unscored.WARMING, np.where(gap, Unscored.GAP, Unscored.SCORED))
        usual_value = features.from_y(usual, look.location, look.scale)
        previous = self.statistics.wide[slots, Wide.VALUE]
        step = self.statistics.narrow[slots, Narrow.STEP]
        seen = scorer.inputs(
            value, previous, band, usual_value, look.location, look.scale, step, count, views, by_itself, strict
        )
        evidence = self.scorer.step(slots, seen)[:, 0]
        known, calibrated = count > 0, levels.max(axis=1)
        score = scorer.score(calibrated, evidence)
        scores.score[rows] = np.where(warming | gap, np.nan, score)
        is_pattern = (score >= 1) & (calibrated < 1)
        scores.view[rows] = np.where(is_pattern, calibration.PATTERN, levels.argmax(axis=1))
        for column, values in ((scores.expected, expected), (scores.lower, lower), (scores.upper, upper)):
            column[rows] = np.where(known, values, np.nan)
        missed = standing.missed(y)
        return Wave(
            rows,
            slots,
            time,
            value,
            look.elapsed,
            views,
            levels,
            distance,
            strict,
            granted,
            usual_value,
            interval,
            missed,
        )

    def _advance(self, slots: Slots, inputs: Float32) -> Float32:
        """The head's output, each series by the network that has its state."""
        if self._incoming is None:
            return self.stepper.step(slots, inputs)
        is_rebuilt = slots < self._rebuilt
        head = np.empty((len(slots), mixture.PARAMETERS), np.float32)
        for stepper, rows in ((self._incoming, is_rebuilt), (self.stepper, ~is_rebuilt)):
            if rows.any():
                head[rows] = stepper.step(slots[rows], inputs[rows])
        return head

    def learn(self, scores: Scores, wave: Wave, normal: Bool) -> None:
        """Takes a scored wave in. `normal` `(len(wave.slots),)`: False where the reading belongs to an open alarm."""
        features.learn(self.statistics, wave.slots, wave.time, wave.value, normal)
        self.recent.add(wave.slots, wave.time, wave.value)
        if self.shadow is not None:
            self.shadow.settle(wave.slots, normal)
        count = self.statistics.narrow[wave.slots, Narrow.COUNT]
        no_gap = scores.unscored[wave.rows] != Unscored.GAP
        forecast = _rows(no_gap & ~np.isnan(wave.elapsed))
        self.forecasters.learn(wave.slots[forecast], wave.missed[forecast], normal[forecast])
        teaches = _rows(no_gap & (count > CALIBRATED_FROM))
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

    # --- Other weights ---

    def begin_swap(self, weights: Weights) -> None:
        """Other weights are to serve: series by series, as `rebuild` gives each its state under them."""
        self._incoming, self._rebuilt = self._new_stepper(weights), 0

    def rebuild(self, end: int) -> None:
        """The next series up to slot `end` find their state under the incoming weights, and are served by them.

        They begin with the hidden state of the old weights, where it has the same shape, since a network that was
        trained on from another is near to it; then their last readings are taken in once more. Statistics stand still
        meanwhile, as they do in an alarm. The calibration stays: it ranks errors, whoever has made them.
        """
        incoming, slots = self._incoming, np.arange(self._rebuilt, end)
        if incoming is None:
            raise AssertionError("no weights are coming in")
        self._rebuilt = end
        state = self.stepper.export(slots)
        if incoming.export(slice(0)).shape[1:] == state.shape[1:]:
            incoming.put(slots, state)
        self._take_in_again(incoming, slots, slots)

    def _take_in_again(self, stepper: Stepper, places: Slots, slots: Slots) -> None:
        """Steps the state of `places` with the last readings of `slots`."""
        time, value, lengths = self.recent.last(slots)
        known = features.Statistics(*(getattr(self.statistics, f.name)[slots] for f in fields(self.statistics)))
        for t in range(READINGS):
            rows = np.flatnonzero(READINGS - lengths <= t)
            is_first = READINGS - lengths[rows] == t
            first, rows = rows[is_first], rows[~is_first]
            features.rewind(known, first, time[first, t], value[first, t])
            if len(rows):
                look = features.look(known, rows, time[rows, t])
                stepper.step(places[rows], look.inputs)
                features.learn(known, rows, time[rows, t], value[rows, t], np.zeros(len(rows), bool))

    def watch(self, weights: Weights, slots: Slots, *, is_serving: bool) -> None:
        """These weights forecast for these series from here on too, unheard; before a swap it is those that serve.

        Any others have no state: they begin with the last readings, and are judged when they have seen as many more.
        """
        if is_serving:
            self.shadow = Shadow(weights, slots, self.stepper.export(slots), self._capacity)
            return
        stepper = NumpyStepper(weights, len(slots))
        self._take_in_again(stepper, np.arange(len(slots)), slots)
        self.shadow = Shadow(weights, slots, stepper.export(slice(None)), self._capacity, skip=READINGS)

    def finish_swap(self) -> None:
        """All series have their state under the incoming weights: the others are given up."""
        if self._incoming is None:
            raise AssertionError("no weights are coming in")
        self.stepper, self._incoming = self._incoming, None

    def give_up_swap(self) -> None:
        """The old weights serve all series again, each with the state that it had under them."""
        self._incoming = None

    @property
    def rebuilt(self) -> int | None:
        """How many slots the incoming weights serve; None while there are none."""
        return None if self._incoming is None else self._rebuilt

    def is_warming(self, count: int) -> Bool:
        """Which of the first `count` slots have no verdict yet."""
        return self.statistics.narrow[:count, Narrow.COUNT] <= WARM_READINGS

    def begin_anew(self, slots: Slots) -> None:
        """What these series do now is their normal: they are as new, with their last reading as their first."""
        self.statistics.begin_anew(slots)
        self._forget(slots)
        self.show_value(slots, self.latest[slots, 1])

    def show_value(self, slots: Slots, value: Float64) -> None:
        """The latest reading of these series is one that has no verdict."""
        self.latest[slots] = np.nan
        self.latest[slots, 1] = value

    def _forget(self, slots: Slots) -> None:
        """All but the statistics."""
        self.calibration.reset(slots)
        self.forecasters.reset(slots)
        self.stepper.reset(slots)
        self.scorer.reset(slots)
        if self._incoming is not None:
            self._incoming.reset(slots)
        self.recent.reset(slots)
        if self.shadow is not None:
            self.shadow.forget(slots)

    def evict(self, slots: Slots) -> None:
        """Forgets these series: their slots are as new."""
        self.statistics.reset(slots)
        self._forget(slots)
        self.latest[slots] = np.nan

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Every state array but the recurrent ones, by name."""
        statistics = {f"statistics.{f.name}": getattr(self.statistics, f.name) for f in fields(self.statistics)}
        calibrated = {"calibration": self.calibration.rows, "histogram": self.calibration.histogram}
        recent: dict[str, NDArray[np.generic]] = {"recent": self.recent.ring, "recent.count": self.recent.count}
        return statistics | calibrated | recent | {"forecasters": self.forecasters.rows, "latest": self.latest}

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
        self.calibration.add_up(slice(len(arrays.get("histogram", ()))))
        for name, stepper in (("recurrent", self.stepper), ("scorer", self.scorer)):
            if name in arrays:
                state = arrays[name].astype(np.float32, copy=False)
                stepper.put(slice(len(state)), state)


def placed(time: Float64, arrival_time: Bool, last: Float64, seen: Bool) -> tuple[Float64, Bool, Bool]:
    """Where readings stand in time behind the `last` of their series: when, and which come twice, and which late.

    Without times in the payloads no reading is late. A wall clock that is slewed counts as standing still; one that is
    set back begins anew, lest a moment in the future decides until real time has come there. Where nothing was `seen`
    before, `last` says nothing.
    """
    slewed = seen & arrival_time & (time < last) & (last - time <= SLEWED_SECONDS)
    time = np.where(slewed, last, time)
    duplicate = seen & ~arrival_time & (np.abs(time - last) < DIFFERENT_SECONDS)
    return time, duplicate, seen & ~arrival_time & ~duplicate & (time < last)


def _rows(chosen: Bool) -> slice | Bool:
    """These rows of an array; all of them, as nearly always, without a copy."""
    return slice(None) if chosen.all() else chosen


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
