"""One layer's weights as Keras packs them, and back: `keras.layers.LSTM` and `keras.layers.GRU`, plain arrays.

Keras multiplies from the other side (kernels are transposed), has the LSTM's gates in the order i, f, c, o, which is
PyTorch's i, f, g, o, with one bias; and GRU's in the order z, r, h, where PyTorch has r, z, n. GRU is that with
`reset_after=True`, Keras' default: its two biases are PyTorch's two. The other cells have no layer in Keras.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.cells import Float, Layer


class KerasLayer(NamedTuple):
    """What `layer.get_weights()` gives and `layer.set_weights` takes; `columns` is 4 units for LSTM, 3 for GRU."""

    kernel: Float
    """(input_size, columns)"""
    recurrent_kernel: Float
    """(units, columns)"""
    bias: Float
    """(columns,) for LSTM, (2, columns) for GRU: of the input, of the recurrence"""


def to_keras(cell: str, layer: Layer) -> KerasLayer:
    """`lstm` or `gru`, in Keras' packing. Raises ValueError for other cells."""
    if cell == "lstm":
        return KerasLayer(layer.weight_ih.T, layer.weight_hh.T, layer.bias_ih + layer.bias_hh)
    _wants_gru(cell)
    kernel, recurrent_kernel = _swapped(layer.weight_ih).T, _swapped(layer.weight_hh).T
    return KerasLayer(kernel, recurrent_kernel, np.stack((_swapped(layer.bias_ih), _swapped(layer.bias_hh))))


def from_keras(cell: str, layer: KerasLayer) -> Layer:
    """The other way round. Raises ValueError for other cells, and for a GRU without `reset_after`."""
    if cell == "lstm":
        return Layer(layer.kernel.T, layer.recurrent_kernel.T, layer.bias, np.zeros_like(layer.bias))
    _wants_gru(cell)
    if layer.bias.ndim != 2:
        raise ValueError("found a GRU with one bias; expected two, as keras.layers.GRU(reset_after=True) has them")
    bias_ih, bias_hh = layer.bias
    weight_ih, weight_hh = _swapped(layer.kernel.T), _swapped(layer.recurrent_kernel.T)
    return Layer(weight_ih, weight_hh, _swapped(bias_ih), _swapped(bias_hh))


def _wants_gru(cell: str) -> None:
    if cell != "gru":
        raise ValueError(f"found the cell {cell!r}; expected lstm or gru, which Keras has")


def _swapped(rows: Float) -> Float:
    """z, r, h from r, z, n, and as well the other way."""
    first, second, third = np.split(rows, 3)
    return np.concatenate((second, first, third))
