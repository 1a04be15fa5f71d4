"""One streaming step for a wave of slots: gather the state, the stacked cells, the read-out, the head, scatter.

Three back ends with one door: `NumpyStepper` serves on the CPU from exported weights and needs no torch; on a CUDA
device, where the state then is, `cuda_step.KernelStepper` steps the LSTM in one kernel, in float16, and `TorchStepper`
all the rest. The first and the last give, reading by reading, what `forecaster` gives for the sequence, to 1e-5: for
every cell, stacked, residual, with attention. What looks at the future cannot stream, WeightsError says so; where the
future is known, `history` prepares what the CPU's step then is told of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from models import cells
from models.weights import ForecasterConfig, Weights, check_streams, recurrent_layers

if TYPE_CHECKING:
    from torch import Tensor

Float32 = NDArray[np.float32]
Slots = NDArray[np.intp]

LEAST_COLUMNS = 8
KERNEL_DEVIATION = 0.02  # by eye: rounding to float16 makes a few thousandths, a wrong index another number altogether
CHUNK_ROWS = 512  # measured: smaller pays overhead, larger falls out of the second-level cache


class Stepper(Protocol):
    """The recurrent state of every series and the one operation on it."""

    def step(self, slots: Slots, inputs: Float32) -> Float32:
        """Steps the state of `slots` (unique) with `inputs` `(n, input_size)`; returns the head's output `(n, 9)`."""
        ...

    def export(self, rows: slice | Slots) -> Float32:
        """A copy of these slots' rows, `(n, state_size)`: h0 c0 h1 c1 ..., then attention's memory."""
        ...

    def put(self, rows: slice | Slots, state: Float32) -> None:
        """Puts back what `export` gave."""
        ...

    def reset(self, slots: Slots) -> None:
        """The state of a series that has no past."""
        ...


def state_size(config: ForecasterConfig) -> int:
    """The width of a series' state: what each layer carries, and the hidden states that attention remembers."""
    layer = sum(cells.state_sizes(config.cell, config.hidden_size))
    return config.num_layers * layer + config.memory * config.hidden_size


def cuda_is_available() -> bool:
    """Whether torch is there and sees a CUDA device."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def on_cuda(weights: Weights, capacity: int, device: str = "cuda") -> Stepper:
    """The back end for a CUDA device: the kernel, or torch's path where there is `kernel_trouble`.

    Raises MemoryError where the device has no room for the state.
    """
    import torch

    check_streams(weights.config)
    try:
        if kernel_trouble(weights.config, device):
            return TorchStepper(weights, capacity, device)
        from models.cuda_step import KernelStepper

        return KernelStepper(weights, capacity, device)
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error


@cache
def kernel_trouble(config: ForecasterConfig, device: str = "cuda") -> str:
    """Why the kernel does not step such a forecaster here; empty: it does, and agrees with the CPU's step.

    The first call compiles the kernel and tries it out, in seconds.
    """
    try:
        from models import cuda_step
    except ImportError as error:
        return f"there is no Triton: {error}"
    if not cuda_step.can_step(config):
        return "it has the LSTM only, without attention, of 16, 32 or 64 units in at most 4 layers"
    try:
        far = cuda_step.deviation(config, device)
    except Exception as error:  # noqa: BLE001  a compiler, a driver and a device: whatever ails them, torch's path serves
        return f"it cannot be compiled and run here: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return "" if far < KERNEL_DEVIATION else f"it is {far:.3g} off the CPU's step here"


Advance = Callable[[Float32, Float32], Float32]
"""One layer's step: from input `(n, width)` and state `(n, state_sizes)`, which it moves on in place, to h, a view."""


