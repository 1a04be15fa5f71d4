"""The trained side of the forecast: its layers against torch's and the equations, its loss as a density, padding."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import cells, mixture, step
from models.forecaster import Forecaster, ManyToOne, log_loss
from models.mixture import Float64
from models.recurrent import FORGET_BIAS, Recurrent
from models.weights import ForecasterConfig, Weights, expected_shapes, recurrent_layers

FAMILY = [
    *(ForecasterConfig(5, 12, cell=cell) for cell in cells.CELLS),
    *(ForecasterConfig(5, 12, 3, cell=cell, residual=True) for cell in ("lstm", "gru", "peephole", "coupled")),
    *(ForecasterConfig(5, 12, 2, cell=cell, attention=4) for cell in ("lstm", "gru", "fgr")),
    ForecasterConfig(5, 12, attention=1),
]
"""One of each kind that streams."""
BOTH_WAYS = [
    ForecasterConfig(5, 12, 2, cell="lstm", bidirectional=True),
    ForecasterConfig(5, 12, 2, cell="gru", bidirectional=True, residual=True, attention=3),
    ForecasterConfig(5, 12, 1, cell="peephole", bidirectional=True),
]


def kind(config: ForecasterConfig) -> str:
    switches = ("residual", "attention", "bidirectional")
    return " ".join([config.cell, str(config.num_layers), *(name for name in switches if getattr(config, name))])


def wild(module: nn.Module) -> None:
    """Weights of all sizes in every place, also where training begins with zeros."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2)


def forecaster_of(config: ForecasterConfig, seed: int = 0) -> Forecaster:
    torch.manual_seed(seed)
    model = Forecaster(config)
    wild(model)
    return model.eval()


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
    wanted = np.clip(-log_density(head, previous, unit, y), mixture.LEAST_LOSS, mixture.MOST_LOSS)
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
    assert abs(total - 1) < 1e-4 + 120 * np.exp(-mixture.MOST_LOSS)


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


@pytest.mark.parametrize("cell", cells.CELLS)
def test_what_keeps_the_past_begins_open(cell: str) -> None:
    """A forget gate of 0.82 in every cell that has one, GRU's update gate too; every other bias and peephole is 0."""
    torch.manual_seed(3)
    model = Forecaster(ForecasterConfig(5, 12, 2, cell=cell))
    blocks = "rzn" if cell == "gru" else cells.LSTMS[cell].blocks
    keeper = "z" if cell == "gru" else "f"
    wanted = {"i": -FORGET_BIAS} if cell in ("coupled", "cifg") else {keeper: FORGET_BIAS}
    for name, value in model.state_dict().items():
        if "bias_ih" in name:
            assert value.tolist() == [wanted.get(letter, 0.0) for letter in blocks for _ in range(12)]
        elif name.startswith("lstm.") and ("bias_hh" in name or "weight_ch" in name or "weight_gh" in name):
            assert not value.any()


