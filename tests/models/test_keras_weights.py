"""Weights to Keras and back: keras.layers.LSTM and GRU, Keras 3 on torch, give what our layers give, to 1e-5."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Protocol

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import cells, step
from models.cells import Layer
from models.forecaster import Forecaster, ManyToOne
from models.keras_weights import KerasLayer, from_keras, to_keras
from models.weights import ForecasterConfig, Weights, expected_shapes, recurrent_layers

CELLS = ("lstm", "gru")

# Keras' variables answer numpy in its manner of before 2.0: keras/src/backend/common/variables.py, `__array__`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Keras reads its back end from the environment when it is first imported, and writes a file to its home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        yield importlib.import_module("keras")


def random_weights(config: ForecasterConfig, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    tensors = {n: (0.3 * rng.normal(size=shape)).astype(np.float32) for n, shape in expected_shapes(config).items()}
    return Weights(config, tensors, {})


class Network(Protocol):
    """As much of a Keras model or layer as is used here."""

    layers: list[Network]
    forward_layer: Network
    backward_layer: Network

    def get_weights(self) -> list[cells.Float]: ...

    def set_weights(self, weights: list[cells.Float]) -> None: ...

    def __call__(self, x: cells.Float) -> torch.Tensor: ...


def recurrent(keras: ModuleType, cell: str, units: int, *, sequences: bool = True) -> Network:
    kind = keras.layers.LSTM if cell == "lstm" else keras.layers.GRU
    layer: Network = kind(units, return_sequences=sequences)
    return layer


def stack(keras: ModuleType, config: ForecasterConfig) -> Network:
    """The recurrent layers as a Keras model, with Keras' own weights."""
    keras.utils.set_random_seed(3)
    layers = [recurrent(keras, config.cell, config.hidden_size) for _ in range(config.num_layers)]
    model: Network = keras.Sequential([keras.Input((None, config.input_size)), *layers])
    return model


def hidden(weights: Weights, x: cells.Float) -> cells.Float:
    """Our recurrent layers over the sequences."""
    model = Forecaster(weights.config).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.tensors.items()})
    with torch.no_grad():
        ahead, _, _ = model.encode(torch.from_numpy(x))
    return ahead.numpy()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_exported_to_keras_gives_the_same(keras: ModuleType, cell: str, layers: int) -> None:
    """Our weights in Keras' layers: the hidden states of 40 steps agree to 1e-5."""
    weights = random_weights(ForecasterConfig(5, 12, layers, cell=cell))
    model = stack(keras, weights.config)
    for theirs, ours in zip(model.layers, recurrent_layers(weights), strict=True):
        theirs.set_weights(list(to_keras(cell, ours)))
    x = np.random.default_rng(1).normal(size=(6, 40, 5)).astype(np.float32)
    np.testing.assert_allclose(model(x).detach().numpy(), hidden(weights, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_imported_from_keras_gives_the_same_and_streams(keras: ModuleType, cell: str) -> None:
    """Keras' own weights, biases and all, in our network and in the stepper, reading by reading."""
    config = ForecasterConfig(5, 12, 2, cell=cell)
    model = stack(keras, config)
    rng = np.random.default_rng(2)
    for layer in model.layers:  # Keras begins with biases of 0 and 1
        layer.set_weights([value + 0.2 * rng.normal(size=value.shape) for value in layer.get_weights()])
    weights = random_weights(config)
    for k, theirs in enumerate(model.layers):
        for name, value in from_keras(cell, KerasLayer(*theirs.get_weights()))._asdict().items():
            if value is not None:
                weights.tensors[f"lstm.{name}_l{k}"] = np.ascontiguousarray(value)
    x = rng.normal(size=(6, 40, 5)).astype(np.float32)
    wanted = model(x).detach().numpy()
    np.testing.assert_allclose(hidden(weights, x), wanted, rtol=0, atol=1e-5)
    stepper = step.NumpyStepper(weights, 6)
    for t in range(40):
        found = stepper.step(np.arange(6), x[:, t])
        head = np.concatenate((wanted[:, t], x[:, t]), axis=1) @ weights.tensors["head.weight"].T
        np.testing.assert_allclose(found, head + weights.tensors["head.bias"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_masked_many_to_one_both_ways_is_keras_s(keras: ModuleType, cell: str) -> None:
    """Masking, Bidirectional and Dense over sequences of 1 to 9 steps: `ManyToOne` of the same weights, to 1e-5."""
    config = ForecasterConfig(5, 8, cell=cell, bidirectional=True)
    torch.manual_seed(0)
    model = ManyToOne(Forecaster(config), 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    keras_model = keras.Sequential(
        [
            keras.Input((None, 5)),
            keras.layers.Masking(),
            keras.layers.Bidirectional(recurrent(keras, cell, 8, sequences=False)),
            keras.layers.Dense(3),
        ]
    )
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    names = cells.shapes(cell, 5, 8)
    both = keras_model.layers[1]
    for theirs, prefix in ((both.forward_layer, "body.lstm."), (both.backward_layer, "body.reverse.")):
        layer = Layer(**{name: state[f"{prefix}{name}_l0"] for name in names})
        theirs.set_weights(list(to_keras(cell, layer)))
    keras_model.layers[2].set_weights([state["head.weight"].T, state["head.bias"]])
    lengths = np.array([9, 1, 4, 7])
    x = np.random.default_rng(1).normal(size=(4, 9, 5)).astype(np.float32)
    x[np.arange(9) >= lengths[:, None]] = 0  # what Masking takes for padding
    with torch.no_grad():
        found = model(torch.from_numpy(np.concatenate((x, x), axis=2)), torch.from_numpy(lengths))
    np.testing.assert_allclose(found.numpy(), keras_model(x).detach().numpy(), rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CELLS), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_there_and_back_is_the_same_step(cell: str, inputs: int, units: int, seed: int) -> None:
    """Exported and imported, a layer steps as before; imported and exported, Keras' arrays come back bit for bit."""
    rng = np.random.default_rng(seed)
    layer = Layer(**{name: rng.normal(size=shape) for name, shape in cells.shapes(cell, inputs, units).items()})
    there = to_keras(cell, layer)
    back = from_keras(cell, there)
    x = rng.normal(size=(3, inputs))
    state = tuple(rng.normal(size=(3, size)) for size in cells.state_sizes(cell, units))
    for one, two in zip(cells.step(cell, back, x, state), cells.step(cell, layer, x, state), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-12)
    for one, two in zip(to_keras(cell, back), there, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_keras_has_not_is_refused() -> None:
    """Other cells, in both directions, and the GRU whose reset gate comes before the product."""
    for cell in sorted(set(cells.CELLS) - set(CELLS)):
        layer = Layer(**{name: np.zeros(shape) for name, shape in cells.shapes(cell, 3, 2).items()})
        with pytest.raises(ValueError, match=cell):
            to_keras(cell, layer)
        with pytest.raises(ValueError, match=cell):
            from_keras(cell, KerasLayer(np.zeros((3, 6)), np.zeros((2, 6)), np.zeros((2, 6))))
    with pytest.raises(ValueError, match="reset_after"):
        from_keras("gru", KerasLayer(np.zeros((3, 6)), np.zeros((2, 6)), np.zeros(6)))
