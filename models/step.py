"""One streaming step for a wave of slots: gather (h, c), the stacked LSTM, the head, scatter.

Two back ends with one door: `NumpyStepper` serves on the CPU from exported weights and needs no torch; `TorchStepper`
keeps the state on a CUDA device. Both give what `torch.nn.LSTM` gives, to 1e-5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from models import cells
from models.weights import Weights

if TYPE_CHECKING:
    import torch

Float32 = NDArray[np.float32]
Slots = NDArray[np.intp]

CHUNK_ROWS = 512  # measured: smaller pays overhead, larger falls out of the second-level cache


class Stepper(Protocol):
    """The recurrent state of every series and the one operation on it."""

    def step(self, slots: Slots, inputs: Float32) -> Float32:
        """Steps the (h, c) of `slots` (unique) with `inputs` `(n, input_size)`; returns the head's output `(n, 9)`."""
        ...

    def export(self, count: int) -> Float32:
        """The state rows of the first `count` slots, `(count, num_layers * 2 * hidden_size)`: h0 c0 h1 c1 ..."""
        ...

    def restore(self, rows: Float32) -> None:
        """Puts back what `export` gave."""
        ...

    def reset(self, slots: Slots) -> None:
        """The state of a series that has no past."""
        ...


def layers(weights: Weights) -> list[cells.Layer]:
    """The recurrent layers in the order in which they are stacked."""
    tensors = weights.tensors
    return [
        cells.Layer(
            tensors[f"lstm.weight_ih_l{k}"],
            tensors[f"lstm.weight_hh_l{k}"],
            tensors[f"lstm.bias_ih_l{k}"] + tensors[f"lstm.bias_hh_l{k}"],
        )
        for k in range(weights.config.num_layers)
    ]


def cuda_is_available() -> bool:
    """Whether torch is there and sees a CUDA device."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


class NumpyStepper:
    """The CPU back end: one product, one tanh and five elementwise operations a layer.

    sigmoid(z) = (1 + tanh(z / 2)) / 2, so the columns of i, f and o carry half their weights and one tanh serves all.
    """

    def __init__(self, weights: Weights, capacity: int) -> None:
        hidden = weights.config.hidden_size
        self._hidden = hidden
        self._state = np.zeros((capacity, weights.config.num_layers * 2 * hidden), np.float32)
        self._products: list[Float32] = []
        self._biases: list[Float32] = []
        half = np.repeat(np.array([0.5, 0.5, 0.5, 1.0], np.float32), hidden)
        for layer in layers(weights):
            order = np.r_[0 : 2 * hidden, 3 * hidden : 4 * hidden, 2 * hidden : 3 * hidden]  # i f g o -> i f o g
            both = np.concatenate((layer.weight_ih, layer.weight_hh), axis=1)[order]
            self._products.append(np.ascontiguousarray((both * half[:, None]).T, np.float32))
            self._biases.append(np.ascontiguousarray(layer.bias[order] * half, np.float32))
        self._head = np.ascontiguousarray(weights.tensors["head.weight"].T, np.float32)
        self._head_bias = weights.tensors["head.bias"].astype(np.float32)

    def step(self, slots: Slots, inputs: Float32) -> Float32:
        if len(slots) <= CHUNK_ROWS:
            return self._chunk(slots, inputs)
        pieces = range(0, len(slots), CHUNK_ROWS)
        return np.concatenate([self._chunk(slots[k : k + CHUNK_ROWS], inputs[k : k + CHUNK_ROWS]) for k in pieces])

    def _chunk(self, slots: Slots, inputs: Float32) -> Float32:
        hidden = self._hidden
        state = self._state[slots]  # (n, layers * 2 * hidden)
        below = inputs
        for k, (product, bias) in enumerate(zip(self._products, self._biases, strict=True)):
            at = k * 2 * hidden
            h, c = state[:, at : at + hidden], state[:, at + hidden : at + 2 * hidden]
            gates = np.concatenate((below, h), axis=1) @ product
            gates += bias
            np.tanh(gates, out=gates)
            ifo = gates[:, : 3 * hidden]
            ifo *= 0.5
            ifo += 0.5
            i, f, o = ifo[:, :hidden], ifo[:, hidden : 2 * hidden], ifo[:, 2 * hidden :]
            c *= f
            i *= gates[:, 3 * hidden :]
            c += i
            np.tanh(c, out=h)
            h *= o
            below = h
        self._state[slots] = state
        return np.concatenate((below, inputs), axis=1) @ self._head + self._head_bias

    def export(self, count: int) -> Float32:
        return self._state[:count].copy()

    def restore(self, rows: Float32) -> None:
        self._state[: len(rows)] = rows

    def reset(self, slots: Slots) -> None:
        self._state[slots] = 0.0


class TorchStepper:
    """The torch back end: the state stays on the device, inputs go out and the head's output comes back once a wave."""

    def __init__(self, weights: Weights, capacity: int, device: str = "cuda") -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._hidden = weights.config.hidden_size

        def put(array: NDArray[np.floating]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self._device)

        self._layers = [tuple(put(part) for part in layer) for layer in layers(weights)]
        self._head, self._head_bias = put(weights.tensors["head.weight"]), put(weights.tensors["head.bias"])
        self._state = torch.zeros((capacity, weights.config.num_layers * 2 * self._hidden), device=self._device)

    def step(self, slots: Slots, inputs: Float32) -> Float32:
        torch = self._torch
        hidden = self._hidden
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(slots, np.int64)).to(self._device)
            x = torch.from_numpy(inputs).to(self._device)
            state = self._state[rows]
            below, parts = x, []
            for k, (weight_ih, weight_hh, bias) in enumerate(self._layers):
                at = k * 2 * hidden
                h, c = state[:, at : at + hidden], state[:, at + hidden : at + 2 * hidden]
                i, f, g, o = torch.addmm(torch.addmm(bias, below, weight_ih.T), h, weight_hh.T).chunk(4, dim=1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                parts += [h, c]
                below = h
            self._state[rows] = torch.cat(parts, dim=1)
            head = torch.addmm(self._head_bias, torch.cat((below, x), dim=1), self._head.T)
            output: Float32 = head.cpu().numpy()
            return output

    def export(self, count: int) -> Float32:
        rows: Float32 = self._state[:count].cpu().numpy()
        return rows.copy()

    def restore(self, rows: Float32) -> None:
        self._state[: len(rows)] = self._torch.from_numpy(np.ascontiguousarray(rows)).to(self._device)

    def reset(self, slots: Slots) -> None:
        self._state[self._torch.from_numpy(np.ascontiguousarray(slots, np.int64)).to(self._device)] = 0.0