def test_the_same_seed_gives_the_same_network() -> None:
    """Bit for bit; another seed another."""
    one, two, other = (some_forecaster(2, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["lstm.weight_hh_l1"], other["lstm.weight_hh_l1"])


@pytest.mark.parametrize(("cell", "module"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_stack_is_torch_s_own(cell: str, module: type[nn.LSTM | nn.GRU], layers: int) -> None:
    """Outputs, last state and gradients of torch.nn.LSTM and nn.GRU of as many layers, whose weights load by name."""
    torch.manual_seed(1)
    theirs = module(5, 12, layers, batch_first=True)
    wild(theirs)
    ours = Recurrent(ForecasterConfig(5, 12, layers, cell=cell))
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(4, 30, 5)
    wanted, last = theirs(inputs)
    found, state = ours(inputs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    for one, two in zip(state, last if cell == "lstm" else (last,), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    found.square().sum().backward()
    wanted.square().sum().backward()
    gradients = ours.state_dict(keep_vars=True)
    assert gradients.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", FAMILY, ids=kind)
def test_a_sequence_is_the_equations_one_after_the_other(config: ForecasterConfig) -> None:
    """In float64, all outputs are those of `cells`, with residual and attention spelled out in numpy."""
    model = forecaster_of(config).double()
    weights = exported(model)
    x: cells.Float = np.random.default_rng(1).normal(size=(3, 25, 5))
    with torch.no_grad():
        found, _ = model(torch.from_numpy(x))
    sizes = cells.state_sizes(config.cell, 12)
    states: list[tuple[cells.Float, ...]] = [tuple(np.zeros((3, size)) for size in sizes)] * config.num_layers
    history: list[cells.Float] = [np.zeros((3, 12))] * max(config.attention, 1)
    for t in range(25):
        below = x[:, t]
        for k, layer in enumerate(recurrent_layers(weights)):
            states[k] = cells.step(config.cell, layer, below, states[k])
            below = states[k][0] + below if config.residual and k else states[k][0]
        history = [*history[1:], below]
        seen = [below]
        if config.attention:
            query = below @ weights.tensors["attention.weight"] / np.sqrt(12)
            likeness = np.exp([(query * one).sum(axis=1) for one in history])
            share = likeness / likeness.sum(axis=0)
            seen.append(sum(part[:, None] * one for part, one in zip(share, history, strict=True)))
        head = (
            np.concatenate([*seen, x[:, t]], axis=1) @ weights.tensors["head.weight"].T + weights.tensors["head.bias"]
        )
        np.testing.assert_allclose(found[:, t].numpy(), head, rtol=0, atol=1e-10)


def test_residual_layers_that_say_nothing_pass_on_what_they_hear() -> None:
    """With all weights of the upper layers 0 the hidden state is that of the first alone; without residual it is 0."""
    for residual in (True, False):
        model = Recurrent(ForecasterConfig(5, 12, 4, residual=residual))
        first = Recurrent(ForecasterConfig(5, 12, 1))
        with torch.no_grad():
            for layer in list(model.layers)[1:]:
                for parameter in layer.parameters():
                    parameter.zero_()
            first.layers[0].load_state_dict(model.layers[0].state_dict())
            inputs = torch.randn(2, 9, 5)
            found, wanted = model(inputs)[0], first(inputs)[0]
        torch.testing.assert_close(found, wanted if residual else torch.zeros_like(wanted))


@pytest.mark.parametrize("cell", ["lstm", "gru", "peephole"])
def test_dropout_is_between_the_layers_only(cell: str) -> None:
    """In training the lowest layer's state is untouched and the next one's is not; a single layer knows no dropout."""
    inputs = torch.randn(4, 20, 5, generator=torch.Generator().manual_seed(2))
    model = Recurrent(ForecasterConfig(5, 12, 2, 0.5, cell=cell))
    with torch.no_grad():
        (_, noisy), (_, again) = model.train()(inputs), model(inputs)
        _, calm = model.eval()(inputs)
        assert torch.equal(noisy[0][0], calm[0][0])
        assert not torch.equal(noisy[0][1], calm[0][1])
        assert not torch.equal(noisy[0][1], again[0][1])
        single = Recurrent(ForecasterConfig(5, 12, 1, 0.5, cell=cell)).train()
        assert torch.equal(single(inputs)[0], single.eval()(inputs)[0])


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = model.state_dict(keep_vars=True)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("config", [*FAMILY, *BOTH_WAYS], ids=kind)
def test_padding_changes_nothing(config: ForecasterConfig) -> None:
    """Sequences of 1 to 9 steps in one batch: outputs, last state and gradient are those of each by itself.

    Whatever stands in the padding: also an infinity, which a mask by multiplication would let through.
    """
    model = forecaster_of(config).double()
    rng = np.random.default_rng(4)
    lengths = torch.tensor([9, 1, 4, 9, 6])
    padded = torch.from_numpy(rng.normal(size=(5, 9, config.width)))
    for row, length in enumerate(lengths):
        padded[row, length:] = torch.inf if row % 2 else 1e30
    past = [torch.from_numpy(rng.normal(size=part.shape) * 0.3) for part in model(padded[:, :1])[1]]
    batch_axis = [0 if config.attention and k == len(past) - 1 else 1 for k in range(len(past))]
    found, state = model(padded, tuple(past), lengths)
    real = [found[row, :length] for row, length in enumerate(lengths)]
    alone = []
    for row, length in enumerate(lengths):
        own = tuple(part.narrow(axis, row, 1) for part, axis in zip(past, batch_axis, strict=True))
        output, last = model(padded[row : row + 1, :length], own)
        alone.append(output[0])
        for whole, part, axis in zip(state, last, batch_axis, strict=True):
            torch.testing.assert_close(whole.narrow(axis, row, 1), part, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat(real), torch.cat(alone), rtol=0, atol=1e-12)
    one, two = (gradients(model, torch.cat(parts).square().sum()) for parts in (real, alone))
    for name, gradient in one.items():
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, two[name], rtol=1e-9, atol=1e-9, msg=name)


def test_a_single_bidirectional_layer_is_torch_s() -> None:
    """Two stacks of one layer give what torch.nn.LSTM(bidirectional=True) gives, forwards and backwards."""
    model = forecaster_of(ForecasterConfig(5, 12, bidirectional=True))
    theirs = nn.LSTM(5, 12, batch_first=True, bidirectional=True)
    names = {"lstm.": "", "reverse.": "_reverse"}
    own = model.state_dict()
    theirs.load_state_dict(
        {name.removeprefix(a) + b: own[name] for a, b in names.items() for name in own if name.startswith(a)}
    )
    x = torch.randn(3, 17, 5)
    with torch.no_grad():
        wanted, _ = theirs(x)
        ahead, back, _ = model.encode(torch.cat((x, x), dim=-1))
        assert back is not None
        torch.testing.assert_close(torch.cat((ahead, back), dim=-1), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", BOTH_WAYS, ids=kind)
def test_each_direction_sees_its_own_side_only(config: ForecasterConfig) -> None:
    """Deep or not: what comes from the past after step t, and from the future before it, does not reach step t."""
    model = forecaster_of(config)
    x = torch.randn(2, 12, config.width)
    changed = x.clone()
    changed[:, 6:, :5] += 1  # from the past: steps 6 and later
    changed[:, :4, 5:-1] += 1  # from the future: steps 3 and earlier
    changed[:, :4, -1] += 1  # what follows, in the terms of the forecast: it reaches its own step only
    changed[:, 6:, -1] += 1
    with torch.no_grad():
        one, two = model(x)[0], model(changed)[0]
    assert torch.equal(one[:, 4:6], two[:, 4:6])
    assert not torch.isclose(one[:, :4], two[:, :4]).all(dim=-1).any()
    assert not torch.isclose(one[:, 6:], two[:, 6:]).all(dim=-1).any()


@pytest.mark.parametrize("config", [FAMILY[0], FAMILY[-2], *BOTH_WAYS], ids=kind)
def test_many_to_one_sees_the_last_real_step(config: ForecasterConfig) -> None:
    """A vector a sequence, the same padded as alone; every step of the sequence reaches it, and the body learns."""
    torch.manual_seed(5)
    model = ManyToOne(forecaster_of(config), 3)
    lengths = torch.tensor([7, 3, 1])
    x = torch.randn(3, 7, config.width, requires_grad=True)
    together = model(x, lengths)
    assert together.shape == (3, 3)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row], model(x[row : row + 1, :length])[0], rtol=0, atol=1e-6)
    (reached,) = torch.autograd.grad(together.sum(), x, retain_graph=True)
    for row, length in enumerate(lengths):
        assert (reached[row, :length].abs().sum(dim=-1) > 0).all()
        assert not reached[row, length:].any()
    together.sum().backward()
    assert all(part.grad is not None for name, part in model.named_parameters() if not name.startswith("body.head"))


@settings(max_examples=24, deadline=None)
@given(st.sampled_from(FAMILY), st.lists(st.integers(1, 39), max_size=5, unique=True))
def test_a_sequence_in_pieces_equals_the_whole(config: ForecasterConfig, cuts: list[int]) -> None:
    """With the state carried over, wherever the sequence is cut, outputs and last state are the same to 1e-6."""
    model = forecaster_of(config)
    inputs = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1))
    state, pieces = None, []
    with torch.no_grad():
        whole, last = model(inputs)
        for start, stop in itertools.pairwise([0, *sorted(cuts), 40]):
            piece, state = model(inputs[:, start:stop], state)
            pieces.append(piece)
    assert state is not None
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=2e-6)
    for one, two in zip(state, last, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [*FAMILY, *BOTH_WAYS], ids=kind)
