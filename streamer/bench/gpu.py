"""What a CUDA device makes of the kernels, each beside torch's own way in the same run; without a device, `not run`.

The streaming step is measured against the device's memory: the bytes that a reading must move, over what a plain copy
reaches. A loop over time is measured against cuDNN, and against a large product of matrices in float16.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from streamer.bench.report import Better, Report
from streamer.bench.step import two_layers

if TYPE_CHECKING:
    from models.weights import Weights

ROUNDS = 5  # what is said is the median of so many
HOST_READINGS = 256
LOOPS = (("lstm", 64), ("lstm", 128), ("peephole", 64), ("coupled", 64), ("gru", 64))

Row = tuple[float | None, Better]
STEP_ROWS: dict[str, Row] = {
    "memory_gb_per_second": (None, "higher"),
    **{
        f"{model}_{name}": (0.4 if (model, name) == ("2x64", "share_of_memory_limit") else None, "higher")
        for model in ("2x64", "shipped")
        for name in ("readings_per_second", "share_of_memory_limit", "bare_lstm_share_of_memory_limit")
    },
    f"host_to_host_{HOST_READINGS}_us": (None, "lower"),
    "smallest_graph_us": (None, "lower"),
    f"host_to_host_{HOST_READINGS}_over_smallest_graph": (1.2, "lower"),
    "error_over_torch_in_float16": (1.0, "lower"),
}
"""Figures of the streaming step: what is wanted, and which way is better."""
LOOP_ROWS: dict[str, Row] = {
    "matmul_tflops": (None, "higher"),
    **{
        f"{cell}_{hidden}_{name}": (2.0 if (cell, hidden, name) == ("lstm", 64, "over_torch") else None, "higher")
        for cell, hidden in LOOPS
        for name in ("kernel_series_steps_per_second", "over_torch", "share_of_matmul")
    },
}
"""Figures of training's loop, forward and backward; torch's is cuDNN for `lstm` and `gru`."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    series: int
    """whose state is on the device"""
    batch: int
    """readings that are stepped at once"""
    sequences: int
    steps: int
    """of each sequence that is trained on"""
    repeats: int
    """of what keeps the device busy, between two looks at the clock"""
    host_repeats: int
    """of what the host waits for each time"""
    noise_steps: int
    """before rounding is judged"""


def absent(device: str) -> str:
    """Why nothing is measured on a device; empty: there is one, and Triton."""
    if device == "cpu":
        return "not asked for: the device is the CPU"
    from models.step import cuda_is_available

    if not cuda_is_available():
        return "torch sees no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "there is no Triton: install the extra [gpu]"
    return ""


def add_steps(report: Report, options: Options, device: str, say: Callable[[str], None]) -> None:
    """All figures of the streaming step."""
    report.machine |= {"series": float(options.series), "batch": float(options.batch)}
    missing = absent(device)
    if missing:
        report.leave_out(STEP_ROWS, missing)
    else:
        Steps(report, options, "cuda", say).run()


def add_loops(report: Report, options: Options, device: str, say: Callable[[str], None]) -> None:
    """The figures of training's loop, to a report of training."""
    missing = absent(device)
    if missing:
        report.leave_out(LOOP_ROWS, missing)
    else:
        Loops(report, options, "cuda", say).run()


