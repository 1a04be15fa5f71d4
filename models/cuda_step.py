"""The streaming step on CUDA as one Triton kernel: gather, the stacked LSTM, the head, scatter, in one pass.

A row of the state is what `step` has in float32, here in float16: the cost is memory, each byte of a row comes and goes
once a reading. Products are of float16 and summed in float32, as tensor cores do. bfloat16 would be as small, and nine
times as wrong (measured). Only the LSTM, with or without residual layers; the other cells, and attention, are
`step.TorchStepper`'s.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from models import kernels
from models.step import Float32, NumpyStepper, Slots, state_size
from models.weights import ForecasterConfig, Weights, check_streams, expected_shapes, recurrent_layers

ROWS = 64  # readings of a program, the same for every batch, so that no result depends on how a stream was cut
LEAST_HIDDEN, MOST_HIDDEN = 16, 64  # the least that tensor cores take, the most that a program's registers hold
MOST_INPUTS, MOST_LAYERS = 128, 4  # by eye; each layer is compiled anew, in seconds
FEWEST = 64  # readings of the smallest graph
TRIED_STEPS, TRIED_ROWS, TRIED_SEED = 4, 70, 1  # more rows than a program has


def can_step(config: ForecasterConfig) -> bool:
    """Whether the kernel has this forecaster's equations, in sizes that tensor cores take."""
    hidden = config.hidden_size
    fits = LEAST_HIDDEN <= hidden <= MOST_HIDDEN and hidden & (hidden - 1) == 0
    fits = fits and config.input_size <= MOST_INPUTS and config.num_layers <= MOST_LAYERS
    return config.cell == "lstm" and not config.attention and not config.bidirectional and fits


def padded(config: ForecasterConfig) -> int:
    """Inputs with the zeros behind them that make a product of them one for tensor cores."""
    return max(LEAST_HIDDEN, triton.next_power_of_2(config.input_size))  # type: ignore[no-any-return]  # no types


class KernelStepper:
    """The back end of `step` that runs the kernel; its state is float16 on the device. Owned by one thread."""

    def __init__(self, weights: Weights, capacity: int, device: str = "cuda") -> None:
        config = weights.config
        check_streams(config)
        assert can_step(config), config
        self.config, self.device = config, torch.device(device)
        self.outputs = len(weights.tensors["head.bias"])
        self._padded = padded(config)
        self._state = torch.zeros((capacity, state_size(config)), dtype=torch.float16, device=self.device)
        products: list[Float32] = []
        biases: list[Float32] = []
        for k, layer in enumerate(recurrent_layers(weights)):
            below = _below(layer.weight_ih.T, self._padded if k == 0 else config.hidden_size)
            products += [below, layer.weight_hh.T]
            biases.append((layer.bias_ih + layer.bias_hh).astype(np.float32))
        self._weights = self._there(np.concatenate(products), torch.float16)
        self._biases = self._there(np.concatenate(biases), torch.float32)
        head, hidden = weights.tensors["head.weight"].T, config.hidden_size
        head = np.concatenate((head[:hidden], _below(head[hidden:], self._padded)))
        spare = kernels.HEAD.value - self.outputs
        self._head = self._there(np.pad(head, ((0, 0), (0, spare))), torch.float16)
        self._head_bias = self._there(np.pad(weights.tensors["head.bias"], (0, spare)), torch.float32)
        self._exchanges: dict[int, _Exchange] = {}

    def step(self, slots: Slots, inputs: Float32) -> Float32:
        n = len(slots)
        size = max(FEWEST, triton.next_power_of_2(n))
        if size not in self._exchanges:
            self._exchanges[size] = _Exchange(size, self)
        exchange = self._exchanges[size]
        exchange.slots[:n], exchange.inputs[:n], exchange.count[0] = slots, inputs, n
        exchange.run(self)
        told: Float32 = exchange.output[:n].copy()
        return told

    def launch(self, slots: Tensor, inputs: Tensor, count: Tensor, output: Tensor) -> None:
        """The step of the first `count` of these readings, all in memory that the device sees; does not wait."""
        config = self.config
        kernels.step[(triton.cdiv(len(slots), ROWS),)](
            self._state, slots, inputs, count, self._weights, self._biases, self._head, self._head_bias, output,
            config.num_layers, config.input_size, self._padded, config.hidden_size, config.residual, self.outputs,
            ROWS,
        )  # fmt: skip

    def export(self, rows: slice | Slots) -> Float32:
        found: Float32 = self._state[self._at(rows)].float().cpu().numpy()
        return found

    def put(self, rows: slice | Slots, state: Float32) -> None:
        self._state[self._at(rows)] = self._there(state, torch.float16)

    def reset(self, slots: Slots) -> None:
        self._state[self._at(slots)] = 0.0

    def _there(self, array: NDArray[np.floating], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, dtype)

    def _at(self, rows: slice | Slots) -> slice | Tensor:
        if isinstance(rows, slice):
            return rows
        return torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(self.device)


def deviation(config: ForecasterConfig, device: str) -> float:
    """The furthest that the kernel on this device is from the CPU's step, in the head's output and in the state.

    Of some readings, with weights of usual sizes; rounding to float16 makes it a few thousandths.
    """
    rng = np.random.default_rng(TRIED_SEED)
    shapes = expected_shapes(config)
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    weights = Weights(config, tensors, {})
    off: list[float] = []
    tried, sure = KernelStepper(weights, 2 * TRIED_ROWS, device), NumpyStepper(weights, 2 * TRIED_ROWS)
    for _ in range(TRIED_STEPS):
        slots = rng.permutation(2 * TRIED_ROWS)[:TRIED_ROWS]
        inputs = rng.normal(size=(TRIED_ROWS, config.input_size)).astype(np.float32)
        told, wanted = (stepper.step(slots, inputs) for stepper in (tried, sure))
        state, known = (stepper.export(slice(None)) for stepper in (tried, sure))
        off += [np.abs(told - wanted).max(), np.abs(state - known).max()]
    return float(np.max(off))  # Python's own max() would pass over what is no number


class _Exchange:
    """What a batch of at most `size` readings passes through: memory that host and device both see, and a launch.

    On CUDA it is pinned, read and written by the kernel itself, and the launch is recorded once as a graph. One is
    enough, not a ring of them: a step gives its result before the next begins.
    """

    def __init__(self, size: int, stepper: KernelStepper) -> None:
        on_cuda = stepper.device.type == "cuda"
        slots = torch.zeros(size, dtype=torch.int32, pin_memory=on_cuda)
        inputs = torch.zeros((size, stepper.config.input_size), pin_memory=on_cuda)
        count = torch.zeros(1, dtype=torch.int32, pin_memory=on_cuda)
        output = torch.zeros((size, stepper.outputs), pin_memory=on_cuda)
        self._memory = (slots, inputs, count, output)
        self.slots, self.inputs, self.count, self.output = (part.numpy() for part in self._memory)  # the same bytes
        self._graph: torch.cuda.CUDAGraph | None = None
        if on_cuda:
            stepper.launch(*self._memory)  # of no readings: it compiles
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                stepper.launch(*self._memory)

    def run(self, stepper: KernelStepper) -> None:
        """Returns when the outputs are there."""
        if self._graph is None:
            stepper.launch(*self._memory)
            return
        self._graph.replay()
        torch.cuda.current_stream().synchronize()


def _below(matrix: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """The matrix with zeros below it, up to so many rows."""
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))
