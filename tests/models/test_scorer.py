"""The scorer: its network against torch, its inputs, and what its evidence does to a score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import injection, scorer, scorer_training
from models.scorer import Float32, Float64
from models.scorer_recipe import Lessons, Recipe
from models.step import NumpyStepper

N = 4


def seen(value: Float64, *, count: float = 1000.0, upside: float = 1.0) -> Float32:
    """The inputs for readings of a series of location 5, scale 2 and step 1, or of the same upside down."""
    full = np.full(len(value), 1.0)
    band = upside * np.array([4.0, 5.5, 7.0])[:: int(upside)] * np.ones((len(value), 1))
    return scorer.inputs(
        upside * value,
        upside * 5.0 * full,
        band,
        upside * 4.5 * full,
        upside * 5.0 * full,
        2.0 * full,
        full.astype(np.float32),
        np.full(len(value), count, np.float32),
        np.tile(np.array([0.3, 0.2, 0.1], np.float32), (len(value), 1)),
        np.tile([0.4, 0.3, 0.2], (len(value), 1)),
        4.0 * full,
    )


def test_the_step_is_torchs_lstm_reading_by_reading() -> None:
    """Evidence of 300 readings of four series, in waves of any size, to 1e-5."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(300, N, len(scorer.INPUTS))).astype(np.float32)
    shipped = scorer.shipped()
    network = scorer_training.Network(shipped.config.hidden_size)
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in shipped.tensors.items()})
    with torch.no_grad():
        wanted, _ = network(torch.from_numpy(inputs), None)
    stepper = NumpyStepper(shipped, N)
    found = np.zeros((300, N), np.float32)
    for step in range(300):
        for slots in np.split(np.arange(N), [int(rng.integers(0, N + 1))]):
            if len(slots):
                found[step, slots] = stepper.step(slots, inputs[step, slots])[:, 0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5)


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=5))
def test_inputs_are_bounded_whatever_is_read(values: list[float]) -> None:
    """Finite and within the limit."""
    found = seen(np.array(values))
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= scorer.INPUT_LIMIT


def test_the_first_reading_is_compared_with_nothing() -> None:
    """All of its inputs are 0."""
    assert not seen(np.array([7.0]), count=0).any()


def test_a_series_upside_down_changes_the_sign_of_the_signed_inputs_only() -> None:
    """Which is how training doubles its series."""
    value = np.array([5.0, 9.0, -3.0])
    sign = np.ones(len(scorer.INPUTS))
    sign[list(scorer.SIGNED)] = -1
    np.testing.assert_allclose(seen(value, upside=-1.0), sign * seen(value), rtol=0, atol=1e-6)


def test_evidence_moves_the_score_and_never_below_0() -> None:
    """PER_SCORE nats are a score of 1, GRANTED are given; the order of sums stays, and so does what is above 1."""
    rng = np.random.default_rng(2)
    calibrated, evidence = rng.uniform(0, 3, 500), rng.normal(-4, 6, 500).astype(np.float32)
    total = calibrated + (evidence + scorer.GRANTED) / scorer.PER_SCORE
    found = scorer.score(calibrated, evidence)
    assert (found > 0).all()
    np.testing.assert_array_equal((found >= 1), (total >= 1))
    np.testing.assert_allclose(found[total >= 1], total[total >= 1])
    assert (np.diff(found[np.argsort(total)]) >= 0).all()


def test_training_is_seeded_and_learns() -> None:
    """The same lessons and seed give the same weights, and what is odd gets more evidence than what is not."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(8, 256, len(scorer.INPUTS))).astype(np.float16)
    is_odd = rng.random((8, 256)) < 0.1
    inputs[is_odd, scorer.INPUTS.index("band")] += 4
    lessons = Lessons(inputs, is_odd, np.ones(is_odd.shape, np.float16))
    recipe = replace(
        Recipe(), hidden_size=4, batch=4, chunk=64, updates=240, learning_rate=0.02, warm_up_updates=5, average=0.9
    )
    first, again = (scorer_training.train(recipe, lessons, lambda _: None) for _ in range(2))
    for name, value in first.tensors.items():
        np.testing.assert_array_equal(value, again.tensors[name])
    stepper, slots = NumpyStepper(first, 8), np.arange(8)
    evidence = np.stack([stepper.step(slots, inputs[:, k].astype(np.float32))[:, 0] for k in range(256)], axis=1)
    assert evidence[is_odd].mean() > evidence[~is_odd].mean() + 1


@pytest.mark.parametrize("seed", [1, 2])
def test_what_belongs_to_a_series_recurs_or_stays(seed: int) -> None:
    """Oddities that are lawful: their first times are unclear, and some series have none."""
    rng = np.random.default_rng(seed)
    clean = np.cumsum(rng.normal(size=(60, 2000)), axis=1) * 0.1 + rng.normal(size=(60, 2000))
    lawful = injection.lawful(np.random.default_rng(seed), clean)
    assert np.isfinite(lawful.value).all()
    changed = (lawful.value != clean).any(axis=1)
    assert 0.05 < changed.mean() < 0.5
    assert not lawful.is_unclear[~changed].any()
    is_changed = lawful.value != clean
    assert (is_changed & ~lawful.is_unclear).sum() > (is_changed & lawful.is_unclear).sum()
    again = injection.lawful(np.random.default_rng(seed), clean)
    np.testing.assert_array_equal(again.value, lawful.value)
