"""The trained side of the forecast: its loss as a density, its state carried, its weights served by numpy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import forecaster, mixture, step
from models.forecaster import Forecaster, log_loss
from models.mixture import Float64
from models.weights import ForecasterConfig, Weights, expected_shapes


def some_forecaster(layers: int = 1, seed: int = 0, inputs: int = 5, hidden: int = 12) -> Forecaster:
    """Not trained, but with a head that is not zero."""
    torch.manual_seed(seed)
    model = Forecaster(ForecasterConfig(inputs, hidden, layers))
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3)
    return model.eval()


def exported(model: Forecaster) -> Weights:
    return Weights(model.config, {name: value.numpy() for name, value in model.state_dict().items()}, {})


def log_density(head: Float64, previous: float, unit: float, y: Float64) -> Float64:
    """log of the mixture's density at each `y`, one component after the other, in float64."""
    logits, shifts, spreads = head[:3], np.clip(head[3:6], -8, 8), np.clip(head[6:], -7, 7)
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    total = np.zeros_like(y)
    for weight, shift, spread in zip(weights, shifts, spreads, strict=True):
        scale = max(unit * np.exp(spread), mixture.SCALE_FLOOR)
        e = np.exp(-np.abs(y - previous - unit * np.sinh(shift)) / scale)
        total += weight * e / (scale * (1 + e) ** 2)
    logarithm: Float64 = np.log(np.maximum(total, 1e-300))
    return logarithm


def loss_of(head: Float64, previous: float, unit: float, y: Float64) -> Float64:
    """`log_loss` of one forecast at many `y`, in float64."""
    parts = (np.tile(head, (len(y), 1)), np.full(len(y), previous), np.full(len(y), unit), y)
    losses: Float64 = log_loss(*(torch.from_numpy(part) for part in parts)).numpy()
    return losses


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4))
def test_log_loss_is_minus_the_log_density(seed: int, width: float) -> None:
    """For any head, also beyond its limits, the loss is that of plain float64 arithmetic between its two bounds."""
    rng = np.random.default_rng(seed)
    head = rng.normal(size=9) * width * 3
    unit, previous = float(np.exp(rng.normal() * 2 - 2)), float(rng.normal())
    y = np.r_[rng.normal(size=50) * 3, previous, 15.0, -15.0]
    wanted = np.clip(-log_density(head, previous, unit, y), forecaster.NLL_LEAST, forecaster.NLL_MOST)
    np.testing.assert_allclose(loss_of(head, previous, unit, y), wanted, rtol=1e-6, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_density_integrates_to_one(seed: int) -> None:
    """exp(-loss) is a probability density: over all y it sums to 1."""
    rng = np.random.default_rng(seed)
    head = np.r_[rng.normal(size=3), rng.normal(size=3), rng.uniform(-1.5, 1, 3)]
    y = np.linspace(-60, 60, 40_001)
    total = np.trapezoid(np.exp(-loss_of(head, 0.5, 0.3, y)), y)
    # The bound on the loss leaves a density of exp(-15) where there is next to none.
    assert abs(total - 1) < 1e-4 + 120 * np.exp(-forecaster.NLL_MOST)


def test_the_loss_is_bounded() -> None:
    """A certain forecast that is right earns 4 nats, one that is wrong pays 15: neither takes over a round."""
    sure = np.r_[np.zeros(6), np.full(3, -7.0)]
    assert loss_of(sure, 0.0, 0.1, np.array([0.0, 14.0])).tolist() == [-4.0, 15.0]


def test_log_loss_and_the_served_mixture_speak_of_one_distribution() -> None:
    """Torch's loss and the density of what numpy unpacks agree to float32's resolution."""
    rng = np.random.default_rng(1)
    head = (2 * rng.normal(size=(200, 9))).astype(np.float32)
    previous, unit = rng.normal(size=200).astype(np.float32), rng.uniform(0.01, 1, 200).astype(np.float32)
    y = (previous + unit * rng.normal(size=200)).astype(np.float32)
    weights, locations, scales = np.moveaxis(mixture.unpack(head, previous, unit).astype(np.float64), 1, 0)
    e = np.exp(-np.abs(y[:, None] - locations) / scales)
    wanted = -np.log((weights * e / (scales * (1 + e) ** 2)).sum(axis=1))
    found = log_loss(*(torch.from_numpy(part) for part in (head, previous, unit, y))).numpy()
    np.testing.assert_allclose(found, np.clip(wanted, -4, 15), rtol=1e-4, atol=1e-4)


def test_an_untrained_head_says_the_last_value() -> None:
    """Before training the median is the previous reading to a quarter of a step, whatever the inputs."""
    torch.manual_seed(0)
    model = Forecaster(ForecasterConfig(5, 12))
    with torch.no_grad():
        head, _ = model(torch.randn(1, 50, 5))
    previous, unit = np.linspace(-3, 3, 50, dtype=np.float32), np.full(50, 0.2, np.float32)
    forecast = mixture.quantiles(mixture.unpack(head[0].numpy(), previous, unit))
    assert (np.abs(forecast[:, 1] - previous) < 0.25 * unit).all()
    assert (forecast[:, 0] < previous - unit).all()
    assert (forecast[:, 2] > previous + unit).all()


def test_forget_gates_begin_open() -> None:
    """The bias of each forget gate is 1.5 and that of every other gate 0; the same seed gives the same network."""
    one, two = some_forecaster(2, seed=3), some_forecaster(2, seed=3)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        if name.startswith("lstm.bias_ih"):
            assert value.tolist() == [0.0] * 12 + [1.5] * 12 + [0.0] * 24


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 39), max_size=5, unique=True))
def test_a_sequence_in_pieces_equals_the_whole(layers: int, cuts: list[int]) -> None:
    """With (h, c) carried over, wherever the sequence is cut, the outputs and the last state are the same to 1e-6."""
    model = some_forecaster(layers)
    inputs = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1))
    state, pieces = None, []
    with torch.no_grad():
        whole, last = model(inputs)
        for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 40], strict=True):
            piece, state = model(inputs[:, start:stop], state)
            pieces.append(piece)
    assert state is not None
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-6)
    for one, two in zip(state, last, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_exported_weights_have_the_names_and_shapes_that_files_have() -> None:
    """What `weights.check` expects of a file is what the network has."""
    for layers in (1, 3):
        state = some_forecaster(layers).state_dict()
        assert {name: tuple(value.shape) for name, value in state.items()} == expected_shapes(
            ForecasterConfig(5, 12, layers)
        )


def test_numpy_serves_what_torch_trained() -> None:
    """Reading by reading, the CPU's stepper gives what the network gives for the whole sequence."""
    for layers in (1, 2):
        model = some_forecaster(layers, seed=2)
        inputs = np.random.default_rng(0).normal(size=(20, 60, 5)).astype(np.float32)
        with torch.no_grad():
            wanted, _ = model(torch.from_numpy(inputs))
        stepper = step.NumpyStepper(exported(model), 20)
        found = np.stack([stepper.step(np.arange(20), inputs[:, t]) for t in range(60)], axis=1)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
