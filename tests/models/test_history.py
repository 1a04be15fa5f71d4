"""What there is to know of a reading from both sides: never the reading itself, and as in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import features, history, pretrain, synthetic
from models.forecaster import Forecaster
from models.step import NumpyStepper
from models.weights import ForecasterConfig, Weights, expected_shapes

LENGTHS = (40, 1, 25, 60)
CONFIGS = [
    ForecasterConfig(features.INPUT_SIZE, 8, bidirectional=True),
    ForecasterConfig(features.INPUT_SIZE, 8, 2, cell="peephole", bidirectional=True),
    ForecasterConfig(features.INPUT_SIZE, 8, 2, cell="gru", residual=True, attention=3, bidirectional=True),
    ForecasterConfig(features.INPUT_SIZE, 8, cell="coupled", bidirectional=True),
]


def names(config: ForecasterConfig) -> str:
    return config.cell


def some() -> history.History:
    """Four series of unequal length."""
    made = synthetic.generate(np.random.default_rng(4), len(LENGTHS), max(LENGTHS))
    time = np.concatenate([made.time[k, :n] for k, n in enumerate(LENGTHS)])
    value = np.concatenate([made.value[k, :n] for k, n in enumerate(LENGTHS)])
    return history.History(time, value, np.array(LENGTHS))


def of_one(k: int) -> slice:
    first = sum(LENGTHS[:k])
    return slice(first, first + LENGTHS[k])


def random(config: ForecasterConfig) -> Weights:
    rng = np.random.default_rng(7)
    shapes = expected_shapes(config).items()
    return Weights(config, {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes}, {})


@pytest.mark.parametrize("k", range(len(LENGTHS)))
def test_series_of_unequal_length_do_not_touch_each_other(k: int) -> None:
    """Together they are told what each is told alone, which is what it is trained on."""
    whole = some()
    rows = of_one(k)
    past = history.past(whole)
    batch = pretrain.encode(whole.time[None, rows], whole.value[None, rows], bidirectional=True)
    together = np.concatenate((past.inputs, history.future(whole, past)), axis=1)
    np.testing.assert_allclose(together[rows], batch.inputs[0].numpy(), atol=1e-6)
    for name in ("previous", "step", "y"):
        np.testing.assert_allclose(getattr(past, name)[rows], getattr(batch, name)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_a_step_that_is_told_the_future_gives_what_was_trained(config: ForecasterConfig) -> None:
    """Reading by reading, side by side, the head says what the network says of the whole series, to 1e-4."""
    weights, whole = random(config), some()
    model = Forecaster(config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.tensors.items()})
    told, past = history.foresee(weights, whole), history.past(whole)
    stepper = NumpyStepper(weights, 9, offline=True)
    found = np.empty((len(whole.time), 9), np.float32)
    for t in range(max(LENGTHS)):
        series = np.flatnonzero(whole.lengths > t)
        rows = np.array([of_one(k).start + t for k in series.tolist()])
        slots = 7 - series
        stepper.expect(slots, told[rows])
        found[rows] = stepper.step(slots, past.inputs[rows])
    for k in range(len(LENGTHS)):
        rows_of_one = of_one(k)
        batch = pretrain.encode(whole.time[None, rows_of_one], whole.value[None, rows_of_one], bidirectional=True)
        with torch.no_grad():
            wanted, _ = model.eval()(batch.inputs)
        np.testing.assert_allclose(found[rows_of_one], wanted[0].numpy(), atol=1e-4)


def test_nothing_is_told_of_a_reading_itself() -> None:
    """Another value of one reading changes what is foreseen of those before it, and nothing of it or those after."""
    weights, whole = random(CONFIGS[2]), some()
    at = of_one(2).start + 12
    value = whole.value.copy()
    value[at] += 5.0 + abs(value[at])
    one, two = (
        history.foresee(weights, history.History(whole.time, each, whole.lengths)) for each in (whole.value, value)
    )
    assert (one[at] == two[at]).all()
    same = (one == two)[:, :-1].all(axis=1)  # the last column has the terms of the forecast, which are of the past
    assert same[at:].all()
    assert not same[of_one(2).start + 2 : at].any()
    assert same[: of_one(2).start].all()
