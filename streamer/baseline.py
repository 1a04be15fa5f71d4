"""The robust seasonal baseline, and which of two forecasters is in charge of a series: it or the LSTM.

The baseline knows three places where the next reading may be: where the previous one was; there, but moved by what
usually happens between then and now; and what this time of day usually holds. Its median is their mean, weighted by how
well each has done lately on this series, and its band is as wide as it has been wrong. It needs no training: a new
series begins with it. It stays on as challenger for good. The forecaster with the smaller recent error is in charge,
and gives expected value and band: one that learns has to earn its place, series by series.

The error is that of the median, in usual steps of the series and in y, where it is made. It counts up to a limit, so
that no single reading decides. Neither what belongs to an alarm nor the reading after a gap is taken in; only the
places follow an incident, as the LSTM's hidden state does, lest they look for it where it was before.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import features
from streamer.readings import Bool, Float32

Slots = NDArray[np.intp]

MOST_MISSED = np.float32(5.0)  # usual steps that an error counts at most
RATE = np.float32(1 / 200)  # of forgetting, a reading
LEAST_ERROR = np.float32(0.02)  # usual steps, added to each place's: a series that holds does not divide by nothing
SQUARINGS = 4  # a place weighs error ^ -16, which is nearly the best alone; with ^ -4 the mean error was a tenth larger
HALF_WIDTH = np.float32(8.0)  # of the band near the location, in mean errors; of 4 to 15 about the least pinball loss
LEAST_HALF_WIDTH = np.float32(0.1)  # usual steps
CONTEST_READINGS = 20  # before, the baseline is in charge
BETTER = 0.97  # the challenger's error is below so much of the other's before it takes over


class Column(enum.IntEnum):
    """Columns of `Forecasters.rows`: running means of what was missed, in usual steps, then what follows from them."""

    PREVIOUS = 0  # of the three places
    SHIFTED = 1
    USUAL = 2
    BASELINE = 3
    LSTM = 4
    FOLLOWED = 5  # readings that the places have learned
    COUNT = 6  # and the others
    LSTM_LEADS = 7  # 1 where the LSTM is in charge


PLACES = slice(Column.PREVIOUS, Column.BASELINE)
MISSED = slice(Column.PREVIOUS, Column.FOLLOWED)
COUNTS = slice(Column.FOLLOWED, Column.LSTM_LEADS)
COUNT_OF = np.array([0, 0, 0, 1, 1])
"""Which of COUNTS belongs to each of MISSED."""
SIDES = np.array([-1, 0, 1], np.float32)
ROUGHNESS, DAY_VALUE, DAY_KNOWN, DAY_RESIDUAL = (
    features.INPUTS.index(name) for name in ("roughness", "day_value", "day_known", "day_residual")
)


class Standing(NamedTuple):
    """What was forecast of each row of a wave before its value was looked at, in y."""

    said: Float32
    """(n, 5): the places and the medians, in the order of `Column`"""
    band: Float32
    """(n, 3): lower end, median and upper end of the one in charge"""
    unit: Float32
    """(n,): the series' usual step near its location"""

    def missed(self, y: Float32) -> Float32:
        """How far off each was `(n, 5)`, in usual steps, at most MOST_MISSED."""
        missed: Float32 = np.abs(y[:, None] - self.said) / self.unit[:, None]
        return np.minimum(missed, MOST_MISSED, out=missed)


@dataclass(slots=True)
class Forecasters:
    """How well each has done on every series, one row a slot; a row of zeros is a new series."""

    rows: Float32
    """(capacity, len(Column))"""

    @classmethod
    def allocate(cls, capacity: int) -> Forecasters:
        return cls(np.zeros((capacity, len(Column)), np.float32))

    def reset(self, slots: Slots) -> None:
        """Forget these series."""
        self.rows[slots] = 0

    def lstm_leads(self, slots: Slots | slice) -> Bool:
        """Of which series the LSTM is in charge."""
        return self.rows[slots, Column.LSTM_LEADS] > 0

    def loss(self, slots: Slots) -> float:
        """The mean error of the LSTM's median on these series, in usual steps; NaN where none is known."""
        rows = self.rows[slots]
        known = rows[:, Column.COUNT] >= CONTEST_READINGS
        return float(rows[known, Column.LSTM].mean()) if known.any() else float("nan")

    def forecast(self, slots: Slots, look: features.Look, lstm: Float32) -> Standing:
        """The baseline beside the LSTM's quantiles `(n, 3)` in y; changes nothing."""
        rows, inputs, previous = np.asfortranarray(self.rows[slots]), look.inputs, look.previous
        unit = np.exp(inputs[:, ROUGHNESS])
        usual, known = inputs[:, DAY_VALUE], inputs[:, DAY_KNOWN]
        said = np.empty((len(slots), MISSED.stop), np.float32, order="F")
        said[:, Column.PREVIOUS] = previous
        said[:, Column.SHIFTED] = previous + known * (usual + inputs[:, DAY_RESIDUAL] - previous)
        said[:, Column.USUAL] = known * usual
        error = rows[:, PLACES] + LEAST_ERROR
        weight = error.min(axis=1, keepdims=True) / error
        for _ in range(SQUARINGS):
            weight *= weight
        median = (weight * said[:, PLACES]).sum(axis=1) / weight.sum(axis=1)
        said[:, Column.BASELINE], said[:, Column.LSTM] = median, lstm[:, 1]
        half_width = np.arcsinh(np.maximum(HALF_WIDTH * rows[:, Column.BASELINE], LEAST_HALF_WIDTH) * unit)
        band = (median + SIDES[:, None] * half_width).T
        return Standing(said, np.where(rows[:, Column.LSTM_LEADS, None] > 0, lstm, band), unit)

    def learn(self, slots: Slots, missed: Float32, normal: Bool) -> None:
        """Takes in what was missed `(n, 5)`, and says anew who is in charge where a reading is `normal` `(n,)`."""
        rows = np.asfortranarray(self.rows[slots])
        means, counts = rows[:, MISSED], rows[:, COUNTS]
        counts[:, 0] += 1
        counts[:, 1] += normal
        rate = np.maximum(1 / np.maximum(counts, 1), RATE)
        rate[:, 1] *= normal
        means += rate[:, COUNT_OF] * (missed - means)
        lstm, baseline = rows[:, Column.LSTM], rows[:, Column.BASELINE]
        stays, takes_over = baseline >= BETTER * lstm, lstm < BETTER * baseline
        leads = np.where(rows[:, Column.LSTM_LEADS] > 0, stays, takes_over & (counts[:, 1] >= CONTEST_READINGS))
        rows[:, Column.LSTM_LEADS] = leads
        self.rows[slots] = rows
