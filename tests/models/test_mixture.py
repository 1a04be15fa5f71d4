"""The forecast's distribution against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models import mixture
from models.mixture import Float64


def forecasts(seed: int, n: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    head = (rng.normal(size=(n, 9)) * 2).astype(np.float32)
    step = np.exp(rng.normal(size=n) * 2 - 2).astype(np.float32)
    return mixture.unpack(head, rng.normal(size=n).astype(np.float32), step)


def distribution(forecast: np.ndarray, y: np.ndarray, side: int = 1) -> Float64:
    """P(Y <= y) in float64, or with side -1 P(Y > y): summed for itself, since 1 - P forgets what is rare."""
    f = forecast.astype(np.float64)
    weights = f[:, 0] / f[:, 0].sum(axis=1, keepdims=True)  # as float32 they sum to 1 but for 1e-7
    z = side * (y[:, None] - f[:, 1]) / f[:, 2]
    probability: Float64 = (weights / (1 + np.exp(-np.clip(z, -700, 700)))).sum(axis=1)
    return probability


@settings(max_examples=50, deadline=None)
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


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_surprise_is_the_tail_probability(seed: int) -> None:
    """-log10 of twice the smaller tail, as float64 arithmetic has it where that does not underflow."""
    forecast = forecasts(seed)
    y = (np.random.default_rng(seed).normal(size=len(forecast)) * 3).astype(np.float32)
    wide = y.astype(np.float64)
    tail = 2 * np.minimum(distribution(forecast, wide), distribution(forecast, wide, -1))
    sure = tail > 1e-290  # below, float64 gives out before the logarithms do
    wanted = np.maximum(-np.log10(np.where(sure, tail, 1.0)), 0.0)
    np.testing.assert_allclose(mixture.tail_surprise(forecast, y)[sure], wanted[sure], rtol=2e-3, atol=2e-3)


def test_surprise_stays_exact_where_probabilities_underflow() -> None:
    """A logistic's tail is exp(-z): at 1,000 scales the surprise is 1,000 / ln 10, less the two sides."""
    forecast = np.zeros((1, 3, 3), np.float32)
    forecast[:, 0, 0], forecast[:, 2] = 1.0, 1.0
    found = mixture.tail_surprise(forecast, np.array([1000.0], np.float32))
    np.testing.assert_allclose(found, (1000 - np.log(2)) / np.log(10), rtol=1e-5)


def test_quantiles_do_not_depend_on_their_neighbours() -> None:
    """A row's quantiles are the same alone as among others: a batch may be cut anywhere."""
    forecast = forecasts(7, 600)
    together = mixture.quantiles(forecast)
    alone = np.concatenate([mixture.quantiles(forecast[k : k + 1]) for k in range(600)])
    np.testing.assert_allclose(together, alone, atol=1e-6)
