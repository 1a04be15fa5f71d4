"""The forecast: a mixture of three logistic distributions in y, with its tail probability and quantiles, in numpy.

Three, because a sensor that holds, jumps or switches has a next value in one of a few places; logistic, because its
distribution function is one sigmoid and its tails are heavier than a Gaussian's. The head speaks in units of the series'
usual step, so that "about as the last value" means the same for a slow tank and a noisy current.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COMPONENTS = 3
PARAMETERS = 3 * COMPONENTS  # what the head gives: logits, shifts, log scales
SHIFT_LIMIT = 8.0  # sinh(8) = 1,490 steps
LOG_SCALE_LIMIT = 7.0
SCALE_FLOOR = 1e-4  # of y: repeated equal readings must not make a scale of nothing
BAND = (0.005, 0.5, 0.995)  # lower end, median, upper end


def unpack(head: Float32, previous: Float32, step: Float32) -> Float32:
    """Weights, locations and scales `(n, 3, 3)` in y, from the head `(n, 9)` and what `features.look` gave `(n,)`."""
    forecast = np.empty((len(head), 3, COMPONENTS), np.float32)
    logits = head[:, :COMPONENTS]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    forecast[:, 0] = weights / weights.sum(axis=1, keepdims=True)
    shift = np.sinh(np.clip(head[:, COMPONENTS : 2 * COMPONENTS], -SHIFT_LIMIT, SHIFT_LIMIT))
    forecast[:, 1] = previous[:, None] + step[:, None] * shift
    spread = np.exp(np.clip(head[:, 2 * COMPONENTS :], -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
    forecast[:, 2] = np.maximum(step[:, None] * spread, SCALE_FLOOR)
    return forecast


def sigmoid(z: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 / (1 + exp(-z)) without overflow, by one tanh."""
    half: NDArray[np.floating] = np.tanh(0.5 * z)
    return 0.5 * half + 0.5


def tail_surprise(forecast: Float32, y: Float32) -> Float32:
    """-log10 of the two-sided tail probability of `y` `(n,)`, >= 0. Exact far out: the tails are summed as logarithms."""
    z = (y[:, None] - forecast[:, 1]) / forecast[:, 2]
    log_weight = np.log(np.maximum(forecast[:, 0], 1e-30))
    above = _log_sum(log_weight - np.logaddexp(0.0, z))  # log P(Y > y)
    below = _log_sum(log_weight - np.logaddexp(0.0, -z))
    surprise: Float32 = np.maximum(-(np.minimum(above, below) + np.log(2.0)) / np.log(10.0), 0.0).astype(np.float32)
    return surprise


def _log_sum(terms: NDArray[np.floating]) -> NDArray[np.floating]:
    top: NDArray[np.floating] = terms.max(axis=1)
    return top + np.log(np.exp(terms - top[:, None]).sum(axis=1))


def quantiles(forecast: Float32, probabilities: tuple[float, ...] = BAND) -> Float32:
    """Quantiles in y, `(n, len(probabilities))`, by bisection to 1e-5 of the bracket."""
    wanted = np.asarray(probabilities, np.float32)
    # A quantile of the mixture lies between the extremes of its components' quantiles.
    each = forecast[:, 1, None, :] + forecast[:, 2, None, :] * np.log(wanted / (1 - wanted))[None, :, None]
    low, high = each.min(axis=2), each.max(axis=2)  # (n, probabilities)
    weights, locations, scales = forecast[:, 0, None], forecast[:, 1, None], forecast[:, 2, None]
    for _ in range(17):
        middle = 0.5 * (low + high)
        below = (weights * sigmoid((middle[:, :, None] - locations) / scales)).sum(axis=2) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    middle_of_bracket: Float32 = 0.5 * (low + high)
    return middle_of_bracket