def test_exported_weights_have_the_names_and_shapes_that_files_have(config: ForecasterConfig) -> None:
    """What `weights.check` expects of a file is what the network has, and what it has loads again."""
    model = forecaster_of(config)
    state = model.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected_shapes(config)
    other = forecaster_of(config, seed=9)
    other.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("config", FAMILY, ids=kind)
def test_numpy_serves_what_torch_trained(config: ForecasterConfig) -> None:
    """Reading by reading, the CPU's stepper gives what the network gives for the whole sequence."""
    model = forecaster_of(config, seed=2)
    inputs = np.random.default_rng(0).normal(size=(20, 60, 5)).astype(np.float32)
    with torch.no_grad():
        wanted, _ = model(torch.from_numpy(inputs))
    stepper = step.NumpyStepper(exported(model), 20)
    found = np.stack([stepper.step(np.arange(20), inputs[:, t]) for t in range(60)], axis=1)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_training_mode_is_what_dropout_listens_to() -> None:
    """A forecaster in training forgets between its layers, in evaluation it does not."""
    model = forecaster_of(replace(FAMILY[0], num_layers=2, dropout=0.5))
    inputs = torch.randn(2, 8, 5)
    with torch.no_grad():
        assert torch.equal(model(inputs)[0], model(inputs)[0])
        assert not torch.equal(model.train()(inputs)[0], model(inputs)[0])
