"""Truncated backpropagation against a plain loop over the equations, and the loop of training on a tiny problem."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import cells, tbptt
from models.forecaster import Forecaster, log_loss
from models.recurrent import State
from models.tbptt import Sequences
from models.weights import ForecasterConfig, Weights, recurrent_layers

INPUTS, HIDDEN = 3, 6
PLAIN = ForecasterConfig(INPUTS, HIDDEN)


def some_model(seed: int = 0, config: ForecasterConfig = PLAIN) -> Forecaster:
    """In float64, so that equality is equality."""
    torch.manual_seed(seed)
    model = Forecaster(config).double()
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3)
    return model


def some_sequences(count: int = 4, steps: int = 24, seed: int = 1) -> Sequences:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(count, steps))
    previous = np.c_[np.zeros(count), y[:, :-1]]
    parts = (
        rng.normal(size=(count, steps, INPUTS)), previous, rng.uniform(0.2, 1, (count, steps)), y,
        rng.random((count, steps)) < 0.7,
    )  # fmt: skip
    return Sequences(*(torch.from_numpy(part) for part in parts))


def plain_loss(model: Forecaster, part: Sequences, state: State | None = None) -> tuple[Tensor, State]:
    """The mean loss over the masked steps: one series, one reading, one gate, one component after the other."""
    weights = model.state_dict(keep_vars=True)
    total, count = torch.zeros((), dtype=torch.float64), 0
    last_h, last_c = [], []
    for n in range(part.y.shape[0]):
        h = torch.zeros(HIDDEN, dtype=torch.float64) if state is None else state[0][0, n]
        c = torch.zeros(HIDDEN, dtype=torch.float64) if state is None else state[1][0, n]
        for t in range(part.y.shape[1]):
            x = part.inputs[n, t]
            z = weights["lstm.weight_ih_l0"] @ x + weights["lstm.weight_hh_l0"] @ h
            z = z + weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
            i, f, g, o = z[:HIDDEN], z[HIDDEN : 2 * HIDDEN], z[2 * HIDDEN : 3 * HIDDEN], z[3 * HIDDEN :]
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            if not part.mask[n, t]:
                continue
            head = weights["head.weight"] @ torch.cat((h, x)) + weights["head.bias"]
            share = torch.softmax(head[:3], dim=0)
            density = torch.zeros((), dtype=torch.float64)
            for k in range(3):
                scale = part.step[n, t] * torch.exp(head[6 + k])
                u = torch.sigmoid(
                    (part.y[n, t] - part.previous[n, t] - part.step[n, t] * torch.sinh(head[3 + k])) / scale
                )
                density = density + share[k] * u * (1 - u) / scale
            total, count = total - torch.log(density), count + 1
        last_h.append(h)
        last_c.append(c)
    return total / count, (torch.stack(last_h)[None], torch.stack(last_c)[None])


def gradients(model: Forecaster, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.state_dict(keep_vars=True).items(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_equal_gradients(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-9, atol=1e-12, msg=name)
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-3


def test_one_chunk_is_full_backpropagation() -> None:
    """With the whole sequence in one chunk, loss and gradient are those of the plain loop over the equations."""
    model, sequences = some_model(), some_sequences()
    (whole,) = tbptt.chunks(sequences, sequences.y.shape[1])
    loss, _ = tbptt.masked_loss(model, whole, None)
    wanted, _ = plain_loss(model, sequences)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-12)
    assert_equal_gradients(gradients(model, loss), gradients(model, wanted))


def loss_by_the_equations(config: ForecasterConfig, tensors: dict[str, NDArray[np.float64]], part: Sequences) -> float:
    """The mean loss over the masked steps, by `cells` alone: numpy, nothing that could differentiate itself."""
    layers = recurrent_layers(Weights(config, tensors, {}))  # type: ignore[arg-type]  # float64 for the difference
    sizes = cells.state_sizes(config.cell, HIDDEN)
    states: list[tuple[cells.Float, ...]] = [tuple(np.zeros((len(part.y), size)) for size in sizes)] * len(layers)
    x, heads = part.inputs.numpy(), []
    for t in range(part.y.shape[1]):
        below = x[:, t]
        for k, layer in enumerate(layers):
            states[k] = cells.step(config.cell, layer, below, states[k])
            below = states[k][0] + below if config.residual and k else states[k][0]
        heads.append(np.concatenate((below, x[:, t]), axis=1) @ tensors["head.weight"].T + tensors["head.bias"])
    losses = log_loss(torch.from_numpy(np.stack(heads, axis=1)), part.previous, part.step, part.y)
    return float(losses[part.mask].mean())


@pytest.mark.parametrize("cell", cells.CELLS)
def test_one_chunk_is_full_backpropagation_for_every_cell(cell: str) -> None:
    """The whole sequence in one chunk: along random directions the gradient is the loss's difference, by numpy.

    The difference at four points has an error of the fifth order, so that 1e-6 of agreement is no accident.
    """
    config = ForecasterConfig(INPUTS, HIDDEN, 2, cell=cell, residual=True)
    model, sequences = some_model(config=config), some_sequences(steps=16)
    (whole,) = tbptt.chunks(sequences, 16)
    loss, _ = tbptt.masked_loss(model, whole, None)
    found = gradients(model, loss)
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    assert loss_by_the_equations(config, tensors, sequences) == pytest.approx(float(loss.detach()), rel=1e-10)
    rng = np.random.default_rng(0)
    for _ in range(3):
        way = {name: rng.normal(size=value.shape) for name, value in tensors.items()}

        def ahead(by: float, way: dict[str, NDArray[np.float64]] = way) -> float:
            moved = {name: value + by * way[name] for name, value in tensors.items()}
            return loss_by_the_equations(config, moved, sequences)

        h = 1e-4
        difference = (8 * (ahead(h) - ahead(-h)) - (ahead(2 * h) - ahead(-2 * h))) / (12 * h)
        slope = sum(float((found[name] * torch.from_numpy(way[name])).sum()) for name in tensors)
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    "config",
    [
        *(replace(PLAIN, cell=cell, num_layers=2) for cell in cells.CELLS),
        replace(PLAIN, attention=4), replace(PLAIN, cell="gru", attention=4, residual=True, num_layers=2),
    ],
    ids=lambda config: f"{config.cell} {config.attention}",
)  # fmt: skip
def test_chunks_stop_the_gradient_and_carry_the_state(config: ForecasterConfig) -> None:
    """Every part of the state is carried: the chunks' losses are the whole's; none is carried with its gradient."""
    model, sequences = some_model(config=config), some_sequences()._replace(mask=torch.ones(4, 24, dtype=torch.bool))
    whole, _ = tbptt.masked_loss(model, sequences, None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pieces = tbptt.train_pass(model, sequences, length=8, optimizer=optimizer)
    assert pieces == pytest.approx(float(whole.detach()), rel=1e-10)
    _, state = tbptt.masked_loss(model, sequences.chunk(0, 16), None)
    carried, _ = tbptt.masked_loss(model, sequences.chunk(16, 24), tuple(part.detach() for part in state))
    found = {name: value.grad for name, value in model.state_dict(keep_vars=True).items()}  # of the last chunk, clipped
    wanted = gradients(model, carried)
    norm = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient * (1 / norm).clamp(max=1), rtol=1e-5, atol=1e-8, msg=name)


def test_a_later_chunk_starts_from_the_carried_state_and_stops_there() -> None:
    """The second chunk's gradient is that of the plain loop from the detached state, and not the full one."""
    model, sequences = some_model(), some_sequences()
    first, second = tbptt.chunks(sequences, 12)
    _, state = tbptt.masked_loss(model, first, None)
    loss, _ = tbptt.masked_loss(model, second, tuple(part.detach() for part in state))
    _, plain_state = plain_loss(model, first)
    wanted, _ = plain_loss(model, second, tuple(part.detach() for part in plain_state))
    truncated = gradients(model, loss)
    assert_equal_gradients(truncated, gradients(model, wanted))
    through, _ = plain_loss(model, second, plain_state)
    assert (gradients(model, through)["lstm.weight_hh_l0"] - truncated["lstm.weight_hh_l0"]).abs().max() > 1e-6


