"""The streaming step against torch.nn.LSTM, the trained network, the equations, and itself cut into other waves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import cells, step
from models.forecaster import Forecaster
from models.weights import ForecasterConfig, Weights, WeightsError, expected_shapes, recurrent_layers

FAMILY = [
    *(ForecasterConfig(5, 8, 2, cell=cell) for cell in cells.CELLS),
    *(ForecasterConfig(5, 8, 3, cell=cell, residual=True) for cell in ("lstm", "gru", "peephole", "coupled")),
    *(ForecasterConfig(5, 8, 2, cell=cell, attention=5) for cell in ("lstm", "gru", "fgr")),
    ForecasterConfig(5, 8, attention=1),
]


def kind(config: ForecasterConfig) -> str:
    residual, attention = " residual" * config.residual, f" attention {config.attention}" * (config.attention > 0)
    return f"{config.cell}{residual}{attention}"


def random_weights(config: ForecasterConfig, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    tensors = {
        name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in expected_shapes(config).items()
    }
    return Weights(config, tensors, {})


def torch_outputs(weights: Weights, inputs: np.ndarray) -> np.ndarray:
    """The head over torch.nn.LSTM's own output, the whole sequence `(n, time, input_size)` at once."""
    config = weights.config
    lstm = torch.nn.LSTM(config.input_size, config.hidden_size, config.num_layers, batch_first=True)
    lstm.load_state_dict(
        {name[5:]: torch.from_numpy(v) for name, v in weights.tensors.items() if name.startswith("lstm.")}
    )
    with torch.no_grad():
        hidden, _ = lstm(torch.from_numpy(inputs))
        x = torch.cat((hidden, torch.from_numpy(inputs)), dim=-1)
        head = x @ torch.from_numpy(weights.tensors["head.weight"]).T + torch.from_numpy(weights.tensors["head.bias"])
    return head.numpy()


def steppers(weights: Weights, capacity: int) -> list[step.Stepper]:
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [step.NumpyStepper(weights, capacity), *(step.TorchStepper(weights, capacity, device) for device in devices)]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_stepping_one_by_one_equals_torch_over_the_whole_sequence(layers: int) -> None:
    """Reading by reading, each back end gives what torch.nn.LSTM gives for the sequence, to 1e-5."""
    weights = random_weights(ForecasterConfig(5, 16, layers))
    inputs = np.random.default_rng(1).normal(size=(40, 30, 5)).astype(np.float32)
    wanted = torch_outputs(weights, inputs)
    slots = np.random.default_rng(2).permutation(60)[:40]
    for stepper in steppers(weights, 60):
        got = np.stack([stepper.step(slots, inputs[:, t]) for t in range(30)], axis=1)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("config", FAMILY, ids=kind)
