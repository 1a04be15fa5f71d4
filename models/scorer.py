"""A second, small LSTM that looks at what the first one and the views make of a reading, and says whether it is odd.

The views see the size of a surprise. This one sees its shape over time: a sensor that freezes, a cycle out of step,
noise that ceases. It has learned that from anomalies injected into synthetic series (`injection`), and from oddities
that belong to a series (`injection.lawful`), as the engine sees them. What it says is the logarithm of odds: evidence,
which is added to the calibrated score.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import calibration, features, weights
from models.weights import Weights

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BASE = Path(__file__).with_name("scorer.safetensors")
INPUTS = (
    "error",  # of the forecast, in the series' scale
    "error_in_steps",  # in its usual difference
    "error_in_bands",  # in half the width of the forecast's band
    "band",  # log of that width over the scale
    "deviation",  # from the location
    "difference",  # from the reading before, in usual differences
    "unusual",  # distance from what this time of day usually holds
    "step",  # log of the usual difference over the scale
    *calibration.VIEWS,
    "age",  # log of the number of readings
    "repeats",  # 1: the same as the one before
    *(f"{view}_level" for view in calibration.VIEWS),  # the rarity of each view, in pairs of decades
    "strictness",
)
SIGNED = tuple(INPUTS.index(name) for name in ("error", "error_in_steps", "error_in_bands", "deviation", "difference"))
SIGNED += (INPUTS.index("unusual"),)
"""The inputs that change their sign when the series is turned upside down"""
LEVELS = slice(INPUTS.index(f"{calibration.VIEWS[0]}_level"), INPUTS.index("strictness"))
STRICTNESS = INPUTS.index("strictness")
INPUT_LIMIT = 8.0
LEAST_STEP = 1e-3  # scales
PER_SCORE = 6.0  # so many nats of evidence are worth as much as a score of 1: measured
GRANTED = 1.0  # nats that every reading is given: with them clean synthetic series spend the budget of alarms


@cache
def shipped() -> Weights:
    """The weights in the package."""
    return weights.load(BASE, outputs=1)


def inputs(
    value: Float64,
    previous: Float64,
    band: Float64,
    usual: Float64,
    location: Float64,
    scale: Float64,
    step: Float32,
    count: Float32,
    views: Float32,
    levels: Float64,
    strict: Float64,
) -> Float32:
    """The network's inputs `(n, len(INPUTS))` for readings; `band` `(n, 3)`: lower, expected, upper. Arrays `(n,)`."""
    lower, expected, upper = band.T
    least = LEAST_STEP * scale
    usual_step, width = np.maximum(step, least), np.maximum(upper - lower, least)
    error = value - expected
    x = np.empty((len(value), len(INPUTS)))
    x[:, 0] = error / scale
    x[:, 1] = error / usual_step
    x[:, 2] = 2 * error / width
    x[:, 3] = np.log(width / scale)
    x[:, 4] = (value - location) / scale
    x[:, 5] = (value - previous) / usual_step
    x[:, 6] = (value - usual) / scale
    x[:, 7] = np.log(usual_step / scale)
    x[:, SIGNED] = np.arcsinh(x[:, SIGNED])
    x[:, 8:11] = views
    x[:, 11] = np.log1p(np.minimum(count, features.OLDEST)) / 8
    x[:, 12] = value == previous
    x[:, LEVELS] = np.clip(levels * strict[:, None], 0, 10) / 2
    x[:, STRICTNESS] = strict / 5
    x[count == 0] = 0  # there is nothing to compare it with
    return np.clip(x, -INPUT_LIMIT, INPUT_LIMIT).astype(np.float32)


def score(calibrated: Float64, evidence: Float32) -> Float64:
    """The score with the evidence `(n,)` in it; above 1 it is their sum, below it is made positive."""
    x = calibrated + (evidence + GRANTED) / PER_SCORE
    joined: Float64 = np.where(x >= 1, x, np.exp(np.minimum(x, 1.0) - 1))
    return joined
