"""Series whose later readings are known: what there is to know of each reading from before it, and from after it.

Training (`pretrain.encode`) and labelling (`streamer replay --offline-label`) take their inputs from here. A reading is
never told to its own forecast: from before it is what `features.look` says, from after it what the same says when the
series is read from its end, in time that runs backwards.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import features
from models.step import Stack
from models.weights import Weights

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class History(NamedTuple):
    """Readings of several series, one series after the other, each in the order of its times."""

    time: Float64
    """(n,)"""
    value: Float64
    """(n,)"""
    lengths: NDArray[np.intp]
    """(series,), readings of each; n in all"""

    def backwards(self) -> History:
        """From the last reading of the last series to the first of the first."""
        return History(-self.time[::-1], self.value[::-1], self.lengths[::-1])


class Past(NamedTuple):
    """What there is to know of each reading before its value is looked at, and the value; all `(n,)` but the inputs."""

    inputs: Float32
    """(n, INPUT_SIZE)"""
    previous: Float32
    step: Float32
    y: Float32
    following: Float32
    """the next reading in y, in the location and scale of this one; 0 where there is none"""


def past(history: History, normal: NDArray[np.bool_] | None = None) -> Past:
    """`normal` `(n,)`: False where a reading belonged to an alarm and taught nothing lasting; None: there were none."""
    time, value, lengths = history
    teaches = np.ones(len(time), np.bool_) if normal is None else normal
    statistics = features.Statistics.allocate(len(lengths))
    inputs = np.empty((len(time), features.INPUT_SIZE), np.float32)
    previous, step, y = (np.empty(len(time), np.float32) for _ in range(3))
    following = np.zeros(len(time), np.float32)
    first = np.cumsum(lengths) - lengths
    for t in range(int(lengths.max(initial=0))):
        slots = np.flatnonzero(lengths > t)
        rows = first[slots] + t
        look = features.look(statistics, slots, time[rows])
        inputs[rows], previous[rows], step[rows] = look.inputs, look.previous, look.step
        y[rows] = features.to_y(value[rows], look.location, look.scale)
        goes_on = lengths[slots] > t + 1
        following[rows[goes_on]] = features.to_y(value[rows[goes_on] + 1], look.location[goes_on], look.scale[goes_on])
        features.learn(statistics, slots, time[rows], value[rows], teaches[rows])
    return Past(inputs, previous, step, y, following)


def future(history: History, known: Past) -> Float32:
    """The inputs that each reading has when its series is read from its end, and the one that follows it.

    `(n, INPUT_SIZE + 1)`. Each direction has its own location and scale; the last column has the following reading in
    the terms of the forecast: how many usual steps it is from the previous one. 0 at the end of a series.
    """
    following = np.arcsinh((known.following - known.previous) / known.step)
    following[np.cumsum(history.lengths) - 1] = 0
    return np.concatenate((past(history.backwards()).inputs[::-1], following[:, None]), axis=1)


def foresee(weights: Weights, history: History) -> Float32:
    """What `NumpyStepper.expect` wants of each reading, one row each: hidden state and inputs from the future.

    The hidden state has not seen the following reading in the terms of the forecast: those of the next reading are made
    of this one.
    """
    told = future(history, past(history))
    lengths = history.lengths[::-1]
    stack = Stack(weights, "reverse")
    state = np.zeros((len(lengths), stack.size), np.float32)
    hidden = np.empty((len(told), weights.config.hidden_size), np.float32)
    from_the_end, backwards = hidden[::-1], told[::-1, :-1]  # views
    first = np.cumsum(lengths) - lengths
    for t in range(int(lengths.max(initial=0))):
        slots = np.flatnonzero(lengths > t)
        after = state[slots]
        from_the_end[first[slots] + t] = stack.advance(backwards[first[slots] + t], after)
        state[slots] = after
    return np.concatenate((hidden, told), axis=1)
