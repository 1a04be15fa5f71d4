"""The gradient vanishes in the plain network and lives in the cells: measured small, and against autograd."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import cells, features
from tests import gradients
from tests.gradients import Network, gated, noise, norms, plain, shipped

DOCS = Path(__file__).parents[2] / "docs"


def by_autograd(network: Network, inputs: Tensor) -> float:
    """|| d h_T / d h_1 || from one backward pass per unit of h_T through the steps as they are."""
    state = network.step(inputs[:1], tuple(torch.zeros(1, size, dtype=torch.float64) for size in network.sizes))
    first = state[0].detach().requires_grad_()
    state = (first, *(part.detach() for part in state[1:]))
    for t in range(1, len(inputs)):
        state = network.step(inputs[t : t + 1], state)
    rows = [torch.autograd.grad(unit, first, retain_graph=True)[0][0] for unit in state[0][0]]
    return float(torch.linalg.matrix_norm(torch.stack(rows), 2))


@pytest.mark.parametrize("cell", ["rnn", *cells.CELLS])
def test_the_norm_is_what_backpropagation_finds(cell: str) -> None:
    """The product of the steps' Jacobians and one backward pass through 7 steps give one number."""
    network = plain(1, hidden=6) if cell == "rnn" else gated(cell, 1, hidden=6)
    inputs = noise(2, 7)
    assert norms(network, inputs)[-1] == pytest.approx(by_autograd(network, inputs), rel=1e-9)


def test_the_plain_network_is_torch_s() -> None:
    """What is measured as plain RNN steps as torch.nn.RNN with the same weights does."""
    torch.manual_seed(4)
    theirs = nn.RNN(features.INPUT_SIZE, 6, batch_first=True, bias=False, dtype=torch.float64)
    network = plain(4, hidden=6)
    x = noise(3, 5)
    state: gradients.State = (torch.zeros(1, 6, dtype=torch.float64),)
    with torch.no_grad():
        theirs.get_parameter("weight_ih_l0").copy_(
            network.step(torch.eye(features.INPUT_SIZE, dtype=torch.float64), state)[0].atanh().T
        )
        rows = torch.eye(6, dtype=torch.float64)
        zero = torch.zeros(6, features.INPUT_SIZE, dtype=torch.float64)
        theirs.get_parameter("weight_hh_l0").copy_(network.step(zero, (rows * 0.5,))[0].atanh().T * 2)
        wanted, _ = theirs(x[None])
        for t in range(5):
            state = network.step(x[t : t + 1], state)
            torch.testing.assert_close(state[0], wanted[:, t], rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_vanishes_in_the_plain_network_and_not_in_the_cells(seed: int) -> None:
    """Over 80 steps of noise: from 1 to below 1e-6 in the plain network; an open forget gate keeps a tenth.

    As training begins the LSTM has a thousand times more than the plain network; with a forget bias of 0, half of the
    memory goes at each step, and it has less.
    """
    inputs = noise(seed, 80)
    kinds = {
        "plain": plain(seed, 16),
        "shut": gated("lstm", seed, 16, forget_bias=0.0),
        "lstm": gated("lstm", seed, 16),
        "open": gated("lstm", seed, 16, forget_bias=3.0),
        "gru": gated("gru", seed, 16),
    }
    found = {name: norms(network, inputs) for name, network in kinds.items()}
    assert all(curve[0] == 1 for curve in found.values())
    last = {name: float(curve[-1]) for name, curve in found.items()}
    assert last["plain"] < 1e-6
    assert last["open"] > 0.05
    assert last["lstm"] > 1e3 * last["plain"]
    assert last["gru"] > 10 * last["plain"]
    assert last["shut"] < last["plain"]
    falls = np.diff(np.log10(found["plain"]))  # by about the same factor at each step: exponentially
    assert falls[10:].mean() == pytest.approx(np.log10(last["plain"]) / 79, rel=0.3)


def test_the_shipped_weights_remember_a_hundred_readings() -> None:
    """Trained, on a series such as they were trained on: a hundredth at least of the first reading's hidden state."""
    assert norms(shipped(), gradients.series(0, 100))[-1] > 0.01


def test_the_page_s_table_and_drawing_are_of_one_measurement() -> None:
    """Every curve's last figure in the drawing is the last of its line in docs/lstm.md."""
    page, drawing = (DOCS / "lstm.md").read_text(), (DOCS / "vanishing_gradient.svg").read_text()
    drawn = dict(re.findall(r">([^<>]+): ([^<>]+)</text>", drawing)[1:])
    assert len(drawn) == len(gradients.COLOURS)
    for name, value in drawn.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        assert line.endswith(f"| {value} |")


def test_the_drawing_is_drawn_from_the_figures() -> None:
    """A curve that halves at each step is a straight line down; what falls out of the axis is cut, not lost."""
    halved = np.exp2(-np.arange(gradients.STEPS, dtype=np.float64))
    names = [f"curve {k}" for k in range(len(gradients.COLOURS))]
    drawing = gradients.svg(dict.fromkeys(names, halved))
    first, *others = re.findall(r'<polyline points="([^"]+)"', drawing)
    assert others == [first] * (len(names) - 1)
    points = np.array([[float(number) for number in point.split(",")] for point in first.split()])
    np.testing.assert_allclose(np.diff(points, n=2, axis=0), 0, atol=0.21)  # to the tenth of a pixel
    assert points[0].tolist() == [gradients.LEFT, gradients.TOP]
    assert [name for name in names if f">{name}: 1e-60</text>" in drawing] == names
    table = gradients.table({"halved": halved})
    assert table.splitlines()[-1] == "| halved | 0.50 | 2e-3 | 6e-8 | 2e-15 | 2e-30 | 1e-60 |"
