"""Truncated backpropagation against a plain loop over the equations, and the loop of training on a tiny problem."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models import tbptt
from models.forecaster import Forecaster, State
from models.tbptt import Sequences
from models.weights import ForecasterConfig

INPUTS, HIDDEN = 3, 6


def some_model(seed: int = 0) -> Forecaster:
    """In float64, so that equality is equality."""
    torch.manual_seed(seed)
    model = Forecaster(ForecasterConfig(INPUTS, HIDDEN)).double()
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
    weights = dict(model.named_parameters())
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
    names, parameters = zip(*model.named_parameters(), strict=True)
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


def test_a_later_chunk_starts_from_the_carried_state_and_stops_there() -> None:
    """The second chunk's gradient is that of the plain loop from the detached state, and not the full one."""
    model, sequences = some_model(), some_sequences()
    first, second = tbptt.chunks(sequences, 12)
    _, state = tbptt.masked_loss(model, first, None)
    loss, _ = tbptt.masked_loss(model, second, (state[0].detach(), state[1].detach()))
    _, plain_state = plain_loss(model, first)
    wanted, _ = plain_loss(model, second, (plain_state[0].detach(), plain_state[1].detach()))
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
