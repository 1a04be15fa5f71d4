"""Log-loss of the shipped weights zero-shot against training from scratch on the site, by the age of the series.

`python -m tests.from_scratch --data DIR` (the folder of `streamer bench quality`) takes the recordings of one data set,
each channel a series. At the beginning of each stretch of ages a network of the shipped shape is trained, from random
weights, on all that the series has shown so far, by truncated BPTT over segments side by side; the learning rate and
the number of updates are those that are best on the last fifth of that past, and with them it is trained anew on all of
it. Both networks then run over the series from its first reading on and are judged on the stretch: negative
log-likelihood a reading, in y, as `models.pretrain` measures it. Before there is a past to train on, the untrained
network speaks ("about as the last value"). Seeded; one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import pretrain, tbptt, weights
from models.forecaster import Forecaster, log_loss
from models.recipe import FIRST_SCORED
from streamer.bench.quality.recordings import Recording, load, select
from streamer.readings import Float64

AGES = (0, 500, 2000, 4000, 10_000)  # readings: the stretches of the table
TRAINED_AT = (0, 100, 250, 500, 1000, 2000, 4000, 7000)  # ages at which the network is trained anew
LEARNING_RATES = (3e-3, 1e-3)
UPDATES = 300  # at most
LOOK_EVERY = 50  # updates from one look at the hold-out to the next
SEGMENTS, CHUNK = 8, 64  # segments of the past side by side; steps an update goes back
HELD_OUT = 0.2


def increasing(recording: Recording) -> Iterator[tuple[Float64, Float64]]:
    """Times and values of each channel, without what is late or doubled, to the last age."""
    rows = np.flatnonzero(np.diff(np.maximum.accumulate(recording.time), prepend=-np.inf) > 0)[: AGES[-1]]
    for channel in recording.values.T:
        kept = rows[np.isfinite(channel[rows])]
        yield recording.time[kept], channel[kept].astype(np.float64)


@torch.no_grad()
def losses(model: Forecaster, series: tbptt.Sequences) -> Tensor:
    """`(time,)`, streamed from the first reading on."""
    head, _ = model(series.inputs)
    loss: Tensor = log_loss(head, series.previous, series.step, series.y)[0]
    return loss


def segments(series: tbptt.Sequences, shift: int) -> tbptt.Sequences:
    """One past `(1, time)` as segments side by side, the last ones beginning `shift` rows later, so that seams move."""
    length = max((series.y.shape[1] - shift) // SEGMENTS, 1)
    count = (series.y.shape[1] - shift) // length
    count = min(count, SEGMENTS)
    stop = shift + count * length
    return tbptt.Sequences(*(part[0, shift:stop].reshape(count, length, *part.shape[2:]) for part in series))


def train(
    config: weights.ForecasterConfig, past: tbptt.Sequences, rate: float, updates: int, held_out: int | None = None
) -> tuple[Forecaster, list[float]]:
    """A network trained on a past, or on all but its last `held_out` readings; then with their loss every so often."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    model = Forecaster(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    length = past.y.shape[1] - (held_out or 0)
    seen = [float(losses(model, past)[length:].mean())] if held_out else []
    done = 0

    def count(_loss: float) -> None:
        nonlocal done
        done += 1
        if held_out and done % LOOK_EVERY == 0:
            seen.append(float(losses(model, past)[length:].mean()))

    while done < updates:
        part = segments(past.chunk(0, length), int(rng.integers(0, max(length // 10, 1))))
        steps = (updates - done) * CHUNK  # the last pass stops at the number of updates
        tbptt.train_pass(model, part.chunk(0, steps), length=CHUNK, optimizer=optimizer, after_update=count)
    return model, seen


def from_scratch(config: weights.ForecasterConfig, past: tbptt.Sequences) -> Forecaster:
    """The best that the recipe makes of a past."""
    held_out = int(HELD_OUT * past.y.shape[1])
    best, rate, updates = np.inf, LEARNING_RATES[0], 0
    for each in LEARNING_RATES:
        _, seen = train(config, past, each, UPDATES, held_out)
        if min(seen) < best:
            best, rate, updates = min(seen), each, LOOK_EVERY * int(np.argmin(seen))
    return train(config, past, rate, updates)[0]


def compare(base: weights.Weights, time: Float64, value: Float64) -> tuple[Float64, Float64]:
    """Losses `(time,)` of the shipped weights and of those from scratch."""
    series = pretrain.encode(time[None], value[None])
    shipped = Forecaster(base.config)
    shipped.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in base.tensors.items()})
    scratch = torch.empty(len(value))
    for start, stop in pairwise((*TRAINED_AT, AGES[-1])):
        if start < len(value):
            model = from_scratch(base.config, series.chunk(0, start)) if start else Forecaster(base.config)
            scratch[start:stop] = losses(model, series.chunk(0, stop))[start:]
    return losses(shipped, series).numpy().astype(np.float64), scratch.numpy().astype(np.float64)


def main(arguments: list[str] | None = None) -> int:
    """Progress to stderr, the table (or JSON) to stdout."""
    parser = argparse.ArgumentParser(prog="python -m tests.from_scratch", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the recordings")
    parser.add_argument("--on", default="NAB", help="a list, a data set or a recording; several by comma")
    parser.add_argument("--json", action="store_true", help="every series, in JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    base = weights.load()
    table: dict[str, list[dict[str, float]]] = {}
    for recording in load(options.data, select(options.data, options.on.split(","))):
        for channel, (moment, value) in enumerate(increasing(recording)):
            shipped, scratch = compare(base, moment, value)
            name = f"{recording.name}#c{channel}"
            table[name] = [
                {
                    "from": start,
                    "readings": min(stop, len(value)) - max(start, FIRST_SCORED),
                    "zero_shot": float(shipped[max(start, FIRST_SCORED) : stop].mean()),
                    "from_scratch": float(scratch[max(start, FIRST_SCORED) : stop].mean()),
                }
                for start, stop in pairwise(AGES)
                if max(start, FIRST_SCORED) < len(value)
            ]
            sys.stderr.write(f"{name}: {time.process_time():.0f} s of CPU\n")
    sys.stdout.write(json.dumps(table, indent=1) + "\n" if options.json else _text(table))
    return 0


def _text(table: dict[str, list[dict[str, float]]]) -> str:
    """Means over the readings, then over the series; and on how many series zero-shot is the better one."""
    lines = [
        "| readings | series | zero-shot, mean of readings | from scratch | zero-shot, mean of series | from scratch"
        " | zero-shot is better on |",
        "|---|---|---|---|---|---|---|",
    ]
    for start, stop in pairwise(AGES):
        cells = [each for stretches in table.values() for each in stretches if each["from"] == start]
        if cells:
            n, zero, own = (
                np.array([each[key] for each in cells]) for key in ("readings", "zero_shot", "from_scratch")
            )
            means = (np.average(zero, weights=n), np.average(own, weights=n), zero.mean(), own.mean())
            figures = " | ".join(f"{mean:.2f}" for mean in means)
            lines.append(f"| {start:,}-{stop:,} | {len(n)} | {figures} | {(zero < own).sum()} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
