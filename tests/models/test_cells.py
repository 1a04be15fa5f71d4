"""The equations against torch's own cells, against each other where one is a special case, and against Greff's text."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import cells, recurrent
from models.cells import GREFF, LSTMS, Float, Layer, Variant

INPUTS, HIDDEN, ROWS = 5, 4, 3


def random_layer(cell: str, seed: int = 0, inputs: int = INPUTS, hidden: int = HIDDEN) -> Layer:
    """float64, so that equality is equality."""
    rng = np.random.default_rng(seed)
    return Layer(**{name: rng.normal(size=shape) for name, shape in cells.shapes(cell, inputs, hidden).items()})


def random_state(cell: str, seed: int = 1, rows: int = ROWS, hidden: int = HIDDEN) -> tuple[Float, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.uniform(-0.9, 0.9, (rows, size)) for size in cells.state_sizes(cell, hidden))


def random_input(seed: int = 2, rows: int = ROWS, inputs: int = INPUTS) -> Float:
    return np.random.default_rng(seed).normal(size=(rows, inputs))


def torch_cell(cell: nn.LSTMCell | nn.GRUCell | nn.RNNCell, layer: Layer) -> None:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({name: torch.from_numpy(getattr(layer, name)) for name in names})


def assert_states_equal(found: tuple[Float, ...], wanted: tuple[Float, ...]) -> None:
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_lstm_gru_and_rnn_are_those_of_torch(rows: int, inputs: int, hidden: int, seed: int) -> None:
    """One step of torch.nn.LSTMCell, GRUCell and RNNCell, of any size."""
    x = random_input(seed, rows, inputs)
    given_x = torch.from_numpy(x)
    with torch.no_grad():
        layer, (h, c) = random_layer("lstm", seed, inputs, hidden), random_state("lstm", seed, rows, hidden)
        lstm = nn.LSTMCell(inputs, hidden, dtype=torch.float64)
        torch_cell(lstm, layer)
        wanted = lstm(given_x, (torch.from_numpy(h), torch.from_numpy(c)))
        assert_states_equal(cells.lstm(layer, x, h, c), tuple(part.numpy() for part in wanted))

        layer, (h,) = random_layer("gru", seed, inputs, hidden), random_state("gru", seed, rows, hidden)
        gru = nn.GRUCell(inputs, hidden, dtype=torch.float64)
        torch_cell(gru, layer)
        assert_states_equal(cells.gru(layer, x, h), (gru(given_x, torch.from_numpy(h)).numpy(),))

        layer = Layer(*(part[:hidden] for part in layer[:4]))
        rnn = nn.RNNCell(inputs, hidden, dtype=torch.float64)
        torch_cell(rnn, layer)
        assert_states_equal(cells.rnn(layer, x, h), (rnn(given_x, torch.from_numpy(h)).numpy(),))


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def greff_step(name: str, layer: Layer, x: Float, state: tuple[Float, ...]) -> list[list[float]]:
    """Section II and III of the paper, one unit and one product after the other, for one row."""
    rows = {"NIG": "fgo", "NFG": "igo", "NOG": "ifg", "CIFG": "igo", "coupled": "igo"}.get(name, "ifgo")
    peeps = [letter for letter in rows if letter != "g"]
    y, c_before = state[0], state[1]

    def net(letter: str, k: int) -> float:
        row = rows.index(letter) * HIDDEN + k
        total = float(layer.bias_ih[row] + layer.bias_hh[row])
        total += sum(float(layer.weight_ih[row, j] * x[j]) for j in range(INPUTS))
        total += sum(float(layer.weight_hh[row, j] * y[j]) for j in range(HIDDEN))
        if name == "FGR" and letter != "g":
            assert layer.weight_gh is not None
            at = peeps.index(letter) * HIDDEN + k
            total += sum(float(layer.weight_gh[at, j] * state[2][j]) for j in range(3 * HIDDEN))
        return total

    def peep(letter: str, k: int, c: float) -> float:
        return 0.0 if layer.weight_ch is None else float(layer.weight_ch[peeps.index(letter) * HIDDEN + k] * c)

    after: list[list[float]] = [[], [], [], [], []]
    for k in range(HIDDEN):
        c = float(c_before[k])
        i = 1.0 if name == "NIG" else sigma(net("i", k) + peep("i", k, c))
        if name == "NFG":
            f = 1.0
        elif name in ("CIFG", "coupled"):
            f = 1 - i
        else:
            f = sigma(net("f", k) + peep("f", k, c))
        z = net("g", k) if name == "NIAF" else math.tanh(net("g", k))
        c = z * i + c * f
        o = 1.0 if name == "NOG" else sigma(net("o", k) + peep("o", k, c))
        shown = c if name == "NOAF" else math.tanh(c)
        for part, value in zip(after, (shown * o, c, i, f, o), strict=True):
            part.append(value)
    h, cell, *gates = after
    return [h, cell, [*itertools.chain(*gates)]] if name == "FGR" else [h, cell]


@pytest.mark.parametrize("name", [*GREFF, "coupled"])
def test_every_variant_is_the_paper_s(name: str) -> None:
    """Vanilla, its eight variants and the coupled cell, from nets to sums in plain Python."""
    cell = {"V": "peephole", "NP": "lstm"}.get(name, name.lower())
    layer, x, state = random_layer(cell), random_input(), random_state(cell)
    found = cells.gated(LSTMS[cell], layer, x, *state)
    for row in range(ROWS):
        wanted = greff_step(name, layer, x[row], tuple(part[row] for part in state))
        for part, values in zip(found, wanted, strict=True):
            np.testing.assert_allclose(part[row], values, rtol=0, atol=1e-12)


def test_the_paper_s_nine_are_nine() -> None:
    """Each variant differs from vanilla in one switch, and no two are the same."""
    assert len(set(GREFF.values())) == 9
    for name, variant in GREFF.items():
        changed = [one != two for one, two in zip(astuple(variant), astuple(GREFF["V"]), strict=True)]
        assert sum(changed) == (name != "V"), name
    assert {"lstm", "peephole", "coupled", "gru"} <= set(cells.CELLS)
    assert set(GREFF.values()) <= set(LSTMS.values())


def test_without_peepholes_the_cell_is_the_lstm() -> None:
    """The switches' NP is `lstm`; peepholes and gate recurrence of zero change nothing."""
    layer, x, (h, c) = random_layer("lstm"), random_input(), random_state("lstm")
    wanted = cells.lstm(layer, x, h, c)
    assert_states_equal(cells.gated(GREFF["NP"], layer, x, h, c), wanted)
    shut = layer._replace(weight_ch=np.zeros(3 * HIDDEN), weight_gh=np.zeros((3 * HIDDEN, 3 * HIDDEN)))
    assert_states_equal(cells.gated(GREFF["V"], shut, x, h, c), wanted)
    gates = np.random.default_rng(5).random((ROWS, 3 * HIDDEN))
    assert_states_equal(cells.gated(GREFF["FGR"], shut, x, h, c, gates)[:2], wanted)


