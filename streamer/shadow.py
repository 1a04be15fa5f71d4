"""The weights that served before go on forecasting for a sample of series, unheard: do the new ones do better?

Both get the same inputs, reading by reading, and are judged by the log-loss of each forecast. The difference is
averaged over the readings of each series, and then over the series, since the readings of one are not independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import mixture
from models.features import Look
from models.step import NumpyStepper
from models.weights import Weights
from streamer.readings import Bool, Float32

Slots = NDArray[np.intp]


class Comparison(NamedTuple):
    """How the weights that serve do beside those that served before."""

    readings: int
    series: int
    """that had at least `LEAST_READINGS`"""
    worse_by: float
    """nats a reading, mean over the series; negative: they are better"""
    noise: float
    """its standard error; infinite for fewer than two series"""


LEAST_READINGS = 10


class Shadow:
    """The old weights and the state of the sample under them. Owned by the engine's thread."""

    def __init__(self, weights: Weights, slots: Slots, state: Float32, capacity: int, skip: int = 0) -> None:
        """`state` `(n, state_size)` of the slots under these weights; the first `skip` readings are not judged."""
        self._place = np.full(capacity, -1, np.intp)
        self._place[slots] = np.arange(len(slots))
        self._stepper = NumpyStepper(weights, len(slots))
        self._stepper.put(np.arange(len(slots)), state)
        self._left = np.full(len(slots), skip)
        self._count = np.zeros(len(slots))
        self._sum = np.zeros(len(slots))
        self._of_wave: tuple[Slots, NDArray[np.float64]] = np.empty(0, np.intp), np.empty(0)

    def step(self, slots: Slots, look: Look, served: Float32, y: Float32, counts: Bool) -> None:
        """A wave: its inputs, the forecast that served, and what came; where it `counts` it is judged by `settle`."""
        rows = np.flatnonzero(self._place[slots] >= 0)
        if not len(rows):
            self._of_wave = np.empty(0, np.intp), np.empty(0)
            return
        places = self._place[slots[rows]]
        head = self._stepper.step(places, look.inputs[rows])
        own = mixture.unpack(head, look.previous[rows], look.step[rows])
        difference = mixture.loss(served[rows], y[rows]) - mixture.loss(own, y[rows])
        is_early = self._left[places] > 0
        self._left[places[is_early]] -= 1
        self._of_wave = rows, np.where(is_early | ~counts[rows], np.nan, difference)

    def settle(self, slots: Slots, normal: Bool) -> None:
        """The same wave, once it is known which of its readings belong to no alarm."""
        rows, difference = self._of_wave
        good = normal[rows] & ~np.isnan(difference)
        places = self._place[slots[rows[good]]]
        self._count[places] += 1
        self._sum[places] += difference[good]

    def forget(self, slots: Slots) -> None:
        """These series are others from here on."""
        self._place[slots] = -1

    def comparison(self) -> Comparison:
        """So far."""
        enough = self._count >= LEAST_READINGS
        means = self._sum[enough] / self._count[enough]
        series = int(enough.sum())
        noise = float(means.std(ddof=1) / np.sqrt(series)) if series > 1 else np.inf
        return Comparison(int(self._count.sum()), series, float(means.mean()) if series else 0.0, noise)