class _Measurement(ABC):
    """What both have: a device, and parts of which one may fail and the others go on."""

    rows: dict[str, Row]

    def __init__(self, report: Report, options: Options, device: str, say: Callable[[str], None]) -> None:
        self.report, self.options, self.device, self._say = report, options, device, say

    def run(self) -> None:
        """Time on such a device is dear: what fails costs its own figures, and the report says why."""
        import torch

        self.report.machine["gpu"] = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        failures: list[str] = []
        for what, part in self.parts():
            self._say(what)
            try:
                part()
            except Exception as error:  # noqa: BLE001  a compiler, a driver and a device: the report says it
                failures.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
                self._say(failures[-1])
        self.report.leave_out([row for row in self.rows if row not in self.report.figures], "; ".join(failures))

    @abstractmethod
    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """What is measured, in words, and how."""

    def add(self, name: str, value: float) -> None:
        self.report.add(name, value, *self.rows[name])

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Of one call, with what it leaves to the device."""
        work()  # the first one compiles, allocates and chooses
        times = []
        for _ in range(ROUNDS):
            self._wait()
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            self._wait()
            times.append((time.perf_counter() - began) / repeats)
        return statistics.median(times)

    def _wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()


class Steps(_Measurement):
    """The streaming step."""

    rows = STEP_ROWS

    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        from models import weights

        base = weights.load()
        self._rate = float("nan")
        yield "a plain copy", self._copy
        for name, made in (("2x64", two_layers(base)), ("shipped", base)):
            yield (
                f"{self.options.batch} readings over {self.options.series} series, {name}",
                partial(self._throughput, name, made),
            )
        yield "the error of float16", partial(self._error, base)
        yield "from the host's memory to the host's memory", partial(self._latency, base)

    def _copy(self) -> None:
        """Bytes a second, those that are read and those that are written."""
        import torch

        block = torch.zeros(self.options.series << 8, dtype=torch.uint8, device=self.device)
        into = torch.empty_like(block)
        self._rate = 2 * block.numel() / self.seconds(lambda: into.copy_(block), self.options.repeats)
        self.add("memory_gb_per_second", self._rate / 1e9)

    def _throughput(self, name: str, made: Weights) -> None:
        """Of readings that are already on the device."""
        import torch

        from models import step
        from models.cuda_step import KernelStepper

        config, device = made.config, self.device
        series, batch = self.options.series, self.options.batch
        trouble = step.kernel_trouble(config, device)
        if trouble:
            raise RuntimeError(trouble)
        kernel = KernelStepper(made, series, device)
        slots = torch.randperm(series, device=device)[:batch]
        rows, count = slots.int(), torch.tensor([batch], dtype=torch.int32, device=device)
        inputs = torch.randn(batch, config.input_size, device=device)
        output = torch.empty(batch, kernel.outputs, device=device)
        ours = self.seconds(lambda: kernel.launch(rows, inputs, count, output), self.options.repeats)
        moved = 4 * step.state_size(config) + 4 * (1 + config.input_size + kernel.outputs)  # bytes of a reading
        self.add(f"{name}_readings_per_second", batch / ours)
        self.add(f"{name}_share_of_memory_limit", batch * moved / self._rate / ours)

        lstm = torch.nn.LSTM(config.input_size, config.hidden_size, config.num_layers, batch_first=True)
        lstm = lstm.to(device).half()
        h_all, c_all = torch.zeros(2, config.num_layers, series, config.hidden_size, device=device).half()
        x = inputs.half().unsqueeze(1)

        @torch.no_grad()
        def bare() -> None:
            _, (h_all[:, slots], c_all[:, slots]) = lstm(x, (h_all[:, slots], c_all[:, slots]))

        theirs = self.seconds(bare, self.options.repeats)
        self.add(f"{name}_bare_lstm_share_of_memory_limit", batch * moved / self._rate / theirs)

    def _latency(self, made: Weights) -> None:
        """Of a batch, as the daemon steps it, beside a graph that sets one number to 0."""
        import torch

        from models import step

        kernel, rng = step.on_cuda(made, 10 * HOST_READINGS, self.device), np.random.default_rng(1)
        slots = rng.permutation(10 * HOST_READINGS)[:HOST_READINGS]
        inputs = rng.normal(size=(HOST_READINGS, made.config.input_size)).astype(np.float32)
        ours = self.seconds(lambda: kernel.step(slots, inputs), self.options.host_repeats)
        self.add(f"host_to_host_{HOST_READINGS}_us", 1e6 * ours)
        one, graph = torch.zeros(1, device=self.device), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one.zero_()

        def smallest() -> None:
            graph.replay()
            torch.cuda.current_stream().synchronize()

        least = self.seconds(smallest, self.options.host_repeats)
        self.add("smallest_graph_us", 1e6 * least)
        self.add(f"host_to_host_{HOST_READINGS}_over_smallest_graph", ours / least)

    def _error(self, made: Weights) -> None:
        """Of the head, against the CPU's step, after many steps of noise: root of the mean square, beside torch's."""
        import torch

        from models import step
        from models.weights import recurrent_layers

        rng, n = np.random.default_rng(2), min(512, self.options.series)
        kernel, sure = step.on_cuda(made, n, self.device), step.NumpyStepper(made, n)
        (layer,) = recurrent_layers(made)
        parts = (*layer[:4], made.tensors["head.weight"], made.tensors["head.bias"])
        *cell, head, bias = (torch.from_numpy(part).to(self.device).half() for part in parts)
        state = (torch.zeros(n, made.config.hidden_size, device=self.device).half(),) * 2
        off = np.zeros(2)
        for _ in range(self.options.noise_steps):
            inputs = rng.normal(size=(n, made.config.input_size)).astype(np.float32)
            wanted, ours = (each.step(np.arange(n), inputs) for each in (sure, kernel))
            x = torch.from_numpy(inputs).to(self.device).half()
            state = torch.lstm_cell(x, state, *cell)
            theirs = torch.addmm(bias, torch.cat((state[0], x), dim=1), head.T).float().cpu().numpy()
            off += [np.square(each - wanted).mean() for each in (ours, theirs)]
        self.add("error_over_torch_in_float16", float(np.sqrt(off[0] / off[1])))


class Loops(_Measurement):
    """Training's loop over time, forward and backward, in float16."""

    rows = LOOP_ROWS

    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        self._rate = float("nan")
        yield "a large product", self._matmul
        for cell, hidden in LOOPS:
            yield (
                f"{self.options.sequences} sequences of {self.options.steps}, {cell} of {hidden}",
                partial(self._loop, cell, hidden),
            )

    def _matmul(self) -> None:
        """Operations a second, a multiplication and an addition being two."""
        import torch

        size = 2 * self.options.sequences
        a, b = torch.randn(2, size, size, device=self.device).half()
        self._rate = 2 * size**3 / self.seconds(lambda: a @ b, self.options.repeats)
        self.add("matmul_tflops", self._rate / 1e12)

    def _loop(self, cell: str, hidden: int) -> None:
        import torch

        from models import cuda_loop, recurrent
        from models.features import INPUT_SIZE
        from models.weights import ForecasterConfig

        trouble = recurrent.kernel_trouble(cell, hidden, torch.device(self.device))
        if trouble:
            raise RuntimeError(trouble)
        sequences, steps = self.options.sequences, self.options.steps
        stack = recurrent.Recurrent(ForecasterConfig(INPUT_SIZE, hidden, cell=cell)).to(self.device)
        (layer,), inputs = stack.layers, torch.randn(sequences, steps, INPUT_SIZE, device=self.device)
        state = stack.zeros(inputs)

        def trained(by: cuda_loop.Run) -> None:
            with torch.autocast(self.device, torch.float16):
                outputs, _ = by(layer, inputs, state)
            torch.autograd.grad(outputs.float().square().mean(), list(layer.parameters()))

        ours = self.seconds(lambda: trained(cuda_loop.run), self.options.repeats)
        rows = layer.get_parameter("weight_hh_l0").shape[0]
        work = 3 * 2 * rows * (INPUT_SIZE + hidden)  # of a step, and twice as much backwards
        self.add(f"{cell}_{hidden}_kernel_series_steps_per_second", sequences * steps / ours)
        self.add(f"{cell}_{hidden}_share_of_matmul", sequences * steps * work / self._rate / ours)
        self.add(f"{cell}_{hidden}_over_torch", self.seconds(lambda: trained(recurrent.by_torch), 1) / ours)
