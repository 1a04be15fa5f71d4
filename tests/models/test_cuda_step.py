"""The streaming step as a kernel, in Triton's interpreter: against the CPU's step, float64, and itself cut anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import cells, cuda_step, mixture, pretrain, step, weights
from models.cuda_step import KernelStepper
from models.tbptt import Sequences
from models.weights import ForecasterConfig, Weights, recurrent_layers
from streamer.detector import Detector, waves
from streamer.readings import Batch
from tests.models.test_step import random_weights

Float64 = NDArray[np.float64]

FAMILY = [
    ForecasterConfig(18, 64),
    ForecasterConfig(5, 16, 2),
    ForecasterConfig(1, 32, 3, residual=True),
    ForecasterConfig(40, 64),
]


def shape(config: ForecasterConfig) -> str:
    return f"{config.input_size} {config.num_layers}x{config.hidden_size}{' residual' * config.residual}"


@pytest.mark.parametrize("config", FAMILY, ids=shape)
def test_the_kernel_is_the_step(interpreter: str, config: ForecasterConfig) -> None:
    """Batches of all sizes of random slots: output and state of the CPU's step, to what float16 rounds."""
    made, rng = random_weights(config), np.random.default_rng(1)
    kernel, sure = KernelStepper(made, 200, interpreter), step.NumpyStepper(made, 200)
    for n in (1, 63, 64, 65, 150, 2):
        slots, inputs = rng.permutation(200)[:n], rng.normal(size=(n, config.input_size)).astype(np.float32)
        np.testing.assert_allclose(kernel.step(slots, inputs), sure.step(slots, inputs), atol=0.01)
        np.testing.assert_allclose(kernel.export(slice(None)), sure.export(slice(None)), atol=0.004)
    assert np.abs(sure.export(slice(None))).max() > 0.3


def test_what_it_rounds_is_all_that_differs(interpreter: str) -> None:
    """With weights, inputs and a state that float16 holds exactly, one step's output is the CPU's to 1e-5."""
    config = ForecasterConfig(5, 16)
    rng = np.random.default_rng(2)
    tensors = {
        name: np.round(value, 1).astype(np.float16).astype(np.float32)
        for name, value in random_weights(config).tensors.items()
    }
    tensors["head.weight"][:, :16] = 0  # h is rounded before the head reads it
    made = Weights(config, tensors, {})
    kernel, sure = KernelStepper(made, 90, interpreter), step.NumpyStepper(made, 90)
    state, inputs = (rng.integers(-64, 64, (90, n)).astype(np.float32) / np.float32(32) for n in (32, 5))
    for stepper in (kernel, sure):
        stepper.put(slice(None), state)
    np.testing.assert_array_equal(kernel.export(slice(None)), state)
    np.testing.assert_allclose(kernel.step(np.arange(90), inputs), sure.step(np.arange(90), inputs), atol=1e-5)
    wanted = sure.export(slice(None)).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(kernel.export(slice(None)), wanted, rtol=2**-10, atol=1e-6)


def in_float64(made: Weights, inputs: Float64) -> Float64:
    """The head `(n, time, 9)` by the equations."""
    tensors = {name: value.astype(np.float64) for name, value in made.tensors.items()}
    layers = recurrent_layers(replace(made, tensors=tensors))  # type: ignore[arg-type]  # float64 for the difference
    hidden, heads = made.config.hidden_size, []
    states: list[tuple[cells.Float, ...]] = [(np.zeros((len(inputs), hidden)),) * 2 for _ in layers]
    below: cells.Float
    for x in np.moveaxis(inputs, 1, 0):
        below = x
        for k, layer in enumerate(layers):
            states[k] = cells.step("lstm", layer, below, states[k])
            below = states[k][0]
        heads.append(np.concatenate((below, x), axis=1) @ made.tensors["head.weight"].T + made.tensors["head.bias"])
    return np.stack(heads, axis=1)


@torch.no_grad()
def in_float16(made: Weights, inputs: NDArray[np.float32]) -> Float64:
    """The same by torch's own LSTM cell, everything in float16."""
    layers = [[torch.from_numpy(part).half() for part in layer[:4]] for layer in recurrent_layers(made)]
    head, bias = (torch.from_numpy(made.tensors[f"head.{name}"]).half() for name in ("weight", "bias"))
    states = [(torch.zeros(len(inputs), made.config.hidden_size).half(),) * 2 for _ in layers]
    heads = []
    for x in torch.from_numpy(inputs).half().unbind(1):
        below = x
        for k, layer in enumerate(layers):
            states[k] = torch.lstm_cell(below, states[k], *layer)
            below = states[k][0]
        heads.append(torch.addmm(bias, torch.cat((below, x), dim=1), head.T))
    return torch.stack(heads, dim=1).double().numpy()


