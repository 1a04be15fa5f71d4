"""The recurrent cells on plain arrays, one line of code to one equation: what everything else is tested against.

LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000. Peepholes: Gers,
Schraudolph & Schmidhuber 2002. The letters and the eight variants are those of Greff et al. 2016 (arXiv 1503.04069).
GRU: Cho et al. 2014, with the reset gate behind the product, as cuDNN, PyTorch and Keras have it. The weights are
packed as PyTorch packs them: the rows of the gates one below the other. `step` has the LSTM in fewer operations,
`recurrent` has all cells in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Variant:
    """The switches of the LSTM cell; as they stand, Greff's vanilla cell: three gates, peepholes, two tanh."""

    input_gate: bool = True
    forget_gate: bool = True
    output_gate: bool = True
    input_activation: bool = True
    output_activation: bool = True
    coupled: bool = False
    """the forget gate is what the input gate leaves: f = 1 - i"""
    peepholes: bool = True
    full_gate_recurrence: bool = False
    """the gates also see what all gates were one step before"""

    def __post_init__(self) -> None:
        if self.coupled and not (self.input_gate and self.forget_gate):
            raise ValueError("coupled gates need an input gate and a forget gate")

    @property
    def gates(self) -> str:
        """The letters of the gates that have weights, in the order in which they are packed."""
        present = (self.input_gate, self.forget_gate and not self.coupled, self.output_gate)
        return "".join(letter for letter, is_there in zip("ifo", present, strict=True) if is_there)

    @property
    def blocks(self) -> str:
        """The letters of the rows of weight_ih and weight_hh: the gates, and g, the candidate."""
        return "".join(letter for letter in "ifgo" if letter in self.gates + "g")


GREFF = {
    "V": Variant(),
    "NIG": Variant(input_gate=False),
    "NFG": Variant(forget_gate=False),
    "NOG": Variant(output_gate=False),
    "NIAF": Variant(input_activation=False),
    "NOAF": Variant(output_activation=False),
    "CIFG": Variant(coupled=True),
    "NP": Variant(peepholes=False),
    "FGR": Variant(full_gate_recurrence=True),
}
"""Vanilla and its eight variants, by the paper's names."""

LSTMS = {
    "lstm": GREFF["NP"],  # what all the world calls an LSTM has no peepholes
    "peephole": GREFF["V"],
    "coupled": Variant(coupled=True, peepholes=False),
    **{name.lower(): variant for name, variant in GREFF.items() if name not in ("V", "NP")},
}
"""The settings of `cell` that are LSTMs."""

CELLS = ("lstm", "peephole", "coupled", "gru", *(name for name in LSTMS if name not in ("lstm", "peephole", "coupled")))
"""All settings of `cell`."""


class Layer(NamedTuple):
    """One layer's weights as PyTorch packs them; `rows` is hidden_size times the number of blocks of the cell."""

    weight_ih: Float
    """(rows, input_size)"""
    weight_hh: Float
    """(rows, hidden_size)"""
    bias_ih: Float
    """(rows,)"""
    bias_hh: Float
    """(rows,)"""
    weight_ch: Float | None = None
    """(gates * hidden_size,): the peepholes, a diagonal each"""
    weight_gh: Float | None = None
    """(gates * hidden_size, gates * hidden_size): from the gates one step before"""


