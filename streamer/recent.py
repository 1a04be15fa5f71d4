"""The last readings of every series: from them a new network finds its own state, since it cannot read another's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.readings import Float64

READINGS = 64  # measured: a forecast is then 1 to 14 % of its usual error from that of a network which has seen all


class Last(NamedTuple):
    """Readings of `n` series, each to the right: the newest is in the last column."""

    time: Float64
    """(n, READINGS)"""
    value: Float64
    """(n, READINGS)"""
    lengths: NDArray[np.intp]
    """(n,): how many of them there are"""


class Recent:
    """A ring of readings a slot, whatever was thought of them. Pages that no slot touches cost no memory."""

    def __init__(self, capacity: int) -> None:
        self.ring = np.zeros((capacity, READINGS, 2))
        """(capacity, READINGS, 2): time and value"""
        self.count = np.zeros(capacity, np.int32)
        """(capacity,): readings so far, up to twice the ring and on in circles"""

    def add(self, slots: NDArray[np.intp], time: Float64, value: Float64) -> None:
        """One reading each; no slot twice."""
        count = self.count[slots]
        place = count % READINGS
        self.ring[slots, place, 0] = time
        self.ring[slots, place, 1] = value
        self.count[slots] = np.where(count + 1 < 2 * READINGS, count + 1, READINGS)

    def last(self, slots: NDArray[np.intp]) -> Last:
        """What is kept of these series."""
        count = self.count[slots]
        order = (count[:, None] + np.arange(READINGS)) % READINGS
        rows = self.ring[slots[:, None], order]
        return Last(rows[..., 0], rows[..., 1], np.minimum(count, READINGS).astype(np.intp))

    def reset(self, slots: NDArray[np.intp]) -> None:
        """Forgets these series."""
        self.ring[slots] = 0
        self.count[slots] = 0