def test_chunks_cover_the_sequence_once() -> None:
    """In order, none longer than asked, the last as short as need be."""
    sequences = some_sequences(steps=23)
    pieces = list(tbptt.chunks(sequences, 10))
    assert [piece.y.shape[1] for piece in pieces] == [10, 10, 3]
    for whole, *parts in zip(sequences, *pieces, strict=True):
        assert torch.equal(torch.cat(parts, dim=1), whole)


def test_masked_steps_add_nothing() -> None:
    """Whatever stands where the mask is False, loss and gradient are the same; the state alone has seen the inputs."""
    model, sequences = some_model(), some_sequences()
    changed = sequences._replace(
        y=torch.where(sequences.mask, sequences.y, 14.0),
        step=torch.where(sequences.mask, sequences.step, 1e-4),
        previous=torch.where(sequences.mask, sequences.previous, -9.0),
    )
    one, state = tbptt.masked_loss(model, sequences, None)
    two, other = tbptt.masked_loss(model, changed, None)
    assert torch.equal(one, two)
    assert_equal_gradients(gradients(model, one), gradients(model, two))
    assert torch.equal(state[0], other[0])


def test_a_chunk_without_a_scored_step_teaches_nothing() -> None:
    """All masked: a loss of 0 and a gradient of 0, not a division by nothing."""
    model, sequences = some_model(), some_sequences()
    loss, _ = tbptt.masked_loss(model, sequences._replace(mask=torch.zeros_like(sequences.mask)), None)
    assert float(loss.detach()) == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_a_pass_carries_the_state_and_updates_once_a_chunk() -> None:
    """With a rate of 0 the pass's losses are those of the chunks in order, each from the state before."""
    model, sequences = some_model(), some_sequences(steps=50)
    seen: list[float] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    mean = tbptt.train_pass(model, sequences, length=16, optimizer=optimizer, after_update=seen.append)
    state, losses = None, []
    with torch.no_grad():
        for part in tbptt.chunks(sequences, 16):
            loss, state = tbptt.masked_loss(model, part, state)
            losses.append(float(loss))
    assert len(losses) == math.ceil(50 / 16)
    assert seen == pytest.approx(np.cumsum(losses) / np.arange(1, 5), rel=1e-12)
    assert mean == pytest.approx(np.mean(losses), rel=1e-12)


