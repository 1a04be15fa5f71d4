"""How fast a retraining goes: series-steps a second of its loop, beside the same loop around a bare nn.LSTM.

Both run forward, backward and update over the same chunks with the state carried and detached, in the same precision,
one after the other, several times in turn: what is said is the median of each. The bare loop has torch's own LSTM
(cuDNN on a GPU) with a linear layer and a squared error behind it: no distribution, no mask, no clipping by the norm.
On a GPU the loop over time itself is measured besides, by `gpu`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from streamer.bench import gpu
from streamer.bench.report import Busy, Report, machine


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    series: int
    steps: int
    chunk: int
    repeats: int
    threads: int
    device: str
    loops: gpu.Options
    """of what is measured on a GPU only"""


def measure(options: Options, say: Callable[[str], None]) -> Report:
    """All figures of one run. Raises WeightsError for a device that is not there."""
    import numpy as np
    import torch

    from models import pretrain, tbptt, weights
    from models.retraining import MIXED, Recipe, model_of

    torch.set_num_threads(options.threads)
    device = pretrain.device_from(options.device)
    mixed = MIXED if device == "cuda" else None
    scaler = torch.amp.GradScaler(device, enabled=mixed is not None)
    report = Report(machine())
    report.machine |= {
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if mixed else "cpu",
        "precision": "float16, loss in float32" if mixed else "float32",
        "threads": float(options.threads),
        "series": float(options.series),
        "steps": float(options.steps),
        "chunk": float(options.chunk),
    }
    say(f"{options.series} series of {options.steps} readings, on {device}")
    incumbent = weights.load()
    batch = pretrain.sequences(np.random.default_rng(1), options.series, options.steps).to(device)
    model = model_of(incumbent).to(device).train()
    recipe = replace(Recipe(), chunk=options.chunk)
    optimizer = torch.optim.AdamW(tbptt.parameter_groups(model), lr=recipe.learning_rate)

    config = incumbent.config
    lstm = torch.nn.LSTM(config.input_size, config.hidden_size, config.num_layers, batch_first=True).to(device)
    linear = torch.nn.Linear(config.hidden_size, 1).to(device)
    plain = torch.optim.AdamW([*lstm.parameters(), *linear.parameters()], lr=recipe.learning_rate)

    def ours() -> None:
        tbptt.train_pass(
            model, batch, length=options.chunk, optimizer=optimizer, clip=recipe.clip, mixed=mixed, scaler=scaler
        )

    def bare() -> None:
        state = None
        for part in tbptt.chunks(batch, options.chunk):
            with torch.autocast(device, MIXED, enabled=mixed is not None):
                out, after = lstm(part.inputs, state)
                guess = linear(out).squeeze(-1)
            state = tuple(each.detach() for each in after)
            plain.zero_grad(set_to_none=True)
            (guess.float() - part.y).square().mean().backward()
            plain.step()

    def seconds(work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        if mixed:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    busy = Busy(time.process_time)
    seconds(ours), seconds(bare)  # the first one pays for what is allocated and chosen once
    times = [(seconds(ours), seconds(bare)) for _ in range(options.repeats)]
    report.machine["busy_elsewhere_cores"] = round(busy.elsewhere(), 2)
    count = options.series * options.steps
    report.add("series_steps_per_second", count / statistics.median(each[0] for each in times), None, "higher")
    report.add(
        "bare_lstm_series_steps_per_second", count / statistics.median(each[1] for each in times), None, "higher"
    )
    report.add("share_of_bare_lstm", statistics.median(each[1] / each[0] for each in times), None, "higher")
    gpu.add_loops(report, options.loops, options.device, say)
    return report