def surprises(head: NDArray[np.floating], known: Sequences) -> Float64:
    """The loss of each reading under these forecasts, in nats, `(n * time,)`."""
    previous, unit, y = (part.numpy().ravel() for part in (known.previous, known.step, known.y))
    forecast = mixture.unpack(head.reshape(-1, mixture.PARAMETERS).astype(np.float32), previous, unit)
    return mixture.loss(forecast, y)


@pytest.mark.parametrize("which", ["shipped", "2x64"])
def test_a_score_is_no_worse_than_in_float16_by_torch(interpreter: str, which: str) -> None:
    """Of synthetic series with the shipped weights, and of two layers: head and loss are nearer to float64's."""
    known = pretrain.sequences(np.random.default_rng(3), 60, 30)
    inputs = known.inputs.numpy()
    made = weights.load() if which == "shipped" else random_weights(ForecasterConfig(inputs.shape[2], 64, 2))
    kernel = KernelStepper(made, 60, interpreter)
    ours = np.stack([kernel.step(np.arange(60), inputs[:, t]) for t in range(30)], axis=1)
    theirs, sure = in_float16(made, inputs), in_float64(made, inputs.astype(np.float64))
    assert np.square(ours - sure).mean() < np.square(theirs - sure).mean() < 1e-5
    mine, other, right = (surprises(head, known) for head in (ours, theirs, sure))
    assert np.abs(mine - right).mean() < np.abs(other - right).mean() < 0.01


def test_a_row_is_the_same_in_every_batch(interpreter: str) -> None:
    """Bit for bit, however the readings are cut into batches and wherever in one they stand."""
    made = random_weights(ForecasterConfig(5, 16, 2))
    whole, single = KernelStepper(made, 100, interpreter), KernelStepper(made, 100, interpreter)
    inputs = np.random.default_rng(0).normal(size=(2, 100, 5)).astype(np.float32)
    for x in inputs:
        together = whole.step(np.arange(100), x)
        order = np.random.default_rng(1).permutation(100)
        pieces = [single.step(part, x[part]) for part in np.split(order, (1, 3, 70))]
        np.testing.assert_array_equal(together[order], np.concatenate(pieces))
    np.testing.assert_array_equal(whole.export(slice(None)), single.export(slice(None)))


def test_other_slots_are_left_alone(interpreter: str) -> None:
    """Also by the rows of a program that no reading has; an empty batch touches nothing."""
    config = ForecasterConfig(5, 16, 2)
    kernel = KernelStepper(random_weights(config), 50, interpreter)
    before = np.random.default_rng(0).normal(size=(50, step.state_size(config))).astype(np.float16).astype(np.float32)
    kernel.put(slice(None), before)
    assert kernel.step(np.empty(0, np.intp), np.empty((0, 5), np.float32)).shape == (0, 9)
    np.testing.assert_array_equal(kernel.export(slice(None)), before)
    slots = np.array([7, 3, 49])
    kernel.step(slots, np.ones((3, 5), np.float32))
    others = np.setdiff1d(np.arange(50), slots)
    np.testing.assert_array_equal(kernel.export(others), before[others])
    assert (np.abs(kernel.export(slots) - before[slots]).max(axis=1) > 0).all()


def test_state_moves_between_the_back_ends_and_is_forgotten(interpreter: str) -> None:
    """What it exports the CPU's step goes on from, and the other way round; a reset slot has no past."""
    made = random_weights(ForecasterConfig(5, 16, 2))
    kernel, sure = KernelStepper(made, 4, interpreter), step.NumpyStepper(made, 4)
    x, slots = np.ones((2, 5), np.float32), np.array([2, 0])
    first = kernel.step(slots, x)
    sure.put(slots, kernel.export(slots))
    np.testing.assert_allclose(sure.step(slots, x), kernel.step(slots, x), atol=0.01)
    kernel.put(slots, sure.export(slots))
    np.testing.assert_allclose(sure.step(slots, x), kernel.step(slots, x), atol=0.01)
    kernel.reset(slots)
    np.testing.assert_array_equal(kernel.step(slots, x), first)