def test_no_update_is_longer_than_the_clip() -> None:
    """A wild chunk moves the weights by at most the rate times the clip."""
    model, sequences = some_model(), some_sequences(steps=8)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tbptt.train_pass(model, sequences._replace(y=sequences.y * 4), length=8, optimizer=optimizer, clip=0.01)
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_parameter_is_in_one_group(bidirectional: bool) -> None:
    """Recurrent layers in one, read-out and head in the other, in the order of `parameters()`."""
    model = Forecaster(ForecasterConfig(INPUTS, HIDDEN, 2, attention=3, bidirectional=bidirectional))
    recurrent, read_out = tbptt.parameter_groups(model, 0.5)
    assert (recurrent["rate"], read_out["rate"]) == (1.0, 0.5)
    parts = [recurrent["params"], read_out["params"]]
    assert all(isinstance(part, list) for part in parts)
    found = [id(parameter) for part in parts if isinstance(part, list) for parameter in part]
    assert found == [id(parameter) for parameter in model.parameters()]
    assert isinstance(read_out["params"], list)
    assert {tuple(part.shape) for part in read_out["params"]} == {
        (HIDDEN, HIDDEN),
        tuple(model.head.weight.shape),
        (9,),
    }


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_input_layer_may_have_a_rate_of_its_own(bidirectional: bool) -> None:
    """Then three groups: the first layers' input weights, the other recurrent ones, read-out and head; each once."""
    model = Forecaster(ForecasterConfig(INPUTS, HIDDEN, 2, attention=3, bidirectional=bidirectional))
    groups = tbptt.parameter_groups(model, 0.5, 0.3)
    assert [group["rate"] for group in groups] == [0.3, 1.0, 0.5]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(each)] for each in group["params"]] for group in groups if isinstance(group["params"], list)]
    assert sorted(name for group in found for name in group) == sorted(names.values())
    stacks = ("lstm", "reverse") if bidirectional else ("lstm",)
    assert found[0] == [f"{stack}.layers.0.weight_ih_l0" for stack in stacks]
    assert "lstm.layers.1.weight_ih_l0" in found[1]


def test_a_pass_does_not_move_the_weights_where_nothing_counts() -> None:
    """Also not by the momentum of what was learned before; the state is carried past."""
    model, sequences = some_model(), some_sequences(steps=20)
    mask = torch.ones_like(sequences.mask)
    mask[:, 5:15] = False
    seen: list[Tensor] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tbptt.train_pass(
        model, sequences._replace(mask=mask), length=5, optimizer=optimizer,
        after_update=lambda _: seen.append(model.head.bias.detach().clone()),
    )  # fmt: skip
    assert len(seen) == 2
    alone = some_model()
    still = torch.optim.SGD(alone.parameters(), lr=0.0)
    loss = tbptt.train_pass(alone, sequences._replace(mask=mask), length=5, optimizer=still)
    with torch.no_grad():
        losses = tbptt.carried_losses(alone, sequences, 20)
    assert loss == pytest.approx(float((losses[:, :5].mean() + losses[:, 15:].mean()) / 2), rel=1e-12)


def test_training_learns_a_tiny_problem() -> None:
    """A wave of period 8 that the last value alone cannot tell: forty passes take two nats off the loss."""
    torch.manual_seed(0)
    model = Forecaster(ForecasterConfig(1, 16))
    phase = torch.arange(8)[:, None] + torch.arange(65)[None]
    wave = torch.sin(2 * torch.pi * phase / 8)
    y, previous = wave[:, 1:], wave[:, :-1]
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[:, :4] = False
    sequences = Sequences(previous.unsqueeze(-1), previous, torch.full_like(y, 0.5), y, mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [tbptt.train_pass(model, sequences, length=16, optimizer=optimizer) for _ in range(40)]
    assert losses[-1] < losses[0] - 2
