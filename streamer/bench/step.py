"""The streaming step on one core: beside torch's nn.LSTM with a batch of one, and beside a large product of matrices.

Each round measures all of them one after the other; what is said is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from models.step import NumpyStepper
from models.weights import Weights, expected_shapes, load
from streamer.bench.report import Report

if TYPE_CHECKING:
    from models.weights import ForecasterConfig

PRODUCT = 1024  # rows and columns of the large product


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    series: int
    batch: int
    rounds: int
    single_steps: int
    """of nn.LSTM, in a round"""


FULL = Options(10_000, 4096, 9, 1000)
QUICK = Options(2000, 1024, 3, 100)


def add_steps(report: Report, options: Options, say: Callable[[str], None]) -> None:
    """The shipped model, and the bench's reference model of two layers of 64 units."""
    shipped = load()
    for name, made, wanted in (("2x64", two_layers(shipped), (60.0, 0.3)), ("shipped", shipped, (None, None))):
        say(f"batches of {options.batch} on one core, {name}")
        step, share, single = measured(made, options)
        report.add(f"{name}_step_cpu_us_per_reading", 1e6 * statistics.median(step), None, "lower")
        ratios = [a / b for a, b in zip(single, step, strict=True)]
        report.add(f"{name}_lstm_batch_1_over_step", statistics.median(ratios), wanted[0], "higher")
        report.add(f"{name}_step_share_of_sgemm", statistics.median(share), wanted[1], "higher")


def measured(made: Weights, options: Options) -> tuple[list[float], list[float], list[float]]:
    """By round: CPU seconds of a reading, its share of a large product's rate, CPU seconds of a step of nn.LSTM."""
    import torch

    torch.set_num_threads(1)
    config, rng = made.config, np.random.default_rng(0)
    stepper = NumpyStepper(made, options.series)
    slots = rng.permutation(options.series)[: options.batch].astype(np.intp)
    inputs = rng.normal(size=(len(slots), config.input_size)).astype(np.float32)
    a, b = rng.normal(size=(2, PRODUCT, PRODUCT)).astype(np.float32)
    lstm = torch.nn.LSTM(config.input_size, config.hidden_size, config.num_layers)
    x = torch.randn(1, 1, config.input_size)

    @torch.inference_mode()
    def one_by_one() -> None:
        state = None
        for _ in range(options.single_steps):
            _, state = lstm(x, state)

    step, share, single = [], [], []
    for _ in range(options.rounds + 1):
        product = 2 * PRODUCT**3 / cpu_seconds(lambda: a @ b)  # operations a second
        step.append(cpu_seconds(lambda: stepper.step(slots, inputs), 3) / len(slots))
        share.append(operations(config) / product / step[-1])
        single.append(cpu_seconds(one_by_one) / options.single_steps)
    return step[1:], share[1:], single[1:]  # the first round warms up


def operations(config: ForecasterConfig) -> int:
    """Of the products of one reading's step, a multiplication and an addition being two."""
    hidden, outputs = config.hidden_size, expected_shapes(config)["head.bias"][0]
    widths = [config.input_size, *[hidden] * (config.num_layers - 1)]
    layers = sum(2 * 4 * hidden * (width + hidden) for width in widths)
    return layers + 2 * outputs * (hidden + config.input_size)


def cpu_seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Of one call."""
    before = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - before) / repeats


def two_layers(base: Weights, hidden_size: int = 64, num_layers: int = 2) -> Weights:
    """The bench's reference model: as the shipped one, with two layers of 64 units and weights that mean nothing."""
    config, rng = replace(base.config, hidden_size=hidden_size, num_layers=num_layers), np.random.default_rng(1)
    shapes = expected_shapes(config)
    return Weights(config, {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}, {})
