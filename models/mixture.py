"""The forecast: a mixture of three logistic distributions in y, with its quantiles, in numpy.

Three, because a sensor that holds, jumps or switches has a next value in one of a few places; logistic, because its
distribution function is one sigmoid and its tails are heavier than a Gaussian's. The head speaks in units of the
series' usual step, so that "about as the last value" means the same for a slow tank and a noisy current.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.bounds import within

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COMPONENTS = 3
PARAMETERS = 3 * COMPONENTS  # what the head gives: logits, shifts, log scales
SHIFT_LIMIT = 8.0  # sinh(8) = 1,490 steps
LOG_SCALE_LIMIT = 7.0
SCALE_FLOOR = 1e-4  # of y: repeated equal readings must not make a scale of nothing
BAND = np.array([0.005, 0.5, 0.995], np.float32)  # lower end, median, upper end
BAND_LOGIT, BAND_TANH = np.log(BAND / (1 - BAND)), 2 * BAND - 1
LEAST_LOSS, MOST_LOSS = -4.0, 15.0  # nats of a reading: equal and wild ones teach, and judge, no more than that
SECTIONS, ROUNDS = 4, 9
INNER = np.arange(1, SECTIONS, dtype=np.float32)


def unpack(head: Float32, previous: Float32, step: Float32) -> Float32:
    """Weights, locations and scales `(n, 3, 3)` in y, from the head `(n, 9)` and what `features.look` gave `(n,)`."""
    parts = np.empty((3, COMPONENTS, len(head)), np.float32)  # so that an operation is on n numbers, not n times on 3
    logits, shifts, log_scales = np.ascontiguousarray(head.T).reshape(parts.shape)
    weights = np.exp(logits - logits.max(axis=0))
    parts[0] = weights / weights.sum(axis=0)
    parts[1] = previous + step * np.sinh(within(shifts, -SHIFT_LIMIT, SHIFT_LIMIT))
    spread = np.exp(within(log_scales, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
    parts[2] = np.maximum(step * spread, SCALE_FLOOR)
    return parts.transpose(2, 0, 1)


def loss(forecast: Float32, y: Float32) -> Float64:
    """Negative log-likelihood of each `y` `(n,)` in nats, as `forecaster.log_loss` has it for training."""
    weights, locations, scales = np.moveaxis(forecast.astype(np.float64), 1, 0)  # (n, 3) each
    z = np.abs((y[:, None] - locations) / scales)
    density = -z - 2 * np.log1p(np.exp(-z)) - np.log(scales)  # log, of the logistic
    peak = density.max(axis=1)
    total = peak + np.log((weights * np.exp(density - peak[:, None])).sum(axis=1) + 1e-300)
    bounded: Float64 = np.clip(-total, LEAST_LOSS, MOST_LOSS)
    return bounded


def quantiles(forecast: Float32) -> Float32:
    """The quantiles of `BAND` in y, `(n, 3)`.

    Sections of four, nine times over, find each to 2^-18 of its bracket. A call of numpy costs as much as some hundred
    of its elements: sections of eight, six times over, are quicker below 256 rows, and take two thirds longer for
    thousands (measured). One step of Newton's, kept inside the bracket, does the rest: two steps after six times cost
    a sixth less, and miss where narrow components lie far apart.
    """
    weights, locations, scales = np.ascontiguousarray(forecast.transpose(1, 2, 0))  # (3, n) each
    ends = locations[:, None, :] + scales[:, None, :] * BAND_LOGIT[:, None]  # (component, quantile, n)
    # A quantile of the mixture lies between the extremes of its components' quantiles.
    low = ends.min(axis=0)
    width = ends.max(axis=0) - low
    # The distribution function by tanh: sum w (1 + tanh(z / 2)) / 2 < p  <=>  sum w tanh(z / 2) < 2 p - 1.
    half_rate = (0.5 / scales).astype(np.float32, copy=False)
    for _ in range(ROUNDS):
        width /= SECTIONS
        points = low[:, None, :] + width[:, None, :] * INNER[:, None]  # (quantile, section, n)
        z = points - locations[:, None, None, :]  # (component, quantile, section, n)
        z *= half_rate[:, None, None, :]
        np.tanh(z, out=z)
        z *= weights[:, None, None, :]
        low += width * (z.sum(axis=0) < BAND_TANH[:, None, None]).sum(axis=1, dtype=np.float32)
    middle = low + 0.5 * width
    z = np.tanh((middle - locations[:, None, :]) * half_rate[:, None, :])
    missing = BAND_TANH[:, None] - (weights[:, None, :] * z).sum(axis=0)
    slope = ((weights * half_rate)[:, None, :] * (1 - z * z)).sum(axis=0)
    polished = within(middle + missing / np.maximum(slope, 1e-12), low, low + width)
    columns: Float32 = polished.T
    return columns