def test_every_cell_streams_as_it_was_trained(config: ForecasterConfig) -> None:
    """Reading by reading, series that begin at different times: what the network says of each sequence, to 1e-5."""
    weights = random_weights(config)
    model = Forecaster(config).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.tensors.items()})
    rng = np.random.default_rng(1)
    inputs, begins = rng.normal(size=(20, 30, 5)).astype(np.float32), rng.integers(0, 12, 20)
    slots = rng.permutation(40)[:20]
    for stepper in steppers(weights, 40):
        got = np.full((20, 30, 9), np.nan, np.float32)
        for t in range(30):
            here = np.flatnonzero(begins <= t)
            got[here, t] = stepper.step(slots[here], inputs[here, t])
        for row, begin in enumerate(begins):
            with torch.no_grad():
                wanted, _ = model(torch.from_numpy(inputs[row : row + 1, begin:]))
            np.testing.assert_allclose(got[row, begin:], wanted[0].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", FAMILY, ids=kind)
def test_a_stepper_that_is_restored_goes_on(config: ForecasterConfig) -> None:
    """What `export` gave, put into another back end, gives the next forecast: the whole state is in the rows."""
    weights = random_weights(config)
    inputs = np.random.default_rng(4).normal(size=(9, 6, 5)).astype(np.float32)
    one, two = step.NumpyStepper(weights, 6), step.TorchStepper(weights, 6, "cpu")
    for x in inputs[:8]:
        one.step(np.arange(6), x)
    rows = one.export(slice(6))
    assert rows.shape == (6, step.state_size(config))
    two.put(slice(len(rows)), rows)
    np.testing.assert_allclose(
        two.step(np.arange(6), inputs[8]), one.step(np.arange(6), inputs[8]), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(two.export(slice(6)), one.export(slice(6)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("back_end", [step.NumpyStepper, step.TorchStepper])
def test_what_looks_at_the_future_does_not_stream(back_end: type[step.NumpyStepper | step.TorchStepper]) -> None:
    """Bidirectional weights are refused with the reason and the way out."""
    weights = random_weights(ForecasterConfig(5, 8, bidirectional=True))
    with pytest.raises(WeightsError, match=r"readings after it.*label history.*without --bidirectional"):
        back_end(weights, 3)


def test_numpy_step_equals_the_equations() -> None:
    """The fast step and the one-line-one-equation cell agree to rounding."""
    weights = random_weights(ForecasterConfig(7, 12, 1))
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(9, 7)).astype(np.float32)
    stepper = step.NumpyStepper(weights, 9)
    stepper.step(np.arange(9), inputs)
    rows = stepper.export(slice(9))
    zero = np.zeros((9, 12), np.float32)
    h, c = cells.lstm(recurrent_layers(weights)[0], inputs, zero, zero)
    np.testing.assert_allclose(rows, np.concatenate((h, c), axis=1), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=31, unique=True), st.integers(0, 2**32 - 1))
def test_other_slots_are_left_alone(slots: list[int], seed: int) -> None:
    """A step touches the rows of its slots and no other."""
    config = ForecasterConfig(4, 8, 2, attention=3)
    weights = random_weights(config, 5)
    rng = np.random.default_rng(seed)
    for stepper in steppers(weights, 31):
        before = rng.normal(size=(31, step.state_size(config))).astype(np.float32)
        stepper.put(slice(len(before)), before)
        stepper.step(np.array(slots), rng.normal(size=(len(slots), 4)).astype(np.float32))
        after = stepper.export(slice(31))
        others = np.setdiff1d(np.arange(31), slots)
        np.testing.assert_array_equal(after[others], before[others])
        assert (np.abs(after[slots] - before[slots]).max(axis=1) > 0).all()


@pytest.mark.parametrize("attention", [0, 3])
def test_an_empty_wave_is_nothing(attention: int) -> None:
    """A batch of late readings only leaves none to step."""
    for stepper in steppers(random_weights(ForecasterConfig(4, 8, 2, attention=attention)), 5):
        assert stepper.step(np.empty(0, np.intp), np.empty((0, 4), np.float32)).shape == (0, 9)


def test_large_waves_equal_small_ones() -> None:
    """A wave longer than a chunk gives what its rows give one by one."""
    weights = random_weights(ForecasterConfig(4, 8, 1))
    inputs = np.random.default_rng(0).normal(size=(1300, 4)).astype(np.float32)
    whole, single = step.NumpyStepper(weights, 1300), step.NumpyStepper(weights, 1300)
    together = whole.step(np.arange(1300), inputs)
    rows = np.concatenate([single.step(np.array([k]), inputs[k : k + 1]) for k in range(1300)])
    np.testing.assert_allclose(together, rows, atol=1e-6)


def test_reset_forgets() -> None:
    """After a reset a slot answers as one that has no past."""
    weights = random_weights(ForecasterConfig(4, 8, 2, attention=3))
    x = np.ones((1, 4), np.float32)
    for stepper in steppers(weights, 3):
        first = stepper.step(np.array([1]), x)
        assert np.abs(stepper.step(np.array([1]), x) - first).max() > 1e-4
        stepper.reset(np.array([1]))
        np.testing.assert_array_equal(stepper.step(np.array([1]), x), first)