def _lstm(layer: cells.Layer, hidden: int) -> Advance:
    """The LSTM as a product for each gate, one tanh and six elementwise operations.

    sigmoid(z) = (1 + tanh(z / 2)) / 2, so i, f and o carry half their weights and one tanh serves all. Each gate's
    numbers lie together: side by side in one product, the elementwise part takes twice as long (measured). The bias is
    the weight of an input that is 1: to add it afterwards takes a quarter of the product's time.
    """
    half = np.array([0.5, 0.5, 0.5, 1.0], np.float32).reshape(4, 1, 1)
    order = [0, 1, 3, 2]  # i f g o -> i f o g
    bias = (layer.bias_ih + layer.bias_hh)[:, None]
    all_three = np.concatenate((layer.weight_ih, layer.weight_hh, bias), axis=1).reshape(4, hidden, -1)[order]
    product = np.ascontiguousarray((all_three * half).transpose(0, 2, 1), np.float32)

    def advance(below: Float32, state: Float32) -> Float32:
        h, c = state[:, :hidden], state[:, hidden:]
        gates = np.concatenate((below, h, np.ones((len(h), 1), np.float32)), axis=1) @ product
        np.tanh(gates, out=gates)
        gates[:3] *= 0.5
        gates[:3] += 0.5
        i, f, o, g = gates
        f *= c
        i *= g
        f += i
        c[:] = f
        np.tanh(f, out=f)
        np.multiply(f, o, out=h)
        return h

    return advance


def _by_the_equations(cell: str, layer: cells.Layer, hidden: int) -> Advance:
    """Any cell, as `cells` has it."""
    ends = np.cumsum(cells.state_sizes(cell, hidden))

    def advance(below: Float32, state: Float32) -> Float32:
        np.concatenate(cells.step(cell, layer, below, tuple(np.split(state, ends[:-1], axis=1))), axis=1, out=state)
        return state[:, :hidden]

    return advance


class Stack:
    """The recurrent layers of one direction. The LSTM has its own step; the others are stepped by the equations."""

    def __init__(self, weights: Weights, direction: str = "lstm") -> None:
        cell, hidden = weights.config.cell, weights.config.hidden_size
        self._residual = weights.config.residual
        self._width = sum(cells.state_sizes(cell, hidden))  # of one layer's state
        self._layers = [
            _lstm(layer, hidden) if cell == "lstm" else _by_the_equations(cell, layer, hidden)
            for layer in recurrent_layers(weights, direction)
        ]
        self.size = len(self._layers) * self._width

    def advance(self, inputs: Float32, state: Float32) -> Float32:
        """The hidden state `(n, hidden_size)` after `inputs`; moves `state` `(n, size)` on in place."""
        below = inputs
        for k, advance in enumerate(self._layers):
            h = advance(below, state[:, k * self._width : (k + 1) * self._width])
            below = h + below if k and self._residual else h
        return below