def rows_of(layer: Layer, letters: str, of: str = "ifgo") -> Layer:
    """A layer with other blocks of rows."""
    at = np.concatenate([np.arange(HIDDEN) + of.index(letter) * HIDDEN for letter in letters])
    return Layer(*(part[at] for part in layer[:4] if part is not None))


def test_coupled_gates_are_an_lstm_whose_forget_gate_mirrors_its_input_gate() -> None:
    """1 - sigma(z) = sigma(-z): torch.nn.LSTM with the input gate's rows negated for the forget gate is the same."""
    layer, x, (h, c) = random_layer("coupled"), random_input(), random_state("coupled")
    twice = rows_of(layer, "iigo", "igo")
    sign = np.repeat([1.0, -1.0, 1.0, 1.0], HIDDEN)
    mirrored = Layer(*(part * (sign if part.ndim == 1 else sign[:, None]) for part in twice[:4]))
    lstm = nn.LSTMCell(INPUTS, HIDDEN, dtype=torch.float64)
    torch_cell(lstm, mirrored)
    with torch.no_grad():
        wanted = lstm(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)))
    assert_states_equal(cells.gated(LSTMS["coupled"], layer, x, h, c), tuple(part.numpy() for part in wanted))


@pytest.mark.parametrize(("switch", "letter"), [("input_gate", "i"), ("forget_gate", "f"), ("output_gate", "o")])
def test_an_absent_gate_is_a_gate_that_stands_open(switch: str, letter: str) -> None:
    """Without a gate, the cell is torch's LSTM with a bias of 60 on that gate."""
    layer, x, (h, c) = random_layer("lstm"), random_input(), random_state("lstm")
    bias = layer.bias_ih.copy()
    bias["ifgo".index(letter) * HIDDEN :][:HIDDEN] = 60.0
    lstm = nn.LSTMCell(INPUTS, HIDDEN, dtype=torch.float64)
    torch_cell(lstm, layer._replace(bias_ih=bias))
    with torch.no_grad():
        wanted = lstm(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)))
    without = Variant(peepholes=False, **{switch: False})
    less = rows_of(layer, "ifgo".replace(letter, ""))
    assert_states_equal(cells.gated(without, less, x, h, c), tuple(part.numpy() for part in wanted))


@pytest.mark.parametrize("missing", ["input_gate", "forget_gate"])
def test_a_gate_that_is_not_there_cannot_be_coupled(missing: str) -> None:
    """Refused where it is asked for."""
    with pytest.raises(ValueError, match="coupled"):
        Variant(coupled=True, **{missing: False})


@pytest.mark.parametrize("cell", cells.CELLS)
def test_torch_steps_as_the_equations_do(cell: str) -> None:
    """The step that serves on a GPU is the equation's, for every cell."""
    layer, x, state = random_layer(cell), random_input(), random_state(cell)
    parts = tuple(None if part is None else torch.from_numpy(part) for part in layer)
    found = recurrent.step(cell, parts, torch.from_numpy(x), tuple(torch.from_numpy(part) for part in state))
    assert_states_equal(tuple(part.numpy() for part in found), cells.step(cell, layer, x, state))


def test_gates_far_out_do_not_overflow() -> None:
    """sigmoid saturates at 0 and 1 without a warning."""
    np.testing.assert_array_equal(cells.sigmoid(np.array([-1e30, 0.0, 1e30])), [0.0, 0.5, 1.0])