def shapes(cell: str, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """The fields of `Layer` that a layer of this cell has, with their shapes. KeyError: there is no such cell."""
    variant = None if cell == "gru" else LSTMS[cell]
    rows = hidden_size * (3 if variant is None else len(variant.blocks))
    found: dict[str, tuple[int, ...]] = {
        "weight_ih": (rows, input_size),
        "weight_hh": (rows, hidden_size),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    if variant is not None and variant.peepholes:
        found["weight_ch"] = (len(variant.gates) * hidden_size,)
    if variant is not None and variant.full_gate_recurrence:
        found["weight_gh"] = (len(variant.gates) * hidden_size, len(variant.gates) * hidden_size)
    return found


def state_sizes(cell: str, hidden_size: int) -> tuple[int, ...]:
    """The widths of what a layer carries from step to step: (h,), (h, c) or, with full recurrence, (h, c, gates)."""
    if cell == "gru":
        return (hidden_size,)
    variant = LSTMS[cell]
    gates = (len(variant.gates) * hidden_size,) if variant.full_gate_recurrence else ()
    return (hidden_size, hidden_size, *gates)


def step(cell: str, layer: Layer, x: Float, state: tuple[Float, ...]) -> tuple[Float, ...]:
    """One step of any cell: from the input `(n, input_size)` and the state, `(n, state_sizes)`, to the next state."""
    if cell == "lstm":
        return lstm(layer, x, *state)
    if cell == "gru":
        return gru(layer, x, *state)
    return gated(LSTMS[cell], layer, x, *state)


def sigmoid(z: Float) -> Float:
    """The logistic function, by tanh so that it cannot overflow."""
    gate: Float = 0.5 * np.tanh(0.5 * z) + 0.5
    return gate


def lstm(layer: Layer, x: Float, h: Float, c: Float) -> tuple[Float, Float]:
    """One step of the LSTM: from the input `(n, input_size)` and (h, c) `(n, hidden_size)` each, to the next (h, c)."""
    z = x @ layer.weight_ih.T + layer.bias_ih + h @ layer.weight_hh.T + layer.bias_hh
    z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
    i = sigmoid(z_i)  # input gate: what to store
    f = sigmoid(z_f)  # forget gate: what to keep
    g = np.tanh(z_g)  # candidate
    o = sigmoid(z_o)  # output gate: what to show
    c = f * c + i * g
    h = o * np.tanh(c)
    return h, c


def gated(
    switches: Variant, layer: Layer, x: Float, h: Float, c: Float, gates: Float | None = None
) -> tuple[Float, ...]:
    """One step of the LSTM with these switches; `gates` `(n, gates * hidden_size)` only for full gate recurrence."""
    z = _by_letter(switches.blocks, x @ layer.weight_ih.T + layer.bias_ih + h @ layer.weight_hh.T + layer.bias_hh)
    p = _by_letter(switches.gates, layer.weight_ch)  # peepholes
    r = _by_letter(switches.gates, None if layer.weight_gh is None or gates is None else gates @ layer.weight_gh.T)

    def gate(letter: str, c: Float) -> Float:  # one that is absent stands open
        return sigmoid(z[letter] + p[letter] * c + r[letter]) if letter in switches.gates else np.ones_like(c)

    i = gate("i", c)
    f = 1 - i if switches.coupled else gate("f", c)
    g = np.tanh(z["g"]) if switches.input_activation else z["g"]
    c = f * c + i * g
    o = gate("o", c)  # peeps at the new c
    h = o * (np.tanh(c) if switches.output_activation else c)
    if not switches.full_gate_recurrence:
        return h, c
    return h, c, np.concatenate([{"i": i, "f": f, "o": o}[letter] for letter in switches.gates], axis=1)


def _by_letter(letters: str, packed: Float | None) -> dict[str, Float]:
    """The parts of `packed`, split on its last axis, by their letters; zeros where there is nothing."""
    if packed is None:
        return dict.fromkeys(letters, np.zeros((), np.float32))
    return dict(zip(letters, np.split(packed, len(letters), axis=-1), strict=True))


def gru(layer: Layer, x: Float, h: Float) -> tuple[Float]:
    """One step of the gated recurrent unit: from the input `(n, input_size)` and h `(n, hidden_size)` to the next h."""
    x_r, x_z, x_n = np.split(x @ layer.weight_ih.T + layer.bias_ih, 3, axis=1)
    h_r, h_z, h_n = np.split(h @ layer.weight_hh.T + layer.bias_hh, 3, axis=1)
    r = sigmoid(x_r + h_r)  # reset gate: how much of the past the candidate sees
    z = sigmoid(x_z + h_z)  # update gate: what to keep; one gate for forgetting and storing
    n = np.tanh(x_n + r * h_n)  # candidate
    h = z * h + (1 - z) * n
    return (h,)


def rnn(layer: Layer, x: Float, h: Float) -> tuple[Float]:
    """One step of the plain network (Elman 1990), whose gradient vanishes: no setting, for comparison only."""
    h = np.tanh(x @ layer.weight_ih.T + layer.bias_ih + h @ layer.weight_hh.T + layer.bias_hh)
    return (h,)
