"""The forecast's distribution against brute force."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import mixture
from models.forecaster import log_loss
from models.mixture import Float64


def forecasts(seed: int, n: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    head = (rng.normal(size=(n, 9)) * 2).astype(np.float32)
    step = np.exp(rng.normal(size=n) * 2 - 2).astype(np.float32)
    return mixture.unpack(head, rng.normal(size=n).astype(np.float32), step)


def distribution(forecast: np.ndarray, y: np.ndarray) -> Float64:
    """P(Y <= y) in float64."""
    f = forecast.astype(np.float64)
    weights = f[:, 0] / f[:, 0].sum(axis=1, keepdims=True)  # as float32 they sum to 1 but for 1e-7
    z = (y[:, None] - f[:, 1]) / f[:, 2]
    probability: Float64 = (weights / (1 + np.exp(-np.clip(z, -700, 700)))).sum(axis=1)
    return probability


@settings(max_examples=50, deadline=None)
@example(89518486)  # narrow components far apart, for which fewer sections and more of Newton's steps do not do
@given(st.integers(0, 2**32 - 1))
def test_quantiles_invert_the_distribution(seed: int) -> None:
    """The distribution function at each quantile is its probability, or steps over it within float32's resolution."""
    forecast = forecasts(seed)
    found = mixture.quantiles(forecast).astype(np.float64)
    assert (np.diff(found, axis=1) >= 0).all()
    for k, p in enumerate(mixture.BAND):
        slack = 1e-5 * np.maximum(1.0, np.abs(found[:, k]))
        assert (distribution(forecast, found[:, k] - slack) <= p + 2e-4).all()
        assert (distribution(forecast, found[:, k] + slack) >= p - 2e-4).all()


def test_quantiles_do_not_depend_on_their_neighbours() -> None:
    """A row's quantiles are the same alone as among others: a batch may be cut anywhere."""
    forecast = forecasts(7, 600)
    together = mixture.quantiles(forecast)
    alone = np.concatenate([mixture.quantiles(forecast[k : k + 1]) for k in range(600)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_loss_is_that_of_training() -> None:
    """To float32's rounding, bounds included."""
    rng, n = np.random.default_rng(4), 2000
    head = (rng.normal(size=(n, 9)) * 3).astype(np.float32)
    previous, y = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    step = np.exp(rng.normal(size=n) * 3 - 3).astype(np.float32)
    y[::3] = previous[::3]
    found = mixture.loss(mixture.unpack(head, previous, step), y)
    wanted = log_loss(*(torch.from_numpy(part) for part in (head, previous, step, y))).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert found.min() == mixture.LEAST_LOSS
    assert found.max() == mixture.MOST_LOSS


def test_quantiles_of_narrow_components_beside_wide_ones_are_found() -> None:
    """Whatever the head says within reason, each has its share of the mixture below it, and they are in order."""
    rng = np.random.default_rng(0)
    n = 20_000
    head = np.concatenate([rng.normal(0, 6, (n, 3)), rng.normal(0, 2, (n, 6))], axis=1).astype(np.float32)
    previous, step = rng.uniform(-15, 15, n).astype(np.float32), (10 ** rng.uniform(-4, 1, n)).astype(np.float32)
    forecast = mixture.unpack(head, previous, step)
    found = mixture.quantiles(forecast).astype(np.float64)
    weights, locations, scales = np.moveaxis(forecast.astype(np.float64), 1, 0)[:, :, None, :]
    below = (weights * (1 + np.tanh((found[:, :, None] - locations) / (2 * scales))) / 2).sum(axis=2)
    assert np.abs(below - mixture.BAND).max() < 0.05
    assert (np.diff(found, axis=1) >= 0).all()