class NumpyStepper:
    """The CPU back end; with `offline` for bidirectional weights too: `expect` tells it what comes after a reading."""

    def __init__(self, weights: Weights, capacity: int, *, offline: bool = False) -> None:
        config = weights.config
        if not offline:
            check_streams(config)
        self._config = config
        self._state = np.zeros((capacity, state_size(config)), np.float32)
        self._stack = Stack(weights)
        if config.attention:
            self._attention = weights.tensors["attention.weight"] / np.float32(config.hidden_size**0.5)
        if config.bidirectional:
            self._future = np.zeros((capacity, config.hidden_size + config.input_size + 1), np.float32)
        head, bias = weights.tensors["head.weight"], weights.tensors["head.bias"]
        if len(bias) == 1:  # BLAS multiplies one column by another routine, whose rounding depends on the rows
            head, bias = np.repeat(head, LEAST_COLUMNS, axis=0), np.repeat(bias, LEAST_COLUMNS)
        self._head = np.ascontiguousarray(head.T, np.float32)
        self._head_bias = bias.astype(np.float32)

    def expect(self, slots: Slots, future: Float32) -> None:
        """Before a step with bidirectional weights: rows of `history.foresee` for the readings it will be given."""
        self._future[slots] = future

    def step(self, slots: Slots, inputs: Float32) -> Float32:
        if len(slots) <= CHUNK_ROWS:
            return self._chunk(slots, inputs)
        pieces = range(0, len(slots), CHUNK_ROWS)
        return np.concatenate([self._chunk(slots[k : k + CHUNK_ROWS], inputs[k : k + CHUNK_ROWS]) for k in pieces])

    def _chunk(self, slots: Slots, inputs: Float32) -> Float32:
        if len(slots) == 1:  # BLAS multiplies one row by another routine, which rounds otherwise: one row is two alike
            return self._chunk(np.repeat(slots, 2), np.repeat(inputs, 2, axis=0))[:1]
        state = self._state[slots]
        below = self._stack.advance(inputs, state[:, : self._stack.size])
        if self._config.attention:
            below = self._read_out(below, state[:, self._stack.size :])
        self._state[slots] = state
        seen = [below, inputs]
        if self._config.bidirectional:
            hidden, ahead = np.split(self._future[slots], [self._config.hidden_size], axis=1)
            seen = [below, hidden, inputs, ahead]
        return np.concatenate(seen, axis=1) @ self._head + self._head_bias

    def _read_out(self, hidden: Float32, memory: Float32) -> Float32:
        """`hidden` with what attention reads beside it, `(n, 2 * hidden_size)`; the memory moves on in place."""
        known = np.concatenate((memory, hidden), axis=1)
        past = known.reshape(
            -1, self._config.attention, self._config.hidden_size
        )  # (n, attention, hidden), the oldest first
        alike = np.einsum("nh,nkh->nk", hidden @ self._attention, past)
        share = np.exp(alike - alike.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        memory[:] = known[:, hidden.shape[1] :]
        return np.concatenate((hidden, np.einsum("nk,nkh->nh", share, past)), axis=1)

    def export(self, rows: slice | Slots) -> Float32:
        return self._state[rows].copy()

    def put(self, rows: slice | Slots, state: Float32) -> None:
        self._state[rows] = state

    def reset(self, slots: Slots) -> None:
        self._state[slots] = 0.0


class TorchStepper:
    """The torch back end: the state stays on the device, inputs go out and the head's output comes back once a wave."""

    def __init__(self, weights: Weights, capacity: int, device: str = "cuda") -> None:
        import torch

        from models import recurrent

        config = weights.config
        check_streams(config)
        self._torch, self._recurrent, self._config = torch, recurrent, config
        self._device = torch.device(device)
        self._sizes = cells.state_sizes(config.cell, config.hidden_size)

        self._layers = [
            tuple(None if part is None else self._there(part) for part in layer) for layer in recurrent_layers(weights)
        ]
        self._attention = self._there(weights.tensors["attention.weight"]) if config.attention else None
        self._head, self._head_bias = (
            self._there(weights.tensors["head.weight"]),
            self._there(weights.tensors["head.bias"]),
        )
        self._state = torch.zeros((capacity, state_size(config)), device=self._device)

    def step(self, slots: Slots, inputs: Float32) -> Float32:
        torch, width = self._torch, sum(self._sizes)
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(slots, np.int64)).to(self._device)
            x = torch.from_numpy(inputs).to(self._device)
            state = self._state[rows]
            below = x
            parts: list[Tensor] = []
            for k, layer in enumerate(self._layers):
                before = torch.split(state[:, k * width : (k + 1) * width], self._sizes, dim=1)
                after = self._recurrent.step(self._config.cell, layer, below, before)
                parts += after
                below = after[0] + below if k and self._config.residual else after[0]
            if self._attention is not None:
                memory = state[:, len(self._layers) * width :]
                memory = memory.reshape(len(x), self._config.memory, self._config.hidden_size)
                read, memory = self._recurrent.attend(self._attention, below.unsqueeze(1), memory)
                below = read.squeeze(1)
                parts.append(memory.flatten(1))
            self._state[rows] = torch.cat(parts, dim=1)
            head = torch.addmm(self._head_bias, torch.cat((below, x), dim=1), self._head.T)
            output: Float32 = head.cpu().numpy()
            return output

    def export(self, rows: slice | Slots) -> Float32:
        found: Float32 = self._state[self._at(rows)].cpu().numpy()
        return found.copy()

    def put(self, rows: slice | Slots, state: Float32) -> None:
        self._state[self._at(rows)] = self._there(state)

    def reset(self, slots: Slots) -> None:
        self._state[self._at(slots)] = 0.0

    def _there(self, array: NDArray[np.floating]) -> Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self._device)

    def _at(self, rows: slice | Slots) -> slice | Tensor:
        if isinstance(rows, slice):
            return rows
        return self._torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(self._device)
