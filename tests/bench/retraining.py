"""What retraining makes of real recordings: `python -m tests.bench.retraining --data DIR [--on NAB,SKAB]`.

Each data set is a site, each recording a device, and all of them send side by side, row by row. The daemon's shard
scores them under the shipped weights; what belonged to one of its alarms is told to the trainer as the daemon tells it.
Then one retraining, as the process does it: forecast loss before and after on the newest quarter, and the verdict.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from models import weights
from streamer.bench.quality import recordings
from streamer.bench.quality.recordings import Recording
from streamer.readings import Batch
from streamer.records import Abnormal
from streamer.registry import Registry
from streamer.retraining import trainer
from streamer.retraining.contract import Request
from streamer.shard import Shard
from tests.retraining.sites import Writer


def write_journal(directory: Path, given: list[Recording]) -> tuple[int, list[tuple[int, float]], list[str]]:
    """Gives the end, the alarms that are open then, and the device of each series."""
    devices = [each.name for each in given for _ in range(each.values.shape[1])]
    first = np.cumsum([0, *(each.values.shape[1] for each in given)])
    writer = Writer(directory)
    writer.admit(range(len(devices)), devices)
    registry = Registry(len(devices), math.inf, math.inf)
    registry.admit_again(list(range(len(devices))), [str(k) for k in range(len(devices))], devices, 0.0, None)
    shard = Shard(registry, weights.load(), len(devices), budget_per_series_month=1.0)
    since: dict[int, float] = {}
    for row in range(max(len(each.time) for each in given)):
        slots, times, values = [], [], []
        for k, each in enumerate(given):
            if row < len(each.time):
                known = np.flatnonzero(np.isfinite(each.values[row]))
                slots.append(first[k] + known)
                times.append(np.full(len(known), each.time[row]))
                values.append(each.values[row, known].astype(np.float64))
        slot, at = np.concatenate(slots), np.concatenate(times)
        writer.group(slot, at, np.concatenate(values))
        batch = Batch(slot.astype(np.int32), at, np.concatenate(values), np.zeros(len(slot), np.uint8))
        shard.process(batch, float(at.max(initial=0.0)))
        is_open = shard.value_alarms.is_open(len(devices))[slot]
        for which, now, opened in zip(slot.tolist(), at.tolist(), is_open.tolist(), strict=True):
            if opened:
                since.setdefault(which, now)
            elif which in since:
                writer.fact(Abnormal(which, since.pop(which), now))
        if row % 500 == 499:
            writer.journal.sync()
    end = writer.end()
    writer.journal.close()
    return end, list(since.items()), devices


def measure(name: str, given: list[Recording], options: argparse.Namespace) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory(prefix="streamer-retraining-") as folder:
        out = Path(folder) / "out"
        out.mkdir()
        end, still, devices = write_journal(Path(folder) / "journal", given)
        began = time.monotonic()
        verdict = trainer.retrain(
            Request(
                journal=str(Path(folder) / "journal"),
                begin=0,
                end=end,
                incumbent=str(weights.BASE),
                out=str(out),
                open_abnormal=still,
                devices=devices,
                max_series_steps=options.steps,
                min_readings=options.least,
                epochs=options.epochs,
                learning_rate=options.learning_rate,
                device=options.device,
            )
        ).verdict
    seconds, found = time.monotonic() - began, verdict.figures
    judged = [f"{float(found.get(key, math.nan)):.3f}" for key in ("loss_before", "loss_after", "gain")]
    noise = f"{2.1 * float(found.get('gain_error', math.nan)):.3f}"
    alarms = "/".join(f"{float(found.get(key, math.nan)):.0f}" for key in ("alarms_before", "alarms_after"))
    shares = (f"{float(found.get(f'lstm_in_charge_{when}', math.nan)):.2f}" for when in ("before", "after"))
    counts = [f"{float(found[key]):.0f}" for key in ("series", "readings", "abnormal_readings")]
    cells = [name, *counts, *judged, noise, alarms, " to ".join(shares)]
    cells += [verdict.result, f"{seconds:.0f}", verdict.reason]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="as of `streamer bench quality`")
    parser.add_argument("--on", default="NAB,SKAB,ASD,SMAP", help="data sets of the list `open`")
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--least", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    names = recordings.select(options.data, ["open"])
    names_of = (
        "set, series, readings, in alarms, loss before, after, gain, +-, alarms, LSTM in charge, verdict, s, reason"
    )
    columns = names_of.split(", ")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for name in options.on.split(","):
        mine = [each for each in names if recordings.dataset_of(each) == name]
        print(measure(name, list(recordings.load(options.data, mine)), options), flush=True)


if __name__ == "__main__":
    main()