@pytest.mark.slow
def test_the_detector_scores_with_it(interpreter: str) -> None:
    """The daemon's own detector, its state by the kernel: the verdicts of the CPU's, scores to a hundredth."""
    rng, series, steps = np.random.default_rng(5), 12, 60
    values = np.cumsum(rng.normal(size=(steps, series)), axis=0) + np.arange(series) * 10
    values[50, 3] += 40
    detectors = [Detector(weights.load(), series, budget_per_series_month=1.0) for _ in range(2)]
    detectors[1].stepper = KernelStepper(weights.load(), series, interpreter)
    found: list[list[Float64]] = [[], []]
    for t in range(steps):
        slot, time = np.arange(series, dtype=np.int32), np.full(series, 1e9 + 10.0 * t)
        batch = Batch(slot, time, values[t], np.zeros(series, np.uint8))
        assert len(list(waves(slot))) == 1
        for detector, scores in zip(detectors, found, strict=True):
            verdict, wave = detector.score(batch)
            detector.learn(verdict, wave, np.ones(series, np.bool_))
            scores.append(verdict.score)
    sure, kernel = np.array(found[0]), np.array(found[1])
    np.testing.assert_array_equal(np.isnan(kernel), np.isnan(sure))
    np.testing.assert_allclose(kernel, sure, atol=0.05)
    assert sure[50, 3] > 1


def test_the_kernel_is_taken_where_it_agrees(interpreter: str) -> None:
    """The door gives it, tried out, for the LSTM, and torch's path, with the reason, for what it does not have."""
    assert isinstance(step.on_cuda(random_weights(ForecasterConfig(5, 16)), 3, interpreter), KernelStepper)
    for config in (
        ForecasterConfig(5, 16, cell="gru"),
        ForecasterConfig(5, 16, attention=3),
        ForecasterConfig(5, 24),
        ForecasterConfig(5, 128),
        ForecasterConfig(200, 16),
        ForecasterConfig(5, 16, 5),
    ):
        assert step.kernel_trouble(config, interpreter).startswith("it has the LSTM only")
        assert isinstance(step.on_cuda(random_weights(config), 3, interpreter), step.TorchStepper)
    assert cuda_step.deviation(ForecasterConfig(5, 16, 2), interpreter) < 0.002


def test_a_device_that_is_not_there_is_a_reason() -> None:
    """Not an error of the trial: it says what torch says."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert step.kernel_trouble(ForecasterConfig(5, 16), "cuda").startswith("it cannot be compiled and run here: ")


# --- On a device ---


@pytest.mark.parametrize("config", FAMILY, ids=shape)
def test_the_compiled_kernel_is_the_step(cuda: str, config: ForecasterConfig) -> None:
    """Through its graphs and pinned memory, for batches of several sizes, one of them twice."""
    made, rng = random_weights(config), np.random.default_rng(1)
    assert step.kernel_trouble(config, cuda) == ""
    kernel, sure = step.on_cuda(made, 5000, cuda), step.NumpyStepper(made, 5000)
    assert isinstance(kernel, KernelStepper)
    for n in (1, 64, 65, 256, 4096, 3, 256):
        slots, inputs = rng.permutation(5000)[:n], rng.normal(size=(n, config.input_size)).astype(np.float32)
        np.testing.assert_allclose(kernel.step(slots, inputs), sure.step(slots, inputs), atol=0.01)
    np.testing.assert_allclose(kernel.export(slice(None)), sure.export(slice(None)), atol=0.004)


def test_a_detector_on_a_device_scores_as_on_the_cpu(cuda: str) -> None:
    """`model.device = cuda`: the verdicts of the CPU's, also after other weights have come in."""
    rng, series, steps = np.random.default_rng(5), 300, 80
    values = np.cumsum(rng.normal(size=(steps, series)), axis=0)
    detectors = [
        Detector(weights.load(), series, budget_per_series_month=1.0, device=device) for device in ("cpu", cuda)
    ]
    for t in range(steps):
        time = np.full(series, 1e9 + 10.0 * t)
        batch = Batch(np.arange(series, dtype=np.int32), time, values[t], np.zeros(series, np.uint8))
        scores = []
        for detector in detectors:
            if t == 60:
                detector.begin_swap(weights.load())
                detector.rebuild(series)
                detector.finish_swap()
            verdict, wave = detector.score(batch)
            detector.learn(verdict, wave, np.ones(series, np.bool_))
            scores.append(verdict.score)
        np.testing.assert_allclose(scores[1], scores[0], atol=0.05)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_device_without_room_for_the_state_is_said_so(cuda: str, cell: str) -> None:
    """As on the CPU: MemoryError, which a person is told of with the sizes."""
    with pytest.raises(MemoryError):
        step.on_cuda(random_weights(ForecasterConfig(5, 16, cell=cell)), 1 << 40, cuda)
