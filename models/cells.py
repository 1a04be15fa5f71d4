"""The LSTM equations, one line of code to one equation, on plain arrays.

Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000; the letters are those of Greff
et al. 2016 (arXiv 1503.04069), the packing of the gates (i, f, g, o) is PyTorch's. `step` has the same in fewer
operations; this is what it is tested against.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


class Layer(NamedTuple):
    """One layer's weights as PyTorch packs them: the rows of i, f, g and o, `hidden_size` each."""

    weight_ih: Float
    """(4 hidden_size, input_size)"""
    weight_hh: Float
    """(4 hidden_size, hidden_size)"""
    bias: Float
    """(4 hidden_size,): PyTorch's bias_ih + bias_hh"""


def sigmoid(z: Float) -> Float:
    """The logistic function, by tanh so that it cannot overflow."""
    gate: Float = 0.5 * np.tanh(0.5 * z) + 0.5
    return gate


def lstm(layer: Layer, x: Float, h: Float, c: Float) -> tuple[Float, Float]:
    """One step: from the input `(n, input_size)` and the state (h, c) `(n, hidden_size)` each, to the next (h, c)."""
    z_i, z_f, z_g, z_o = np.split(x @ layer.weight_ih.T + h @ layer.weight_hh.T + layer.bias, 4, axis=1)
    i = sigmoid(z_i)  # input gate: what to store
    f = sigmoid(z_f)  # forget gate: what to keep
    g = np.tanh(z_g)  # candidate
    o = sigmoid(z_o)  # output gate: what to show
    c = f * c + i * g
    h = o * np.tanh(c)
    return h, c
